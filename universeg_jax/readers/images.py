"""Pictures from files, and the published preprocessing with its inverse.

In order (Butoi et al., ICCV 2023, supplement): intensity window → min-max to [0, 1] → zero-pad to a centred square →
anti-alias blur (σ = ¼ old/new pixels) → linear resize. Masks go through the same pad, blur and resize and are cut at
0.5, the same rule everywhere; it decides what becomes of thin vessels.

Volumes and multi-page files are refused here: nothing of a file is passed over in silence.
"""

import contextlib
import functools
import gzip
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from scipy import sparse

from universeg_jax.errors import UserError
from universeg_jax.readers.file_names import extension

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".ppm.gz")
FORMATS = (
    "PNG",
    "JPEG",
    "TIFF",
    "BMP",
    "GIF",
    "PPM",
)  # by content; Pillow's other decoders are never tried on a stranger's file
MAX_BYTES = 1_000_000_000  # of one file
MAX_PIXELS = 100_000_000  # of one picture; checked before it is decoded
MAX_SIDE = 100_000  # pixels
MAX_CONTOUR_BYTES = 1_000_000
CHATTY = ("nibabel.global", "pydicom", "tifffile")  # loggers that remark on every odd header field
MAX_INTENSITY = 1e30  # beyond it float32 overflows in min-max; such values are markers of missing data


class ImageError(UserError):
    """A file that is no usable picture: "<path>: <problem> (<detail>)".

    `problem` is the same text for every file with this fault, so that faults can be counted by it. `detail` may come
    from a damaged file: whatever it holds, the message is one line that a terminal can show.
    """

    def __init__(self, path: str | Path, problem: str, detail: str = ""):
        detail = " ".join("".join(c if c.isprintable() else " " for c in detail).split())
        super().__init__(str(path), problem, detail)  # as args, so that the error can be pickled
        self.path, self.problem, self.detail = str(path), problem, detail

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" + (f" ({self.detail})" if self.detail else "")


