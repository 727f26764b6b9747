"""Images and 2D labels from files: PNG, JPEG, TIFF, BMP, GIF, PPM and text files of contours.

Volumes and files of several pages are refused, so that no part of a file is dropped silently.
"""

import gzip
import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from universeg_jax.readers import checks
from universeg_jax.readers.errors import ImageError, as_image_errors
from universeg_jax.readers.file_names import IMAGE_EXTENSIONS, extension
from universeg_jax.readers.labels import check_label
from universeg_jax.readers.preprocess import to_grey

# Formats by content. Pillow's other decoders are never tried on a stranger's file.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM")
MAX_CONTOUR_BYTES = 1_000_000


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image as float32 grey [H, W] in the file's own intensities, 8 or 16 bits or float.

    Colour becomes grey by `to_grey`, alpha is dropped and the EXIF orientation is applied, as viewers do. Raises
    ImageError, also for an image of one value.
    """
    return check_image(_decode(Path(path)), path)


def check_image(image: np.ndarray, path: Any) -> np.ndarray:
    """[H, W] or [H, W, C] → float32 grey [H, W]. Raises ImageError, naming `path`, where there is nothing to see."""
    image = to_grey(image)
    checks.check_intensities(image, path)
    return image


def read_label(path: str | Path) -> np.ndarray:
    """Reads int32 class ids [H, W] ≥ 0; a palette image gives its indices, equal channels count as one.

    Raises ImageError for colours, for JPEG (its compression changes ids) and for values that are not whole.
    """
    return check_label(_decode(Path(path), is_label=True), path)


def read_colours(path: str | Path) -> np.ndarray:
    """Reads the colours of a label as uint8 [H, W, 3]; a palette gives its colours. Raises ImageError."""
    path = Path(path)
    with as_image_errors(path):
        checks.check_bytes(path)
        with Image.open(path, formats=FORMATS) as image:
            checks.check_pixels(path, *image.size)
            if image.format in ("JPEG", "MPO"):
                raise ImageError(path, "a label in JPEG", "its compression changes colours; save it as PNG")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def read_contour(path: str | Path, shape: tuple[int, int]) -> np.ndarray:
    """Reads a closed line as a filled int32 0/1 [H, W]; each line of the text file is a point "x y" in pixels."""
    path = Path(path)
    with as_image_errors(path):
        if path.stat().st_size > MAX_CONTOUR_BYTES:
            raise ImageError(path, "the file is too large", f"a contour has at most {MAX_CONTOUR_BYTES:,} bytes")
        numbers = [float(word) for word in path.read_text(encoding="utf-8").split()]
    if (
        len(numbers) < 6
        or len(numbers) % 2
        or not np.isfinite(numbers).all()
        or max(map(abs, numbers)) > checks.MAX_SIDE
    ):
        raise ImageError(path, "is no contour", "three lines or more with x and y in pixels")
    canvas = Image.new("L", shape[::-1])
    ImageDraw.Draw(canvas).polygon(list(zip(numbers[::2], numbers[1::2], strict=True)), fill=1, outline=1)
    return np.asarray(canvas).astype(np.int32)


def _decode(path: Path, is_label: bool = False) -> np.ndarray:
    """Decodes to [H, W] or [H, W, C]; every way in which decoding fails becomes an ImageError."""
    if extension(path) not in IMAGE_EXTENSIONS:
        raise ImageError(
            path, "has an extension that is not read", f"convert it to one of {', '.join(IMAGE_EXTENSIONS)}"
        )
    with as_image_errors(path):
        checks.check_bytes(path)
        try:
            # From an open file: given a path, Pillow 13 maps uncompressed TIFFs and scrambles rotated ones.
            with _open(path) as file, Image.open(file, formats=FORMATS) as image:
                return _pixels(path, image, is_label)
        except UnidentifiedImageError as error:
            raise ImageError(path, "cannot be read", f"it is empty, damaged or none of {', '.join(FORMATS)}") from error


def _pixels(path: Path, image: Image.Image, is_label: bool) -> np.ndarray:
    checks.check_pixels(path, *image.size)
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format in ("TIFF", "GIF"):
        raise ImageError(path, "has several pages", f"{pages}; save each as a file of its own")
    if is_label and image.format in ("JPEG", "MPO"):
        raise ImageError(path, "a label in JPEG", "its compression changes class ids; save it as PNG")
    upright = ImageOps.exif_transpose(image)
    if (image.mode == "P" and not is_label) or image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        upright = upright.convert("RGB")
    return np.asarray(upright)


def _open(path: Path) -> BinaryIO:
    """Opens the file; of a gzip file reads at most the bytes of an image of MAX_PIXELS."""
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    with gzip.open(path) as file:
        return io.BytesIO(file.read(3 * checks.MAX_PIXELS + 1000))
