"""Plots one episode of a run, before and after augmentation."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from universeg_jax.episode import Episode, stack_examples
from universeg_jax.episodes.on_device import device_episode, plain_episode, support_size_of, trim_support
from universeg_jax.episodes.sampler import EpisodeSampler, task_name
from universeg_jax.reports.figures import plot_rows
from universeg_jax.startup import jit_for_once

COLUMNS = 13


def plot_episode(sampler: EpisodeSampler, index: int, config: ConfigDict, path: Path) -> Path:
    """Plots one episode, the query first: rows as made, each above the same row augmented."""
    batch = jax.tree.map(lambda x: np.asarray(x)[None], sampler(index))
    batch = trim_support(batch, *support_size_of(index // config.batch_size, config))
    one = jax.tree.map(lambda x: x[0], batch)

    @jit_for_once
    def both(index: jax.Array, kind: jax.Array, raw: Episode) -> tuple[Episode, Episode]:
        return plain_episode(index, kind, raw, config)[0], device_episode(index, kind, raw, config)[0]

    rows = []
    for title, episode in zip(("raw", "augmented"), jax.device_get(both(*one[:2], one.episode)), strict=True):
        count = 1 + int(episode.support_mask.sum())
        images, labels = (x[:count, ..., 0] for x in stack_examples(episode))
        columns = min(len(images), COLUMNS)
        gap = [(0, -len(images) % columns), (0, 0), (0, 0)]  # pads the last row
        images, labels = np.pad(images, gap, constant_values=np.nan), np.pad(labels, gap)
        parts = (x.reshape(-1, columns, *x.shape[1:]) for x in (images, labels))
        rows.append([(title, *part) for part in zip(*parts, strict=True)])
    title = f"episode {index} of seed {config.seed}: {task_name(sampler, index)}"
    plot_rows([row for pair in zip(*rows, strict=True) for row in pair], path, title)
    return path
