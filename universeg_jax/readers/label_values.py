"""The values of a label: which numbers are class ids, and what is done about those that are none.

Values count as stored; what a palette or photometric interpretation shows does not matter. A mask that passed through
JPEG or a resize, or that holds probabilities, has values between its two ends: it is thresholded at the middle, with a
note, where the values pile up at both ends, and refused elsewhere.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.notes import note

MAX_ID = 2**31 - 1
WHOLE = 9.99e-4  # a value this near to a whole number is that number: slopes of headers are rounded
MASK_VALUES = (1, 255, 65535)  # by which programs mark the only structure of a mask
END = 0.1  # share of the range that counts as its end
PILED = 0.2  # share of the marked pixels that must lie at the upper end
LOOSE = 0.6  # share of the values in between that must differ from two neighbours or more
MAX_STEADY_IDS = 20  # with more ids, pixels that all differ from their neighbours are no classes
MIN_PILED = 64  # pixels
FLAT = 0.1  # of the range: by how much neighbours in a flat region differ at most
MIN_LEVEL = 9  # pixels of flat regions that are a class of their own
MIN_PIXELS = 1000  # fewer are too few to tell
NO_IDS = "values are not class ids"
REMEDY = "whole numbers from 0"
PILED_NOTE = "values pile up at 0 and at the maximum (JPEG, a resize or probabilities): the upper half is the structure"
MIXED_NOTE = "some masks hold 0 and 1, others 0 and 255: both mean one class, id 1"
MANY_IDS = 20  # from which on ids without names probably number objects
INSTANCES_NOTE = (
    "{} ids without names: each is taken for a class of its own; if they number objects, such as cells, write "
    '"instances": true into meta.json and they become one class'
)
WHITE, BRIGHT = 255, 100  # values that programs use to show a mask, and from which on others probably do so too
VOID_NOTE = (
    "255 occurs beside small ids, where programs often write it for pixels without a class: it is taken for a class; "
    'otherwise give --ignore 255, or write "ignore": [255] into meta.json'
)
GREYS_NOTE = (
    "each mask holds one value above 0, but not all the same ({}): each is taken for a class of its own; if they mean "
    'one class, write "instances": true into meta.json'
)
RIM = 0.8  # share of the pixels and of the contour that make a rim, and of the files in which an id must be one
MIN_RIM = 20  # pixels
RIM_NOTE = (
    "id {} is a rim of one or two pixels between two other ids, as a resize with interpolation makes it: resize labels "
    "by the nearest neighbour; if it is a class, name it in meta.json"
)


def to_ids(values: np.ndarray, path: Any, ignored: Sequence[int] = ()) -> np.ndarray:
    """Values of any shape and type → int32 class ids. Raises ImageError unless they are whole numbers from 0.

    `ignored` values are not judged with the others, which they would make look like a mask of 0 and 255.
    """
    if ignored and values.dtype.kind in "biuf" and (is_ignored := np.isin(values, ignored)).any():
        ids = to_ids(np.where(is_ignored, values.dtype.type(0), values), path)
        return np.where(is_ignored, values, ids).astype(np.int32)
    if values.dtype.kind not in "biuf":
        raise ImageError(path, NO_IDS, f"{values.dtype}; {REMEDY}")
    if values.size == 0:
        raise ImageError(path, NO_IDS, f"its shape is {values.shape}")
    if not np.isfinite(values).all():
        raise ImageError(path, NO_IDS, f"NaN or infinite values; {REMEDY}")
    whole = values
    if values.dtype.kind == "f":
        whole = np.rint(values)
        fraction = np.abs(values - whole)
        whole = whole if fraction.max() < WHOLE else values
    low, high = float(whole.min()), float(whole.max())
    if low < 0:
        hint = ", which 8 bits with a sign make of 255: save it without a sign" if values.dtype == np.int8 else ""
        raise ImageError(path, NO_IDS, f"{low:g}{hint}; {REMEDY}")
    if high > MAX_ID:
        raise ImageError(path, NO_IDS, f"{high:.0f} is above {MAX_ID}; {REMEDY}")
    if (mask := _piled_up(whole)) is not None:
        note(path, PILED_NOTE)
        return mask
    if whole.dtype.kind == "f" and whole is values and (values != np.floor(values)).any():
        example = float(values[values != np.floor(values)].flat[0])
        hint = "probabilities: threshold them first"
        if np.abs(values * 255 - np.rint(values * 255)).max() < WHOLE:
            hint = "they are whole after a multiplication by 255"
        raise ImageError(path, NO_IDS, f"{example:g}; {REMEDY}; {hint}")
    _check_steady(whole, path)
    return whole.astype(np.int32)


def mask_of_lossy(values: np.ndarray, path: Any, kind: str) -> np.ndarray:
    """A label [H, W] in a format that changes values: 0 and 255, or what piles up at both ends. Raises ImageError."""
    if set(np.unique(values)) <= {0, 255}:
        return values
    mask = _piled_up(values, is_lossy=True)
    if mask is None:
        detail = f"its compression {'may change' if kind == 'JPEG 2000' else 'changes'} class ids; save it as PNG"
        raise ImageError(path, f"a label in {kind}", detail)
    note(path, PILED_NOTE)
    return mask


def one_class(occurring: Iterable[set[int]]) -> tuple[int, ...]:
    """The values that mean the only class where some masks mark it with 1 and others with 255; else ().

    `occurring`: the values above 0 of each mask.
    """
    sets = [values for values in occurring if values]
    union = set().union(*sets) if sets else set()
    if len(union) > 1 and union <= set(MASK_VALUES) and all(len(values) == 1 for values in sets):
        return tuple(sorted(union))
    return ()


def doubts_of_ids(occurring: Sequence[set[int]], rims: Sequence[set[int]] = ()) -> Iterator[str]:
    """Notes on ids without names that may be no classes of their own.

    `occurring`: the values above 0 of each label file; `rims`: its `rim_ids`.
    """
    ids = sorted(set().union(*occurring))
    if len(ids) >= MANY_IDS:
        yield INSTANCES_NOTE.format(len(ids))
    elif WHITE in ids and any(WHITE in each and len(each) > 1 for each in occurring) and ids[:-1][-1] < BRIGHT:
        yield VOID_NOTE
    elif len(ids) > 1 and ids[-1] >= BRIGHT and all(len(each) <= 1 for each in occurring):
        yield GREYS_NOTE.format(", ".join(map(str, ids[:5])))
    counts, of_rims = (Counter(i for each in sets for i in each) for sets in (occurring, rims))
    if thin := [str(i) for i in ids if of_rims[i] >= RIM * counts[i]]:
        yield RIM_NOTE.format(", ".join(thin[:5]))


def rim_ids(ids: np.ndarray) -> set[int]:
    """Ids [H, W] or [X, Y, Z] that are only a thin rim between a lower and a higher one, as interpolation makes them.

    Nearly all pixels of a rim lie within two pixels of both, and along nearly all of it the two do not meet directly.
    """
    if ids.ndim == 3:
        ids = ids[..., :: 1 + ids.shape[2] // 16]  # some planes of a volume tell enough
    if not ids.size or ids.max() >= 1 << 16:
        return set()
    counts = np.bincount(ids.ravel())
    found = np.flatnonzero(counts)
    if not 3 <= len(found) <= MANY_IDS:
        return set()
    inner = _equal_neighbours(ids) == 4
    inside = np.bincount(ids[inner], minlength=len(counts))
    thin = [i for i in found[1:-1].tolist() if counts[i] >= MIN_RIM and inside[i] <= (1 - RIM) * counts[i]]
    if not thin:
        return set()
    reach = (5, 5, 1)[: ids.ndim]
    low, high = ndimage.minimum_filter(ids, reach), ndimage.maximum_filter(ids, reach)
    rims = set()
    for i in thin:
        is_between = (ids == i) & (low < i) & (high > i) & ~inner
        meet = functools.partial(_lie_around, i)  # directly, without a pixel of i in between
        jumps = _count_neighbours(ids, meet).sum() / 2
        if is_between.sum() >= RIM * counts[i] and jumps <= (1 - RIM) * counts[i]:
            rims.add(i)
    return rims


def _lie_around(value: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (np.minimum(a, b) < value) & (np.maximum(a, b) > value)


def _piled_up(values: np.ndarray, is_lossy: bool = False) -> np.ndarray | None:
    """Thresholds a mask whose values pile up at 0 and at 1, 255 or 65535; None for all others.

    Values in between must differ from their neighbours, as no id does, unless the format changes values anyway.
    """
    high = float(values.max())
    is_fraction = values.dtype.kind == "f" and bool((values != np.floor(values)).any())
    tops = [1.0] if high <= 1 + WHOLE else [255.0] if high <= 255 else [65535.0] if high <= 65535 else []
    if values.size < MIN_PILED or not tops or (tops == [1.0] and not is_fraction) or high < (1 - END) * tops[0]:
        return None
    top = tops[0]
    if top > 255 and high < top:
        return None  # instance maps of many ids; JPEG has 8 bits
    upper = values[values >= (1 - END) * top]
    lower = values[values <= END * top]
    if not lower.size or upper.size < PILED * (values > END * top).sum():
        return None
    between = (values != _mode(upper)) & (values != _mode(lower))
    inner = np.unique(values[between])
    if not inner.size or ((len(inner) < 3) and ((inner > END * top) & (inner < (1 - END) * top)).any()):
        return None
    is_loose = is_lossy or (_equal_neighbours(values)[between] <= 2).mean() >= LOOSE
    if not is_loose or _has_third_level(values, top):
        return None
    return (values >= top / 2).astype(np.int32) * (255 if top > 1 else 1)


def _has_third_level(values: np.ndarray, top: float) -> bool:
    """True where flat regions in the middle share a value: another class, which a threshold would hide."""
    axes = range(min(values.ndim, 2))
    flat = _count_neighbours(values, lambda a, b: np.abs(a.astype(np.float32) - b) <= FLAT * top) == 2 * len(axes)
    inner = np.sort(values[flat & (values > 2 * END * top) & (values < (1 - 2 * END) * top)].astype(np.float32))
    ahead = np.searchsorted(inner, inner + FLAT * top, "right") - np.arange(len(inner))
    return len(inner) >= MIN_LEVEL and bool(ahead.max() >= 0.5 * len(inner))


def _mode(values: np.ndarray) -> float:
    found, counts = np.unique(values, return_counts=True)
    return float(found[counts.argmax()])


def _equal_neighbours(values: np.ndarray) -> np.ndarray:
    """int8, of the shape of `values`: how many of the four neighbours along the first two axes are equal."""
    return _count_neighbours(values, np.equal)


def _count_neighbours(values: np.ndarray, compare: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    count = np.zeros(values.shape, np.int8)
    for axis in range(min(values.ndim, 2)):
        ahead, behind = [slice(None)] * values.ndim, [slice(None)] * values.ndim
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        holds = compare(values[tuple(ahead)], values[tuple(behind)])
        count[tuple(ahead)] += holds
        count[tuple(behind)] += holds
    return count


def _check_steady(ids: np.ndarray, path: Any) -> None:
    """Raises ImageError where most of many values change from pixel to pixel, as in a photograph.

    Pixels of small or touching objects differ from the background or from one neighbour, not from several objects.
    """
    if ids.size < MIN_PIXELS or ids.max() <= MAX_STEADY_IDS:
        return
    if ids.ndim == 3:
        ids = ids[..., :: 1 + ids.shape[2] // 16]  # some planes of a volume tell enough
    found, rows, counts = np.unique(ids, return_inverse=True, return_counts=True)
    if len(found) <= MAX_STEADY_IDS:
        return
    several = _count_neighbours(ids, lambda a, b: (a != b) & (a != 0) & (b != 0)) >= 2
    unsteady = np.bincount(rows.ravel(), several.ravel(), len(found)) > 0.5 * counts
    if unsteady.sum() > 0.5 * len(found):
        detail = "over 20 values that change from pixel to pixel: JPEG, a resize, or image and label exchanged"
        raise ImageError(path, NO_IDS, f"{detail}; save the ids without loss and without interpolation")
