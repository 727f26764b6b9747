"""A support set at the network's doorstep: preprocessed once, with what is needed to choose from it.

Pictures and slices of volumes become [N, 128, 128] by the preprocessing of training; a slice keeps its relative
position in its volume, so that a query's slice can be shown examples from about the same height.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from universeg_jax.episode import OFFICIAL_SIZE
from universeg_jax.errors import UserError
from universeg_jax.prediction.tiles import THIN, cut, kept, stretch
from universeg_jax.readers.cases import Case, check_inside, read_label_on
from universeg_jax.readers.folder import read_each, read_folder, read_support
from universeg_jax.readers.images import read_image, read_label
from universeg_jax.readers.labels import class_masks
from universeg_jax.readers.preprocess import preprocess_image, preprocess_mask, to_grey
from universeg_jax.readers.slices import mask_slices, volume_slices
from universeg_jax.readers.volume_files import read_volume
from universeg_jax.readers.volumes import IN_PLANE, Volume, slice_axis

CHOICES = ("nearest", "random", "diverse")
SLICES_A_VOLUME = 32  # of each labelled volume, evenly spaced
MANY_IDS = 20  # in one label, above which it may be a picture
SLICE = ", slice "  # in the name of an example of a volume
THUMBNAIL = 16  # pixels a side of the picture by which likeness is judged


@dataclass(frozen=True)
class Support:
    """N labelled examples of L labels."""

    images: np.ndarray  # float32 [N, 128, 128] in [0, 1]
    masks: np.ndarray  # uint8 0/1 [L, N, 128, 128]
    labels: tuple[int, ...]  # ids
    names: tuple[str, ...]
    subjects: tuple[str, ...]
    positions: np.ndarray | None = None  # float32 [N] in [0, 1] along the axis of volumes; None for pictures
    axis: int | None = None  # along which volumes were cut, and their queries are; None for pictures
    window: str | tuple[float, float] = "auto"  # of intensities of volumes, and of their queries
    closer: "Closer | None" = None  # what tiles of the same pictures show, where that is wanted

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Sequence[int]) -> "Support":
        """The same with these examples alone, and without tiles."""
        return replace(
            self,
            images=self.images[rows],
            masks=self.masks[:, rows],
            names=tuple(self.names[i] for i in rows),
            subjects=tuple(self.subjects[i] for i in rows),
            positions=None if self.positions is None else self.positions[rows],
            closer=None,
        )

    def digest(self) -> str:
        """Identity of all that a prediction depends on."""
        digest = hashlib.sha256(repr((self.labels, self.images.shape, self.axis, self.window)).encode())
        for array in (self.images, self.masks, self.positions):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        if self.closer:
            digest.update(self.closer.tiles.digest().encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Closer:
    """Examples for a second look, as tiles.py has it."""

    times: int  # magnification
    tiles: Support  # those with something marked; a position is the tile's place among all, in its own order
    share: float  # of the first look in the answer


def make_support(
    images: Sequence[object],
    labels: Sequence[object],
    names: Sequence[str] = (),
    subjects: Sequence[str] = (),
    tiles: int = 0,
) -> Support:
    """From pictures [H, W] or [H, W, 3] of any size, or files, and label maps of their sizes, 0 = background.

    `tiles`: times by which parts of them are magnified too, for `Options.tiles`; 0 for none. Raises UserError, and
    ImageError for a file.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(f"{len(images)} support images and {len(labels)} labels: one label for each image is needed")
    greys = [as_grey(image) for image in images]
    maps = [read_label(label) if isinstance(label, str | Path) else np.asarray(label) for label in labels]
    for i, (grey, label) in enumerate(zip(greys, maps, strict=True)):
        if grey.shape != label.shape:
            raise UserError(f"support {i}: the image is {grey.shape}, its label {label.shape}; they must be equal")
        check_not_exchanged(names[i] if names else f"support {i}", grey, label)
    ids = sorted({int(value) for label in maps for value in np.unique(label)} - {0})
    if not ids:
        raise UserError("every support label is empty: at least one must mark something (ids above 0)")
    names = tuple(names) or tuple(str(i) for i in range(len(greys)))
    support = Support(
        np.stack([preprocess_image(grey, OFFICIAL_SIZE) for grey in greys]),
        np.stack([[preprocess_mask(label == i, OFFICIAL_SIZE) for label in maps] for i in ids]),
        tuple(ids),
        names,
        tuple(subjects) or names,
    )
    if not tiles and not support.masks.any():
        raise UserError(
            f"no label is left at {OFFICIAL_SIZE} pixels, so small or thin it is: tiles=2 (--tiles 2) looks closer"
        )
    return replace(support, closer=_look_closer(support, greys, maps, tiles)) if tiles else support


