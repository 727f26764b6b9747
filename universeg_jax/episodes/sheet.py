"""Contact sheets of made tasks and of augmentation, to check that labels follow their images."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from universeg_jax.configuration import check_fields
from universeg_jax.data.dataset import list_datasets
from universeg_jax.data.tasks import task_table, usable
from universeg_jax.episode import Array, Episode, stack_examples, to_device_floats
from universeg_jax.episodes import augment, inputs
from universeg_jax.episodes.on_device import plain_episode
from universeg_jax.episodes.sampler import KINDS, make_sampler, task_name
from universeg_jax.reports.figures import plot_rows
from universeg_jax.startup import jit_for_once

SHEETS = ("synthetic", "superpixel", "painted", "augment")
TASKS, SUBJECTS = 12, 8
LEVELS = ("in_task", "task")


class SheetRow(NamedTuple):
    """One row of a sheet: images in [0, 1] and labels, both [n, H, W]."""

    title: str
    images: np.ndarray
    labels: np.ndarray


def write_sheet(kind: str, config: ConfigDict, path: Path, first: int = 0) -> None:
    """Writes the sheet `kind` of SHEETS as an image. `first`: index of the first episode.

    synthetic, superpixel, painted: twelve tasks of eight subjects before augmentation. augment: one operation per row,
    with its ranges in `config`, applied to the image in the first column; it is from the training data, or synthetic
    without.
    """
    config = ConfigDict(config).unlock()
    config.support_size = SUBJECTS - 1
    rows = augment_rows(config, first) if kind == "augment" else task_rows(kind, config, first)
    plot_rows(rows, path)


def task_rows(kind: str, config: ConfigDict, first: int = 0) -> list[SheetRow]:
    """TASKS rows of 1 + config.support_size subjects. Raises UserError for config and data as training does."""
    config = ConfigDict(config)
    config.kinds = ConfigDict({name: float(name == kind) for name in KINDS})
    check_fields(config)
    datasets, _ = inputs.open_data(config)
    sampler = inputs.open_sampler(config, datasets)
    make = jit_for_once(functools.partial(plain_episode, config=config))
    rows = []
    for index in range(first, first + TASKS):
        batch = sampler(index)
        episode, _ = jax.device_get(make(batch.index, batch.kind, batch.episode))
        made_of = task_name(sampler, index).split("/")[0]  # without the label's name
        made_of = made_of.replace(" of ", "\n").replace("painted ", "painted\n")
        title = f"{index}: {made_of}"
        rows.append(SheetRow(title, *stacked(episode)))
    return rows


def stacked(episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels [1 + S, H, W], the query first."""
    images, labels = (np.asarray(x)[..., 0] for x in stack_examples(episode))
    return images, labels


def augment_rows(config: ConfigDict, first: int = 0) -> list[SheetRow]:
    """One row per operation of a level, then each level and both: the image, and SUBJECTS - 1 augmented versions."""
    image, label = example(config, first)
    one = Episode(image, label, image[None], label[None], np.ones(1, np.float32))
    rows = []
    for title, changed in settings(config.augment):
        augment_all = jit_for_once(jax.vmap(lambda index, changed=changed: augmented(index, one, config.seed, changed)))
        columns = jax.device_get(augment_all(jnp.arange(first, first + SUBJECTS - 1)))
        rows.append(
            SheetRow(
                title, *(np.concatenate([x[None], xs])[..., 0] for x, xs in zip((image, label), columns, strict=True))
            )
        )
    return rows


def augmented(index: jax.Array, episode: Episode, seed: int, config: ConfigDict) -> tuple[Array, Array]:
    """Augmented image and label [H, W, 1] of the query, number `index`."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), index)
    changed, _ = augment.augment_episode(key, episode, config)
    return changed.query_image, changed.query_label


def settings(config: ConfigDict) -> list[tuple[str, ConfigDict]]:
    """(title, config.augment) of each row: first with one operation of probability 1 and all others off."""

    def only(*kept: str) -> ConfigDict:
        """Keeps the operations `kept`, "level" or "level.op", as configured; the others are off."""
        new = config.copy_and_resolve_references()
        for level in LEVELS:
            for op, section in new[level].items():
                if level not in kept and f"{level}.{op}" not in kept:
                    section.p = 0.0
        return new

    rows = []
    for level in LEVELS:
        for op in config[level]:
            alone = only(f"{level}.{op}")
            alone[level][op].p = 1.0
            rows.append((f"{level} {op}\np {config[level][op].p:g}", alone))
    return [*rows, *((f"{level}, all", only(level)) for level in LEVELS), ("both, all", only(*LEVELS))]


def example(config: ConfigDict, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and label [H, W, 1] to augment: a query of the training data, or a synthetic one without data."""
    if not list_datasets(config.data_dir):
        row = task_rows("synthetic", config, index)[0]
        return row.images[0][..., None], row.labels[0][..., None]
    config = ConfigDict(config)
    config.kinds = ConfigDict({name: float(name == "real") for name in KINDS})
    check_fields(config)
    datasets, _ = inputs.open_data(config)
    tasks = usable(task_table(datasets, config.min_label_density))
    raw = make_sampler(datasets, tasks, seed=config.seed, support_size=1)(index).episode
    episode = jax.device_get(to_device_floats(jax.tree.map(jnp.asarray, raw), config.image_size))
    return episode.query_image, episode.query_label
