"""DICOM files by content: which files of a folder are slices, which are passed over, and their headers.

Nothing here decodes a pixel.
"""

from pathlib import Path
from typing import Any

from universeg_jax.readers import checks
from universeg_jax.readers.errors import ImageError, as_image_errors
from universeg_jax.readers.file_names import DICOM_EXTENSIONS, extension, natural_order

MAX_DEFLATE_RATIO = 1032  # bytes that deflate can expand one byte to
NO_SLICES = ("DICOMDIR", "README", "LICENSE", "LICENCE", "VERSION", "LOCKFILE")  # names without an extension
WITHOUT_PIXELS = {
    "RTSTRUCT": "an RTSTRUCT holds contours; save them as a DICOM-SEG or NIfTI, for example with 3D Slicer",
    "RTPLAN": "a treatment plan",
    "SR": "a report",
    "PR": "a presentation state",
    "KO": "a selection of images",
}


def has_dicom_magic(path: Path) -> bool:
    """True for a file with the mark of DICOM, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def is_dicom_file(path: str | Path) -> bool:
    """True for a DICOM file, by its extension or, where it has none that another format has, by its content."""
    path = Path(path)
    kind = extension(path)
    return kind in DICOM_EXTENSIONS or ((kind == "" or kind[1:].isdigit()) and path.is_file() and has_dicom_magic(path))


def sorted_files(folder: Path) -> tuple[list[Path], list[str]]:
    """(files that hold images, names of the files passed over) of a folder, in the natural order of their names.

    Passed over are files that are not DICOM, such as Thumbs.db, and DICOM without images or with masks. A file that is
    not DICOM but is named like the slices stays, so that a damaged slice is reported rather than lost.
    """
    names = natural_order(f.name for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    is_dicom = {name: has_dicom_magic(folder / name) for name in names}
    kinds = {Path(name).suffix.lower() for name in names if is_dicom[name]}
    kinds = {"" if kind[1:].isdigit() else kind for kind in kinds} | set(DICOM_EXTENSIONS)
    images: list[Path] = []
    others: list[Path] = []
    for name in names:
        kind = Path(name).suffix.lower()
        named_like_slices = ("" if kind[1:].isdigit() else kind) in kinds and name.upper() not in NO_SLICES
        holds_image = _holds_image(folder / name) if is_dicom[name] else named_like_slices
        (images if holds_image else others).append(folder / name)
    return images, [file.name for file in others]


def _holds_image(path: Path) -> bool:
    header = _peek(path, "Rows", "Modality")
    return header is None or ("Rows" in header and header.get("Modality") not in ("SEG", "RTDOSE"))


def _peek(path: Path, *tags: str) -> Any:
    """A few fields of a header; None where it cannot be read, which the reader then reports."""
    try:
        import pydicom

        with as_image_errors(path):
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
    except (ImportError, ImageError):
        return None


def is_series(folder: Path) -> bool:
    """True for a folder whose DICOM images lie in the patient; X-rays and photographs are images of their own."""
    images = sorted_files(folder)[0] if _may_hold_dicom(folder) else []
    if not images or (len(images) == 1 and is_multiframe(images[0])):
        return bool(images)
    headers = [_peek(file, "ImagePositionPatient", "NumberOfFrames") for file in (images[0], images[-1])]
    return any(header is None or "ImagePositionPatient" in header for header in headers)


def _may_hold_dicom(folder: Path) -> bool:
    """Looks at names first, because a folder may hold thousands of other files."""
    return any(
        extension(file) in DICOM_EXTENSIONS or has_dicom_magic(file)
        for file in folder.iterdir()
        if file.is_file() and not file.name.startswith(".")
    )


def nested_series(folder: Path, depth: int = 6) -> list[Path]:
    """The folders of DICOM series in a folder and below it, in natural order; () for a folder without one."""
    if is_series(folder):
        return [folder]
    if not depth:
        return []
    inner = {f.name: f for f in folder.iterdir() if f.is_dir() and not f.is_symlink() and not f.name.startswith(".")}
    return [series for name in natural_order(inner) for series in nested_series(inner[name], depth - 1)]


def is_multiframe(path: Path) -> bool:
    """True for a file of several frames that lie in the patient: enhanced CT, MR or PET, or a DICOM-SEG."""
    header = _peek(path, "NumberOfFrames", "PerFrameFunctionalGroupsSequence")
    return header is not None and "PerFrameFunctionalGroupsSequence" in header


def is_seg(path: str | Path) -> bool:
    """True for a DICOM Segmentation."""
    header = _peek(Path(path), "Modality", "SegmentSequence") if is_dicom_file(path) else None
    return header is not None and header.get("Modality") == "SEG" and "SegmentSequence" in header


def read_header(path: Path) -> Any:
    """Reads a dataset without decoding its pixels. Raises ImageError where it holds no image or too large a one."""
    try:
        import pydicom
    except ImportError as error:
        raise ImageError(path, "DICOM needs another package", "pip install 'universeg_jax[dicom]'") from error
    checks.check_bytes(path)
    if path.stat().st_size * MAX_DEFLATE_RATIO > checks.MAX_BYTES:  # pydicom inflates the whole file at once
        syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
            detail = f"at most {checks.MAX_BYTES:,}; save it without deflation"
            raise ImageError(path, "may inflate to too many bytes", detail)
    try:
        dataset = pydicom.dcmread(path)
    except pydicom.errors.InvalidDicomError as error:
        raise ImageError(path, "cannot be read", "it is damaged or not DICOM: it lacks the mark DICM") from error
    if "PixelData" not in dataset:
        kind = str(dataset.get("Modality", ""))
        raise ImageError(path, "holds no image", WITHOUT_PIXELS.get(kind, str(dataset.get("SOPClassUID", ""))[:80]))
    checks.check_pixels(path, int(dataset.Columns), int(dataset.Rows))
    frames = int(dataset.get("NumberOfFrames") or 1)
    checks.check_voxels(path, (int(dataset.Columns), int(dataset.Rows), frames))
    return dataset
