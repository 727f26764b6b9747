"""Volumes from files: NIfTI, NRRD, MetaImage and multi-page TIFF → `Volume`; a DICOM series by dicom.py.

Any fault of a file becomes an ImageError with its name. Sizes are checked from the header, before a voxel is read.
Headers that point to other files are refused, because a stranger's header must not choose which files are opened; only
a .mhd may name the one file of voxels beside it.
"""

import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from universeg_jax.readers import checks, metaimage, nrrd
from universeg_jax.readers.dicom import read_dicom
from universeg_jax.readers.dicom_files import is_dicom_file, is_multiframe, is_seg, is_series
from universeg_jax.readers.errors import ImageError, as_image_errors
from universeg_jax.readers.file_names import (
    DICOM_EXTENSIONS,
    ITK_EXTENSIONS,
    NIFTI_EXTENSIONS,
    TIFF_EXTENSIONS,
    VOLUME_EXTENSIONS,
    extension,
    stem,
)
from universeg_jax.readers.labels import check_ids
from universeg_jax.readers.metaimage import LOCAL
from universeg_jax.readers.notes import note
from universeg_jax.readers.ome_zarr import is_ome_zarr, read_ome_zarr
from universeg_jax.readers.raw_voxels import read_start, read_voxels
from universeg_jax.readers.segments import read_seg
from universeg_jax.readers.tiff import page_count, read_tiff_stack
from universeg_jax.readers.volumes import LPS_TO_RAS, Volume, make_affine, make_volume

if TYPE_CHECKING:
    import nibabel as nib  # slow to import, and training reads no files

MILLIMETRES = {"micron": 1e-3, "meter": 1e3}  # per unit of a NIfTI header
MAX_VOXEL_SIDE = 100.0  # mm
GZIP_START = b"\x1f\x8b"
MAX_GZIP_RATIO = 2000  # gzip reaches 1032 to 1


def is_dicom(path: str | Path) -> bool:
    """True for a DICOM series (a folder) and for one DICOM file."""
    return (Path(path).is_dir() and not is_ome_zarr(path)) or is_dicom_file(path)


def is_volume(path: str | Path) -> bool:
    """True for paths that are read as volumes: NIfTI, NRRD, MetaImage, multi-page TIFF, DICOM series and frames."""
    path = Path(path)
    if path.is_dir():
        return is_ome_zarr(path) or is_series(path)
    if is_dicom_file(path):
        return is_multiframe(path)
    return extension(path) in VOLUME_EXTENSIONS or (extension(path) in TIFF_EXTENSIONS and page_count(path) > 1)


def read_volume(path: str | Path, channel: int | None = None) -> Volume:
    """Reads intensities, float32 [X, Y, Z] in canonical axes; `channel` selects one of several channels or times.

    Raises ImageError, also for a volume of one value.
    """
    volume = _read(Path(path), channel)
    checks.check_intensities(volume.data, path)
    return replace(volume, data=volume.data.astype(np.float32, copy=False))


def read_label_volume(path: str | Path) -> Volume:
    """Reads class ids, int32 [X, Y, Z] in canonical axes; floats must be whole. Raises ImageError."""
    volume = _read(Path(path), None, is_label=True)
    return replace(volume, data=check_ids(volume.data, path))


def stored_type(path: str | Path) -> np.dtype:
    """The type in which a label file holds its ids; int32 for DICOM and OME-Zarr. Raises ImageError."""
    path = Path(path)
    kind = extension(path)
    with as_image_errors(path):
        if kind in NIFTI_EXTENSIONS:
            import nibabel as nib

            return np.dtype(nib.load(path).header.get_data_dtype())  # type: ignore[attr-defined]
        if kind in TIFF_EXTENSIONS:
            import tifffile

            with tifffile.TiffFile(path) as file:
                return np.dtype(file.series[0].dtype)
        if kind in ITK_EXTENSIONS:
            return _itk_format(path).read_header(path).dtype.newbyteorder("=")
    return np.dtype(np.int32)


def write_like(path: str | Path, data: np.ndarray, source: str | Path, volume: Volume) -> None:
    """Writes a mask [X, Y, Z] on the grid of `volume`, which was read from `source`, in the grid of that file.

    NIfTI keeps the source's header except its data type; NRRD and MetaImage keep origin, spacing and direction; a mask
    for any other source is NIfTI with its affine. `path` must end with `mask_extension(source)`.
    """
    import nibabel as nib

    source, data = Path(source), replace(volume, data=data).file_data()
    kind = extension(source)
    if kind in ITK_EXTENSIONS:
        form = _itk_format(source)
        like = form.read_header(source)
        form.write(Path(path), data.reshape(like.size), like)
        return
    if kind in NIFTI_EXTENSIONS:
        header = nib.Nifti1Header.from_header(nib.load(source).header)
        header.set_data_dtype(data.dtype)
        header.set_slope_inter(1, 0)
        header["cal_max"] = header["cal_min"] = 0
        shape = (*header.get_data_shape(), 1, 1, 1)[:3]
        image = nib.Nifti1Image(np.ascontiguousarray(data.reshape(shape)), None, header)
    else:
        image = nib.Nifti1Image(np.ascontiguousarray(data), volume.file_affine())
    nib.save(image, path)


