"""TIFF files: one reader for images, labels and volumes, by the meaning of their axes.

tifffile reads plain, ImageJ, OME and BigTIFF files and says what each axis means: rows and columns, colours (S),
channels (C), slices (Z), times (T), or pages of unknown meaning (I, Q). Slices, times and unknown pages make a volume.
Channels of an image become their mean, with a note, unless one is chosen. Labels are read as stored; in an image, 0 is
white where the file says so, and a palette means its colours.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image

from universeg_jax.readers import checks
from universeg_jax.readers.errors import ImageError, silence
from universeg_jax.readers.labels import one_channel
from universeg_jax.readers.notes import note
from universeg_jax.readers.palettes import check_palette
from universeg_jax.readers.preprocess import to_grey

PLANE, COLOURS, CHANNELS, PAGES = "YX", "S", "C", "ZTIQR"
ORIENTATION = 274  # the tag
WHITE_IS_ZERO, PALETTE, CMYK, YCBCR, LAB = 0, 3, 5, 6, (8, 9, 10)  # photometric interpretations
AS_STORED = (1, 5, 8, 32946)  # compressions that leave YCbCr as it is; JPEG and the like give RGB
EXTRA = "install imagecodecs: pip install 'universeg_jax[tiff]'; or save the file without compression"
# Orientation → (transpose rows and columns, then flip rows, flip columns), as the EXIF standard numbers them.
TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def page_count(path: Path) -> int:
    """The number of slices, times or unknown pages; 1 for a damaged file, which the image reader then reports."""
    import tifffile

    try:
        with silence(), tifffile.TiffFile(path, _multifile=False) as file:
            return int(np.prod([n for axis, n in _axes(file, path).items() if axis in PAGES], dtype=int))
    except ImageError:
        return len(file.pages)
    except Exception:
        return 1


def read_tiff_image(source: Path | BinaryIO, name: Any, is_label: bool = False, upright: bool = True) -> np.ndarray:
    """One image: [H, W], or [H, W, S] with colours, as stored (label) or as shown (image). Raises ImageError."""
    data = _read(source, name, is_label, upright=upright)
    if len(data) > 1:
        raise ImageError(name, "has several pages", f"{len(data)}; save each as a file of its own")
    return data[0]


def read_tiff_stack(path: Path, channel: int | None, is_label: bool = False) -> np.ndarray:
    """All pages, [N, H, W]; `channel` selects one of several channels. Raises ImageError."""
    data = _read(path, path, is_label, channel)
    if data.ndim == 3:
        return data
    if is_label:
        return one_channel(data, path)
    return np.stack([to_grey(page) for page in data])


def write_tiff_stack(path: Path, data: np.ndarray) -> None:
    """Writes label ids [N, H, W], one page a slice, compressed without loss."""
    import tifffile

    tifffile.imwrite(path, data, photometric="minisblack", compression="zlib")


def _read(
    source: Path | BinaryIO, name: Any, is_label: bool, channel: int | None = None, upright: bool = True
) -> np.ndarray:
    """[N, H, W] or [N, H, W, S]: all pages."""
    import tifffile

    with tifffile.TiffFile(source, _multifile=False) as file:  # a header must not choose which other files are read
        first, axes = cast(tifffile.TiffPage, file.pages[0].keyframe), _axes(file, name)
        sizes = {axis: axes.get(axis, 1) for axis in PLANE}
        pages = [n for axis, n in axes.items() if axis in PAGES and n > 1]
        if len(pages) > 1:
            what = " and ".join(f"{n} {_word(axis)}" for axis, n in axes.items() if axis in PAGES and n > 1)
            raise ImageError(name, "has more than one axis of pages", f"{what}; save one volume in each file")
        if not pages:
            checks.check_pixels(name, sizes["X"], sizes["Y"])
        checks.check_voxels(name, (*axes.values(),))
        if np.dtype(first.dtype or "V").kind not in "biuf":
            raise ImageError(name, "holds complex numbers or none", str(first.dtype))
        data = _decode(file, first, source, name)
        data = _arrange(data, axes, name, channel, is_label)
        if not is_label:
            data = _as_shown(data, first)
        elif first.photometric == WHITE_IS_ZERO:
            note(name, "0 is shown as white; its values count as stored, so that 0 is the background")
        elif first.photometric == PALETTE and first.colormap is not None and data.max() < first.colormap.shape[1]:
            check_palette(name, first.colormap.T.astype(int) >> 8, np.unique(data))
        return np.stack([turned(page, orientation(first)) for page in data]) if upright else data


def _axes(file: Any, name: Any) -> dict[str, int]:
    """Axis → length of the only series. Raises ImageError for pages of different sizes."""
    if len(file.series) != 1:
        raise ImageError(name, "its pages differ in size", "save each as a file of its own")
    series = file.series[0]
    axes = dict(zip(series.axes, series.shape, strict=True))
    if len(axes) < len(series.axes) or not {"Y", "X"} <= axes.keys():
        raise ImageError(name, "has axes that cannot be told apart", f"{series.axes} {series.shape}")
    if unknown := {axis: n for axis, n in axes.items() if axis not in PLANE + COLOURS + CHANNELS + PAGES and n > 1}:
        raise ImageError(name, "has an axis that is not read", f"{unknown}; save one image or volume in each file")
    return axes


def _word(axis: str) -> str:
    return {"Z": "slices", "T": "times"}.get(axis, "pages")


def _decode(file: Any, first: Any, source: Path | BinaryIO, name: Any) -> np.ndarray:
    """The array of the series; compressions that tifffile alone cannot undo are left to Pillow, then to the extra."""
    try:
        return np.asarray(file.series[0].asarray())
    except Exception as error:
        if not _lacks_codec(error):
            raise
    kept = _by_pillow(source, first, file)
    if kept is None:
        compression = getattr(first.compression, "name", first.compression)
        raise ImageError(name, "its compression needs imagecodecs", f"{compression}; {EXTRA}")
    return kept.reshape(file.series[0].shape)


def _lacks_codec(error: Exception) -> bool:
    return isinstance(error, ImportError) or "imagecodecs" in str(error)


def _by_pillow(source: Path | BinaryIO, first: Any, file: Any) -> np.ndarray | None:
    """The stored values of all pages where Pillow keeps them (8 bits at most, or 16 bits of grey); else None."""
    grey = first.samplesperpixel == 1
    if first.bitspersample > (16 if grey else 8) or first.dtype.kind not in "bui":
        return None
    if not isinstance(source, Path):
        source.seek(0)
    try:
        with _opened(source) as opened, Image.open(opened, formats=("TIFF",)) as image:
            pages = []
            for index in range(len(file.pages)):
                image.seek(index)
                if image.mode not in ("1", "L", "P", "RGB", "RGBA", "LA", "YCbCr", "I;16", "I;16B"):
                    return None
                pages.append(np.asarray(image.convert("RGB") if image.mode == "YCbCr" else image))
                if first.photometric == WHITE_IS_ZERO and image.mode in ("1", "L"):  # Pillow shows it inverted
                    pages[-1] = ~pages[-1]
                if first.bitspersample in (2, 4) and image.mode == "L":  # and stretches it to 8 bits
                    pages[-1] = pages[-1] // (255 // ((1 << first.bitspersample) - 1))
    except (OSError, ValueError):
        return None
    return np.stack(pages)


@contextlib.contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield file
    else:
        yield source


def _arrange(data: np.ndarray, axes: dict[str, int], name: Any, channel: int | None, is_label: bool) -> np.ndarray:
    """The array of a series in the order [N, H, W] or [N, H, W, S]; channels become one."""
    names = [*axes]
    single = [i for i, axis in enumerate(names) if axis in PAGES and axes[axis] == 1]
    data, names = data.squeeze(tuple(single)), [axis for i, axis in enumerate(names) if i not in single]
    page = [axis for axis in names if axis in PAGES]
    order = [*page, *(axis for axis in (CHANNELS, *PLANE, COLOURS) if axis in names)]
    unknown = [axis for axis in names if axis not in order]  # of length one
    data = data.transpose([names.index(axis) for axis in [*order, *unknown]])
    data = data.reshape(data.shape[: len(order)])
    if not page:
        data = data[None]
    if "T" in page:
        note(name, "its times are taken for slices")
    if CHANNELS in names:
        data = _join_channels(data, name, channel, is_label)
    elif channel is not None and channel > 0:
        raise ImageError(name, "has several channels or times", f"1; number {channel} was requested")
    if COLOURS in names and data.shape[-1] > 4:
        data = _join_channels(np.moveaxis(data, -1, 1), name, channel, is_label)
    return data


def _join_channels(data: np.ndarray, name: Any, channel: int | None, is_label: bool) -> np.ndarray:
    """[N, C, H, W, ...] → [N, H, W, ...]: the chosen channel, equal channels of a label, or the mean of an image."""
    count = data.shape[1]
    if channel is not None:
        if not 0 <= channel < count:
            raise ImageError(name, "has several channels or times", f"{count}; number {channel} was requested")
        return data[:, channel]
    if count == 1 or (data == data[:, :1]).all():
        return data[:, 0]
    if is_label:
        raise ImageError(name, "a label with several channels", f"{count}; save class ids as one channel")
    note(name, f"its {count} channels are averaged; save the one to use as a file of its own")
    return data.mean(1, dtype=np.float32)


def _as_shown(data: np.ndarray, first: Any) -> np.ndarray:
    """Applies the palette and the kind of colours, and makes white of 0 where the file says so, as a viewer does."""
    if first.photometric == PALETTE and first.colormap is not None and data.dtype.kind == "u":
        return np.moveaxis(first.colormap[:, data], 0, -1)
    if first.photometric == WHITE_IS_ZERO:
        if data.dtype.kind == "b":
            return ~data
        if data.dtype.kind == "u":
            return data.dtype.type((1 << first.bitspersample) - 1) - data
        return data.max() + data.min() - data
    if data.ndim < 4:
        return data
    if first.photometric in LAB or (first.photometric == YCBCR and first.compression in AS_STORED):
        return data[..., 0]  # the lightness
    if first.photometric == CMYK and data.dtype.kind == "u" and data.shape[-1] >= 4:
        paper = np.float32(np.iinfo(data.dtype).max) - data[..., :4]
        return paper[..., :3] * (paper[..., 3:] / np.iinfo(data.dtype).max)
    return data


def orientation(first: Any) -> int:
    """The orientation of a page, 1 to 8; 1 is upright."""
    tag = first.tags.get(ORIENTATION)
    return int(tag.value) if tag is not None and isinstance(tag.value, int) else 1


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns [H, W, ...] upright by its EXIF orientation, 1 to 8."""
    transpose, rows, columns = TURNS.get(orientation, (False, False, False))
    image = image.swapaxes(0, 1) if transpose else image
    image = image[::-1] if rows else image
    return image[:, ::-1] if columns else image