@contextlib.contextmanager
def as_image_errors(path: Path) -> Iterator[None]:
    """Whatever a library raises of a file as one line with its name, and nothing of what it would print."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"), _silence(*CHATTY):
            warnings.simplefilter("ignore")  # of odd header fields; what counts is checked
            yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes libraries raise almost anything
        message = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
        message = message.replace(f"{path.parent}/", "")  # reports must not depend on where files lie
        raise ImageError(path, "cannot be read", message[-160:]) from error


@contextlib.contextmanager
def _silence(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def read_image(path: str | Path) -> np.ndarray:
    """float32 grey [H, W] in the file's own intensities, 8 or 16 bits or float.

    RGB → grey by ITU-R 601 luma (0.299 R + 0.587 G + 0.114 B); an alpha channel is dropped; a picture that says that
    it is to be shown turned (EXIF) is turned, as viewers do. Raises ImageError, also for a picture of one value.
    """
    return check_picture(_decode(path), path)


def check_picture(image: np.ndarray, path: Any) -> np.ndarray:
    """[H, W] or [H, W, C] → float32 grey [H, W]. Raises ImageError, naming `path`, where there is nothing to see."""
    image = to_grey(image)
    if not np.isfinite(image).all():
        raise ImageError(path, "holds NaN or infinite values")
    if np.abs(image).max() > MAX_INTENSITY:
        raise ImageError(path, "holds values that mark missing data", f"up to {np.abs(image).max():g}; set them to 0")
    if image.min() == image.max():
        raise ImageError(path, "every pixel is the same", f"{image.min():g}; there is nothing to see in it")
    return image


def read_label(path: str | Path) -> np.ndarray:
    """int32 class ids [H, W] ≥ 0; a palette picture gives its indices, three equal channels give one.

    Raises ImageError for colours, for JPEG (its compression changes ids) and for values that are not whole.
    """
    return check_label(_decode(path, is_label=True), path)


def check_label(label: np.ndarray, path: Any) -> np.ndarray:
    """[H, W] or [H, W, C] → int32 class ids [H, W], as `read_label`; raises ImageError, naming `path`."""
    if label.ndim == 3:
        if label.shape[2] > 2 and (label[..., :3] != label[..., :1]).any():
            raise ImageError(
                path, "a label in colours", "save class ids as one grey or palette channel, 0 = background"
            )
        label = label[..., 0]
    if label.ndim != 2:
        raise ImageError(path, "a label has a shape that is not [H, W]", str(label.shape))
    if not np.isfinite(label).all() or label.min() < 0 or label.max() >= 2**31 or (label != np.floor(label)).any():
        raise ImageError(path, "values are not class ids", "whole numbers from 0")
    return label.astype(np.int32)


def _decode(path: str | Path, is_label: bool = False) -> np.ndarray:
    """The decoded array [H, W] or [H, W, C]; every way in which decoding fails becomes an ImageError."""
    path = Path(path)
    if extension(path) not in EXTENSIONS:
        raise ImageError(path, "has an extension that is not read", f"convert it to one of {', '.join(EXTENSIONS)}")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ImageError(path, "the file is too large", f"{size:,} bytes; at most {MAX_BYTES:,} are read")
        with warnings.catch_warnings():
            # Of odd tags, and of bombs at half of what Pillow refuses; the limits below are the ones that count.
            warnings.simplefilter("ignore")
            # From an open file: given a path, Pillow 13 maps uncompressed TIFFs and scrambles those to be shown turned.
            with _open(path) as file, Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                    raise ImageError(path, "too many pixels", f"{width}x{height}; at most {MAX_PIXELS:,} are read")
                if getattr(image, "n_frames", 1) > 1 and image.format in ("TIFF", "GIF"):
                    raise ImageError(path, "has several pages", f"{image.n_frames}; save each as a file of its own")
                if is_label and image.format in ("JPEG", "MPO"):
                    raise ImageError(path, "a label in JPEG", "its compression changes class ids; save it as PNG")
                if (image.mode == "P" and not is_label) or image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
                    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
                return np.asarray(ImageOps.exif_transpose(image))
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(path, "cannot be read", f"it is empty, damaged or none of {', '.join(FORMATS)}") from error
    except Exception as error:  # a damaged file makes Pillow raise almost anything, struct.error and KeyError included
        raise ImageError(path, "cannot be read", getattr(error, "strerror", None) or str(error)) from error


def _open(path: Path) -> BinaryIO:
    """The file's bytes; of a compressed one at most those of a picture that would be read."""
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    with gzip.open(path) as file:
        contents = file.read(3 * MAX_PIXELS + 1000)
    return io.BytesIO(contents)


