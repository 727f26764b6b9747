"""Volumes in one frame, their preprocessing in the published order, and every step of it back.

A `Volume` lies in canonical axes, x to the patient's right, y to the front, z to the head (RAS+, as nibabel says it),
and remembers the axes of its file, so that a mask goes back to exactly that grid. In order (Butoi et al., ICCV 2023,
supplement): resample to 1 mm (`to_spacing`; masks nearest) → window and min-max over the volume (`window_volume`) →
zero-pad to a centred cube → anti-alias blur → resize. The last three are done slice by slice on planes padded to the
cube's side (`slice_image`, `slice_mask`): the blur is within the plane, and no slice that is not wanted is computed.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from universeg_jax.data.images import ImageError, min_max, preprocess_image, preprocess_mask, restore

AXES = (0, 1, 2)  # sagittal, coronal, axial
IN_PLANE = 3  # the planes that were acquired, whatever their direction (short axis of a heart)
AXIS_NAMES = ("sagittal", "coronal", "axial", "in-plane")
ISOTROPIC = 2.0  # longest voxel side : shortest; up to here every axis is looked at
THICK = 1.5  # the same; from here on the longest side tells in which planes a volume was acquired
WINDOWS = ("auto", "ct", "mr", "none")
CT_WINDOW = (-500.0, 1000.0)  # HU; MegaMedical's default (Butoi et al., 2023)
MR_PERCENTILES = (0.5, 99.5)  # of the voxels above 0
MAX_VOXELS = 600_000_000  # of one volume, before and after it is resampled
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK and DICOM point x to the left and y to the back


@dataclass(frozen=True)
class Volume:
    """A picture in space. `affine` takes voxel numbers of `data` to millimetres in RAS+.

    `axes` is the orientation of the file's own voxel axes in canonical ones [3, 2] (nibabel's `io_orientation`),
    `name` the file for messages.
    """

    data: np.ndarray  # [X, Y, Z], canonical: float32 intensities or int32 class ids
    affine: np.ndarray  # float64 [4, 4]
    axes: np.ndarray  # float64 [3, 2]
    name: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.data.shape

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along each canonical axis."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    def file_data(self) -> np.ndarray:
        """`data` in the axes of the file it came from."""
        import nibabel as nib  # slow to import, and training needs no reader

        return nib.apply_orientation(self.data, nib.orientations.ornt_transform(_CANONICAL, self.axes))

    def file_affine(self) -> np.ndarray:
        """The affine of `file_data()`."""
        import nibabel as nib

        turn = nib.orientations.ornt_transform(_CANONICAL, self.axes)
        return self.affine @ nib.orientations.inv_ornt_aff(turn, self.shape)


_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]], float)


def check_size(path: str | Path, shape: tuple[int, ...]) -> None:
    """Raises ImageError for a header that promises too many voxels, or none."""
    if any(n < 1 for n in shape) or np.prod(shape, dtype=float) > MAX_VOXELS:
        sizes = "x".join(map(str, shape))
        raise ImageError(path, "too many voxels or none", f"{sizes}; at most {MAX_VOXELS:,} are read")


def make_affine(matrix: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """[4, 4] from the steps along each axis, as columns [3, 3], and the place of the first voxel."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, origin
    return affine


def make_volume(data: np.ndarray, affine: np.ndarray, name: str = "") -> Volume:
    """A volume from the array [I, J, K] and affine [4, 4] of a file, in any orientation. Raises ImageError."""
    import nibabel as nib

    if data.ndim != 3 or 0 in data.shape:
        raise ImageError(name, "is no volume of three axes", f"its shape is {data.shape}")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ImageError(name, "its affine cannot be inverted", "voxel sizes or directions in the header are wrong")
    axes = nib.io_orientation(affine)
    if np.isnan(axes).any():
        raise ImageError(name, "its affine leaves an axis without direction", "write the header anew")
    to_file = nib.orientations.inv_ornt_aff(axes, data.shape)
    return Volume(np.ascontiguousarray(nib.apply_orientation(data, axes)), affine @ to_file, axes, name)


