"""Images and 2D labels from files: PNG, JPEG, TIFF, BMP, GIF, PPM, WebP, JPEG 2000 and text files of contours.

Volumes and files of several pages are refused, so that no part of a file is dropped silently.
"""

import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from universeg_jax.readers import checks
from universeg_jax.readers.errors import ImageError, as_image_errors
from universeg_jax.readers.file_names import IMAGE_EXTENSIONS, extension
from universeg_jax.readers.label_values import mask_of_lossy
from universeg_jax.readers.labels import check_label, one_channel
from universeg_jax.readers.notes import note
from universeg_jax.readers.palettes import check_palette, check_transparency
from universeg_jax.readers.preprocess import to_grey
from universeg_jax.readers.tiff import TURNS, read_tiff_image, turned

# Formats by content. Pillow's other decoders are never tried on a stranger's file.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", "WEBP", "JPEG2000")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG_START = b"\x89PNG\r\n\x1a\n"
RGB, GREY_ALPHA = 2, 4
COLOUR_TYPES = (RGB, GREY_ALPHA, 6)  # of a PNG: RGB, grey with alpha, RGBA
ORIENTATION, PHOTOMETRIC = 0x0112, 0x0106  # tags of EXIF and TIFF
SWAPS_SIDES = 5  # from this orientation on, rows and columns are exchanged
WEBP_HEAD = 4096  # bytes that hold the first chunks
MAX_TINT = 24  # by which the channels of grey differ after such a compression
MAX_CONTOUR_BYTES = 1_000_000
Source = str | Path | bytes | Image.Image  # a file, its contents, or an opened image


def read_image(source: Source, name: Any = "", upright: bool = True) -> np.ndarray:
    """Reads an image as float32 grey [H, W] in its own intensities, 8 or 16 bits or float.

    Colour becomes grey by `to_grey`, alpha is dropped and the EXIF orientation is applied, as viewers do, unless
    `upright` is False. Raises ImageError, also for an image of one value; it names the file, else `name`.
    """
    return check_image(_decode(source, name, False, upright), _name(source, name))


def check_image(image: np.ndarray, path: Any) -> np.ndarray:
    """[H, W] or [H, W, C] → float32 grey [H, W]. Raises ImageError, naming `path`, where there is nothing to see."""
    image = to_grey(image, path)
    checks.check_intensities(image, path)
    return image


def read_label(source: Source, name: Any = "", ignored: Sequence[int] = ()) -> np.ndarray:
    """Reads int32 class ids [H, W] ≥ 0; a palette image gives its indices, equal channels count as one.

    Raises ImageError for colours, for values that are not whole, and for JPEG and the like, which change values, unless
    they pile up at 0 and 255: then the upper half is the mask, which a note says. `ignored` values are no classes.
    """
    return check_label(_decode(source, name, True), _name(source, name), ignored)


def is_drawn_on_raw(image: Source, label: Source, name: Any = "") -> bool:
    """True where a label has the sides of its image before the image's EXIF orientation is applied, not after.

    Notes say so, and say where both would fit, because then nobody can tell.
    """
    path = _name(image, name)
    try:
        with as_image_errors(Path(str(path))):
            (height, width), turn = _sides(image)
            if turn == 1:
                return False
            sides, label_turn = _sides(label)
    except ImageError:  # a damaged file, which is reported when it is read, or a TIFF that Pillow cannot open
        return False
    if label_turn == turn:
        return False
    label_sides = sides[::-1] if label_turn >= SWAPS_SIDES else sides
    upright = (width, height) if turn >= SWAPS_SIDES else (height, width)
    if label_sides != upright and label_sides == (height, width):
        note(path, "its label was drawn before the EXIF orientation was applied, so the image is not turned")
        return True
    if label_sides == upright and upright == (height, width):
        note(
            path,
            "its EXIF orientation turns it, its label has none: the label is taken as drawn on the upright image; if "
            "it was drawn on the raw pixels, save the image without the orientation",
        )
    return False


