"""Volumes in one coordinate frame, and resampling.

A `Volume` lies in canonical axes, x to the patient's right, y to the front, z to the head (RAS+ in nibabel's terms),
and remembers the axes of its file, so that a mask goes back to exactly that grid. The published order of preprocessing
(Butoi et al., ICCV 2023, supplement) is: resample to 1 mm (`to_spacing`) → window and min-max over the volume
(`preprocess.apply_window`) → zero-pad to a centred cube, blur, resize (`slices.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from universeg_jax.readers import checks
from universeg_jax.readers.checks import check_voxels
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.notes import note

Shape = tuple[int, int, int]

AXES = (0, 1, 2)  # sagittal, coronal, axial
IN_PLANE = 3  # the acquired planes, whatever their direction (short axis of a heart)
AXIS_NAMES = ("sagittal", "coronal", "axial", "in-plane")
ISOTROPIC = 2.0  # up to this ratio of longest to shortest voxel side all three axes are sliced
THICK = 1.5  # from this ratio on the longest side tells in which planes a volume was acquired
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK and DICOM point x to the left and y to the back
_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]], float)


@dataclass(frozen=True)
class Volume:
    """A 3D image in space. `affine` maps voxel indices of `data` to millimetres in RAS+.

    `axes` is the orientation of the file's own voxel axes in canonical ones [3, 2] (nibabel's `io_orientation`),
    `name` the file for messages.
    """

    data: np.ndarray  # [X, Y, Z], canonical: float32 intensities or int32 class ids
    affine: np.ndarray  # float64 [4, 4]
    axes: np.ndarray  # float64 [3, 2]
    name: str = ""

    @property
    def shape(self) -> Shape:
        x, y, z = self.data.shape
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along each canonical axis."""
        x, y, z = (float(side) for side in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    def fine_spacing(self, size: int) -> float:
        """Side of the voxels, mm, to resample to for slices of `size` pixels: 1, or less for a small field of view.

        At 1 mm a field of view below `size` mm would have fewer pixels than the slices; voxels of the file are then
        kept as fine as they are, down to `size` of them. More voxels than can be held are no finer than the file's.
        """
        view = max(n * s for n, s in zip(self.shape, self.spacing, strict=True))
        spacing = min(1.0, max(min(self.spacing), view / size))
        if np.prod(self.shape_at(spacing), dtype=float) > checks.MAX_VOXELS and min(self.spacing) > 1:
            note(self.name, "its voxels are too large to be resampled to 1 mm; is the unit in its header right?")
            return min(self.spacing)
        return spacing

    def shape_at(self, spacing: float) -> Shape:
        """The number of voxels of `spacing` mm that cover the field of view, per axis."""
        x, y, z = (max(1, round(n * s / spacing)) for n, s in zip(self.shape, self.spacing, strict=True))
        return x, y, z

    def file_data(self) -> np.ndarray:
        """`data` in the axes of the file it came from."""
        import nibabel as nib  # slow to import, and training reads no files

        return nib.apply_orientation(self.data, nib.orientations.ornt_transform(_CANONICAL, self.axes))

    def file_affine(self) -> np.ndarray:
        """The affine of `file_data()`."""
        import nibabel as nib

        turn = nib.orientations.ornt_transform(_CANONICAL, self.axes)
        return self.affine @ nib.orientations.inv_ornt_aff(turn, self.shape)


def file_order(volume: Volume, axis: int, slices: Sequence[int]) -> tuple[int, ...]:
    """Indices of slices along a canonical axis as numbered in the file; and back, since it only turns them around."""
    turn = volume.axes[volume.axes[:, 0] == axis, 1][0]
    return tuple(volume.shape[axis] - 1 - i if turn < 0 else i for i in slices)


def make_affine(matrix: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """[4, 4] from the steps along each axis, as columns [3, 3], and the position of the first voxel."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, origin
    return affine


def make_volume(data: np.ndarray, affine: np.ndarray, name: str = "") -> Volume:
    """Makes a volume of the array [I, J, K] and affine [4, 4] of a file, in any orientation. Raises ImageError."""
    import nibabel as nib

    if data.ndim != 3 or 0 in data.shape:
        raise ImageError(name, "is no volume of three axes", f"its shape is {data.shape}")
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if (
        not np.isfinite(affine).all()
        or not sides.all()
        or abs(np.linalg.det(affine[:3, :3])) < 1e-9 * min(1, sides.max()) ** 3
    ):
        raise ImageError(name, "its affine cannot be inverted", "voxel sizes or directions in the header are wrong")
    axes = nib.io_orientation(affine)
    if np.isnan(axes).any():
        raise ImageError(name, "its affine leaves an axis without direction", "correct the header")
    to_file = nib.orientations.inv_ornt_aff(axes, data.shape)
    return Volume(np.ascontiguousarray(nib.apply_orientation(data, axes)), affine @ to_file, axes, name)


def compact(data: np.ndarray) -> np.ndarray:
    """Floats as float32; integers stay, because class ids above 2^24 are not exact in float32."""
    return data if data.dtype.kind in "iu" else data.astype(np.float32)


def pick_channel(path: Path, count: int, channel: int | None) -> int:
    """The index of the channel to read of `count`."""
    if count == 1 and channel is None:
        return 0
    if channel is None or not 0 <= channel < count:
        wanted = "" if channel is None else f"; number {channel} was requested"
        raise ImageError(path, "has several channels or times", f"{count}{wanted}; save each as a file of its own")
    return channel


def check_same_grid(image: Volume, label: Volume) -> None:
    """Raises ImageError unless shapes are equal and corners lie within half a voxel of one another."""
    if image.shape != label.shape:
        sizes = ["x".join(map(str, v.shape)) for v in (image, label)]
        raise ImageError(label.name, "image and label differ in shape", f"{sizes[0]} and {sizes[1]} in canonical axes")
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    corners[:, :3] *= np.array(image.shape) - 1
    # A header may lack its unit: the same numbers in µm, mm or m are the same place.
    apart = min(
        np.linalg.norm(corners @ (image.affine - np.diag([unit] * 3 + [1]) @ label.affine).T, axis=1).max()
        for unit in (1, 1e-3, 1e3)
    )
    if apart > 0.5 * min(image.spacing):
        raise ImageError(label.name, "image and label lie in different places", f"corners up to {apart:.1f} mm apart")


def to_spacing(volume: Volume, spacing: float = 1.0) -> Volume:
    """Resamples the field of view to voxels of `spacing` mm: intensities linear, class ids (integers) nearest.

    A multi-page TIFF has no voxel size and counts as 1 mm. Raises ImageError where the result would be too large.
    """
    shape = volume.shape_at(spacing)
    check_voxels(volume.name, shape, f"{spacing:g} mm")
    return on_grid(volume, shape)


def on_grid(volume: Volume, shape: Shape) -> Volume:
    """Resamples the same field of view to `shape` voxels; `on_grid(to_spacing(v), v.shape)` is the inverse."""
    data = volume.data
    nearest = not np.issubdtype(data.dtype, np.floating)
    for axis, new in enumerate(shape):
        data = _resample(data, axis, new, nearest)
    scale = np.array(volume.shape) / np.array(shape)
    return replace(volume, data=data, affine=volume.affine @ make_affine(np.diag(scale), (scale - 1) / 2))


def _resample(data: np.ndarray, axis: int, new: int, nearest: bool) -> np.ndarray:
    """Resamples one axis to `new` voxels over the same extent, at voxel centres."""
    old = data.shape[axis]
    if new == old:
        return data
    if nearest:  # whole numbers: from a finer grid every voxel comes back exactly
        return data.take((2 * np.arange(new) + 1) * old // (2 * new), axis)
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(centres).astype(np.int64)
    share = (centres - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in AXES])
    below, above = data.take(low, axis), data.take(np.minimum(low + 1, old - 1), axis)
    return below + (above - below) * share


def slice_axis(volume: Volume) -> int:
    """The axis across the acquired planes: that of one voxel, else of the longest; axial if it is hardly longer."""
    if 1 not in volume.shape and max(volume.spacing) < THICK * min(volume.spacing):
        return 2
    return max(AXES, key=lambda axis: (volume.shape[axis] == 1, round(volume.spacing[axis], 3), axis))