def check_same_place(image: Volume, label: Volume) -> None:
    """Raises ImageError unless both have one grid: equal shapes, and corners within half a voxel of one another."""
    if image.shape != label.shape:
        sizes = ["x".join(map(str, v.shape)) for v in (image, label)]
        raise ImageError(label.name, "image and label differ in shape", f"{sizes[0]} and {sizes[1]} in canonical axes")
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    corners[:, :3] *= np.array(image.shape) - 1
    apart = np.linalg.norm(corners @ (image.affine - label.affine).T, axis=1).max()
    if apart > 0.5 * min(image.spacing):
        raise ImageError(label.name, "image and label lie in different places", f"corners up to {apart:.1f} mm apart")


def to_spacing(volume: Volume, spacing: float = 1.0) -> Volume:
    """The volume on a grid of `spacing` mm: intensities linear, class ids (integer data) nearest.

    The field of view stays; a volume without metres in its file (multi-page TIFF) has 1 mm by definition. Raises
    ImageError where the result would be too large.
    """
    shape = tuple(max(1, round(n * s / spacing)) for n, s in zip(volume.shape, volume.spacing, strict=True))
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        sizes = "x".join(map(str, shape))
        raise ImageError(volume.name, "too many voxels", f"{sizes} at {spacing:g} mm; at most {MAX_VOXELS:,}")
    return on_grid(volume, shape)


