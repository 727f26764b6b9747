"""Gaps between labelled slices of a volume, and the square windows in which one label of a gap is looked at.

Arrays are planes along the labelled axis, [N, H, W]. A window may reach beyond the plane; there it is 0.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from universeg_jax.readers.preprocess import preprocess_image, preprocess_mask, restore

MIN_SIDE = 32  # pixels of a window


@dataclass(frozen=True)
class Gap:
    """Unlabelled slices start <= z < stop, and the labelled ones beside them; None beyond the first and the last."""

    start: int
    stop: int
    before: int | None
    after: int | None

    def __len__(self) -> int:
        return self.stop - self.start

    def shares(self) -> np.ndarray:
        """How far each slice lies on the way from `before` to `after`, float32 [n] in [0, 1]; 0 or 1 if one is None."""
        if self.before is None or self.after is None:
            return np.full(len(self), 0 if self.after is None else 1, np.float32)
        return ((np.arange(self.start, self.stop) - self.before) / (self.after - self.before)).astype(np.float32)


def find_gaps(labelled: Sequence[int] | np.ndarray, count: int) -> list[Gap]:
    """The gaps of an axis of `count` slices, of which those in `labelled`, ascending, are labelled."""
    edges = [None, *map(int, labelled), None]
    gaps = []
    for before, after in itertools.pairwise(edges):
        start, stop = 0 if before is None else before + 1, count if after is None else after
        if start < stop:
            gaps.append(Gap(start, stop, before, after))
    return gaps


def nearest_slices(labelled: Sequence[int] | np.ndarray, gap: Gap, count: int) -> np.ndarray:
    """Up to `count` of the labelled slices, those nearest to the gap first."""
    slices = np.asarray(labelled)
    return slices[np.argsort(np.abs(slices - (gap.start + gap.stop - 1) / 2), kind="stable")[:count]]


@dataclass(frozen=True)
class Window:
    """A square of `side` pixels of a plane; `row` and `column` of its corner may be negative."""

    row: int
    column: int
    side: int

    def cut(self, plane: np.ndarray) -> np.ndarray:
        """[H, W] → [side, side]."""
        crop = np.zeros((self.side, self.side), plane.dtype)
        rows, columns = self._inside(plane.shape)
        part = plane[rows, columns]
        top, left = rows.start - self.row, columns.start - self.column
        if part.size:
            crop[top : top + part.shape[0], left : left + part.shape[1]] = part
        return crop

    def image(self, plane: np.ndarray, size: int) -> np.ndarray:
        """The window of an image in [0, 1] at the network's size, float32 [size, size]."""
        return preprocess_image(self.cut(plane), size, scale=False)

    def mask(self, plane: np.ndarray, size: int) -> np.ndarray:
        """The window of a binary mask at the network's size, uint8 0/1 [size, size]."""
        return preprocess_mask(self.cut(plane), size)

    def part(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """The rows and columns of a plane [H, W] that the window covers."""
        return self._inside(shape)

    def back(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Values [size, size] of the window at the resolution of the plane, for `part(shape)`."""
        rows, columns = self._inside(shape)
        whole = restore(values, (self.side, self.side))
        return whole[
            rows.start - self.row : rows.stop - self.row, columns.start - self.column : columns.stop - self.column
        ]

    def _inside(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        height, width = shape[-2:]
        bounds = [np.clip((at, at + self.side), 0, n) for at, n in ((self.row, height), (self.column, width))]
        rows, columns = (slice(int(start), int(stop)) for start, stop in bounds)
        return rows, columns


def window_around(mask: np.ndarray, times: float) -> Window:
    """The window `times` as large as the mask [H, W], which is not empty, but no larger than the plane's square."""
    bounds = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    lengths, centres = [b[-1] - b[0] + 1 for b in bounds], [(b[-1] + b[0] + 1) / 2 for b in bounds]
    whole = max(mask.shape)
    side = min(whole, max(MIN_SIDE, round(times * max(lengths))))
    row, column = (_corner(c, side, n) for c, n in zip(centres, mask.shape, strict=True))
    return Window(row, column, side)


def _corner(centre: float, side: int, length: int) -> int:
    """Inside the plane where the window fits, else centred on it."""
    if side >= length:
        return -((side - length) // 2)
    return int(np.clip(round(centre - side / 2), 0, length - side))