def _look_closer(support: Support, greys: Sequence[np.ndarray], maps: Sequence[np.ndarray], times: int) -> Closer:
    size = OFFICIAL_SIZE * times
    # Picture by picture: all of them at full size at once would take times² the memory of the tiles that are kept.
    images, masks, names, subjects, places, left = [], [], [], [], [], []
    for grey, label, name, subject, first in zip(
        greys, maps, support.names, support.subjects, support.masks.swapaxes(0, 1), strict=True
    ):
        whole = np.stack([preprocess_mask(label == i, size) for i in support.labels])
        of_masks = cut(whole, times)  # [L, T, 128, 128]
        rows = np.flatnonzero(of_masks.any((0, 2, 3)))
        images.append(stretch(cut(preprocess_image(grey, size), times)[rows]))
        masks.append(of_masks[:, rows])
        names += [f"{name}, tile {row}" for row in rows]
        subjects += [subject] * len(rows)
        places.append((rows + 0.5) / of_masks.shape[1])
        left += [kept(*pair) for pair in zip(first, whole, strict=True) if pair[1].any()]
    if not left:
        raise UserError(f"no label is left at {size} pixels, so small it is: take more than --tiles {times}")
    tiles = Support(
        np.concatenate(images),
        np.concatenate(masks, 1),
        support.labels,
        tuple(names),
        tuple(subjects),
        np.concatenate(places).astype(np.float32),
    )
    return Closer(times, tiles, 0.5 if np.median(left) >= THIN else 0.0)


def check_not_exchanged(name: str, image: np.ndarray, label: np.ndarray) -> None:
    """Raises UserError where the label has more values than its image, and more than anybody marks."""
    ids = len(np.unique(label))
    if ids > MANY_IDS and ids > (values := len(np.unique(image))):
        raise UserError(
            f"{name}: image and label look exchanged: the label holds {ids} different values, the image only {values}; "
            "pictures belong into images/, class ids into labels/"
        )


def read_support_folder(
    path: str | Path,
    label: int | None = None,
    axis: int | None = None,
    tiles: int = 0,
    unusable: dict[str, str] | None = None,
) -> Support:
    """A folder as data/folder.py reads it, of pictures or of volumes, of which slices are taken. Raises UserError.

    `label`: this id alone. `axis`: of volumes; default: the acquired planes of the first. `tiles` as in `make_support`.
    `unusable`: gets names of cases that cannot be used, and why; otherwise the first one is raised.
    """
    cases = read_folder(path).cases
    if not any(case.volume for case in cases):
        images, labels, names = read_support(path, label, unusable)
        subjects = {case.name: case.subject for case in cases}
        support = make_support(images, labels, names, [subjects[name] for name in names], tiles)
        return support if label is None else _renamed(support, label)
    if tiles:
        raise UserError(f"{path} holds volumes, and tiles are for pictures: leave out --tiles")
    if pictures := [case.image for case in cases if not case.volume]:
        raise UserError(f"{pictures[0]} is a picture among volumes: keep one kind in a support folder")

    def slices(case: Case) -> Support:
        nonlocal axis
        image, ids = _volume_with_label(case)
        if axis is None:
            axis = case.axes[0] if len(case.axes) == 1 and case.axes[0] != IN_PLANE else slice_axis(image)
        return _slices_of(case, image, ids, axis)

    parts = list(read_each(cases, slices, unusable).values())  # of each volume its slices alone stay in memory
    ids = sorted({i for part in parts for i in part.labels})
    if label not in (None, *ids):
        raise UserError(f"{path}: label {label} never occurs; the ids there are {ids}")
    if not ids:
        raise UserError(f"{path}: every support label is empty: at least one must mark something (ids above 0)")
    ids = ids if label is None else [label]
    return Support(
        np.concatenate([part.images for part in parts]),
        np.concatenate([np.stack([_mask_of(part, i) for i in ids]) for part in parts], 1),
        tuple(ids),
        sum((part.names for part in parts), ()),
        sum((part.subjects for part in parts), ()),
        np.concatenate([part.positions for part in parts]),
        axis,
        cases[0].window,
    )