def on_grid(volume: Volume, shape: tuple[int, int, int]) -> Volume:
    """The same field of view on `shape` voxels; `on_grid(to_spacing(v), v.shape)` is the way back."""
    data = volume.data
    nearest = not np.issubdtype(data.dtype, np.floating)
    for axis, new in enumerate(shape):
        data = _resample(data, axis, new, nearest)
    scale = np.array(volume.shape) / np.array(shape)
    affine = volume.affine @ np.block(
        [[np.diag(scale), ((scale - 1) / 2)[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]]
    )
    return replace(volume, data=data, affine=affine)


def _resample(data: np.ndarray, axis: int, new: int, nearest: bool) -> np.ndarray:
    """One axis to `new` voxels over the same extent, at voxel centres."""
    old = data.shape[axis]
    if new == old:
        return data
    if nearest:  # whole numbers: from a finer grid every voxel comes back exactly
        return data.take((2 * np.arange(new) + 1) * old // (2 * new), axis)
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(centres).astype(np.int64)
    share = (centres - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    below, above = data.take(low, axis), data.take(np.minimum(low + 1, old - 1), axis)
    return below + (above - below) * share


def choose_window(modality: str) -> str:
    """ "ct" or "mr" by the words of a modality ("cardiac CT", "brain MR T1w"); "none" for everything else."""
    words = set(modality.lower().replace("-", " ").replace(",", " ").split())
    if words & {"ct", "cta", "cbct"}:
        return "ct"
    return (
        "mr" if words & {"mr", "mri", "t1", "t1w", "t1c", "t2", "t2w", "flair", "adc", "dwi", "cine", "lge"} else "none"
    )


def window_volume(data: np.ndarray, window: str | tuple[float, float] = "none") -> np.ndarray:
    """Clips by "ct", "mr", "none" or a pair (low, high), then min-max over the volume → float32 in [0, 1]."""
    if window == "ct":
        data = np.clip(data, *CT_WINDOW)
    elif window == "mr":
        inside = data[data > 0]
        data = np.clip(data, *np.percentile(inside, MR_PERCENTILES)) if inside.size else data
    elif window != "none":
        data = np.clip(data, *window)
    return min_max(data)


def plane(data: np.ndarray, axis: int, index: int) -> np.ndarray:
    """[rows, columns] of a slice as radiologists look at it: head or front up, the patient's right or front left."""
    return data.take(index, axis).T[::-1, ::-1]


def from_planes(planes: np.ndarray, axis: int) -> np.ndarray:
    """Inverse of `plane` for all slices of an axis: [N, rows, columns] → [X, Y, Z]."""
    return np.moveaxis(planes[:, ::-1, ::-1].transpose(0, 2, 1), 0, axis)


def slice_image(data: np.ndarray, axis: int, index: int, size: int) -> np.ndarray:
    """Slice of a windowed volume, padded to its cube and resized → float32 [size, size] in [0, 1]."""
    return preprocess_image(plane(data, axis, index), size, side=max(data.shape), scale=False)


def slice_mask(mask: np.ndarray, axis: int, index: int, size: int) -> np.ndarray:
    """Slice of a binary volume, by the same rule as the image → uint8 0/1 [size, size]."""
    return preprocess_mask(plane(mask, axis, index), size, side=max(mask.shape))


@dataclass(frozen=True)
class Place:
    """Where the slices of `volume_slices` come from, so that `from_slices` can put them back."""

    volume: Volume
    axis: int
    shape: tuple[int, int, int]  # of the grid that was cut
    side: int  # of its cube


def volume_slices(
    volume: Volume, size: int, axis: int | None = None, window: str | tuple[float, float] = "auto"
) -> tuple[np.ndarray, np.ndarray, Place]:
    """(slices float32 [N, size, size], their relative positions [N] in [0, 1], where they belong) of intensities.

    In the plane 1 mm; along `axis` (default: `slice_axis`) the volume's own slices, or one a mm where there are
    more. Window "auto": "ct" where anything is below -500, as only Hounsfield units are, else "mr".
    """
    axis = slice_axis(volume) if axis is None else axis
    fine = tuple(max(1, round(n * s)) for n, s in zip(volume.shape, volume.spacing, strict=True))
    shape = tuple(min(n, fine[a]) if a == axis else fine[a] for a, n in enumerate(volume.shape))
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        sizes = "x".join(map(str, shape))
        raise ImageError(volume.name, "too many voxels", f"{sizes} at 1 mm; at most {MAX_VOXELS:,}")
    if window == "auto":
        window = "ct" if volume.data.min() < -500 else "mr"
    place = Place(volume, axis, shape, max(fine))
    data = window_volume(on_grid(volume, shape).data, window)
    slices = [preprocess_image(plane(data, axis, i), size, side=place.side, scale=False) for i in range(shape[axis])]
    return np.stack(slices), _positions(shape[axis]), place


def smooth_slices(slices: np.ndarray, place: Place, sigma: float) -> np.ndarray:
    """Predictions [N, ...] of all slices, blurred across them by a Gaussian of `sigma` mm."""
    apart = place.volume.spacing[place.axis] * place.volume.shape[place.axis] / place.shape[place.axis]
    return gaussian_filter1d(slices, sigma / apart, axis=0, mode="nearest")


def mask_slices(volume: Volume, size: int, place: Place, label: int) -> np.ndarray:
    """Masks uint8 0/1 [N, size, size] of one label, cut as `volume_slices` cut the image at `place`."""
    data = on_grid(replace(volume, data=(volume.data == label).astype(np.uint8)), place.shape).data
    count = place.shape[place.axis]
    return np.stack([preprocess_mask(plane(data, place.axis, i), size, side=place.side) for i in range(count)])


def _positions(count: int) -> np.ndarray:
    return ((np.arange(count) + 0.5) / count).astype(np.float32)


def from_slices(slices: np.ndarray, place: Place) -> Volume:
    """Predictions [N, size, size] of all slices → float32 on the grid of the volume that they were cut from."""
    if len(slices) != place.shape[place.axis]:
        raise ValueError(f"{len(slices)} slices for an axis of {place.shape[place.axis]}")
    rest = [n for a, n in enumerate(place.shape) if a != place.axis]
    planes = np.stack([restore(s, (rest[1], rest[0]), side=place.side) for s in slices])
    cut = replace(place.volume, data=from_planes(planes, place.axis))
    return replace(place.volume, data=on_grid(cut, place.volume.shape).data)


def middle_slice(data: np.ndarray, axis: int) -> int:
    """N // 2, MegaMedical's mid-slice."""
    return data.shape[axis] // 2


def slice_axis(volume: Volume) -> int:
    """The axis across the planes that were acquired: that of one voxel, else of the longest; axial if hardly longer."""
    if 1 not in volume.shape and max(volume.spacing) < THICK * min(volume.spacing):
        return 2
    return max(AXES, key=lambda axis: (volume.shape[axis] == 1, round(volume.spacing[axis], 3), axis))


def largest_slice(mask: np.ndarray, axis: int) -> int:
    """The slice with most foreground, the first of equals: MegaMedical's max-slice."""
    return int(np.argmax(mask.sum(tuple(a for a in AXES if a != axis), dtype=np.int64)))
