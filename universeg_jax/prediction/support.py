"""A support set: labelled images or slices of volumes, preprocessed once, and the selection of examples for a query.

Images and slices become [N, 128, 128] as in training. A slice keeps its relative position in its volume, so that the
slices of a query are segmented with examples from about the same height.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from universeg_jax.episode import OFFICIAL_SIZE
from universeg_jax.errors import UserError
from universeg_jax.prediction.examples import (
    ImageLike,
    check_background,
    check_not_exchanged,
    ids_to_ignore,
    ignored_at,
    mask_at,
    read_pairs,
    without_ids,
)
from universeg_jax.prediction.tiles import MIN_RETAINED_DICE, cut_tiles, min_max_tiles, retained_dice, tile_positions
from universeg_jax.readers.cases import Case, LabelMap, ids_of, ignored_in, mask_of, read_volume_pair
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.folder import read_each, read_examples, read_folder
from universeg_jax.readers.meta import Folder
from universeg_jax.readers.notes import collect, note
from universeg_jax.readers.preprocess import (
    Window,
    preprocess_ignored,
    preprocess_image,
)
from universeg_jax.readers.slices import ignored_slices, mask_slices, volume_slices
from universeg_jax.readers.volumes import IN_PLANE, Volume, slice_axis

SLICES_PER_VOLUME = 32  # of each labelled volume, evenly spaced
SLICE = ", slice "  # in the name of an example from a volume


@dataclass(frozen=True)
class Support:
    """N labelled examples of L labels, preprocessed to 128x128."""

    images: np.ndarray  # float32 [N, 128, 128] in [0, 1]
    masks: np.ndarray  # uint8 0/1 [L, N, 128, 128]
    labels: tuple[int, ...]  # L ids
    names: tuple[str, ...]
    subjects: tuple[str, ...]
    positions: np.ndarray | None = None  # float32 [N] in [0, 1] along the volume; None for images
    axis: int | None = None  # along which volumes are sliced, queries too; None for images
    window: Window = "auto"  # of the intensities of volumes, queries too
    tile_support: "TileSupport | None" = None  # for the second pass
    overlapping: bool = False  # classes overlap in a label, so they are predicted independently of one another
    sizes: tuple[tuple[int, ...], ...] = ()  # of each example's image [H, W] or volume [X, Y, Z]
    pixels: tuple[int, ...] = ()  # L; labelled pixels or voxels of all images or volumes
    ignored: np.ndarray | None = None  # bool [N, 128, 128]: pixels without a label (partial.py); None for none
    notes: tuple[str, ...] = ()  # how files were understood that can be understood in two ways

    def __post_init__(self) -> None:
        if self.ignored is not None:  # whatever is said of them
            object.__setattr__(self, "masks", np.where(self.ignored[None], np.uint8(0), self.masks))
            object.__setattr__(self, "ignored", self.ignored if self.ignored.any() else None)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def known(self) -> np.ndarray:
        """Bool, to be broadcast to [N, 128, 128]: pixels that have a label, background included."""
        return np.ones((1, 1, 1), bool) if self.ignored is None else ~self.ignored

    def known_of(self, i: int) -> np.ndarray:
        """`known` of example i, to be broadcast to [128, 128]."""
        return self.known[0 if self.ignored is None else i]

    def take(self, rows: Sequence[int] | np.ndarray) -> "Support":
        """Selects examples, without their tiles."""
        return replace(
            self,
            images=self.images[rows],
            masks=self.masks[:, rows],
            names=tuple(self.names[i] for i in rows),
            subjects=tuple(self.subjects[i] for i in rows),
            positions=None if self.positions is None else self.positions[rows],
            tile_support=None,
            sizes=tuple(self.sizes[i] for i in rows) if self.sizes else (),
            ignored=None if self.ignored is None else self.ignored[rows],
        )

    def digest(self) -> str:
        """SHA-256 of all that a prediction depends on."""
        digest = hashlib.sha256(repr((self.labels, self.images.shape, self.axis, self.window)).encode())
        for array in (self.images, self.masks, self.positions):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        if self.ignored is not None:
            digest.update(b"ignored" + np.packbits(self.ignored).tobytes())
        if self.tile_support:
            digest.update(self.tile_support.support.digest().encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class TileSupport:
    """Tiles of the support images for the second pass (tiles.py)."""

    magnification: int
    support: Support  # the tiles with any label; positions as `tile_positions` gives them
    first_weight: float  # of the first pass in the result


def make_support(
    images: Sequence[ImageLike] | np.ndarray,
    labels: Sequence[ImageLike | LabelMap] | np.ndarray,
    names: Sequence[str] = (),
    subjects: Sequence[str] = (),
    tiles: int = 0,
    ignore: int | Sequence[int] = (),
    ignored: Sequence[np.ndarray | None] = (),
) -> Support:
    """Preprocesses images [H, W] or [H, W, 3] of any size, or files, with label maps [H, W] of ids, 0 = background.

    A label may also be a dict of the bool mask of each id, where classes overlap; `Support.overlapping` is then True.
    `tiles`: the magnification of a second pass, as in `Options.tiles`; 0 for none. `ignore`: ids of pixels that have
    no label; `ignored`: further ones, bool [H, W] or None of each image. Raises UserError, and ImageError for a file or
    label that cannot be used, or where nothing of an image has a label.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(f"{len(images)} support images and {len(labels)} labels: give one label for each image")
    names = tuple(names) or tuple(f"support {i}" for i in range(len(images)))
    with collect() as notes:
        greys, maps, voids = read_pairs(images, labels, names, ids_to_ignore(ignore), ignored or [None] * len(images))
    for name, grey, label in zip(names, greys, maps, strict=True):
        for each in label.values() if isinstance(label, dict) else (label,):
            if grey.shape != each.shape:
                raise UserError(f"{name}: the image is {grey.shape}, its label {each.shape}; make them equal")
            check_not_exchanged(name, grey, each)
    ids = sorted(set().union(*map(ids_of, maps)))
    if not ids:
        raise UserError("every support label is empty: mark the structure with ids above 0 in at least one")
    check_background(maps, voids)
    pairs = list(zip(maps, greys, voids, strict=True))
    support = Support(
        np.stack([preprocess_image(grey, OFFICIAL_SIZE) for grey in greys]),
        np.stack([[mask_at(OFFICIAL_SIZE, label, i, grey.shape, void) for label, grey, void in pairs] for i in ids]),
        tuple(ids),
        names,
        tuple(subjects) or names,
        overlapping=any(isinstance(label, dict) for label in maps),
        sizes=tuple(grey.shape for grey in greys),
        pixels=tuple(sum(int(mask_of(label, i, grey.shape).sum()) for label, grey, _ in pairs) for i in ids),
        ignored=ignored_at(OFFICIAL_SIZE, names, voids),
        notes=notes.lines(),
    )
    if tiles:
        return replace(support, tile_support=_make_tile_support(support, pairs, tiles))
    if not support.masks.any():
        raise UserError(
            f"every label is too small or thin for {OFFICIAL_SIZE}x{OFFICIAL_SIZE} pixels: use --tiles 2 (tiles=2)"
        )
    return support