def _mask_of(part: Support, label: int) -> np.ndarray:
    """uint8 [N, 128, 128] of one label, which may be none of the part's."""
    if label in part.labels:
        return part.masks[part.labels.index(label)]
    return np.zeros(part.images.shape, np.uint8)


def _renamed(support: Support, label: int) -> Support:
    """A support of one label, with this id."""
    closer = support.closer and replace(support.closer, tiles=_renamed(support.closer.tiles, label))
    return replace(support, labels=(label,), closer=closer)


def _volume_with_label(case: Case) -> tuple[Volume, Volume]:
    check_inside(case)
    image = read_volume(case.image, case.channel)
    ids = np.zeros(image.shape, np.int32)
    for i, mask in class_masks(case.labels, case.ids, lambda file: read_label_on(case, file, image, image.shape)):
        ids[mask] = i
    check_not_exchanged(case.name, image.data, ids)
    return image, replace(image, data=ids)


def _slices_of(case: Case, image: Volume, label: Volume, axis: int) -> Support:
    """Up to SLICES_A_VOLUME of a volume, with the ids that occur in it."""
    slices, positions, place = volume_slices(image, OFFICIAL_SIZE, axis, case.window)
    rows = np.unique(np.linspace(0, len(slices) - 1, min(len(slices), SLICES_A_VOLUME)).round().astype(int))
    ids = tuple(int(i) for i in np.unique(label.data) if i)
    masks = [mask_slices(label, OFFICIAL_SIZE, place, i)[rows] for i in ids]
    names = tuple(f"{case.name}{SLICE}{row}" for row in rows)
    return Support(
        slices[rows],
        np.stack(masks) if ids else np.zeros((0, *slices[rows].shape), np.uint8),
        ids,
        names,
        (case.subject,) * len(rows),
        positions[rows],
    )


def case_names(support: Support) -> list[str]:
    """Of each example the picture or volume that it is of."""
    return [name.partition(SLICE)[0] for name in support.names]


def as_grey(image: object) -> np.ndarray:
    """float32 [H, W] from a file, a PIL image, [H, W] or [H, W, 3]."""
    if isinstance(image, str | Path):
        return read_image(image)
    if getattr(image, "mode", None) in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    return to_grey(np.asarray(image))


def thumbnails(images: np.ndarray) -> np.ndarray:
    """[N, 128, 128] → [N, 256] of mean 0 and length 1: products of them are correlations."""
    cell = images.shape[-1] // THUMBNAIL
    small = images.reshape(len(images), THUMBNAIL, cell, THUMBNAIL, cell).mean((2, 4)).reshape(len(images), -1)
    small = small - small.mean(1, keepdims=True)
    return small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)


def choose(
    support: Support, query: np.ndarray, position: float | None, size: int, draws: int, how: str, seed: int
) -> np.ndarray:
    """Examples [K, S] for one query [128, 128]: all of them where they fit into S, else K draws without replacement.

    Where both have positions, from those nearest to the query's, three times what a draw takes. "random" draws
    anew by seed; "nearest" takes those that look most like the query; "diverse" those that together are nearest to
    all (k-centre). The last two have one best choice, so each further draw is taken from twice as many at random.
    """
    everything = np.arange(len(support))
    if len(support) <= size:
        return everything[None]
    rows = everything
    if position is not None and support.positions is not None:
        rows = np.argsort(np.abs(support.positions - position), kind="stable")[: max(3 * size, size)]
    rng = np.random.default_rng(seed)
    if how == "random" or len(rows) <= size:
        return np.stack([np.sort(rng.choice(rows, size, replace=False)) for _ in range(draws)])
    features = thumbnails(support.images[rows])
    if how == "nearest":
        order = np.argsort(-(features @ thumbnails(query[None])[0]), kind="stable")
    else:
        order = k_centre(features, min(2 * size, len(rows)))
    best, wider = np.sort(rows[order[:size]]), rows[order[: 2 * size]]
    others = [np.sort(rng.choice(wider, size, replace=False)) for _ in range(draws - 1)]
    return np.stack([best, *others])


def k_centre(features: np.ndarray, count: int) -> np.ndarray:
    """Rows [count], greedily each the farthest from those before it; begins with the one nearest to the mean."""
    chosen = [int(np.argmax(features @ features.mean(0)))]
    apart = 1 - features @ features[chosen[0]]
    while len(chosen) < count:
        apart[chosen] = -np.inf
        chosen.append(int(np.argmax(apart)))
        apart = np.minimum(apart, 1 - features @ features[chosen[-1]])
    return np.array(chosen)
