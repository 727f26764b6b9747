"""Masks between labelled slices: the interpolation of signed distances, as ITK-SNAP and 3D Slicer do it, and copying.

Raya SP, Udupa JK. Shape-based interpolation of multidimensional objects. IEEE Trans Med Imaging 1990;9:32.
"""

import numpy as np
from scipy.ndimage import distance_transform_edt


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance to the outline, float32 [H, W] in pixels, of a mask that is not empty: positive inside, never 0."""
    inside = distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]
    inside = np.minimum(inside, max(mask.shape))  # a mask without an outline
    return np.where(mask, inside - 0.5, 0.5 - distance_transform_edt(~mask)).astype(np.float32)


def signed_distances(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distances of two masks [H, W] of neighbouring labelled slices, at least one of which is not empty.

    Where the structure is absent, the distance is as far outside everywhere as its deepest point is inside the other
    slice, so that it shrinks to a point halfway between the two.
    """
    pair = [signed_distance(mask) if mask.any() else None for mask in (before, after)]
    present = next(distance for distance in pair if distance is not None)
    absent = np.full(before.shape, -present.max(), np.float32)
    first, second = (absent if distance is None else distance for distance in pair)
    return first, second