def _make_tile_support(
    support: Support, pairs: Sequence[tuple[LabelMap, np.ndarray, np.ndarray | None]], times: int
) -> TileSupport:
    size = OFFICIAL_SIZE * times
    # Image by image: all of them at full size would take times² the memory of the tiles that are kept.
    images, masks, names, subjects, positions, retained, ignored = [], [], [], [], [], [], []
    for (label, grey, void), name, subject, coarse in zip(
        pairs, support.names, support.subjects, support.masks.swapaxes(0, 1), strict=True
    ):
        fine = np.stack([mask_at(size, label, i, grey.shape, void) for i in support.labels])
        mask_tiles = cut_tiles(fine, times)  # [L, T, 128, 128]
        rows = np.flatnonzero(mask_tiles.any((0, 2, 3)))
        images.append(min_max_tiles(cut_tiles(preprocess_image(grey, size), times)[rows]))
        masks.append(mask_tiles[:, rows])
        empty = np.zeros((size, size), bool) if void is None else preprocess_ignored(void, size)
        ignored.append(cut_tiles(empty, times)[rows])
        names += [f"{name}, tile {row}" for row in rows]
        subjects += [subject] * len(rows)
        positions.append(tile_positions(rows, times))
        retained += [retained_dice(*pair) for pair in zip(coarse, fine, strict=True) if pair[1].any()]
    if not retained:
        raise UserError(f"every label is too small or thin for {size}x{size} pixels: use more than --tiles {times}")
    tiles = Support(
        np.concatenate(images),
        np.concatenate(masks, 1),
        support.labels,
        tuple(names),
        tuple(subjects),
        np.concatenate(positions).astype(np.float32),
        ignored=np.concatenate(ignored),
    )
    return TileSupport(times, tiles, 0.5 if np.median(retained) >= MIN_RETAINED_DICE else 0.0)


