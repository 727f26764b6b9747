r"""The paper's ablations, small enough for two CPU cores: configs/quickstart.py with equal, few steps.

Expected: one table and figure per sweep in its --workdir, with differences to the sweep's first point; see
docs/ablations.md. For the paper's size, which has not been run yet, give --base=configs/release.py.

    universeg ablate --sweep=support_size --workdir=runs/ablations --data_dir=data

The base alone:

    python train.py --config=configs/ablations.py --workdir=runs/base --config.data_dir=data
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from universeg_jax.configs import quickstart
from universeg_jax.configuration import flatten
from universeg_jax.episodes import augment

Add = Callable[..., None]  # add(value, train={field: value}, evaluate={flag: value}); both may be left out


def get_config(arg: str = "") -> ConfigDict:
    """`arg` is not used."""
    if arg:
        raise ValueError(f"configs/ablations.py takes no argument, got {arg!r}")
    config = quickstart.get_config()
    config.make_data = False
    config.eval_every = 100_000  # at the end alone, since no choice depends on it
    config.eval.pictures = 0
    return config


def support_size(add: Add, config: ConfigDict, datasets: list[str], tasks: int) -> None:
    """One model per size, evaluated at that size."""
    for size in (1, 2, 4, 8, 16):
        add(size, train={"support_size": size}, evaluate={"support_size": size})


def num_datasets(add: Add, config: ConfigDict, datasets: list[str], tasks: int) -> None:
    """Nested subsets, by hash of the name; without synthetic tasks, which would fill the gap."""
    for count in doubling(len(datasets)):
        chosen = {"train_datasets": tuple(datasets[:count])} if count < len(datasets) else {}
        add(count, train={**chosen, "kinds.real": 1.0, "kinds.synthetic": 0.0})


def num_tasks(add: Add, config: ConfigDict, datasets: list[str], tasks: int) -> None:
    """Nested subsets, by hash of the task's name, over all datasets."""
    for count in doubling(tasks):
        chosen = {"train_tasks": count} if count < tasks else {}
        add(count, train={**chosen, "kinds.real": 1.0, "kinds.synthetic": 0.0})


def augmentation(add: Add, config: ConfigDict, datasets: list[str], tasks: int) -> None:
    """Levels of augmentation, for real tasks alone, since synthetic ones would fill the gap.

    "published" has both levels as in the paper: unlike "both", stronger geometry within a task, and edges and inverted
    labels as often as the other operations.
    """
    real = {"kinds.real": 1.0, "kinds.synthetic": 0.0}
    for name, kept in (("none", ()), ("in-task", ("in_task",)), ("task", ("task",)), ("both", ("in_task", "task"))):
        off = [level for level in ("in_task", "task") if level not in kept]
        add(name, train=real | {f"augment.{level}.{op}.p": 0.0 for level in off for op in config.augment[level]})
    published = flatten(augment.get_config().to_dict())
    add("published", train=real | {f"augment.{field}": value for field, value in published.items()})


def real_synthetic(add: Add, config: ConfigDict, datasets: list[str], tasks: int) -> None:
    """Real tasks alone, synthetic tasks alone, and both half and half."""
    for name, real, synthetic in (("real", 1.0, 0.0), ("synthetic", 0.0, 1.0), ("both", 0.5, 0.5)):
        add(name, train={"kinds.real": real, "kinds.synthetic": synthetic})


def made_tasks(add: Add, config: ConfigDict, datasets: list[str], tasks: int) -> None:
    """Real tasks alone, and mixed half and half with each kind of synthetic tasks."""
    shapes = {f"synthesis.weights.{family}": float(family == "shapes") for family in config.synthesis.weights}
    added = {f"synthesis.{name}": 0.0 for name in ("union", "texture", "border", "view")}
    add("real", train={"kinds.real": 1.0, "kinds.synthetic": 0.0})
    add("label maps as published", train=shapes | added)
    add("label maps", train=shapes)
    for family in ("tubes", "blobs", "nests"):
        add(f"and {family}", train=shapes | {f"synthesis.weights.{family}": 1.0})
    add("all four")
    add("superpixels", train={"kinds.synthetic": 0.0, "kinds.superpixel": 0.5})


def ensemble(add: Add, config: ConfigDict, datasets: list[str], tasks: int) -> None:
    """One model, different numbers of averaged random supports."""
    for draws in (1, 2, 5, 10):
        add(draws, evaluate={"ensemble": draws})


def pool_size(add: Add, config: ConfigDict, datasets: list[str], tasks: int) -> None:
    """One model, with fewer labelled examples to sample supports from."""
    for size in (1, 4, 16, 64):
        add(size, evaluate={"pool_size": size})
    add("all")


def cross_activation(add: Add, config: ConfigDict, datasets: list[str], tasks: int) -> None:
    """As released, and as in the paper's text."""
    for name in ("none", "leaky_relu"):
        add(name, train={"model.cross_activation": name})


def matching(add: Add, config: ConfigDict, datasets: list[str], tasks: int) -> None:
    """As published, and with heads that compare pixels first."""
    for heads in (0, 1, 4, 8):
        add(heads, train={"model.matching": heads})


def support_schedule(add: Add, config: ConfigDict, datasets: list[str], tasks: int) -> None:
    """The support size fixed, and sampled for each step: uniformly, and log-uniformly."""
    for name in ("fixed", "uniform", "log_uniform"):
        add(name, train={"support_schedule": name})


def width(add: Add, config: ConfigDict, datasets: list[str], tasks: int) -> None:
    """A quarter, a half, and twice the features of each level."""
    for factor in (0.25, 0.5, 1, 2):
        blocks = tuple(int(factor * features) for features in config.model.encoder_blocks)
        add("x".join(map(str, sorted(set(blocks)))), train={"model.encoder_blocks": blocks})


SWEEPS = {
    function.__name__: function
    for function in (
        support_size,
        num_datasets,
        num_tasks,
        augmentation,
        real_synthetic,
        made_tasks,
        ensemble,
        pool_size,
        cross_activation,
        matching,
        support_schedule,
        width,
    )
}


def sweep(add: Add, name: str, config: ConfigDict, datasets: list[str], tasks: int) -> None:
    """Calls `add` for each point of a sweep; `datasets` (by hash) and `tasks` are the usable ones to train on."""
    SWEEPS[name](add, config, datasets, tasks)


def doubling(largest: int) -> list[int]:
    """1, 2, 4, …, and `largest`, which is at least 1.5 times the number before it."""
    return [*(1 << i for i in range(largest.bit_length()) if 3 * (1 << i) <= 2 * largest), largest]


def get(config: ConfigDict, field: str) -> Any:
    """config["a"]["b"] for "a.b"."""
    for part in field.split("."):
        config = config[part]
    return config
