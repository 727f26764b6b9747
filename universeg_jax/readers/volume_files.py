"""Volumes from files: NRRD, MetaImage and multi-page TIFF → `Volume`; DICOM by dicom.py, NIfTI by nibabel_files.py.

Any fault of a file becomes an ImageError with its name. Sizes are checked from the header, before a voxel is read.
Headers that point to other files are refused, because a stranger's header must not choose which files are opened; only
a .mhd, .nhdr or .hdr has one file of voxels beside it.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from universeg_jax.readers import checks, metaimage, nrrd
from universeg_jax.readers.dicom import read_dicom
from universeg_jax.readers.dicom_files import is_dicom_file, is_multiframe, is_seg, is_series
from universeg_jax.readers.errors import ImageError, as_image_errors
from universeg_jax.readers.file_names import (
    DICOM_EXTENSIONS,
    ITK_EXTENSIONS,
    MGH_EXTENSIONS,
    NIBABEL_EXTENSIONS,
    TIFF_EXTENSIONS,
    VOLUME_EXTENSIONS,
    extension,
)
from universeg_jax.readers.labels import check_ids
from universeg_jax.readers.metaimage import LOCAL
from universeg_jax.readers.nibabel_files import read_nibabel, write_nibabel
from universeg_jax.readers.ome_zarr import is_ome_zarr, read_ome_zarr
from universeg_jax.readers.raw_voxels import plain_name, read_start, read_voxels
from universeg_jax.readers.segments import read_seg
from universeg_jax.readers.tiff import page_count, read_tiff_stack
from universeg_jax.readers.volumes import LPS_TO_RAS, Volume, compact, make_affine, make_volume, pick_channel

HEADERS = (".mhd", ".nhdr")  # that name a file of voxels
NRRD_EXTENSIONS = (".nrrd", ".nhdr")
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


def read_label_volume(path: str | Path, ignored: Sequence[int] = ()) -> Volume:
    """Reads class ids, int32 [X, Y, Z] in canonical axes; floats must be whole. Raises ImageError.

    `ignored` values are no classes.
    """
    volume = _read(Path(path), None, is_label=True)
    return replace(volume, data=check_ids(volume.data, path, ignored))


def stored_type(path: str | Path) -> np.dtype:
    """The type in which a label file holds its ids; int32 for DICOM and OME-Zarr. Raises ImageError."""
    path = Path(path)
    kind = extension(path)
    with as_image_errors(path):
        if kind in NIBABEL_EXTENSIONS:
            import nibabel as nib

            return np.dtype(nib.load(path).header.get_data_dtype()).newbyteorder("=")  # type: ignore[attr-defined]
        if kind in TIFF_EXTENSIONS:
            import tifffile

            with tifffile.TiffFile(path) as file:
                return np.dtype(file.series[0].dtype)
        if kind in ITK_EXTENSIONS:
            return _itk_format(path).read_header(path).dtype.newbyteorder("=")
    return np.dtype(np.int32)


def write_like(path: str | Path, data: np.ndarray, source: str | Path, volume: Volume) -> None:
    """Writes a mask [X, Y, Z] on the grid of `volume`, which was read from `source`, in the grid of that file.

    NIfTI and MGH keep the source's header except its data type; NRRD and MetaImage keep origin, spacing and direction;
    a mask for any other source is NIfTI with its affine. `path` must end with `mask_extension(source)`.
    """
    source, data = Path(source), replace(volume, data=data).file_data()
    if extension(source) in ITK_EXTENSIONS:
        form = _itk_format(source)
        like = form.read_header(source)
        form.write(Path(path), data.reshape(like.size), like)
    else:
        write_nibabel(path, data, source, volume)


def mask_extension(source: str | Path) -> str:
    """The extension of a mask's file for a volume: of one file for a pair, and .nii.gz where its format is not kept."""
    kind = extension(source)
    if kind in (*ITK_EXTENSIONS, *MGH_EXTENSIONS):
        return {".mhd": ".mha", ".nhdr": ".nrrd"}.get(kind, kind)
    return ".nii.gz"