def mask_extension(source: str | Path) -> str:
    """The extension of a mask's file for a volume; a mask for a .mhd is one .mha file."""
    kind = extension(source)
    return {".mhd": ".mha"}.get(kind, kind) if kind in ITK_EXTENSIONS else ".nii.gz"


def _read(path: Path, channel: int | None, is_label: bool = False) -> Volume:
    kind = extension(path)
    with as_image_errors(path):
        if is_ome_zarr(path):
            return read_ome_zarr(path, channel)
        if is_dicom(path):
            return read_seg(path) if is_seg(path) else read_dicom(path)
        checks.check_bytes(path)
        if kind in NIFTI_EXTENSIONS:
            return _read_nifti(path, channel)
        if kind in ITK_EXTENSIONS:
            return _read_itk(path, channel)
        if kind in TIFF_EXTENSIONS:
            return _read_tiff(path, channel, is_label)
    kinds = (*VOLUME_EXTENSIONS, *TIFF_EXTENSIONS, *DICOM_EXTENSIONS)
    raise ImageError(path, "has an extension that is not read", f"volumes are {', '.join(kinds)}")


def _pick(path: Path, count: int, channel: int | None) -> int:
    """The index of the channel to read of `count`."""
    if count == 1 and channel is None:
        return 0
    if channel is None or not 0 <= channel < count:
        wanted = "" if channel is None else f"; number {channel} was requested"
        raise ImageError(path, "has several channels or times", f"{count}{wanted}; save each as a file of its own")
    return channel


def _read_nifti(path: Path, channel: int | None) -> Volume:
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
        data = np.asarray(image.dataobj[..., _pick(path, shape[3], channel)])
    _compare_forms(image, path)
    return make_volume(_compact(data), _in_millimetres(image, path), str(path))


def _check_gzip(path: Path) -> None:
    """Raises ImageError where the ending says something else than the content, which nibabel goes by."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == GZIP_START
    if is_gzip != (extension(path) == ".nii.gz") and path.stat().st_size:
        right = ".nii.gz" if is_gzip else ".nii"
        raise ImageError(path, f"is {'a' if is_gzip else 'no'} gzip file", f"rename it to {stem(path)}{right}")


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


def _compact(data: np.ndarray) -> np.ndarray:
    """Floats as float32; integers stay, because class ids above 2^24 are not exact in float32."""
    return data if data.dtype.kind in "iu" else data.astype(np.float32)


def _read_itk(path: Path, channel: int | None) -> Volume:
    voxels = _check_itk_header(path)
    header = _itk_format(path).read_header(path)
    size = header.size
    checks.check_voxels(path, header.shape)
    if len(size) not in (2, 3):
        raise ImageError(path, "is no volume of three axes", str(size))
    held = voxels.stat().st_size
    if np.prod(header.shape, dtype=float) > MAX_GZIP_RATIO * held:
        raise ImageError(path, "its header promises more voxels than the file can hold", f"{size} in {held} bytes")
    data = read_voxels(voxels, header)[..., _pick(path, header.channels, channel)]
    steps, origin = np.eye(3), np.zeros(3)
    count = len(size)
    steps[:count, :count], origin[:count] = header.steps, header.origin
    data = data if count == 3 else data[..., None]
    return make_volume(_compact(data), LPS_TO_RAS @ make_affine(steps, origin), str(path))


def _itk_format(path: str | Path) -> ModuleType:
    return nrrd if extension(path) == ".nrrd" else metaimage


def _check_itk_header(path: Path) -> Path:
    """The file that holds the voxels: `path`, or for a .mhd the one beside it. Raises ImageError for any other."""
    head = read_start(path)
    if extension(path) == ".nrrd":
        header = re.split(rb"\r?\n\r?\n", head)[0].lower().replace(b"datafile", b"data file")
        name = "another" if b"data file:" in header else LOCAL
    else:
        name = metaimage.voxel_file(head)
    if name == LOCAL:
        return path
    if extension(path) == ".mhd":
        voxels = path.parent / name
        if voxels.name != name or not voxels.is_file():
            raise ImageError(path, "its file of voxels does not lie beside it", name[:80])
        if voxels.resolve().parent != path.resolve().parent:
            raise ImageError(voxels, "is a link out of its folder", "put the file itself there")
        return voxels
    if not name:
        raise ImageError(path, "cannot be read", "it is damaged: its header has no ElementDataFile")
    raise ImageError(path, "its header points to another file", "save it as one file")


def voxels_of(path: str | Path) -> Path | None:
    """The file beside a .mhd that holds its voxels; None for other files, and where the header names none."""
    if extension(path) != ".mhd":
        return None
    name = metaimage.voxel_file(read_start(Path(path)))
    return Path(path).parent / Path(name).name if name not in ("", LOCAL) else None


def _read_tiff(path: Path, channel: int | None, is_label: bool) -> Volume:
    """Stacks the pages along the axial axis; a voxel is 1 mm, since the file has no size."""
    data = read_tiff_stack(path, channel, is_label)
    return make_volume(_compact(data.T), LPS_TO_RAS, str(path))
