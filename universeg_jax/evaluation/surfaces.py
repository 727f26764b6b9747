"""Boundary distances of two masks: 95th-percentile Hausdorff distance (HD95) and surface Dice (NSD), in 2D and 3D.

A boundary is the mask minus its erosion by the cross of direct neighbours (4 in 2D, 6 in 3D), with background beyond
the image. Every boundary pixel has the same weight. Percentile, direction and tolerance follow DeepMind's
`surface-distance`, which places the boundary on pixel corners and weights it by length or area.

Difference to `surface-distance` on discs and balls of radius 6 to 19 pixels at a tolerance of 2 pixels (mean over 1000
pairs in 2D, 60 in 3D): for masks that lie within 3 pixels of the truth, HD95 is larger by 0.02 pixels in 2D and 0.24 in
3D, surface Dice smaller by 0.037 and 0.073; for independent masks 0.14 and 0.32 pixels, 0.014 and 0.029. Compare
results of one definition only.

That package is not a dependency because its only release (0.1) raises AttributeError under NumPy 2 where a mask is
empty (it reads `np.Inf`), imports SciPy names that SciPy 2 removes, and misses distances that equal the tolerance but
for rounding (0.3 mm as three pixels of 0.1 mm). It also takes 1.3 to 4.7 times as long: 0.69 ms against 0.38 for a
disc of radius 12 in 128x128, 57 against 33 for a ball of radius 12 in 128x128x128 (one CPU, both in one run).
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from universeg_jax.errors import UserError


def surface_scores(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """(HD95, surface Dice) of two masks [H, W] or [D, H, W]; `spacing` and `tolerance` have one unit, that of HD95.

    HD95 is the larger of the two directed 95th-percentile distances: 0 if both masks are empty; if one is, the diagonal
    of the image, which exceeds any distance inside it. Surface Dice, or normalised surface Dice (NSD), is the share of
    both boundaries within `tolerance` of the other: 1 if both masks are empty, 0 if one is. Raises UserError.
    """
    if not tolerance >= 0:
        raise UserError(f"tolerance={tolerance}: a distance of at least 0, in the unit of spacing, is needed")
    prediction, truth = _checked(prediction, truth, spacing)
    if not (prediction.any() and truth.any()):
        both = prediction.any() == truth.any()
        return (0.0, 1.0) if both else (diagonal(truth.shape, spacing), 0.0)
    distances = _boundary_distances(prediction, truth, spacing)
    # Rounding: three pixels of 0.1 mm must count as within 0.3 mm.
    close = float(np.mean(np.concatenate(distances) <= tolerance * (1 + 1e-9)))
    return max(_percentile95(directed) for directed in distances), close


def boundary(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask with a direct neighbour outside the mask or outside the image."""
    return mask & ~ndimage.binary_erosion(mask)  # default: the cross, with background beyond the image


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """The distance between opposite corners of the image."""
    return float(np.linalg.norm(np.multiply(shape, spacing)))


def _boundary_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of each boundary pixel to the other boundary: (prediction to truth, back). Neither mask is empty."""
    box = ndimage.find_objects((prediction | truth).astype(np.uint8))[0]
    ours, theirs = boundary(prediction[box]), boundary(truth[box])
    to_truth = ndimage.distance_transform_edt(~theirs, sampling=spacing)
    to_prediction = ndimage.distance_transform_edt(~ours, sampling=spacing)
    return to_truth[ours], to_prediction[theirs]


def _percentile95(distances: np.ndarray) -> float:
    """The smallest distance that at least 95 % of the distances do not exceed."""
    rank = -(-19 * len(distances) // 20) - 1  # integers, because 0.95 has no exact float
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
