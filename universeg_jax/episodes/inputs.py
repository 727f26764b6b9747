"""Opens the datasets, tasks and episode sampler of a config."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from universeg_jax.configuration import ConfigError
from universeg_jax.data.dataset import Dataset, list_datasets, open_dataset
from universeg_jax.data.tasks import Task, check_groups, subject_hash, task_table, usable
from universeg_jax.episodes.sampler import KINDS, EpisodeSampler, make_sampler


def open_data(config: ConfigDict) -> tuple[list[Dataset], list[Dataset]]:
    """Opens the (training, validation) datasets of config.data_dir. Raises UserError, also if both share a source."""
    datasets = [open_dataset(config.data_dir, name) for name in list_datasets(config.data_dir)]
    needed = any(config.kinds[name] for name in KINDS if name != "synthetic")
    train = [d for d in datasets if d.meta.role in tuple(config.train_roles) and needed]
    if missing := sorted(set(config.train_datasets) - {d.meta.name for d in train}):
        found = ", ".join(d.meta.name for d in train) or "none"
        raise ConfigError(f"config.train_datasets: {', '.join(missing)} not among those to train on ({found})")
    named = set(config.train_datasets) or {d.meta.name for d in train}
    train = [d for d in train if d.meta.name in named - set(config.train_without)]
    validation = [d for d in datasets if d.meta.role == config.val_role]
    if needed and not train:
        found = ", ".join(f"{d.meta.name} ({d.meta.role})" for d in datasets) or "nothing"
        raise ConfigError(
            f"no dataset of roles {tuple(config.train_roles)} in {config.data_dir} (there: {found}; left out: "
            f"{', '.join(config.train_without) or 'none'}); "
            "build one with `universeg build --folder DIR --name N --data_dir D --role train_open`"
        )
    check_groups(dataset.meta for dataset in (*train, *validation))
    return train, validation


def open_tasks(config: ConfigDict, datasets: Sequence[Dataset]) -> list[Task]:
    """The training tasks, unusable ones included; or config.train_tasks of the usable ones, chosen by hash."""
    tasks = task_table(datasets, config.min_label_density)
    good = usable(tasks) if datasets else []  # raises with every reason if there are none
    if config.train_tasks > len(good):
        raise ConfigError(f"config.train_tasks={config.train_tasks}: there are {len(good)} usable training tasks")
    if not config.train_tasks:
        return tasks
    names = sorted((task.name for task in good), key=lambda name: subject_hash("train_tasks", name))
    kept = set(names[: config.train_tasks])
    return [task for task in good if task.name in kept]


def kind_shares(config: ConfigDict) -> dict[str, float]:
    """Probabilities of `make_sampler` from the weights config.kinds."""
    total = sum(config.kinds[name] for name in KINDS)
    return {name: config.kinds[name] / total for name in ("synthetic", "superpixel", "painted")}


def open_sampler(config: ConfigDict, train_data: list[Dataset]) -> EpisodeSampler:
    """Makes the sampler of a run. Raises UserError if it has no usable task."""
    return make_sampler(
        train_data,
        open_tasks(config, train_data),
        seed=config.seed,
        support_size=config.support_size,
        **kind_shares(config),
        replacement=config.replacement,
        size=config.image_size,
        draw=config.draw,
        label_union=config.label_union,
        all_labels=config.all_labels,
    )
