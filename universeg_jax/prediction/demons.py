"""Thirion's demons with symmetric forces: a displacement at each pixel by which one image becomes another.

The method of Thirion (Med Image Anal 1998;2:243) with the forces of Vercauteren et al. (NeuroImage 2009;45:S61), in the
steps, borders and constants of ITK's FastSymmetricForcesDemonsRegistrationFilter, whose results a test compares.
"""

import functools

import numpy as np
from scipy.ndimage import correlate1d, map_coordinates
from scipy.special import ive

MAX_STEP = 0.5  # pixels in one iteration
SAME = 1e-3  # intensities that differ by less exert no force
FLAT = 1e-9  # nor do forces without a gradient
STILL = 0.02  # pixels; root mean square of the steps at which the iterations end
KERNEL_ERROR = 0.1  # share of a Gaussian that its kernel may leave out
MAX_KERNEL = 30  # pixels on one side


def register(fixed: np.ndarray, moving: np.ndarray, iterations: int, smooth: float) -> np.ndarray:
    """Displacements, float32 [2, H, W] in pixels of rows and columns, from `fixed` [H, W] to `moving` [H, W].

    What is seen at x in `fixed` is seen at x plus the displacement in `moving`. `smooth`: standard deviation, pixels,
    of the Gaussian that smooths the displacements after each iteration.
    """
    fixed, moving = fixed.astype(float), moving.astype(float)
    gradient, grid = _inner_gradient(fixed), np.indices(fixed.shape, float)
    ends = np.array(fixed.shape).reshape(2, 1, 1) - 0.5
    field = np.zeros((2, *fixed.shape))
    for _ in range(iterations):
        places = grid + field
        inside = np.asarray(((places >= -0.5) & (places <= ends)).all(0))
        warped = map_coordinates(moving, places, order=1, mode="nearest")
        force, difference = gradient + _gradient_inside(warped, inside), fixed - warped
        size = (force**2).sum(0) + difference**2 / MAX_STEP**2
        acts = inside & (np.abs(difference) >= SAME) & (size >= FLAT)
        step = np.where(acts, 2 * difference / np.where(acts, size, 1), 0) * force
        field += step
        for axis in (1, 2):
            field = correlate1d(field, _kernel(smooth), axis, mode="nearest")
        if (step**2).sum() < STILL**2 * max(inside.sum(), 1):
            break
    return field.astype(np.float32)


def _inner_gradient(image: np.ndarray) -> np.ndarray:
    """Central differences [2, H, W], 0 at the ends of an axis."""
    rows, columns = np.zeros((2, *image.shape))
    rows[1:-1] = (image[2:] - image[:-2]) / 2
    columns[:, 1:-1] = (image[:, 2:] - image[:, :-2]) / 2
    return np.stack([rows, columns])


def _gradient_inside(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Differences [2, H, W] of neighbours that are `inside`: central, one-sided beside one that is not, else 0."""
    gradients = []
    for axis in (0, 1):
        values, known = np.moveaxis(image, axis, 0), np.moveaxis(inside, axis, 0)
        ahead, behind = np.zeros_like(values), np.zeros_like(values)
        ahead[:-1] = np.where(known[1:], values[1:] - values[:-1], 0)
        behind[1:] = np.where(known[:-1], values[1:] - values[:-1], 0)
        both = np.zeros_like(known)
        both[1:-1] = known[2:] & known[:-2]
        gradients.append(np.moveaxis((ahead + behind) / np.where(both, 2, 1), 0, axis))
    return np.stack(gradients)


@functools.cache
def _kernel(smooth: float) -> np.ndarray:
    """The Gaussian on a grid (Lindeberg, IEEE PAMI 1990;12:234), cut where less than KERNEL_ERROR is left."""
    half = [ive(0, smooth**2), ive(1, smooth**2)]
    while half[0] + 2 * sum(half[1:]) < 1 - KERNEL_ERROR and len(half) <= MAX_KERNEL:
        half.append(ive(len(half), smooth**2))
    kernel = np.array([*half[:0:-1], *half])
    return kernel / kernel.sum()
