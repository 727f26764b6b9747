"""Volumes from files: NIfTI, NRRD, MetaImage and multi-page TIFF → `Volume`; a DICOM series by dicom.py.

Every way in which a file can be bad becomes an ImageError with its name. Sizes are checked from the header, before a
voxel is read. Headers that point to other files are refused: a stranger's header must not choose what is opened. Only
a .mhd may name the one file of voxels that lies beside it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from universeg_jax.data.dicom import DICOM, read_dicom
from universeg_jax.data.files import extension
from universeg_jax.data.images import MAX_BYTES, MAX_INTENSITY, ImageError, as_image_errors, to_grey
from universeg_jax.data.volumes import LPS_TO_RAS, Volume, check_size, make_affine, make_volume

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".mha", ".mhd")
TIFF = (".tif", ".tiff")
VOLUME_EXTENSIONS = (*NIFTI, *ITK)  # always volumes; a TIFF may be one, a DICOM series is a folder


def is_dicom(path: str | Path) -> bool:
    """Whether a volume is a series of DICOM files, or one of them."""
    return Path(path).is_dir() or extension(path) in DICOM


def is_volume(path: str | Path) -> bool:
    """Whether a path is read as a volume: NIfTI, NRRD, MetaImage, a TIFF of several pages, a folder of DICOM files."""
    path = Path(path)
    if path.is_dir():
        return any(_may_be_dicom(file) for file in path.iterdir())
    return extension(path) in VOLUME_EXTENSIONS or (extension(path) in TIFF and _tiff_pages(path) > 1)


def _may_be_dicom(path: Path) -> bool:
    """By its name: *.dcm, IM0001, or the end of a UID, as CT.1.2.840.7 is."""
    kind = path.suffix.lower()
    return (kind in (*DICOM, "") or kind[1:].isdigit()) and not path.name.startswith(".") and path.is_file()


def read_volume(path: str | Path, channel: int | None = None) -> Volume:
    """Intensities, float32 [X, Y, Z] in canonical axes. Of a file with several channels or times `channel` is read.

    Raises ImageError, also for a volume of one value.
    """
    volume = _read(Path(path), channel)
    data = volume.data
    if not np.isfinite(data).all():
        raise ImageError(path, "holds NaN or infinite values", "set them to 0")
    if np.abs(data).max() > MAX_INTENSITY:
        raise ImageError(path, "holds values that mark missing data", f"up to {np.abs(data).max():g}; set them to 0")
    if data.min() == data.max():
        raise ImageError(path, "every voxel is the same", f"{data.flat[0]:g}; there is nothing to see in it")
    return Volume(data.astype(np.float32, copy=False), volume.affine, volume.axes, volume.name)


def read_label_volume(path: str | Path, channel: int | None = None) -> Volume:
    """Class ids, int32 [X, Y, Z] in canonical axes; floats are read where they are whole. Raises ImageError."""
    volume = _read(Path(path), channel)
    data = volume.data
    if not np.isfinite(data).all() or data.min() < 0 or data.max() >= 2**31 or (data != np.floor(data)).any():
        raise ImageError(path, "values are not class ids", "whole numbers from 0")
    return Volume(data.astype(np.int32), volume.affine, volume.axes, volume.name)


def write_like(path: str | Path, data: np.ndarray, source: str | Path, volume: Volume) -> None:
    """Writes a mask [X, Y, Z] (canonical, on the grid of `volume`, which was read from `source`) in the source's grid.

    NIfTI keeps the source's header but for the type; NRRD and MetaImage keep place and direction; a mask for any
    other source is NIfTI with its affine. `path` must end accordingly: see `mask_extension`.
    """
    import nibabel as nib

    source, data = Path(source), replace(volume, data=data).file_data()
    kind = extension(source)
    if kind in ITK:
        import SimpleITK as sitk

        reference = sitk.ReadImage(str(source))
        image = sitk.GetImageFromArray(np.ascontiguousarray(data.T.reshape(reference.GetSize()[::-1])))
        image.CopyInformation(reference)
        try:
            sitk.WriteImage(image, str(path), True)
        except RuntimeError as error:  # all that it says of a full disk
            raise OSError(f"{path} cannot be written") from error
        return
    if kind in NIFTI:
        like = nib.load(source)
        header = like.header.copy()
        header.set_data_dtype(data.dtype)
        header.set_slope_inter(1, 0)
        header["cal_max"] = header["cal_min"] = 0
        shape = (*like.shape, 1, 1, 1)[:3]
        image = nib.Nifti1Image(np.ascontiguousarray(data.reshape(shape)), None, header)
    else:
        image = nib.Nifti1Image(np.ascontiguousarray(data), volume.file_affine())
    nib.save(image, path)


def mask_extension(source: str | Path) -> str:
    """The ending of a mask's file for a volume; that of a .mhd is one file, .mha."""
    kind = extension(source)
    return {".mhd": ".mha"}.get(kind, kind) if kind in ITK else ".nii.gz"


