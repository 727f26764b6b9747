"""A mask as DICOM Segmentation (SEG), which refers to the series that it was made of; by highdicom (extra [dicom])."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import universeg_jax
from universeg_jax.errors import UserError
from universeg_jax.readers.dicom import dicom_slices
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.volumes import Volume

SCHEME = "99UNIVERSEG"  # "99" marks private codes: label ids mean what their support folder says


def require_highdicom() -> Any:
    """The module. Raises UserError where it is not installed."""
    try:
        import highdicom
        import highdicom.seg
    except ImportError as error:
        raise UserError("--dicom_seg needs another package: pip install 'universeg_jax[dicom]'") from error
    return highdicom


def write_dicom_seg(
    path: str | Path, masks: Mapping[int, np.ndarray], names: Mapping[int, str], source: str | Path, volume: Volume
) -> None:
    """Boolean masks [X, Y, Z] by label id, on the grid of `volume` that was read from the series `source`.

    One binary segment a label in the order of `masks`, every frame of the series in each, so that the SEG has the
    whole grid. A segment has the label's name; its type's private code is the id. Raises ImageError.
    """
    hd = require_highdicom()
    slices = [dataset for dataset, _ in dicom_slices(Path(source))]
    turned = [Volume(mask.astype(np.uint8), volume.affine, volume.axes).file_data() for mask in masks.values()]
    frames = np.stack(turned, -1).transpose(2, 1, 0, 3)  # columns, rows, slices → slices, rows, columns, segments
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that a strict viewer might not show
            _segmentation(hd, slices, frames, {i: names.get(i, f"label {i}") for i in masks}).save_as(path)
    except (AttributeError, TypeError, ValueError) as error:  # what is missing in the series
        raise ImageError(source, "cannot have a DICOM-SEG", f"{error}; leave out --dicom_seg for a NIfTI") from error


def _segmentation(hd: Any, slices: list[Any], frames: np.ndarray, names: Mapping[int, str]) -> Any:
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name="universeg_jax", family=codes.DCM.ArtificialIntelligence, version=universeg_jax.__version__
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],  # what the field holds
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,  # says nothing that is not known
            segmented_property_type=hd.sr.CodedConcept(str(i), SCHEME, name[:64]),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, (i, name) in enumerate(names.items(), 1)
    ]
    if len(slices) > 1:  # readers of the SEG believe its header, so it must say what the positions say
        positions = np.array([dataset.ImagePositionPatient for dataset in slices], float)
        apart = float(np.linalg.norm(positions[-1] - positions[0]) / (len(slices) - 1))
        for dataset in slices:
            dataset.SpacingBetweenSlices = round(apart, 9)
    return hd.seg.Segmentation(
        source_images=slices,
        pixel_array=frames,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=hd.UID(),
        series_number=900,  # beyond those that scanners count
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="universeg_jax",
        manufacturer_model_name="universeg_jax",
        software_versions=universeg_jax.__version__,
        device_serial_number="0",
        series_description="universeg_jax: not for diagnosis",
        omit_empty_frames=False,
    )