def is_turned(source: Source) -> bool:
    """True for an image with an EXIF orientation that turns or mirrors it."""
    try:
        with as_image_errors(Path(str(_name(source, "")))):
            return _sides(source)[1] in TURNS
    except ImageError:  # a TIFF that Pillow cannot open
        return False


def _sides(source: Source) -> tuple[tuple[int, int], int]:
    """((height, width) as stored, EXIF orientation) from the header."""
    if isinstance(source, Image.Image):
        return source.size[::-1], int(source.getexif().get(ORIENTATION, 1))
    opened = io.BytesIO(source) if isinstance(source, bytes) else _open(Path(source))
    with opened as file, Image.open(file, formats=FORMATS) as image:
        return image.size[::-1], int(image.getexif().get(ORIENTATION, 1))


def read_colours(path: str | Path) -> np.ndarray:
    """Reads the colours of a label as uint8 [H, W, 3]; a palette gives its colours, and what is transparent is black.

    Raises ImageError.
    """
    path = Path(path)
    with as_image_errors(path):
        checks.check_bytes(path)
        with Image.open(path, formats=FORMATS) as image:
            checks.check_pixels(path, *image.size)
            if lossy := lossy_format(image):
                raise ImageError(path, f"a label in {lossy}", "its compression changes colours; save it as PNG")
            colours = np.array(ImageOps.exif_transpose(image).convert("RGBA"))
            return np.where(colours[..., 3:] > 0, colours[..., :3], np.uint8(0))


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


def _name(source: Source, name: Any) -> Any:
    return source if isinstance(source, str | Path) else (name or "an image")


def _decode(source: Source, name: Any, is_label: bool, upright: bool = True) -> np.ndarray:
    """Decodes to [H, W] or [H, W, C]; every way in which decoding fails becomes an ImageError."""
    path = _name(source, name)
    if isinstance(source, str | Path) and extension(source) not in IMAGE_EXTENSIONS:
        raise ImageError(
            path, "has an extension that is not read", f"convert it to one of {', '.join(IMAGE_EXTENSIONS)}"
        )
    with as_image_errors(Path(str(path))):
        if isinstance(source, Image.Image):
            return _pixels(path, source, is_label, upright)
        if not isinstance(source, bytes):
            source = Path(source)
            checks.check_bytes(source)
        try:
            # From an open file: given a path, Pillow 13 maps uncompressed TIFFs and scrambles rotated ones.
            with io.BytesIO(source) if isinstance(source, bytes) else _open(source) as file:
                return _decode_file(path, file, is_label, upright)
        except UnidentifiedImageError as error:
            raise ImageError(path, "cannot be read", f"it is empty, damaged or none of {', '.join(FORMATS)}") from error
        except Image.DecompressionBombError as error:
            raise checks.too_many_pixels(path, str(error).partition("(")[2].partition(")")[0]) from error


def _decode_file(path: Any, file: BinaryIO, is_label: bool, upright: bool) -> np.ndarray:
    start = file.read(26)
    file.seek(0)
    if start[:4] in TIFF_STARTS:
        return read_tiff_image(file, path, is_label, upright)
    with Image.open(file, formats=FORMATS) as image:
        checks.check_pixels(path, *image.size)
        if start[:8] == PNG_START and start[24] == 16 and start[25] in COLOUR_TYPES:  # Pillow keeps 8 of the 16 bits
            turn = int(image.getexif().get(ORIENTATION, 1))
            file.seek(0)
            return turned(_decode_png16(file.read()), turn if upright else 1)
        return _pixels(path, image, is_label, upright)