def _read(path: Path, channel: int | None) -> Volume:
    kind = extension(path)
    with as_image_errors(path):
        if path.is_dir() or kind in DICOM:
            return read_dicom(path)
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(path, "the file is too large", f"{path.stat().st_size:,} bytes; at most {MAX_BYTES:,}")
        if kind in NIFTI:
            return _read_nifti(path, channel)
        if kind in ITK:
            return _read_itk(path, channel)
        if kind in TIFF:
            return _read_tiff(path)
    raise ImageError(
        path, "has an extension that is not read", f"volumes are {', '.join((*NIFTI, *ITK, *TIFF, *DICOM))}"
    )


def _pick(path: Path, count: int, channel: int | None) -> int:
    if count == 1 and channel is None:
        return 0
    if channel is None or not 0 <= channel < count:
        asked = "" if channel is None else f"; number {channel} was asked for"
        raise ImageError(path, "has several channels or times", f"{count}{asked}; save each as a file of its own")
    return channel


def _read_nifti(path: Path, channel: int | None) -> Volume:
    import nibabel as nib

    image = nib.load(path)
    shape = tuple(image.shape)
    check_size(path, shape)
    if image.dataobj.dtype.fields or image.dataobj.dtype.kind == "c":
        raise ImageError(path, "holds colours or complex numbers", str(image.dataobj.dtype))
    shape = (*shape, 1, 1, 1)[: max(len(shape), 3)]
    if np.prod(shape[3:], dtype=int) == 1 and channel in (None, 0):
        data = np.asarray(image.dataobj).reshape(shape[:3])
    else:
        if len(shape) != 4:
            raise ImageError(path, "has more than four axes", str(shape))
        data = np.asarray(image.dataobj[..., _pick(path, shape[3], channel)])
    return make_volume(_small(data), image.affine, str(path))


def _small(data: np.ndarray) -> np.ndarray:
    """float32 where that is exact enough; class ids above 2^24 need their own type."""
    return data if data.dtype.kind in "iu" else data.astype(np.float32)


def _read_itk(path: Path, channel: int | None) -> Volume:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if extension(path) == ".mha" and b"ElementDataFile = LOCAL" not in head:
        raise ImageError(path, "its header points to another file", "save it as one file")
    voxels = path
    if extension(path) == ".mhd":
        voxels = path.parent / _mhd_data(head)
        if voxels.name != _mhd_data(head) or not voxels.is_file():
            raise ImageError(path, "its file of voxels does not lie beside it", _mhd_data(head)[:80])
        if voxels.resolve().parent != path.resolve().parent:
            raise ImageError(voxels, "is a link out of its folder", "put the file itself there")
    header = head.split(b"\n\n")[0].lower().replace(b"datafile", b"data file")
    if extension(path) == ".nrrd" and b"data file:" in header:
        raise ImageError(path, "its header points to another file", "save it as one file")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if extension(path) == ".nrrd" else "MetaImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size, channels = reader.GetSize(), reader.GetNumberOfComponents()
    check_size(path, (*size, channels))
    if len(size) not in (2, 3):
        raise ImageError(path, "is no volume of three axes", str(size))
    held = voxels.stat().st_size
    if np.prod(size, dtype=float) * channels > 2000 * held:  # gzip gives at most 1032 to 1
        raise ImageError(path, "its header promises more voxels than the file can hold", f"{size} in {held} bytes")
    image = reader.Execute()
    data = sitk.GetArrayViewFromImage(image)  # [Z, Y, X] or [Z, Y, X, C]
    data = data[..., _pick(path, channels, channel)] if channels > 1 else data
    data = data.reshape((1, *data.shape)) if len(size) == 2 else data
    spacing, origin = np.ones(3), np.zeros(3)
    direction = np.eye(3)
    count = len(size)
    spacing[:count], origin[:count] = image.GetSpacing(), image.GetOrigin()
    direction[:count, :count] = np.reshape(image.GetDirection(), (count, count))
    return make_volume(_small(data.T.copy()), LPS_TO_RAS @ make_affine(direction * spacing, origin), str(path))


def voxels_of(path: str | Path) -> Path | None:
    """The file beside a .mhd that holds its voxels; None for other files, and where the header names none."""
    if extension(path) != ".mhd":
        return None
    with Path(path).open("rb") as file:
        name = _mhd_data(file.read(1 << 16))
    return Path(path).parent / Path(name).name if name else None


def _mhd_data(head: bytes) -> str:
    """What a header names as its file of voxels; "" where it names none, a list or a numbered pattern."""
    lines = [line.partition(b"=")[2].strip() for line in head.splitlines() if line.startswith(b"ElementDataFile")]
    name = lines[0].decode("utf-8", "replace") if lines else ""
    return "" if name.startswith("LIST") or "%" in name else name


def _tiff_pages(path: Path) -> int:
    """How many pages; 1 for a file that is none, which the reader of pictures then refuses."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return len(file.pages)
    except Exception:
        return 1  # a damaged file is reported where it is read


def _read_tiff(path: Path) -> Volume:
    """Pages along the axial axis, as they are seen; the file says no place, so a voxel is 1 mm."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        first = file.pages[0]
        check_size(path, (len(file.pages), *first.shape))
        if len({page.shape for page in file.pages}) > 1:
            raise ImageError(path, "its pages differ in size", "save each as a file of its own")
        data = np.stack([to_grey(page.asarray()) if len(first.shape) > 2 else page.asarray() for page in file.pages])
    return make_volume(_small(data.T), LPS_TO_RAS, str(path))