def read_support_folder(
    path: str | Path,
    label: int | None = None,
    axis: int | None = None,
    tiles: int = 0,
    unusable: dict[str, str] | None = None,
    window: Window | None = None,
    ignore: int | None = None,
) -> Support:
    """Reads a folder with images/ and labels/ (readers/folder.py), of images or of volumes, which become slices.

    `label`: use this id alone. `axis`: slice volumes along it; default: across the acquired planes of the first one.
    `tiles` as in `make_support`. `window` of volumes: instead of the folder's own. `ignore`: the id of pixels without a
    label, beside those that the folder names. Raises UserError, for an unusable case too unless `unusable` is given,
    which then receives the case's name and the reason.
    """
    with collect() as notes:
        folder = read_folder(path, ignore=ids_to_ignore(ignore))
        support = _read_support_folder(Path(path), folder, label, axis, tiles, unusable, window)
        if ignore is not None and support.ignored is None:
            note(path, f"no label holds the id to ignore, {ignore}")
    return replace(support, notes=notes.lines())


def _read_support_folder(
    path: Path,
    folder: Folder[Case],
    label: int | None,
    axis: int | None,
    tiles: int,
    unusable: dict[str, str] | None,
    window: Window | None,
) -> Support:
    cases = folder.cases
    for name in folder.ignored:
        note(path / name, "passed over, since it is no image, volume or label that can be read")
    if not any(case.volume for case in cases):
        if window is not None:
            raise UserError(f"{path} holds images, and a window is for volumes: leave out --window")
        images, labels, names, voids = read_examples(path, cases, label, unusable)
        subjects = {case.name: case.subject for case in cases}
        support = make_support(images, labels, names, [subjects[name] for name in names], tiles, ignored=voids)
        return support if label is None else _with_label(support, label)
    if tiles:
        raise UserError(f"{path} holds volumes, and tiles are for images: leave out --tiles")
    if images_among := [case.image for case in cases if not case.volume]:
        raise UserError(f"{images_among[0]} is an image among volumes: keep one kind in a support folder")
    if window is not None:
        cases = tuple(replace(case, window=window) for case in cases)
    return _read_volumes(path, cases, label, axis, unusable)


