"""Images with label maps, from files, opened images and arrays, by one set of rules, and their masks at a size."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from universeg_jax.errors import UserError
from universeg_jax.readers.cases import LabelMap, ids_of, mask_of
from universeg_jax.readers.images import Source, check_image, is_drawn_on_raw, read_image, read_label
from universeg_jax.readers.label_values import MIXED_NOTE, one_class
from universeg_jax.readers.labels import check_label
from universeg_jax.readers.notes import note
from universeg_jax.readers.palettes import check_palettes
from universeg_jax.readers.preprocess import preprocess_ignored, preprocess_mask, preprocess_partly

ImageLike = npt.ArrayLike | Image.Image | Path  # a string is a file name, bytes are the contents of a file
MAX_PLAUSIBLE_IDS = 20  # in one label; with more, image and label may be exchanged
Void = np.ndarray | None  # bool [H, W]: pixels without a label; None where all have one


def read_pairs(
    images: Sequence[ImageLike] | np.ndarray,
    labels: Sequence[ImageLike | LabelMap] | np.ndarray,
    names: Sequence[str],
    ignore: tuple[int, ...],
    ignored: Sequence[Void],
) -> tuple[list[np.ndarray], list[LabelMap], list[Void]]:
    """(grey images, label maps, pixels without a label) of files, opened images and arrays, by the same checks."""
    greys: list[np.ndarray] = []
    maps: list[LabelMap] = []
    voids: list[Void] = []
    check_palettes(label for label in labels if isinstance(label, str | Path))
    for name, image, label, void in zip(names, images, labels, ignored, strict=True):
        raw = isinstance(image, Source) and isinstance(label, Source) and is_drawn_on_raw(image, label, name)
        greys.append(as_grey(image, name, upright=not raw))
        if isinstance(label, dict):
            maps.append({i: np.asarray(mask, bool) for i, mask in label.items()})
        else:
            is_file = isinstance(label, Source)
            maps.append(read_label(label, name, ignore) if is_file else check_label(np.asarray(label), name, ignore))
        maps[-1], void = without_ids(maps[-1], ignore, void)
        voids.append(void)
    if values := one_class([ids_of(label) for label in maps]):
        note("labels", MIXED_NOTE)
        maps = [_merged(label, values) for label in maps]
    return greys, maps, voids


def ids_to_ignore(ignore: int | Sequence[int] | None) -> tuple[int, ...]:
    """The ids as a tuple. Raises UserError for one that no label can have, or that means background."""
    ids = () if ignore is None else (ignore,) if isinstance(ignore, int) else tuple(ignore)
    for i in ids:
        if i < 1:
            raise UserError(f"ignore={i}: 0 is the background, so mark pixels that have no label with an id above 0")
    return ids


def without_ids(label: LabelMap, ids: Sequence[int], void: Void) -> tuple[LabelMap, Void]:
    """(label map without `ids` and without what lies under them or under `void`, these pixels or None)."""
    if ids and isinstance(label, dict):
        found = [mask for i, mask in label.items() if i in ids]
    else:
        found = [np.isin(cast(np.ndarray, label), ids)] if ids else []
    found = [each for each in (*found, void) if each is not None and each.any()]
    if not found:
        return label, None
    empty = np.any(found, 0)
    if isinstance(label, dict):
        return {i: mask & ~empty for i, mask in label.items() if i not in ids}, empty
    return np.where(empty, 0, label), empty


def _merged(label: LabelMap, values: Sequence[int]) -> LabelMap:
    """A label map in which all `values` mean id 1; a dict holds at most one of them."""
    if isinstance(label, dict):
        return dict(zip((1,), label.values(), strict=False))
    return np.isin(label, values).astype(np.int32)


def check_not_exchanged(name: str, image: np.ndarray, label: np.ndarray) -> None:
    """Raises UserError if the label has more distinct values than its image, and more than a person would mark."""
    ids = len(np.unique(label))
    if ids > MAX_PLAUSIBLE_IDS and ids > (values := len(np.unique(image))):
        raise UserError(
            f"{name}: image and label look exchanged: the label has {ids} different values, the image only {values}; "
            "put images into images/ and label ids into labels/"
        )


def check_background(maps: Sequence[LabelMap], voids: Sequence[Void]) -> None:
    """Raises UserError where no labelled pixel is background, so that everything would look like the structure."""
    if all(void is None for void in voids):
        return
    for label, void in zip(maps, voids, strict=True):
        marked = np.any(list(label.values()), 0) if isinstance(label, dict) else label > 0
        if not (marked if void is None else marked | void).all():
            return
    raise UserError("no pixel of any example is labelled as background: mark some with 0 in at least one example")


def as_grey(image: ImageLike, name: str = "an image", upright: bool = True) -> np.ndarray:
    """Grey values, float32 [H, W], of a file, its bytes, a PIL image or an array [H, W] or [H, W, 3].

    All pass the same checks, and errors name the file or `name`. `upright`: apply an EXIF orientation.
    """
    if isinstance(image, Source):
        return read_image(image, name, upright)
    return check_image(np.asarray(image), name)


def mask_at(size: int, label: LabelMap, i: int, shape: tuple[int, ...], void: Void) -> np.ndarray:
    """The mask of id `i` at `size`, by the pixels that have a label."""
    mask = mask_of(label, i, shape)
    return preprocess_mask(mask, size) if void is None else preprocess_partly(mask, void, size)


def ignored_at(size: int, names: Sequence[str], voids: Sequence[Void]) -> Void:
    """Pixels without a label at `size`; None where all have one. Raises UserError for an image without any."""
    if all(void is None for void in voids):
        return None
    found = []
    for name, void in zip(names, voids, strict=True):
        found.append(np.zeros((size, size), bool) if void is None else preprocess_ignored(void, size))
        if void is not None and found[-1][preprocess_ignored(np.ones_like(void), size)].all():
            raise UserError(
                f"{name}: nothing of it has a label, as all is ignored; label a part of it, or leave it out"
            )
    return np.stack(found)
