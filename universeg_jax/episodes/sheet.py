"""Contact sheets: what makes tasks and what augments them, to be looked at. A label must follow its image."""

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
from universeg_jax.episode import Episode, stack_examples, to_device_floats
from universeg_jax.episodes import augment, inputs
from universeg_jax.episodes.on_device import plain_episode
from universeg_jax.episodes.sampler import KINDS, SUPERPIXEL, SYNTHETIC, make_sampler, task_name
from universeg_jax.reports.figures import plot_rows
from universeg_jax.startup import jit_for_once

SHEETS = ("synthetic", "superpixel", "augment")
TASKS, SUBJECTS = 12, 8
LEVELS = ("in_task", "task")


class Row(NamedTuple):
    """One row of a sheet: images in [0, 1] and labels, both [n, H, W]."""

    title: str
    images: np.ndarray
    labels: np.ndarray


def draw_sheet(kind: str, config: ConfigDict, path: Path, first: int = 0) -> None:
    """Writes the sheet `kind` of SHEETS as a picture. `first`: index of the first episode that is drawn.

    synthetic, superpixel: twelve tasks of eight subjects before augmentation. augment: an operation a row, with its
    ranges in `config`, on one image, which stands first: of the training data, or synthetic where there is none.
    """
    config = ConfigDict(config).unlock()
    config.support_size = SUBJECTS - 1
    rows = augment_rows(config, first) if kind == "augment" else task_rows(kind, config, first)
    plot_rows(rows, path)


def task_rows(kind: str, config: ConfigDict, first: int = 0) -> list[Row]:
    """TASKS rows of 1 + config.support_size subjects. Raises UserError as training does, for config and data."""
    config = ConfigDict(config)
    config.kinds = ConfigDict({name: float(name == kind) for name in KINDS})
    check_fields(config)
    datasets, _ = inputs.open_data(config)
    sampler = inputs.sampler_of(config, datasets)
    make = jit_for_once(functools.partial(plain_episode, config=config))
    rows = []
    for index in range(first, first + TASKS):
        batch = sampler(index)
        assert batch.kind in (SYNTHETIC, SUPERPIXEL)
        episode, _ = jax.device_get(make(batch.index, batch.kind, batch.episode))
        made_of = task_name(sampler, index).split("/")[0].replace(" of ", "\n")  # without the label's name
        title = f"{index}: {made_of}"
        rows.append(Row(title, *stacked(episode)))
    return rows


def stacked(episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels [1 + S, H, W], the query first."""
    images, labels = stack_examples(jax.device_get(episode))
    return images[..., 0], labels[..., 0]


def augment_rows(config: ConfigDict, first: int = 0) -> list[Row]:
    """A row an operation of a level, then each level and both as configured: the image itself, SUBJECTS - 1 draws."""
    image, label = example(config, first)
    one = Episode(image, label, image[None], label[None], np.ones(1, np.float32))
    rows = []
    for title, changed in settings(config.augment):
        draw = jit_for_once(jax.vmap(lambda index, changed=changed: augmented(index, one, config.seed, changed)))
        drawn = jax.device_get(draw(jnp.arange(first, first + SUBJECTS - 1)))
        rows.append(
            Row(title, *(np.concatenate([x[None], xs])[..., 0] for x, xs in zip((image, label), drawn, strict=True)))
        )
    return rows


def augmented(index: jax.Array, episode: Episode, seed: int, config: ConfigDict) -> tuple[jax.Array, jax.Array]:
    """The query's image and label [H, W, 1] of draw `index`."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), index)
    changed, _ = augment.augment_episode(key, episode, config)
    return changed.query_image, changed.query_label


def settings(config: ConfigDict) -> list[tuple[str, ConfigDict]]:
    """(title, config.augment) of the rows of the sheet: one operation at a time is certain, all others off."""

    def only(*kept: str) -> ConfigDict:
        """The operations `kept`, "level" or "level.op", as configured; the others off."""
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
    """Image and label [H, W, 1] to augment: a query of the training data, or a synthetic one where there is none."""
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