def _read(path: Path, channel: int | None, is_label: bool = False) -> Volume:
    kind = extension(path)
    with as_image_errors(path):
        if is_ome_zarr(path):
            return read_ome_zarr(path, channel)
        if is_dicom(path):
            return read_seg(path) if is_seg(path) else read_dicom(path)
        checks.check_bytes(path)
        if kind in NIBABEL_EXTENSIONS:
            if kind == ".hdr":
                _check_beside(path, voxels_of(path))
            return read_nibabel(path, channel)
        if kind in ITK_EXTENSIONS:
            return _read_itk(path, channel)
        if kind in TIFF_EXTENSIONS:
            return _read_tiff(path, channel, is_label)
    if kind == ".img":
        raise ImageError(path, "holds voxels without a header", f"give {path.stem}.hdr, which must lie beside it")
    kinds = (*VOLUME_EXTENSIONS, *TIFF_EXTENSIONS, *DICOM_EXTENSIONS)
    raise ImageError(path, "has an extension that is not read", f"volumes are {', '.join(kinds)}")


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
    data = read_voxels(voxels, header)[..., pick_channel(path, header.channels, channel)]
    steps, origin = np.eye(3), np.zeros(3)
    count = len(size)
    steps[:count, :count], origin[:count] = header.steps, header.origin
    data = data if count == 3 else data[..., None]
    return make_volume(compact(data), LPS_TO_RAS @ make_affine(steps, origin), str(path))


def _itk_format(path: str | Path) -> ModuleType:
    return nrrd if extension(path) in NRRD_EXTENSIONS else metaimage


def _check_itk_header(path: Path) -> Path:
    """The file that holds the voxels: `path`, or for a .mhd or .nhdr the one beside it. Raises ImageError."""
    name = _data_file(path, read_start(path))
    if extension(path) in HEADERS and name != LOCAL:
        return _check_beside(path, voxels_of(path), name)
    if name == LOCAL:
        return path
    if not name and extension(path) not in NRRD_EXTENSIONS:
        raise ImageError(path, "cannot be read", "it is damaged: its header has no ElementDataFile")
    raise ImageError(path, "its header points to another file", "save it as one file")


def _check_beside(path: Path, voxels: Path | None, name: str = "") -> Path:
    """The file of voxels of a header; raises ImageError unless it lies beside it, and is no link to another place."""
    if voxels is None or (name and voxels.name != name) or not voxels.is_file():
        raise ImageError(path, "its file of voxels does not lie beside it", name[:80])
    if voxels.resolve().parent != path.resolve().parent:
        raise ImageError(voxels, "is a link out of its folder", "put the file itself there")
    return voxels


def voxels_of(path: str | Path) -> Path | None:
    """The file beside a header that holds its voxels; None for other files, and where the header names none."""
    path = Path(path)
    if extension(path) == ".hdr":
        endings = (".img", ".IMG", ".Img")
        return next((path.with_suffix(end) for end in endings if path.with_suffix(end).exists()), None)
    if extension(path) not in HEADERS:
        return None
    name = _data_file(path, read_start(path))
    return path.parent / Path(name).name if name not in ("", LOCAL) else None


def _data_file(path: Path, head: bytes) -> str:
    """The file of voxels that a header names, LOCAL for its own; "" for none, a list or a numbered pattern."""
    if extension(path) not in NRRD_EXTENSIONS:
        return metaimage.voxel_file(head)
    header = re.split(rb"\r?\n\r?\n", head)[0]
    found = re.search(rb"^data ?file:[ \t]*([^\r\n]*)", header, re.MULTILINE | re.IGNORECASE)
    return plain_name(found[1]) if found else LOCAL


def _read_tiff(path: Path, channel: int | None, is_label: bool) -> Volume:
    """Stacks the pages along the axial axis; a voxel is 1 mm, since the file has no size."""
    data = read_tiff_stack(path, channel, is_label)
    return make_volume(compact(data.T), LPS_TO_RAS, str(path))
