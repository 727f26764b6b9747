"""How far apart the boundaries of two masks are: 95th-percentile Hausdorff distance and surface Dice, 2D and 3D.

A boundary is the mask minus its erosion by the cross of direct neighbours (4 in 2D, 6 in 3D); beyond the image is
background. Its pixels count the same each. Percentile, direction and tolerance are those of DeepMind's
`surface-distance`, which however takes pixel corners, weighted by the length or area of the surface through them. On
random discs and balls of radius 6 to 19 pixels, hd95 differs from that by 0.15 pixels on average in 2D and 0.3 in 3D,
surface Dice within two pixels is lower by 0.02 and 0.05: compare figures of one definition only. The tests compare with
that library as near, and with all pairs of pixels and with ITK, whose definition is this one, as equal.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from universeg_jax.errors import UserError


def hd95(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    """The larger of the two directed distances, in the unit of `spacing`, within which 95 % of a boundary lies.

    0 where both masks are empty; the diagonal of the image where one is, which is more than any distance in it.
    """
    return surface_scores(prediction, truth, spacing, 0)[0]


def surface_dice(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float) -> float:
    """Share of both boundaries within `tolerance` of the other, in [0, 1]; also called normalised surface distance.

    1 where both masks are empty, 0 where one is.
    """
    return surface_scores(prediction, truth, spacing, tolerance)[1]


def surface_scores(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """(hd95, surface Dice) from one measurement of the distances."""
    if not tolerance >= 0:
        raise UserError(f"tolerance={tolerance}: a distance of at least 0, in the unit of spacing, is needed")
    prediction, truth = _checked(prediction, truth, spacing)
    if not (prediction.any() and truth.any()):
        both = prediction.any() == truth.any()
        return (0.0, 1.0) if both else (diagonal(truth.shape, spacing), 0.0)
    distances = _boundary_distances(prediction, truth, spacing)
    # The slack is for rounding: three pixels of 0.1 mm are within 0.3 mm.
    close = float(np.mean(np.concatenate(distances) <= tolerance * (1 + 1e-9)))
    return max(_percentile95(directed) for directed in distances), close


def boundary(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask with a direct neighbour that is not of it, or beyond the image."""
    return mask & ~ndimage.binary_erosion(mask)  # whose default is the cross, with background beyond the image


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """From corner to corner of the image."""
    return float(np.linalg.norm(np.multiply(shape, spacing)))


def _boundary_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """From every boundary pixel of the prediction to the nearest one of the truth, and back; neither may be empty."""
    box = ndimage.find_objects((prediction | truth).astype(np.uint8))[0]
    ours, theirs = boundary(prediction[box]), boundary(truth[box])
    to_truth = ndimage.distance_transform_edt(~theirs, sampling=spacing)
    to_prediction = ndimage.distance_transform_edt(~ours, sampling=spacing)
    return to_truth[ours], to_prediction[theirs]


def _percentile95(distances: np.ndarray) -> float:
    """The smallest of the distances that at least 95 % of them do not exceed."""
    rank = -(-19 * len(distances) // 20) - 1  # in integers: 0.95 has no exact float
    return float(np.partition(distances, rank)[rank])


def _checked(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    if prediction.shape != truth.shape or truth.ndim not in (2, 3):
        raise UserError(
            f"prediction of shape {prediction.shape}, truth of shape {truth.shape}: two masks of one shape, "
            "[H, W] or [D, H, W], are needed"
        )
    if len(spacing) != truth.ndim or not np.all(np.isfinite(spacing)) or min(spacing) <= 0:
        raise UserError(f"spacing={tuple(spacing)}: {truth.ndim} positive numbers are needed, one an axis of the masks")
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
            raise UserError(f"{name} holds values from {mask.min()} to {mask.max()}: a mask of 0 and 1 is needed")
    return prediction.astype(bool), truth.astype(bool)
