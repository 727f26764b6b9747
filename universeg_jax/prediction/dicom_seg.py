"""Write a mask as a DICOM Segmentation (SEG) that refers to its source series, by highdicom (extra [dicom])."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import universeg_jax
from universeg_jax.errors import UserError
from universeg_jax.readers.dicom import dicom_slices, multiframe_order
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.segments import OUR_SCHEME
from universeg_jax.readers.volumes import Volume

SCHEME = OUR_SCHEME  # "99" marks private codes, because the support folder defines its label ids


def require_highdicom() -> Any:
    """Imports highdicom. Raises UserError if it is not installed."""
    try:
        import highdicom
        import highdicom.seg
    except ImportError as error:
        raise UserError("--dicom_seg needs highdicom: pip install 'universeg_jax[dicom]'") from error
    return highdicom


def write_dicom_seg(
    path: str | Path, masks: Mapping[int, np.ndarray], names: Mapping[int, str], source: str | Path, volume: Volume
) -> None:
    """Writes boolean masks [X, Y, Z] by label id, on the grid of `volume`, which was read from the series `source`.

    Each label becomes a binary segment with the label's name and its id as private type code, in the order of `masks`.
    Empty frames are written too, so that the SEG has the whole grid. Raises ImageError.
    """
    hd = require_highdicom()
    if (found := multiframe_order(Path(source))) is not None:
        slices, order = [found[0]], found[2]
    else:
        slices = [dataset for dataset, _ in dicom_slices(Path(source))]
        order = list(range(len(slices)))
    arrays = [Volume(mask.astype(np.uint8), volume.affine, volume.axes).file_data() for mask in masks.values()]
    frames = np.stack(arrays, -1).transpose(2, 1, 0, 3)  # columns, rows, slices → slices, rows, columns, segments
    frames = frames[np.argsort(order)]  # a multi-frame file may hold its frames in any order
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names that a strict viewer might not show
            _segmentation(hd, slices, frames, {i: names.get(i, f"label {i}") for i in masks}).save_as(path)
    except (AttributeError, TypeError, ValueError) as error:  # the series lacks an attribute
        raise ImageError(source, "cannot have a DICOM-SEG", f"{error}; leave out --dicom_seg to write NIfTI") from error


def _segmentation(hd: Any, slices: list[Any], frames: np.ndarray, names: Mapping[int, str]) -> Any:
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name="universeg_jax", family=codes.DCM.ArtificialIntelligence, version=universeg_jax.__version__
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],  # the longest text of this field
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,  # the most general category
            segmented_property_type=hd.sr.CodedConcept(str(i), SCHEME, name[:64]),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, (i, name) in enumerate(names.items(), 1)
    ]
    if len(slices) > 1:  # readers of the SEG use this field, so it must agree with the positions
        positions = np.array([dataset.ImagePositionPatient for dataset in slices], float)
        spacing = float(np.linalg.norm(positions[-1] - positions[0]) / (len(slices) - 1))
        for dataset in slices:
            dataset.SpacingBetweenSlices = round(spacing, 9)
    return hd.seg.Segmentation(
        source_images=slices,
        pixel_array=frames,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=hd.UID(),
        series_number=900,  # higher than series numbers of scanners
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="universeg_jax",
        manufacturer_model_name="universeg_jax",
        software_versions=universeg_jax.__version__,
        device_serial_number="0",
        series_description="universeg_jax: not for diagnosis",
        omit_empty_frames=False,
    )
