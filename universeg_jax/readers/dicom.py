"""DICOM: a file as an image, a series as a volume, and labels drawn on its slices.

Sizes are checked before a pixel is decoded. Slices are sorted by their position, never by file name.
"""

from pathlib import Path
from typing import Any

import numpy as np

from universeg_jax.readers import checks
from universeg_jax.readers.errors import ImageError, as_image_errors
from universeg_jax.readers.file_names import natural_order
from universeg_jax.readers.images import read_label
from universeg_jax.readers.preprocess import to_grey
from universeg_jax.readers.volumes import LPS_TO_RAS, Volume, make_affine, make_volume

MAX_DEFLATE_RATIO = 1032  # bytes that deflate can expand one byte to


def read_dicom_image(path: str | Path) -> np.ndarray:
    """Reads one DICOM file of one frame, such as an X-ray or ultrasound image → float32 [H, W]."""
    with as_image_errors(Path(path)):
        return _planes([_read_file(Path(path))])[0]


def read_dicom(path: Path) -> Volume:
    """Reads a folder that holds one series, or one file as a volume of one slice."""
    slices = dicom_slices(path)
    return _stack(path, slices, _planes([dataset for dataset, _ in slices]))


def read_label_stack(path: str | Path, series: str | Path) -> Volume:
    """Reads class ids drawn on the slices of a DICOM series: a folder with one image per slice.

    The n-th image belongs to the n-th file of the series, both in the natural order of their names.
    """
    path = Path(path)
    with as_image_errors(path):
        slices = dicom_slices(Path(series))
        labels = natural_order(file.name for file in path.iterdir() if not file.name.startswith("."))
        if len(labels) != len(slices):
            raise ImageError(path, "not one label for each slice", f"{len(labels)} labels, {len(slices)} slices")
        label_of = dict(zip(natural_order(file.name for _, file in slices), labels, strict=True))
        planes = [read_label(path / label_of[file.name]) for _, file in slices]
        shapes = [(dataset.Rows, dataset.Columns) for dataset, _ in slices]
        if [plane.shape for plane in planes] != shapes:
            raise ImageError(path, "image and label differ in size")
        return _stack(path, slices, planes)


def dicom_slices(path: Path) -> list[tuple[Any, Path]]:
    """(dataset, file) of each slice of a series, sorted from one end to the other."""
    files = [path] if path.is_file() else [f for f in sorted(path.iterdir()) if f.is_file() and f.name[0] != "."]
    files = [file for file in files if file.name.upper() != "DICOMDIR"]
    if not files:
        raise ImageError(path, "holds no DICOM files")
    slices = [(_read_file(file), file) for file in files]
    series = {str(dataset.get("SeriesInstanceUID", "")) for dataset, _ in slices}
    if len(series) > 1:
        raise ImageError(path, "holds several DICOM series", f"{len(series)}; put each into a folder of its own")
    for dataset, file in slices:
        if "ImagePositionPatient" not in dataset or "ImageOrientationPatient" not in dataset:
            raise ImageError(file, "says no position in the patient", "it is no slice of a volume")
    across, down = np.array(slices[0][0].ImageOrientationPatient, float).reshape(2, 3)
    if any(np.abs(np.array(d.ImageOrientationPatient, float) - [*across, *down]).max() > 1e-3 for d, _ in slices):
        raise ImageError(path, "its slices lie in different directions")
    normal = np.cross(across, down)
    slices.sort(key=lambda pair: float(np.dot(normal, np.array(pair[0].ImagePositionPatient, float))))
    checks.check_voxels(path, (int(slices[0][0].Columns), int(slices[0][0].Rows), len(slices)))
    return slices


def _read_file(path: Path) -> Any:
    """Reads a dataset of one frame without decoding its pixels."""
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
    dataset = pydicom.dcmread(path)
    if "PixelData" not in dataset:
        raise ImageError(path, "holds no image", str(dataset.get("SOPClassUID", ""))[:80])
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ImageError(path, "has several frames", f"{frames}; save each as a file of its own")
    checks.check_pixels(path, int(dataset.Columns), int(dataset.Rows))
    return dataset


def _planes(datasets: list[Any]) -> list[np.ndarray]:
    """Decodes float32 [H, W] planes in rescaled units (CT: HU); colour becomes grey.

    MONOCHROME1, where small means bright, is inverted about one value for all slices, so that they still fit.
    """
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    planes = []
    for dataset in datasets:
        is_palette = dataset.get("PhotometricInterpretation") == "PALETTE COLOR"
        look_up = apply_color_lut if is_palette else apply_modality_lut
        planes.append(to_grey(look_up(dataset.pixel_array, dataset)))
    if datasets[0].get("PhotometricInterpretation") == "MONOCHROME1":
        ends = max(plane.max() for plane in planes) + min(plane.min() for plane in planes)
        planes = [ends - plane for plane in planes]
    return planes


def _stack(path: Path, slices: list[tuple[Any, Path]], planes: list[np.ndarray]) -> Volume:
    """Stacks the planes [rows, columns] of sorted slices to a volume in the patient's coordinates."""
    first = slices[0][0]
    across, down = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(across, down)
    positions = np.array([dataset.ImagePositionPatient for dataset, _ in slices], float)
    gaps = np.diff(positions @ normal)
    if len(gaps) and (gaps.min() <= 0 or gaps.max() - gaps.min() > 0.1 * np.median(gaps) + 0.01):
        spread = f"{gaps.min():g} to {gaps.max():g} mm; one is missing?"
        raise ImageError(path, "its slices are not evenly spaced", spread)
    thick = float(first.get("SliceThickness") or 1)
    step = (positions[-1] - positions[0]) / (len(slices) - 1) if len(gaps) else normal * thick
    between_rows, between_columns = (float(s) for s in first.PixelSpacing)
    matrix = np.stack([across * between_columns, down * between_rows, step], 1)
    data = np.stack(planes, -1).transpose(1, 0, 2)
    return make_volume(data, LPS_TO_RAS @ make_affine(matrix, positions[0]), str(path))
