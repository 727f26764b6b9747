"""Labels whose file names its segments: DICOM-SEG, Slicer's .seg.nrrd, and label descriptions of ITK-SNAP."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from universeg_jax.readers.dicom_files import is_seg, read_header
from universeg_jax.readers.dicom_frames import frame_headers
from universeg_jax.readers.errors import ImageError, as_image_errors
from universeg_jax.readers.volumes import LPS_TO_RAS, Shape, Volume, make_affine, make_volume

OUR_SCHEME = "99UNIVERSEG"  # the private codes of our own DICOM-SEG: the code value is the label id
HEADER_BYTES = 1 << 20
SNAP_LINE = re.compile(r'^\s*(\d+)\s+\d+\s+\d+\s+\d+\s+[\d.]+\s+[01]\s+[01]\s+"([^"]*)"\s*$')
GRID_TOLERANCE = 0.05  # of a voxel: how far the voxels of a cropped label may lie beside those of its image


def segment_names(path: str | Path) -> dict[int, str]:
    """Value → name, as the file itself names its segments; {} for files that name none. Raises ImageError."""
    path = Path(path)
    if path.name.lower().endswith(".nrrd"):
        return _nrrd_names(path)
    if is_seg(path):
        with as_image_errors(path):
            return dict(_segments(path, read_header(path)).values())
    return {}


def _nrrd_names(path: Path) -> dict[int, str]:
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES).split(b"\n\n")[0].split(b"\r\n\r\n")[0].decode("utf-8", "replace")
    fields = dict(re.findall(r"^(Segment\d+_(?:Name|LabelValue|Layer)):?=(.*?)\r?$", header, re.MULTILINE))
    numbers = sorted({name.partition("_")[0] for name in fields})
    if any(fields.get(f"{number}_Layer", "0").strip() != "0" for number in numbers):
        raise ImageError(path, "its segments overlap in layers", "save each segment as a labelmap of its own")
    return {
        int(fields[f"{number}_LabelValue"]): fields.get(f"{number}_Name", number).strip()
        for number in numbers
        if f"{number}_LabelValue" in fields
    }


def read_snap_names(path: Path) -> dict[int, str]:
    """Id → name of a label description file of ITK-SNAP; {} where the file is none."""
    try:
        text = path.read_text(encoding="utf-8-sig") if path.stat().st_size < HEADER_BYTES else ""
    except (OSError, UnicodeDecodeError):
        return {}
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    matches = [SNAP_LINE.match(line) for line in lines]
    if not lines or not all(matches):
        return {}
    return {int(match[1]): match[2] for match in matches if match and int(match[1])}


def _segments(path: Path, dataset: Any) -> dict[int, tuple[int, str]]:
    """Segment number → (label id, name); ids are the codes of our own files, else the numbers of the segments."""
    segments = {}
    for segment in dataset.SegmentSequence:
        number = int(segment.SegmentNumber)
        code = (segment.get("SegmentedPropertyTypeCodeSequence") or [None])[0]
        ours = code is not None and code.get("CodingSchemeDesignator") == OUR_SCHEME and str(code.CodeValue).isdecimal()
        segments[number] = (
            int(code.CodeValue) if ours else number,
            str(segment.get("SegmentLabel", f"segment {number}")),
        )
    if len({i for i, _ in segments.values()}) < len(segments):
        raise ImageError(path, "two segments have one id", str(sorted(i for i, _ in segments.values()))[:80])
    return segments


def read_seg(path: Path) -> Volume:
    """Reads a binary DICOM-SEG as label ids, int32 [X, Y, Z]; slices that it leaves out are background.

    Raises ImageError, also for segments that overlap and for fractional ones.
    """
    dataset = read_header(path)
    if dataset.get("SegmentationType") == "FRACTIONAL":
        raise ImageError(path, "a fractional DICOM-SEG", "its values are probabilities; save it as a binary one")
    segments, headers = _segments(path, dataset), frame_headers(path, dataset)
    frames = dataset.pixel_array.reshape((len(headers), int(dataset.Rows), int(dataset.Columns)))
    across, down = np.array(headers[0].ImageOrientationPatient, float).reshape(2, 3)
    if any(np.abs(np.array(h.ImageOrientationPatient, float) - [*across, *down]).max() > 1e-3 for h in headers):
        raise ImageError(path, "its frames lie in different directions")
    positions = np.array([header.ImagePositionPatient for header in headers], float)
    index, origin, step = _planes_of(path, positions, np.cross(across, down), headers[0])
    label = np.zeros((int(index.max()) + 1, *frames.shape[1:]), np.int32)
    is_labelmap = dataset.get("SegmentationType") == "LABELMAP"
    for frame, place, values in zip(dataset.PerFrameFunctionalGroupsSequence, index, frames, strict=True):
        if is_labelmap:
            ids = np.zeros(int(values.max()) + 1, np.int32)
            for number, (i, _) in segments.items():
                if number < len(ids):
                    ids[number] = i
            label[place] = ids[values]
            continue
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
        which = frame.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence")
        i = segments[int(which[0].ReferencedSegmentNumber)][0]
        inside = values > 0
        if (label[place][inside] > 0).any():
            raise ImageError(path, "its segments overlap", "save each segment into a file of its own")
        label[place][inside] = i
    between_rows, between_columns = (float(s) for s in headers[0].PixelSpacing)
    matrix = np.stack([across * between_columns, down * between_rows, step], 1)
    return make_volume(label.transpose(2, 1, 0), LPS_TO_RAS @ make_affine(matrix, origin), str(path))


def _planes_of(
    path: Path, positions: np.ndarray, normal: np.ndarray, header: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(index of the plane of each frame [N], position of the first plane [3], step between planes [3])."""
    heights = positions @ normal
    distinct = np.unique(np.round(heights, 3))
    gap = float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1)
    if len(distinct) > 1:
        gap = float(np.diff(distinct).min())
    index = np.round((heights - heights.min()) / gap).astype(int)
    first, last = positions[np.argmin(heights)], positions[np.argmax(heights)]
    if np.abs((heights - heights.min()) - index * gap).max() > 0.2 * gap:
        raise ImageError(path, "its frames are not evenly spaced")
    step = (last - first) / index.max() if index.max() else normal * gap
    return index, first, step


def on_grid_of(label: Volume, image: Volume) -> Volume:
    """A label of named segments that was cropped to them, on the whole grid of its image; others as they are.

    DICOM-SEG may leave out empty slices, and Slicer crops what it saves. Only whole voxels are moved: a label on
    another grid stays, and `check_same_grid` names it.
    """
    is_cropped = label.shape != image.shape and (is_seg(label.name) or label.name.lower().endswith(".seg.nrrd"))
    if not is_cropped or not np.allclose(label.spacing, image.spacing, rtol=1e-3):
        return label
    to_image = np.linalg.inv(image.affine) @ label.affine
    offset = np.round(to_image[:3, 3]).astype(int)
    beside = np.abs(to_image[:3, 3] - offset).max(), np.abs(to_image[:3, :3] - np.eye(3)).max() * max(label.shape)
    if max(beside) > GRID_TOLERANCE or (offset < 0).any() or (offset + label.shape > image.shape).any():
        return label
    shape: Shape = image.shape
    data = np.zeros(shape, label.data.dtype)
    data[tuple(slice(o, o + n) for o, n in zip(offset, label.shape, strict=True))] = label.data
    return Volume(data, image.affine, image.axes, label.name)