def _read_volumes(
    path: Path, cases: Sequence[Case], label: int | None, axis: int | None, unusable: dict[str, str] | None
) -> Support:
    def read_slices(case: Case) -> Support:
        nonlocal axis
        image, ids = read_volume_pair(case)
        if not isinstance(ids, dict):
            check_not_exchanged(case.name, image.data, ids)
        if axis is None:
            axis = case.axes[0] if len(case.axes) == 1 and case.axes[0] != IN_PLANE else slice_axis(image)
        return _select_slices(case, image, ids, axis, ignored_in(case, image))

    volumes = list(read_each(cases, read_slices, unusable).values())  # keeps the slices of each volume, not the volume
    ids = sorted({i for volume in volumes for i in volume.labels})
    if label not in (None, *ids):
        raise UserError(f"{path}: label {label} never occurs; the ids are {ids}")
    if not ids:
        raise UserError(f"{path}: every support label is empty: mark the structure with ids above 0 in at least one")
    ids = ids if label is None else [label]
    return Support(
        np.concatenate([volume.images for volume in volumes]),
        np.concatenate([np.stack([_masks_of_label(volume, i) for i in ids]) for volume in volumes], 1),
        tuple(ids),
        tuple(name for volume in volumes for name in volume.names),
        tuple(subject for volume in volumes for subject in volume.subjects),
        np.concatenate([cast(np.ndarray, volume.positions) for volume in volumes]),
        axis,
        cases[0].window,
        overlapping=any(volume.overlapping for volume in volumes),
        sizes=tuple(size for volume in volumes for size in volume.sizes),
        pixels=tuple(sum(dict(zip(v.labels, v.pixels, strict=True)).get(i, 0) for v in volumes) for i in ids),
        ignored=np.concatenate([np.broadcast_to(~volume.known, volume.images.shape) for volume in volumes]),
    )


def _masks_of_label(support: Support, label: int) -> np.ndarray:
    """Masks, uint8 [N, 128, 128], of one label; empty if it does not occur."""
    if label in support.labels:
        return support.masks[support.labels.index(label)]
    return np.zeros(support.images.shape, np.uint8)


def _with_label(support: Support, label: int) -> Support:
    """A support set of one label, with its id replaced."""
    tiles = support.tile_support and replace(
        support.tile_support, support=_with_label(support.tile_support.support, label)
    )
    return replace(support, labels=(label,), tile_support=tiles)


def _select_slices(case: Case, image: Volume, label: LabelMap, axis: int, void: np.ndarray | None) -> Support:
    """Up to SLICES_PER_VOLUME slices of a volume in which anything is labelled, with the ids that occur in it.

    `void`, bool [X, Y, Z]: voxels without a label, or None.
    """
    slices, positions, origin = volume_slices(image, OFFICIAL_SIZE, axis, case.window)
    rows, ignored = np.arange(len(slices)), None
    if void is not None:
        label = without_ids(label, (), void)[0]
        ignored = ignored_slices(replace(image, data=void), OFFICIAL_SIZE, origin)
        inside = ignored_slices(replace(image, data=np.ones_like(void)), OFFICIAL_SIZE, origin)[0]
        rows = np.flatnonzero(~ignored[:, inside].all(1))
        if not len(rows):
            raise ImageError(case.labels[0].path, "too little of it has a label", "nearly all voxels are ignored")
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SLICES_PER_VOLUME)).round().astype(int))]
    ids = tuple(sorted(ids_of(label)))
    masks = []
    for i in ids:
        mask = replace(image, data=mask_of(label, i, image.shape).astype(np.uint8))
        masks.append(mask_slices(mask, OFFICIAL_SIZE, origin, 1, void)[rows])
    return Support(
        slices[rows],
        np.stack(masks) if ids else np.zeros((0, *slices[rows].shape), np.uint8),
        ids,
        tuple(f"{case.name}{SLICE}{row}" for row in rows),
        (case.subject,) * len(rows),
        positions[rows],
        overlapping=isinstance(label, dict),
        sizes=(image.shape,) * len(rows),
        pixels=tuple(int(mask_of(label, i, image.shape).sum()) for i in ids),
        ignored=None if ignored is None else ignored[rows],
    )


def case_names(support: Support) -> list[str]:
    """The name of the image or volume of each example."""
    return [name.partition(SLICE)[0] for name in support.names]
