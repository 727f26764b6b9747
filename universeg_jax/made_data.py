"""Datasets made by synthesis.py, so that everything can be tried before any data is at hand.

Each is one synthetic task on disk, with as many subjects as a small study, built as real ones are. They are toys: what
they say about segmentation of real images is little.
"""

from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from universeg_jax import synthesis
from universeg_jax.data.builder import build
from universeg_jax.data.dataset import DatasetMeta, Example, list_datasets

FAMILIES = 12
SUBJECTS = 40
ROLES = {FAMILIES - 3: "val", FAMILIES - 2: "test", FAMILIES - 1: "test"}  # the others: train_open


def make_datasets(data_dir: str | Path, size: int = 128, seed: int = 0) -> list[str]:
    """Builds those of the twelve that are missing in `data_dir`; returns all their names."""
    config = synthesis.get_config()
    draw = jax.jit(lambda key: synthesis.synthetic_episode(key, size, SUBJECTS - 1, config))
    names = [f"made_{family:02d}" for family in range(FAMILIES)]
    built = list_datasets(data_dir)
    for family, name in enumerate(tqdm(names, desc="make", unit="dataset")):
        if name in built:
            continue
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), family)
        episode = jax.device_get(draw(key))
        images = np.concatenate([episode.query_image[None], episode.support_images])[..., 0]
        labels = np.concatenate([episode.query_label[None], episode.support_labels])[..., 0]
        examples = [
            Example(
                image=np.round(255 * image).astype(np.uint8),
                masks=label[None].astype(np.uint8),
                labels=(1,),
                subject=f"{subject:02d}",
                name=f"{subject:02d}",
                modality="synthetic",
            )
            for subject, (image, label) in enumerate(zip(images, labels, strict=True))
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
        build(meta, examples, _itself, data_dir)
    return names


def _itself(example: Example) -> list[Example]:
    return [example]