def read_contour(path: str | Path, shape: tuple[int, int]) -> np.ndarray:
    """int32 0/1 [H, W], filled: a text file with a point "x y" of a closed line on each line, in pixels."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_CONTOUR_BYTES:
            raise ImageError(path, "the file is too large", f"a contour has at most {MAX_CONTOUR_BYTES:,} bytes")
        numbers = [float(word) for word in path.read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(path, "cannot be read", getattr(error, "strerror", None) or str(error)) from error
    if len(numbers) < 6 or len(numbers) % 2 or not np.isfinite(numbers).all() or np.abs(numbers).max() > MAX_SIDE:
        raise ImageError(path, "is no contour", "three lines or more with x and y in pixels")
    canvas = Image.new("L", shape[::-1])
    ImageDraw.Draw(canvas).polygon(list(zip(numbers[::2], numbers[1::2], strict=True)), fill=1, outline=1)
    return np.asarray(canvas).astype(np.int32)


def to_grey(image: np.ndarray) -> np.ndarray:
    """[H, W], [H, W, 1..4] → float32 [H, W]; colour by ITU-R 601 luma, alpha dropped."""
    if image.ndim == 3 and image.shape[2] in (1, 2):
        image = image[..., 0]
    if image.ndim == 3 and image.shape[2] in (3, 4):
        red, green, blue = (image[..., channel].astype(np.float32) for channel in range(3))
        image = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    if image.ndim != 2 or 0 in image.shape:
        raise ImageError("a picture", "has a shape that is not [H, W] or [H, W, 3]", str(image.shape))
    return image.astype(np.float32)


def min_max(image: np.ndarray) -> np.ndarray:
    """To [0, 1] float32; a constant image becomes 0."""
    image = image.astype(np.float32)
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else np.zeros_like(image)


def preprocess_image(
    image: np.ndarray, size: int, window: tuple[float, float] | None = None, side: int = 0, scale: bool = True
) -> np.ndarray:
    """[H, W] of any intensities, clipped to `window` if given → float32 [size, size] in [0, 1].

    A slice of a volume is padded to the `side` of its cube and, being in [0, 1] already, not scaled by itself.
    """
    if window is not None:
        image = np.clip(image, *window)
    return np.clip(_to_size(min_max(image) if scale else image, size, side), 0, 1)


def preprocess_mask(mask: np.ndarray, size: int, side: int = 0) -> np.ndarray:
    """Binary [H, W] → uint8 0/1 [size, size]; `side` as for the image."""
    # Weights sum to 1 only up to rounding: without the tolerance an exact half would fall to either side.
    return (_to_size(mask.astype(np.float32), size, side) >= 0.5 - 1e-6).astype(np.uint8)


def restore(probabilities: np.ndarray, shape: tuple[int, int], side: int = 0) -> np.ndarray:
    """Inverse for predictions: [size, size] → float32 [H, W] of the original picture, linear."""
    side, size = side or max(shape), probabilities.shape[0]
    square = _resizer(size, side, 0, size)
    rows, columns = (square[(side - n) // 2 :][:n] for n in shape)
    return _apply(rows, probabilities.astype(np.float32), columns)


def quantize(image: np.ndarray) -> np.ndarray:
    """[0, 1] → uint8, rounded."""
    return np.round(image * 255).astype(np.uint8)


def _to_size(image: np.ndarray, size: int, side: int = 0) -> np.ndarray:
    """Zero-pad to a centred square, blur, resize. Padding needs no copy: its part of the matrices drops out."""
    side = side or max(image.shape)
    rows, columns = (_resizer(side, size, (side - n) // 2, n) for n in image.shape)
    return _apply(rows, image, columns)


def _apply(rows: sparse.csr_array, image: np.ndarray, columns: sparse.csr_array) -> np.ndarray:
    return np.ascontiguousarray((columns @ (rows @ image).T).T)


@functools.lru_cache(maxsize=256)
def _resizer(old: int, new: int, start: int, length: int) -> sparse.csr_array:
    """float32 [new, length]: columns [start, start + length) of the matrix [new, old] that resizes an axis.

    Linear interpolation at half-pixel centres, after a Gaussian blur where it shrinks. Sparse, because few weights of a
    row are not zero, and because a BLAS would start threads for each small product: on busy cores 100 times slower.
    """
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(centres).astype(np.int64)
    high = np.minimum(low + 1, old - 1)
    sigma = old / new / 4 if new < old else 0
    offsets = np.arange(-np.ceil(4 * sigma), np.ceil(4 * sigma) + 1, dtype=np.int64)
    blur = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma else np.ones(1)
    rows, places, weights = [], [], []
    for tap, share in ((low, 1 - (centres - low)), (high, centres - low)):
        place = tap[:, None] + offsets
        weight = np.where((place >= 0) & (place < old), blur, 0)
        weights.append(share[:, None] * weight / weight.sum(1, keepdims=True))
        places.append(np.clip(place, 0, old - 1))
        rows.append(np.broadcast_to(np.arange(new)[:, None], place.shape))
    entries = (np.concatenate(weights, None), (np.concatenate(rows, None), np.concatenate(places, None)))
    matrix = sparse.csr_array(entries, shape=(new, old))[:, start : start + length].astype(np.float32)
    matrix.eliminate_zeros()
    return matrix
