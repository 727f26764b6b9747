"""DICOM: a file as an image, a series or multi-frame file as a volume, and labels drawn on its slices.

Sizes are checked before a pixel is decoded. Slices are sorted by their position, never by file name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from universeg_jax.readers import checks
from universeg_jax.readers.dicom_files import is_multiframe, read_header, sorted_files
from universeg_jax.readers.dicom_frames import frame_headers
from universeg_jax.readers.errors import ImageError, as_image_errors
from universeg_jax.readers.file_names import natural_order
from universeg_jax.readers.images import read_label
from universeg_jax.readers.preprocess import to_grey
from universeg_jax.readers.volumes import LPS_TO_RAS, Volume, make_affine, make_volume

SIDEWAYS = 0.5  # of a pixel: how far a slice may lie beside the line through the others


def read_dicom_image(path: str | Path) -> np.ndarray:
    """Reads one DICOM file of one frame, such as an X-ray or ultrasound image → float32 [H, W]."""
    path = Path(path)
    with as_image_errors(path):
        dataset = read_header(path)
        if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
            raise ImageError(path, "has several frames", f"{frames}; save each as a file of its own")
        return _planes([dataset])[0]


def read_dicom(path: Path) -> Volume:
    """Reads a folder that holds one series, a multi-frame CT or MR, or one file as a volume of one slice."""
    if (found := multiframe_order(path)) is not None:
        dataset, headers, order, path = found
        planes = list(dataset.pixel_array)
        slices = [(headers[i], path) for i in order]
        return _stack(path, slices, _to_units([headers[i] for i in order], [planes[i] for i in order]))
    slices = dicom_slices(path)
    return _stack(path, slices, _planes([dataset for dataset, _ in slices]))


def multiframe_order(path: Path) -> tuple[Any, list[Any], list[int], Path] | None:
    """(dataset, header of each frame, frames from one end to the other, file) of a multi-frame file, or of a folder
    with nothing else; None for other series.
    """
    files = [path] if path.is_file() else sorted_files(path)[0]
    if len(files) != 1 or not is_multiframe(files[0]):
        return None
    dataset = read_header(files[0])
    headers = frame_headers(files[0], dataset)
    return dataset, headers, _order(files[0], headers), files[0]


def read_label_stack(path: str | Path, series: str | Path, ignored: Sequence[int] = ()) -> Volume:
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
        planes = [read_label(path / label_of[file.name], ignored=ignored) for _, file in slices]
        shapes = [(dataset.Rows, dataset.Columns) for dataset, _ in slices]
        if [plane.shape for plane in planes] != shapes:
            raise ImageError(path, "image and label differ in size")
        return _stack(path, slices, planes)


def dicom_slices(path: Path) -> list[tuple[Any, Path]]:
    """(dataset, file) of each slice of a series, sorted from one end to the other. Other files are passed over."""
    files = [path] if path.is_file() else sorted_files(path)[0]
    if not files:
        raise ImageError(path, "holds no DICOM images")
    slices = [(read_header(file), file) for file in files]
    for dataset, file in slices:
        if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
            raise ImageError(file, "has several frames", f"{frames}; save each as a file of its own")
    series: dict[str, list[Any]] = {}
    for dataset, _ in slices:
        series.setdefault(str(dataset.get("SeriesInstanceUID", "")), []).append(dataset)
    if len(series) > 1:
        names = [f"{each[0].get('SeriesDescription') or uid} of {len(each)} files" for uid, each in series.items()]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        detail = f"{len(series)}; put each into a folder of its own: {', '.join(names[:5])}{more}"
        raise ImageError(path, "holds several DICOM series", detail)
    for dataset, file in slices:
        if "ImagePositionPatient" not in dataset or "ImageOrientationPatient" not in dataset:
            raise ImageError(file, "says no position in the patient", "it is no slice of a volume")
    order = _order(path, [dataset for dataset, _ in slices], [file.name for _, file in slices])
    return [slices[i] for i in order]


def _order(path: Path, headers: list[Any], names: list[str] | None = None) -> list[int]:
    """Sorts slices along their common normal. Raises ImageError where one differs in direction, size or place."""
    names = names or [f"frame {i + 1}" for i in range(len(headers))]
    for problem, field, tolerance in (
        ("its slices lie in different directions", "ImageOrientationPatient", 1e-3),
        ("its slices have different sizes", "Rows", 0),
        ("its slices have different sizes", "Columns", 0),
        ("its slices have different sizes of pixels", "PixelSpacing", 1e-3),
    ):
        values = [np.array(header.get(field), float).reshape(-1) for header in headers if field in header]
        usual = np.asarray(np.median(values, 0)) if values else np.zeros(1)
        if values and len(values) < len(headers):
            raise ImageError(
                path, f"some of its slices lack {field}", f"{len(headers) - len(values)} of {len(headers)}"
            )
        for name, value in zip(names, values, strict=bool(values)):
            if np.abs(value - usual).max() > tolerance:
                ours, most = (", ".join(f"{v:g}" for v in each) for each in (value, usual))
                raise ImageError(path, problem, f"{field} of {name} is {ours}, of most {most}")
    normal = np.cross(*np.array(headers[0].ImageOrientationPatient, float).reshape(2, 3))
    positions = np.array([header.ImagePositionPatient for header in headers], float)
    order = [int(i) for i in np.argsort(positions @ normal, kind="stable")]
    checks.check_voxels(path, (int(headers[0].Columns), int(headers[0].Rows), len(headers)))
    pixel = min(map(float, headers[0].get("PixelSpacing") or (1, 1)))
    _check_positions(path, positions[order], [names[i] for i in order], normal, pixel)
    return order


def _check_positions(path: Path, positions: np.ndarray, names: list[str], normal: np.ndarray, pixel: float) -> None:
    """Raises ImageError unless sorted slices [N, 3] are evenly spaced on one line, which may be tilted."""
    gaps = np.diff(positions @ normal)
    if not len(gaps):
        return
    gap = float(np.median(gaps))
    if (first := int(np.argmin(gaps))) >= 0 and gaps[first] < 1e-3:
        detail = f"{names[first]} and {names[first + 1]}; {int((gaps < 1e-3).sum())} such pairs"
        remedy = "a duplicate, or another time or echo: keep one of each position"
        raise ImageError(path, "two slices lie at one position", f"{detail}; {remedy}")
    if gaps.max() - gaps.min() > 0.1 * gap + 0.01:
        wide = int(np.argmax(gaps))
        detail = f"{gaps.min():g} to {gaps.max():g} mm; is one missing between {names[wide]} and {names[wide + 1]}?"
        raise ImageError(path, "its slices are not evenly spaced", detail)
    steps = np.diff(positions, axis=0)
    beside = np.linalg.norm(steps - np.median(steps, 0), axis=1)
    if beside.max() > max(SIDEWAYS * pixel, 0.1 * gap):
        after = steps - np.median(steps, 0)
        worst = int(np.argmax(beside))
        # One slice beside the line makes two wrong steps: it is the one between them.
        is_inner = worst + 1 < len(steps) and np.allclose(after[worst], -after[worst + 1], atol=0.1)
        name = names[worst + 1] if is_inner or worst else names[0]
        raise ImageError(path, "its slices do not lie on one line", f"{name} lies {beside.max():.3g} mm beside it")


def _planes(datasets: list[Any]) -> list[np.ndarray]:
    """Decodes float32 [H, W] planes in rescaled units (CT: HU); colour becomes grey."""
    from pydicom.pixels import apply_color_lut

    if datasets[0].get("PhotometricInterpretation") == "PALETTE COLOR":
        return [to_grey(apply_color_lut(dataset.pixel_array, dataset)) for dataset in datasets]
    return _to_units(datasets, [dataset.pixel_array for dataset in datasets])


def _to_units(headers: list[Any], stored: list[np.ndarray]) -> list[np.ndarray]:
    """Rescales stored planes to float32 [H, W]; padding becomes the darkest value, so that it is no brightness.

    MONOCHROME1, where small means bright, is inverted about one value for all slices, so that they still fit.
    """
    from pydicom.pixels import apply_modality_lut

    planes = [to_grey(apply_modality_lut(values, header)) for header, values in zip(headers, stored, strict=True)]
    padding = [_is_padding(header, values) for header, values in zip(headers, stored, strict=True)]
    inside = [plane[~pad] for plane, pad in zip(planes, padding, strict=True) if not pad.all()]
    if not inside:
        return planes
    low, high = min(values.min() for values in inside), max(values.max() for values in inside)
    if headers[0].get("PhotometricInterpretation") == "MONOCHROME1":
        planes = [low + high - plane for plane in planes]
    return [np.where(pad, low, plane) if pad.any() else plane for plane, pad in zip(planes, padding, strict=True)]


def _is_padding(header: Any, stored: np.ndarray) -> np.ndarray:
    """bool [H, W]: stored values that the header declares to be outside of the image."""
    if "PixelPaddingValue" not in header or stored.ndim != 2 or stored.dtype.kind not in "iu":
        return np.zeros(stored.shape[:2], bool)
    ends = [header.PixelPaddingValue, header.get("PixelPaddingRangeLimit", header.PixelPaddingValue)]
    # A header may state a negative value unsigned: the same bits are meant.
    low, high = sorted(int(np.array(int(end)).astype(stored.dtype)) for end in ends)
    return (stored >= low) & (stored <= high)


def _stack(path: Path, slices: list[tuple[Any, Path]], planes: list[np.ndarray]) -> Volume:
    """Stacks the planes [rows, columns] of sorted slices to a volume in the patient's coordinates."""
    first = slices[0][0]
    across, down = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    positions = np.array([dataset.ImagePositionPatient for dataset, _ in slices], float)
    thick = float(first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1)
    step = (positions[-1] - positions[0]) / (len(slices) - 1) if len(slices) > 1 else np.cross(across, down) * thick
    if "PixelSpacing" not in first:
        raise ImageError(path, "says no PixelSpacing", "it is no volume of known size; save it as NIfTI with spacing")
    between_rows, between_columns = (float(s) for s in first.PixelSpacing)
    matrix = np.stack([across * between_columns, down * between_rows, step], 1)
    data = np.stack(planes, -1).transpose(1, 0, 2)
    return make_volume(data, LPS_TO_RAS @ make_affine(matrix, positions[0]), str(path))
