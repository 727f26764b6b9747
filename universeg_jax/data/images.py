"""Pictures from files, and the published preprocessing with its inverse.

In order (Butoi et al., ICCV 2023, supplement): intensity window → min-max to [0, 1] → zero-pad to a centred square →
anti-alias blur (σ = ¼ old/new pixels) → linear resize. Masks go through the same pad, blur and resize and are cut at
0.5, the same rule everywhere; it decides what becomes of thin vessels.
"""

import functools
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from universeg_jax.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MAX_PIXELS = 100_000_000  # of one picture; larger files are refused before they are decoded


class ImageError(UserError):
    """A file that is no usable picture; the message names the file and says why."""


def read_image(path: str | Path) -> np.ndarray:
    """float32 grey [H, W] in the file's own intensities. RGB → grey by ITU-R 601 luma; an alpha channel is dropped."""
    image = to_grey(_open(path))
    if not np.isfinite(image).all():
        raise ImageError(f"{path}: holds NaN or infinite values")
    if image.min() == image.max():
        raise ImageError(f"{path}: every pixel is {image.min():g}; there is nothing to see in it")
    return image


def read_label(path: str | Path) -> np.ndarray:
    """int32 class ids [H, W]; a palette picture gives its indices."""
    label = _open(path, indices=True)
    if label.ndim == 3:
        if label.shape[2] == 2 or (label[..., :3] == label[..., :1]).all():  # grey with alpha
            label = label[..., 0]
        else:
            raise ImageError(
                f"{path}: a label in colours; save class ids as one grey or palette channel (0 = background)"
            )
    if not np.isfinite(label).all() or (label != np.floor(label)).any() or label.min() < 0 or label.max() >= 2**31:
        raise ImageError(f"{path}: values are not class ids (whole numbers from 0)")
    return label.astype(np.int32)


def _open(path: str | Path, indices: bool = False) -> np.ndarray:
    """The decoded array [H, W] or [H, W, C]; every way in which decoding fails becomes an ImageError."""
    path = Path(path)
    if path.suffix.lower() not in EXTENSIONS:
        raise ImageError(f"{path}: extension {path.suffix!r} is not read; convert it to one of {', '.join(EXTENSIONS)}")
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of what it refuses; our own limit below is the one that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(f"{path}: {image.width}x{image.height} pixels; at most {MAX_PIXELS} are read")
                if (image.mode == "P" and not indices) or image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
                    image = image.convert("RGB")
                return np.asarray(image)
    except ImageError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(
            f"{path}: cannot be read as a picture ({error}); it may be truncated or of another type"
        ) from error


def to_grey(image: np.ndarray) -> np.ndarray:
    """[H, W], [H, W, 1..4] → float32 [H, W]; colour by ITU-R 601 luma, alpha dropped."""
    if image.ndim == 3 and image.shape[2] in (1, 2):
        image = image[..., 0]
    if image.ndim == 3 and image.shape[2] in (3, 4):
        image = image[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    if image.ndim != 2 or 0 in image.shape:
        raise ImageError(f"a picture has shape {image.shape}; [H, W] or [H, W, 3] is needed")
    return image.astype(np.float32)


def min_max(image: np.ndarray) -> np.ndarray:
    """To [0, 1] float32; a constant image becomes 0."""
    image = image.astype(np.float32)
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else np.zeros_like(image)


def preprocess_image(image: np.ndarray, size: int) -> np.ndarray:
    """[H, W] of any intensities → float32 [size, size] in [0, 1]."""
    return np.clip(_to_size(min_max(image), size), 0, 1)


def preprocess_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Binary [H, W] → uint8 0/1 [size, size]."""
    return (_to_size(mask.astype(np.float32), size) >= 0.5 - 1e-6).astype(np.uint8)


def restore(probabilities: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Inverse for predictions: [size, size] → float32 [H, W] of the original picture."""
    side = max(shape)
    matrix = _resize_matrix(probabilities.shape[0], side)
    square = matrix @ probabilities.astype(np.float32) @ matrix.T
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    return square[top : top + shape[0], left : left + shape[1]]


def quantize(image: np.ndarray) -> np.ndarray:
    """[0, 1] → uint8, rounded."""
    return np.round(image * 255).astype(np.uint8)


def _to_size(image: np.ndarray, size: int) -> np.ndarray:
    """Zero-pad to a centred square, blur, resize. Padding needs no copy: its part of the matrices drops out."""
    side = max(image.shape)
    matrix = _resize_matrix(side, size)
    top, left = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
    return matrix[:, top : top + image.shape[0]] @ image @ matrix[:, left : left + image.shape[1]].T


@functools.lru_cache(maxsize=256)
def _resize_matrix(old: int, new: int) -> np.ndarray:
    """float32 [new, old]: linear interpolation at half-pixel centres, after a Gaussian blur where it shrinks."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    matrix = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(old)))
    if new < old:
        sigma = old / new / 4
        distance = np.arange(old)[:, None] - np.arange(old)
        blur = np.where(np.abs(distance) <= np.ceil(4 * sigma), np.exp(-0.5 * (distance / sigma) ** 2), 0)
        matrix = matrix @ (blur / blur.sum(1, keepdims=True))
    matrix = matrix.astype(np.float32)
    matrix.setflags(write=False)
    return matrix
