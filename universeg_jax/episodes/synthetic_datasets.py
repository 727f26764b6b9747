"""Synthetic datasets, for a first try without data.

Each is one synthetic task on disk with as many subjects as a small study, built like a real dataset. Scores on them say
little about real images.
"""

import functools
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from universeg_jax.data.builder import build
from universeg_jax.data.dataset import DatasetMeta, list_datasets
from universeg_jax.episode import Episode, stack_examples
from universeg_jax.episodes import synthesis
from universeg_jax.readers.cases import Example

FAMILIES = 12
SUBJECTS = 40
ROLES = {FAMILIES - 3: "val", FAMILIES - 2: "test", FAMILIES - 1: "test"}  # the others: train_open
NAMES = tuple(f"made_{family:02d}" for family in range(FAMILIES))


def make_datasets(data_dir: str | Path, size: int = 128, seed: int = 0) -> list[str]:
    """Builds the missing ones of twelve datasets in `data_dir`; returns the names of all."""
    built = list_datasets(data_dir)
    for family, name in enumerate(tqdm(NAMES, desc="make", unit="dataset")):
        if name in built:
            continue
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), family)
        examples = [
            Example(
                image=image,
                masks=label[None],
                labels=(1,),
                subject=f"{subject:02d}",
                name=f"{subject:02d}",
                modality="synthetic",
            )
            for subject, (image, label) in enumerate(zip(*sample_subjects(key, size, SUBJECTS), strict=True))
        ]
        meta = DatasetMeta(
            name=name,
            role=ROLES.get(family, "train_open"),
            labels={1: "foreground"},
            size=size,
            modality="synthetic",
            licence="CC0 1.0",
            citation="made by universeg_jax",
        )
        build(meta, examples, _unchanged, data_dir)
    return [*NAMES]


def sample_subjects(key: jax.Array, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples (images, labels), uint8 [count, size, size], of a synthetic task without duplicate images.

    A task repeats subjects if few show its label; it is then sampled with twice as many until enough differ.
    """
    sampled = count
    while True:
        episode = _synthetic_subjects(key, size, sampled - 1)
        images, labels = (np.asarray(x)[..., 0] for x in stack_examples(episode))
        images = np.round(255 * images).astype(np.uint8)
        first = np.sort(np.unique(images.reshape(sampled, -1), axis=0, return_index=True)[1])[:count]
        if len(first) == count:
            return images[first], labels[first].astype(np.uint8)
        sampled *= 2


@functools.partial(jax.jit, static_argnums=(1, 2))
def _synthetic_subjects(key: jax.Array, size: int, support_size: int) -> Episode:
    return synthesis.synthetic_episode(key, size, support_size, synthesis.get_config())


def _unchanged(example: Example) -> list[Example]:
    return [example]
