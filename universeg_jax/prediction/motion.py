"""How the structures of a volume move from slice to slice: registration of neighbouring slices by their intensities.

Neighbours are registered by demons (demons.py), and the steps are put together. What a labelled slice knows of a
structure is then carried to where the structure has gone.
"""

import numpy as np
from scipy.ndimage import map_coordinates

from universeg_jax.prediction.demons import register

ITERATIONS = 10
SMOOTH = 1.5  # pixels; standard deviation of the Gaussian that keeps a displacement smooth
WHOLE = (slice(None), slice(None))
GREY_LEVELS = np.float32(255)  # demons expect intensities of this size


class Motion:
    """Displacements between slices of planes [N, H, W] in [0, 1]; each is computed once, until `forget`."""

    def __init__(self, planes: np.ndarray) -> None:
        self.planes = planes
        self._known: dict[tuple[int, int], np.ndarray] = {}

    def to(self, source: int, index: int) -> np.ndarray:
        """Displacements, float32 [2, H, W] in pixels of rows and columns, from slice `index` to slice `source`.

        What is seen at x in slice `index` is seen at x plus the displacement in slice `source`.
        """
        step = 1 if source > index else -1
        total = np.zeros((2, *self.planes.shape[1:]), np.float32)
        for z in range(source - step, index - step, -step):
            if (z, source) not in self._known:
                move = self._neighbours(z, z + step)
                self._known[z, source] = move + np.stack([carry(part, move) for part in total])
            total = self._known[z, source]
        return total

    def forget(self) -> None:
        """Frees the memory."""
        self._known.clear()

    def _neighbours(self, fixed: int, moving: int) -> np.ndarray:
        if (fixed, moving) not in self._known:
            first, second = GREY_LEVELS * self.planes[fixed], GREY_LEVELS * self.planes[moving]
            self._known[fixed, moving] = register(first, second, ITERATIONS, SMOOTH)
        return self._known[fixed, moving]


def carry(values: np.ndarray, displacements: np.ndarray, part: tuple[slice, slice] = WHOLE) -> np.ndarray:
    """Values [H, W] of a source slice at the displaced positions, float32, linear; beyond the border as at it.

    Only `part` of the plane is computed, and the rest is 0.
    """
    carried = np.zeros(values.shape, np.float32)
    places = (np.indices(values.shape, np.float32) + displacements)[:, *part]
    carried[part] = map_coordinates(values, places, np.float32, order=1, mode="nearest")
    return carried
