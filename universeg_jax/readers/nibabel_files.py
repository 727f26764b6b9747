"""Volumes through nibabel: NIfTI, one file or a pair; Analyze, a pair; and FreeSurfer's MGH."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from universeg_jax.readers import checks
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.file_names import MGH_EXTENSIONS, NIFTI_EXTENSIONS, extension, stem
from universeg_jax.readers.notes import note
from universeg_jax.readers.volumes import Volume, compact, make_volume, pick_channel

if TYPE_CHECKING:
    import nibabel as nib  # slow to import, and training reads no files

MILLIMETRES = {"micron": 1e-3, "meter": 1e3}  # per unit of a NIfTI header
MAX_VOXEL_SIDE = 100.0  # mm
GZIP_START = b"\x1f\x8b"
GZIP_EXTENSIONS = {".nii.gz": ".nii", ".mgz": ".mgh"}  # and the ending of the same without compression
MGH_TYPES = ("uint8", "int16", "int32", "float32")


def read_nibabel(path: Path, channel: int | None) -> Volume:
    """Reads a volume as stored, with slope and intercept applied. Raises ImageError."""
    import nibabel as nib

    _check_gzip(path)
    image = nib.load(path)
    if not isinstance(image, nib.spatialimages.SpatialImage):
        raise ImageError(path, "is no volume of three axes", type(image).__name__)
    shape = tuple(image.shape)
    checks.check_voxels(path, shape)
    dtype = np.dtype(image.get_data_dtype())
    if dtype.fields or dtype.kind == "c":
        raise ImageError(path, "holds colours or complex numbers", str(dtype))
    shape = (*shape, 1, 1, 1)[: max(len(shape), 3)]
    if np.prod(shape[3:], dtype=int) == 1 and channel in (None, 0):
        data = np.asarray(image.dataobj).reshape(shape[:3])
    else:
        if len(shape) != 4:
            raise ImageError(path, "has more than four axes", str(shape))
        data = np.asarray(image.dataobj[..., pick_channel(path, shape[3], channel)])
    _compare_forms(image, path)
    is_analyze = isinstance(image, nib.AnalyzeImage) and not isinstance(image, nib.Nifti1Pair)
    if is_analyze and not path.with_suffix(".mat").exists():  # in which SPM keeps the place
        note(path, "Analyze states no direction: rows run from the right to the left, as SPM takes them")
    return make_volume(compact(data), _in_millimetres(image, path), str(path))


def _check_gzip(path: Path) -> None:
    """Raises ImageError where the ending says something else than the content, which nibabel goes by."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == GZIP_START
    kind = extension(path)
    if is_gzip == (kind in GZIP_EXTENSIONS) or not path.stat().st_size:
        return
    packed = {plain: end for end, plain in GZIP_EXTENSIONS.items()}
    right = (packed if is_gzip else GZIP_EXTENSIONS).get(kind)
    remedy = f"rename it to {stem(path)}{right}" if right else "unpack it"
    raise ImageError(path, f"is {'a' if is_gzip else 'no'} gzip file", remedy)


def _compare_forms(image: "nib.spatialimages.SpatialImage", path: Path) -> None:
    """Says where the two places that a NIfTI header may state differ; other programs may take the other one."""
    header: Any = image.header
    if not hasattr(header, "get_sform"):
        return
    (sform, s_code), (qform, q_code) = header.get_sform(coded=True), header.get_qform(coded=True)
    if sform is None or qform is None or not s_code or not q_code:
        return
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    corners[:, :3] *= np.array((*image.shape, 1, 1)[:3]) - 1
    apart = np.linalg.norm(corners @ (sform - qform).T, axis=1).max()
    if apart > 0.5 * np.linalg.norm(sform[:3, :3], axis=0).min():
        note(path, "its header states two places, sform and qform, that differ: sform counts")


def _in_millimetres(image: "nib.spatialimages.SpatialImage", path: Path) -> np.ndarray:
    """The affine in mm by the header's unit, which nibabel leaves to its callers."""
    unit = image.header.get_xyzt_units()[0] if hasattr(image.header, "get_xyzt_units") else "unknown"
    scale = MILLIMETRES.get(unit, 1.0)
    affine = np.array(image.affine, float)
    if scale > 1 and np.linalg.norm(scale * affine[:3, :3], axis=0).max() > MAX_VOXEL_SIDE:
        note(path, f"its header gives voxel sides in {unit}, which cannot be: they are taken as mm")
        return affine
    affine[:3] *= scale
    return affine


def write_nibabel(path: str | Path, data: np.ndarray, source: Path, volume: Volume) -> None:
    """Writes ids, in the axes of the file `source` that `volume` was read from; keeps what its header says."""
    import nibabel as nib

    kind = extension(source)
    data = np.ascontiguousarray(data)
    if kind in MGH_EXTENSIONS:
        header: Any = nib.load(source).header.copy()  # type: ignore[attr-defined]
        dtype = np.dtype(data.dtype if data.dtype.name in MGH_TYPES else np.int32)
        header.set_data_dtype(dtype)
        image: Any = nib.MGHImage(data.astype(dtype), volume.file_affine(), header)
    elif kind in NIFTI_EXTENSIONS:
        header = nib.Nifti1Header.from_header(nib.load(source).header)  # type: ignore[attr-defined]
        header.set_data_dtype(data.dtype)
        header.set_slope_inter(1, 0)
        header["cal_max"] = header["cal_min"] = 0
        shape = (*header.get_data_shape(), 1, 1, 1)[:3]
        image = nib.Nifti1Image(data.reshape(shape), None, header)
    else:
        image = nib.Nifti1Image(data, volume.file_affine())
    nib.save(image, path)
