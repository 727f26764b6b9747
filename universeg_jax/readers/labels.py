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


@dataclass(frozen=True)
class LabelFile:
    """A label file and the classes in it.

    `classes` are (id, values of the file that mean this id); no values mean everything but 0. Without `classes` the
    values are the ids. `ignored` are values without a class, such as a border. `part` selects (image, class) in a file
    of polygons, and `colours` are (id, red, green, blue) of a mask in colours.
    """

    path: str
    classes: tuple[tuple[int, tuple[int, ...]], ...] = ()
    ignored: tuple[int, ...] = ()
    part: tuple[str, str] | None = None
    colours: tuple[tuple[int, int, int, int], ...] = ()


def check_label(label: np.ndarray, path: Any) -> np.ndarray:
    """[H, W] or [H, W, C] → int32 class ids [H, W] ≥ 0; equal channels count as one.

    Raises ImageError, naming `path`, for colours and for values that are not class ids.
    """
    if label.ndim == 3:
        if label.shape[2] > 2 and (label[..., :3] != label[..., :1]).any():
            raise ImageError(
                path, "a label in colours", "save class ids as one grey or palette channel, 0 = background"
            )
        label = label[..., 0]
    if label.ndim != 2:
        raise ImageError(path, "a label has a shape that is not [H, W]", str(label.shape))
    return check_ids(label, path)


def check_ids(values: np.ndarray, path: Any) -> np.ndarray:
    """Values of any shape and type → int32 class ids. Raises ImageError unless they are whole numbers from 0."""
    if not np.isfinite(values).all() or values.min() < 0 or values.max() >= 2**31 or (values != np.floor(values)).any():
        raise ImageError(path, "values are not class ids", "whole numbers from 0")
    return values.astype(np.int32)


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
    occurring = _values(label)
    if file.classes:
        known = {value for _, values in file.classes for value in values} | set(file.ignored)
        if all(values for _, values in file.classes) and occurring - known:
            raise ImageError(file.path, "holds values that mean no class", f"{sorted(occurring - known)[:9]}")
    elif known_ids and occurring - set(known_ids):
        raise FolderError(
            f"{file.path}: ids {sorted(occurring - set(known_ids))} are not in {named_in}, which names "
            f'{sorted(known_ids)}; add them to its "labels" or correct the file'
        )
    return label