def _decode_png16(data: bytes) -> np.ndarray:
    """uint16 [H, W, C] of a PNG with 16 bits per channel and several channels.

    Pillow unpacks such pixels to 8 bits, the upper ones or, where it is told that the lower byte comes first, the lower
    ones; of grey with alpha it can be made to keep all four bytes.
    """
    if data[25] == GREY_ALPHA:
        pairs = _decode_as(data, "RGBA", "RGBA")
        return pairs[..., 0::2] << 8 | pairs[..., 1::2]
    mode = "RGB" if data[25] == RGB else "RGBA"
    return _decode_as(data, mode, f"{mode};16B") << 8 | _decode_as(data, mode, f"{mode};16L")


def _decode_as(data: bytes, mode: str, raw_mode: str) -> np.ndarray:
    """The pixels of a PNG, uint16 [H, W, C], by one of Pillow's raw modes."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
        image._mode = mode
        return np.asarray(image).astype(np.uint16)


def _pixels(path: Any, image: Image.Image, is_label: bool, upright: bool) -> np.ndarray:
    checks.check_pixels(path, *image.size)
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format in ("TIFF", "GIF", "PNG", "WEBP"):
        raise ImageError(path, "has several pages", f"{pages}; save each as a file of its own")
    lossy = lossy_format(image) if is_label else ""
    top = _stored_top(image) if is_label else 0  # before the image is decoded, which forgets it
    if is_label and (image.mode == "P" or (image.mode == "L" and "transparency" in image.info)):
        occurring = np.flatnonzero(image.histogram())
        check_transparency(path, image.info.get("transparency"), occurring)
        if image.mode == "P":
            check_palette(path, np.array(image.getpalette("RGB") or [], int).reshape(-1, 3), occurring)
    shown = ImageOps.exif_transpose(image) if upright else image
    if (image.mode in ("P", "PA") and not is_label) or image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        shown = shown.convert("RGB")
    pixels = np.asarray(shown)
    if lossy:
        if pixels.ndim == 3 and np.ptp(np.asarray(shown.convert("RGB")).astype(int), axis=-1).max() <= MAX_TINT:
            pixels = np.asarray(shown.convert("L"))
        return mask_of_lossy(one_channel(pixels, path) if pixels.ndim == 3 else pixels, path, lossy)
    if top:  # Pillow stretches the values to all of 8 or 16 bits
        return np.rint(pixels.astype(float) * top / (65535 if image.mode.startswith("I") else 255)).astype(np.int32)
    is_white_zero = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0
    is_white_zero |= image.format == "PPM" and image.mode == "1"
    return ~pixels if is_label and is_white_zero and image.mode in ("1", "L") else pixels  # as stored


def lossy_format(image: Image.Image) -> str:
    """The name of a format that changes values when it compresses them; "" for other formats and unopened arrays.

    A JPEG 2000 does not say whether it is exact, so that all count; of WebP there are both kinds.
    """
    if image.format == "WEBP":
        file = getattr(image, "fp", None) or io.BytesIO()
        place = file.tell()
        file.seek(0)
        head = file.read(WEBP_HEAD)
        file.seek(place)
        return "" if b"VP8L" in head and b"VP8 " not in head else "lossy WebP"
    return {"JPEG": "JPEG", "MPO": "JPEG", "JPEG2000": "JPEG 2000"}.get(image.format or "", "")


def _stored_top(image: Image.Image) -> int:
    """The value of white in a PPM, or in a grey PNG of 2 or 4 bits, where it is not that of 8 or 16 bits; else 0."""
    tiles = getattr(image, "tile", [])
    args = tiles[0].args if tiles else ()
    if image.format == "PNG":
        return {"L;2": 3, "L;4": 15}.get(str(args), 0)
    if image.format != "PPM":
        return 0
    top = args[-1] if isinstance(args, tuple) and len(args) == 2 else 0
    return top if isinstance(top, int) and top not in (255, 65535) else 0


def _open(path: Path) -> BinaryIO:
    """Opens the file; of a gzip file reads at most the bytes of an image of MAX_PIXELS."""
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    with gzip.open(path) as file:
        return io.BytesIO(file.read(3 * checks.MAX_PIXELS + 1000))
