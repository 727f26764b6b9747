"""Frames of a multi-frame DICOM file (enhanced CT and MR, DICOM-SEG): the position and scale of each."""

from pathlib import Path
from typing import Any

from universeg_jax.readers.errors import ImageError

GROUPS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)
COMMON = (
    "Rows",
    "Columns",
    "PhotometricInterpretation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
)


def frame_headers(path: Path, dataset: Any) -> list[Any]:
    """For each frame a dataset with the fields that a single-frame file would have. Raises ImageError."""
    import pydicom

    shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    headers = []
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        header = pydicom.Dataset()
        for field in COMMON:
            if field in dataset:
                setattr(header, field, dataset[field].value)
        for group in GROUPS:
            for element in (frame.get(group) or shared.get(group) or [pydicom.Dataset()])[0]:
                if element.keyword:
                    setattr(header, element.keyword, element.value)
        if "ImagePositionPatient" not in header or "ImageOrientationPatient" not in header:
            raise ImageError(path, "its frames say no position in the patient", "it is no volume")
        headers.append(header)
    if len(headers) != int(dataset.get("NumberOfFrames") or 1):
        raise ImageError(path, "its header lists another number of frames than it holds", f"{len(headers)}")
    return headers
