"""Labels: the rules that turn the values of a label into class ids and binary masks.

The labels of every image and volume, from a file, a TFDS record or an array, pass `check_ids`. A `LabelFile` says which
classes its values stand for, and `class_masks` applies that.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from universeg_jax.readers.errors import FolderError, ImageError
from universeg_jax.readers.label_values import MASK_VALUES, to_ids
from universeg_jax.readers.notes import note
from universeg_jax.readers.palettes import colour_table

IN_COLOURS = "a label in colours"


@dataclass(frozen=True)
class LabelFile:
    """A label file and the classes in it.

    `classes` are (id, values of the file that mean this id); no values mean everything but 0. Without `classes` the
    values are the ids. `ignored` are values of pixels that have no label, such as those of a border: they are 0 in the
    masks, and `ignored_mask` tells where they are. `part` selects (image, class) in a file of polygons, and `colours`
    are (id, red, green, blue) of a mask in colours.
    """

    path: str
    classes: tuple[tuple[int, tuple[int, ...]], ...] = ()
    ignored: tuple[int, ...] = ()
    part: tuple[str, str] | None = None
    colours: tuple[tuple[int, int, int, int], ...] = ()


def check_label(label: np.ndarray, path: Any, ignored: Sequence[int] = ()) -> np.ndarray:
    """[H, W] or [H, W, C] → int32 class ids [H, W] ≥ 0; equal channels count as one.

    Alpha is dropped, unless the colours are the same everywhere: then the mask lies in it, which a note says. Raises
    ImageError, naming `path`, for colours and for values that are not class ids.
    """
    if label.ndim == 3:
        label = one_channel(label, path)
    if label.ndim != 2 or 0 in label.shape:
        raise ImageError(path, "a label has a shape that is not [H, W]", str(label.shape))
    return check_ids(label, path, ignored)


def check_ids(values: np.ndarray, path: Any, ignored: Sequence[int] = ()) -> np.ndarray:
    """Values of any shape and type → int32 class ids (label_values.py). Raises ImageError."""
    return to_ids(values, path, ignored)


def one_channel(label: np.ndarray, path: Any) -> np.ndarray:
    """The channel of [..., C] that holds the ids. Raises ImageError where channels disagree."""
    channels = label.shape[-1]
    if channels == 0 or channels > 4:
        raise ImageError(path, "a label has a shape that is not [H, W]", str(label.shape))
    colours, alpha = (label[..., :-1], label[..., -1]) if channels in (2, 4) else (label, None)
    grey = colours[..., 0]
    if (colours != grey[..., None]).any():
        detail = "save class ids as one grey or palette channel, 0 = background"
        if colours.dtype == np.uint8 and colours.shape[-1] == 3:
            detail += f", or write such as {colour_table(colours)} into meta.json"
            detail += ', or "instances": true where each colour is an object'
        raise ImageError(path, IN_COLOURS, detail)
    if alpha is None or (alpha == alpha.flat[0]).all():
        return grey
    if (grey == grey.flat[0]).all():
        note(path, "the colours are the same everywhere, so its alpha is taken as the mask")
        return alpha
    if (grey[alpha == 0] != 0).any():
        detail = "pixels with alpha 0 have a grey value above 0; save one grey channel without alpha, 0 = background"
        raise ImageError(path, "its alpha and its grey values say different things", detail)
    return grey


def class_masks(
    files: Sequence[LabelFile],
    known_ids: Sequence[int],
    read: Callable[[LabelFile], np.ndarray],
    named_in: str = "meta.json",
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (id, bool mask) for each class that occurs in the files, ids ascending; one mask is in memory at a time.

    `read` returns the values of a label file. Files without `classes` may hold only `known_ids`, or any ids where
    `known_ids`, which the file `named_in` lists, is empty. Raises ImageError for a value without a class, FolderError
    for an unknown id.
    """
    values_of = functools.lru_cache(1)(functools.partial(_read_known, known_ids, read, named_in))
    sources: dict[int, list[tuple[LabelFile, tuple[int, ...]]]] = {}
    for file in files:
        for i, values in file.classes or [(i, (i,)) for i in _values(values_of(file))]:
            sources.setdefault(i, []).append((file, values))
    for i in sorted(sources):
        mask = functools.reduce(np.logical_or, (_mask(values_of(file), values) for file, values in sources[i]))
        if mask.any():
            yield i, mask


def ignored_mask(files: Sequence[LabelFile], read: Callable[[LabelFile], np.ndarray]) -> np.ndarray | None:
    """Bool, of the shape of the files: where one of them holds a value that it ignores. None where none ignores any."""
    masks = [np.isin(read(file), file.ignored) for file in files if file.ignored]
    return np.any(masks, 0) if masks else None


def _is_mask_of(known_id: int, occurring: set[int]) -> bool:
    """True where a file marks with the value of white, or with 1 for white, the only class there is."""
    white = set(MASK_VALUES) - {1}
    return (
        len(occurring) == 1
        and known_id not in occurring
        and (occurring <= white or (occurring == {1} and known_id in white))
    )


def _values(label: np.ndarray) -> set[int]:
    """The values that occur, without 0; counting is faster than sorting where they are small."""
    if label.min() >= 0 and label.max() < 1 << 16:
        return set(np.flatnonzero(np.bincount(label.ravel())).tolist()) - {0}
    return set(np.unique(label).tolist()) - {0}


def _mask(label: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    if len(values) == 1:
        return label == values[0]
    return np.isin(label, values) if values else label != 0


def _read_known(
    known_ids: Sequence[int], read: Callable[[LabelFile], np.ndarray], named_in: str, file: LabelFile
) -> np.ndarray:
    label = read(file)
    if file.ignored:
        label = np.where(np.isin(label, file.ignored), label.dtype.type(0), label)
    occurring = _values(label)
    if file.classes:
        known = {value for _, values in file.classes for value in values}
        if all(values for _, values in file.classes) and occurring - known:
            raise ImageError(file.path, "holds values that mean no class", f"{sorted(occurring - known)[:9]}")
    elif len(known_ids) == 1 and _is_mask_of(known_ids[0], occurring):
        note(file.path, f"the only value above 0 is {min(occurring)}: it means the only id that {named_in} names")
        return np.where(label > 0, np.int32(known_ids[0]), np.int32(0))
    elif known_ids and occurring - set(known_ids):
        raise FolderError(
            f"{file.path}: ids {sorted(occurring - set(known_ids))} are not in {named_in}, which names "
            f'{sorted(known_ids)}; add them to its "labels" or correct the file'
        )
    return label
