"""Checks that images and volumes share: sizes before anything is decoded, intensities after.

The limits protect against damaged headers and decompression bombs. Values of labels are checked in `labels.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from universeg_jax.readers.errors import ImageError

LFS_START, LFS_BYTES = b"version https://git-lfs.github.com/spec/", 1024
MAX_BYTES = 1_000_000_000  # of one file
MAX_PIXELS = 100_000_000  # of one image
MAX_SIDE = 100_000  # pixels
MAX_VOXELS = 600_000_000  # of one volume, before and after resampling
MAX_INTENSITY = 1e30  # float32 overflows in min-max beyond it; such values mark missing data


def check_bytes(path: Path) -> None:
    """Raises ImageError for a file that is too large, and for what Git leaves in place of a large file."""
    size = path.stat().st_size
    if len(LFS_START) < size < LFS_BYTES:
        with path.open("rb") as file:
            if file.read(len(LFS_START)) == LFS_START:
                raise ImageError(path, "is a pointer of Git LFS, not the file itself", "run git lfs pull")
    if size > MAX_BYTES:
        raise ImageError(path, "the file is too large", f"{size:,} bytes; at most {MAX_BYTES:,} are read")


def check_pixels(path: Any, width: int, height: int) -> None:
    """Raises ImageError for a header that announces too many pixels."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise too_many_pixels(path, f"{width}x{height}")


def too_many_pixels(path: Any, size: str) -> ImageError:
    """The error for an image of `size` pixels, with the way around it."""
    side = int(MAX_PIXELS**0.5)
    remedy = f"cut it into tiles of at most {side:,}x{side:,}, predict these and join the masks, or shrink it"
    return ImageError(path, "too many pixels", f"{size}; at most {MAX_PIXELS:,} are read: {remedy}")


def check_voxels(path: Any, shape: Sequence[int], spacing: str = "") -> None:
    """Raises ImageError for a header that announces too many voxels or none, or for a grid that is too fine."""
    if any(n < 1 for n in shape) or np.prod(shape, dtype=float) > MAX_VOXELS:
        sizes = "x".join(map(str, shape)) + (f" at {spacing}" if spacing else "")
        raise ImageError(path, "too many voxels or none", f"{sizes}; at most {MAX_VOXELS:,} are read")


def check_intensities(data: np.ndarray, path: Any) -> None:
    """Raises ImageError for intensities of an image or volume that are not finite, mark missing data or are all equal.

    `path` is what the message names: a path, or an object that prints as a name.
    """
    if not np.isfinite(data).all():
        raise ImageError(path, "holds NaN or infinite values", "set them to 0")
    largest = np.abs(data).max()
    if largest > MAX_INTENSITY:
        raise ImageError(path, "holds values that mark missing data", f"up to {largest:g}; set them to 0")
    if data.min() == data.max():
        element = "voxel" if data.ndim == 3 else "pixel"
        raise ImageError(path, f"every {element} is the same", f"{data.flat[0]:g}; there is nothing to see in it")
