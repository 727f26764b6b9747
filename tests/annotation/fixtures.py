"""Small projects of images and volumes."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.fixtures import block_volume, write_folder, write_nifti
from universeg_jax.annotation.project import create
from universeg_jax.readers.images import read_label


def image_project(path: Path, count: int = 5, **options) -> tuple[Path, dict[str, np.ndarray]]:
    """(a project of images with discs, the true label of each)."""
    source = write_folder(path / "source", count)
    create(path / "project", source, options.pop("labels", {1: "disc"}), **options)
    return path / "project", {f.stem: read_label(f) for f in sorted((source / "labels").iterdir())}


def volume_project(path: Path, shape=(12, 14, 5), count: int = 1, **options) -> tuple[Path, dict[str, np.ndarray]]:
    """(a project of volumes with a block, the true labels), sliced along the last axis, which runs down in the file."""
    truth = {}
    for i in range(count):
        image, truth[f"scan{i}"] = block_volume(shape, seed=i)
        write_nifti(path / "source" / f"scan{i}.nii.gz", image, (1.0, 1.0, -3.0))
    create(path / "project", path / "source", options.pop("labels", {1: "block"}), **options)
    return path / "project", truth


def write_mask(path: Path, mask: np.ndarray) -> Path:
    Image.fromarray(mask.astype(np.uint8)).save(path)
    return path
