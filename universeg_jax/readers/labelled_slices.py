"""Which slices of a partly labelled volume are labelled.

A slice counts as labelled if it has any id above 0, so that one without foreground cannot be told from one that nobody
has looked at. Three things settle it: a list of slices, an id that marks what is not labelled, or the distance between
the labelled slices: where they lie 8 apart, the 8th before the first and after the last were left empty on purpose.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from universeg_jax.errors import UserError
from universeg_jax.readers.volumes import AXES, AXIS_NAMES

ALONE = 0.5  # share of the labelled voxels of a slice without a labelled neighbour across it
COVERED = 0.99  # share of the labelled voxels that these slices must hold
EMPTY = 0.2  # share of slices without a label between the first and the last, where labelled slices touch


@dataclass(frozen=True)
class LabelledSlices:
    """The labelled slices of one axis, ascending; those in `empty` hold no label and count as labelled all the same."""

    axis: int
    slices: tuple[int, ...]
    empty: tuple[int, ...] = ()


def find_labelled_slices(
    ids: np.ndarray, axis: int | None = None, slices: Sequence[int] | None = None, ignore: int | None = None
) -> tuple[LabelledSlices, ...]:
    """The labelled slices of ids [X, Y, Z], one entry for each axis that has any. Raises UserError.

    `slices` of `axis` are labelled, whatever they hold; without `axis` it is the one that the labels suggest. `ignore`:
    the id of voxels that are not labelled; slices without it are labelled, empty or not.
    """
    if ignore is not None and not (ids == ignore).any():
        if slices is None:
            raise UserError(f"ignore={ignore}: no voxel has this id: name the labelled slices, or leave it out")
        ignore = None  # it is for other cases
    marked = ids != 0 if ignore is None else (ids != 0) & (ids != ignore)
    if not marked.any():
        raise UserError("no voxel is labelled: label the structures in at least one slice")
    if ignore is not None and slices is None:
        return (_not_ignored(ids == ignore, axis),)
    if slices is not None:
        axis = find_axis(ids, ignore) if axis is None else axis
        return (LabelledSlices(axis, check_slices(slices, axis, ids.shape[axis]), ()),)
    found = [(axis, _with_label(marked, axis))] if axis is not None else _detect(marked)
    return tuple(_with_empty(each, rows, ids.shape[each]) for each, rows in found)


def unused_slices(ids: np.ndarray, labelled: LabelledSlices, ignore: int | None = None) -> tuple[int, ...]:
    """Slices along the axis that hold a label although they do not count as labelled."""
    marked = (ids != 0) & (ids != (0 if ignore is None else ignore))
    return tuple(sorted(set(_with_label(marked, labelled.axis).tolist()) - set(labelled.slices)))


def find_axis(ids: np.ndarray, ignore: int | None = None) -> int:
    """The only axis whose slices are labelled. Raises UserError where the labels do not tell."""
    found = find_labelled_slices(ids, ignore=ignore if ignore is not None and (ids == ignore).any() else None)
    if len(found) > 1:
        names = " and ".join(AXIS_NAMES[each.axis] for each in found)
        raise UserError(f"{names} slices are labelled: give the axis of the slices, as in --axis {AXIS_NAMES[2]}")
    return found[0].axis


def _with_label(marked: np.ndarray, axis: int) -> np.ndarray:
    return np.flatnonzero(marked.any(tuple(a for a in AXES if a != axis)))


def check_slices(slices: Sequence[int], axis: int, count: int) -> tuple[int, ...]:
    """`slices` of an axis with `count`, ascending. Raises UserError for one that does not exist."""
    if not slices:
        raise UserError("slices=(): name at least one labelled slice")
    if outside := [i for i in slices if not 0 <= i < count]:
        raise UserError(f"slice {outside[0]} does not exist: the {AXIS_NAMES[axis]} slices are 0 to {count - 1}")
    return tuple(sorted(set(map(int, slices))))


def _not_ignored(ignored: np.ndarray, axis: int | None) -> LabelledSlices:
    """The slices without an ignored voxel along `axis`, or along the only axis that has such slices."""
    complete = {a: np.setdiff1d(np.arange(ignored.shape[a]), _with_label(ignored, a)) for a in AXES}
    axes = [a for a in AXES if len(complete[a])] if axis is None else [axis]
    if len(axes) != 1 or not len(complete[axes[0]]):
        raise UserError(
            "no axis alone has slices without ignored voxels: give the axis and the labelled slices, as in "
            "--axis axial --slices 0,8,16"
        )
    return LabelledSlices(axes[0], tuple(complete[axes[0]].tolist()))


def _detect(marked: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(axis, slices) of labelled voxels [X, Y, Z]. Raises UserError where the labels do not tell."""
    axes = [axis for axis in AXES if marked.shape[axis] > 1]
    alone = {axis: _alone(marked, axis) for axis in axes}
    whole = [axis for axis in axes if _covers(marked, {axis: alone[axis]})]
    if len(whole) == 1:
        return [(whole[0], _with_label(marked, whole[0]))]
    several = {axis: rows for axis, rows in alone.items() if len(rows)}
    if not whole and len(several) > 1 and _covers(marked, several):
        return list(several.items())
    shares = sorted(((_empty_share(_with_label(marked, axis)), axis) for axis in axes), reverse=True)
    if not whole and shares[0][0] >= max(EMPTY, 2 * sum(share for share, _ in shares[1:2])):
        return [(shares[0][1], _with_label(marked, shares[0][1]))]
    raise UserError("the labels do not tell which slices are labelled: give the axis, as in --axis axial")


def _alone(marked: np.ndarray, axis: int) -> np.ndarray:
    """Slices of an axis most of whose labelled voxels have no labelled neighbour across the slice."""
    others = tuple(a for a in AXES if a != axis)
    voxels = marked.sum(others)
    return np.flatnonzero((marked & ~_neighbours(marked, axis)).sum(others) >= ALONE * np.maximum(voxels, 1))


def _covers(marked: np.ndarray, slices: dict[int, np.ndarray]) -> bool:
    """Whether slices hold nearly all labelled voxels."""
    left = marked.copy()
    for axis, rows in slices.items():
        np.moveaxis(left, axis, 0)[rows] = False
    return bool(left.sum() <= (1 - COVERED) * marked.sum())


def _neighbours(marked: np.ndarray, axis: int) -> np.ndarray:
    """Voxels next to a labelled one along an axis."""
    lines = np.moveaxis(marked, axis, 0)
    beside = np.zeros(lines.shape, bool)
    beside[1:] |= lines[:-1]
    beside[:-1] |= lines[1:]
    return np.moveaxis(beside, 0, axis)


def _empty_share(rows: np.ndarray) -> float:
    return 1 - len(rows) / (rows[-1] - rows[0] + 1)


def _with_empty(axis: int, rows: np.ndarray, count: int) -> LabelledSlices:
    """Adds the slices one step before the first and after the last labelled one."""
    empty: list[int] = []
    if len(rows) > 1:
        step = int(np.median(np.diff(rows)))
        empty = [int(i) for i in (rows[0] - step, rows[-1] + step) if step > 1 and 0 <= i < count]
    return LabelledSlices(axis, tuple(sorted({*rows.tolist(), *empty})), tuple(empty))
