"""Slices of volumes, padded to the volume's cube and resized, and the way back.

The blur is within the plane, so that unused slices are never computed.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d

from universeg_jax.readers.checks import check_voxels
from universeg_jax.readers.notes import note
from universeg_jax.readers.preprocess import (
    CT_ONLY_BELOW,
    Window,
    apply_window,
    preprocess_ignored,
    preprocess_image,
    preprocess_mask,
    preprocess_partly,
    preprocess_strokes,
    restore,
    window_of_intensities,
)
from universeg_jax.readers.volumes import AXES, Shape, Volume, on_grid, slice_axis


def plane(data: np.ndarray, axis: int, index: int) -> np.ndarray:
    """[rows, columns] of a slice in radiological view: head or front up, the patient's right or front on the left."""
    return data.take(index, axis).T[::-1, ::-1]


def from_planes(planes: np.ndarray, axis: int) -> np.ndarray:
    """Inverts `plane` for all slices of an axis: [N, rows, columns] → [X, Y, Z]."""
    return np.moveaxis(planes[:, ::-1, ::-1].transpose(0, 2, 1), 0, axis)


def slice_image(data: np.ndarray, axis: int, index: int, size: int) -> np.ndarray:
    """Slice of a windowed volume, padded to its cube and resized → float32 [size, size] in [0, 1]."""
    return preprocess_image(plane(data, axis, index), size, side=max(data.shape), scale=False)


def slice_mask(mask: np.ndarray, axis: int, index: int, size: int) -> np.ndarray:
    """Slice of a binary volume, by the same rule as the image → uint8 0/1 [size, size]."""
    return preprocess_mask(plane(mask, axis, index), size, side=max(mask.shape))


def middle_slice(data: np.ndarray, axis: int) -> int:
    """N // 2, MegaMedical's mid-slice."""
    return data.shape[axis] // 2


def largest_slice(mask: np.ndarray, axis: int) -> int:
    """The slice with most foreground, the first of equals: MegaMedical's max-slice."""
    return int(np.argmax(mask.sum(tuple(a for a in AXES if a != axis), dtype=np.int64)))


@dataclass(frozen=True)
class SliceOrigin:
    """The volume and grid that slices were cut from; `from_slices` puts them back."""

    volume: Volume
    axis: int
    shape: Shape  # of the grid that was cut
    side: int  # of its cube


def volume_slices(
    volume: Volume, size: int, axis: int | None = None, window: Window = "auto", every: bool = False
) -> tuple[np.ndarray, np.ndarray, SliceOrigin]:
    """Cuts intensities into slices: (float32 [N, size, size], relative positions [N] in [0, 1], their origin).

    The plane is resampled to 1 mm, or finer where the volume is small (`Volume.fine_spacing`). Along `axis` (default:
    `slice_axis`) the volume's own slices are used, or one per such step where there are more, unless `every` one is
    wanted. The window "auto" is `window_of_intensities`, and a note says which one it is.
    """
    axis = slice_axis(volume) if axis is None else axis
    spacing = volume.fine_spacing(size)
    fine = volume.shape_at(spacing)
    own = volume.shape[axis] if every else min(volume.shape[axis], fine[axis])
    x, y, z = (own if a == axis else n for a, n in enumerate(fine))
    shape = (x, y, z)
    check_voxels(volume.name, shape, f"{spacing:g} mm")
    if window == "auto":
        window = guess_window(volume)
    origin = SliceOrigin(volume, axis, shape, max(fine))
    data = apply_window(on_grid(volume, shape).data, window)
    slices = [preprocess_image(plane(data, axis, i), size, side=origin.side, scale=False) for i in range(shape[axis])]
    return np.stack(slices), _positions(shape[axis]), origin


def guess_window(volume: Volume) -> Window:
    """The window of a volume of unknown modality, by its intensities; a note says which."""
    window = window_of_intensities(volume.data)
    remedy = "--window, or window in meta.json, overrules this"
    if window == "ct":
        note(volume.name, f"taken for CT, because many voxels lie below {CT_ONLY_BELOW:g}: window ct; {remedy}")
    else:
        note(volume.name, f"not taken for CT, because few voxels lie below {CT_ONLY_BELOW:g}: window mr; {remedy}")
    return window


def mask_slices(
    volume: Volume, size: int, origin: SliceOrigin, label: int, ignored: np.ndarray | None = None
) -> np.ndarray:
    """Cuts masks uint8 0/1 [N, size, size] of one label, as `volume_slices` cut the image at `origin`.

    `ignored`, bool [X, Y, Z]: voxels without a label.
    """
    planes = _planes(replace(volume, data=volume.data == label), origin)
    if ignored is None:
        return np.stack([preprocess_mask(each, size, side=origin.side) for each in planes])
    pairs = zip(planes, _planes(replace(volume, data=ignored), origin), strict=True)
    return np.stack([preprocess_partly(each > 0, empty > 0, size, side=origin.side) for each, empty in pairs])


def ignored_slices(volume: Volume, size: int, origin: SliceOrigin) -> np.ndarray:
    """Cuts voxels without a label, bool [X, Y, Z], into bool [N, size, size], as `mask_slices` cuts a mask."""
    return np.stack([preprocess_ignored(each > 0, size, side=origin.side) for each in _planes(volume, origin)])


def stroke_slices(
    volume: Volume, said: np.ndarray, size: int, origin: SliceOrigin, label: int
) -> tuple[np.ndarray, np.ndarray]:
    """(masks uint8 0/1, bool) [N, size, size]: the strokes of one label, and where any are; see `preprocess_strokes`.

    `volume` has ids, of which those at `said`, bool [X, Y, Z], are strokes.
    """
    both = (_planes(replace(volume, data=each), origin) for each in (volume.data == label, said))
    found = [preprocess_strokes(mask > 0, drawn > 0, size, origin.side) for mask, drawn in zip(*both, strict=True)]
    masks, known = zip(*found, strict=True)
    return np.stack(masks), np.stack(known)


def _planes(volume: Volume, origin: SliceOrigin) -> list[np.ndarray]:
    """uint8 0/1 planes of a binary volume on the grid that was cut."""
    data = on_grid(replace(volume, data=volume.data.astype(np.uint8)), origin.shape).data
    return [plane(data, origin.axis, i) for i in range(origin.shape[origin.axis])]


def smooth_slices(slices: np.ndarray, origin: SliceOrigin, sigma: float) -> np.ndarray:
    """Blurs predictions [N, ...] across the slices by a Gaussian of `sigma` mm."""
    apart = origin.volume.spacing[origin.axis] * origin.volume.shape[origin.axis] / origin.shape[origin.axis]
    return gaussian_filter1d(slices, sigma / apart, axis=0, mode="nearest")


def from_slices(slices: np.ndarray, origin: SliceOrigin) -> Volume:
    """Puts predictions [N, size, size] of all slices back → float32 on the grid of the volume they were cut from."""
    if len(slices) != origin.shape[origin.axis]:
        raise ValueError(f"{len(slices)} slices for an axis of {origin.shape[origin.axis]}")
    columns, rows = (n for a, n in enumerate(origin.shape) if a != origin.axis)
    planes = np.stack([restore(s, (rows, columns), side=origin.side) for s in slices])
    cut = replace(origin.volume, data=from_planes(planes, origin.axis))
    return replace(origin.volume, data=on_grid(cut, origin.volume.shape).data)


def _positions(count: int) -> np.ndarray:
    return ((np.arange(count) + 0.5) / count).astype(np.float32)
