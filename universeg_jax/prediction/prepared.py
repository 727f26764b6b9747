"""Keys of a support set's images, computed once for all queries."""

from collections.abc import Callable

import jax
import numpy as np

from universeg_jax.model.recognition import Keys

Array = jax.Array | np.ndarray
AT_A_TIME = 8  # images


class PreparedKeys:
    """Keys of images [N, H, W, 1], computed when they are first asked for. Thread-safe: at worst twice."""

    def __init__(self, compute: Callable[[Array], Keys], images: Array):
        """`compute` gives keys [n, ...] of images [n, H, W, 1]; it is called with AT_A_TIME of them, or all."""
        self._compute, self._images = compute, np.asarray(images)  # rows of NumPy arrays need no program
        self._held: tuple[np.ndarray, Keys | None] = np.zeros(len(images), bool), None

    def of(self, rows: np.ndarray) -> Keys:
        """Arrays [N, ...] that hold the keys of at least these images."""
        known, held = self._held
        missing = np.setdiff1d(rows, np.flatnonzero(known))
        if held is not None and not len(missing):
            return held
        keys = [np.array(k) for k in held or ()]
        for start in range(0, len(missing), AT_A_TIME):
            part = np.resize(missing[start : start + AT_A_TIME], min(AT_A_TIME, len(known)))  # one shape, one program
            found = self._compute(self._images[part])
            keys = keys or [np.zeros((len(known), *k.shape[1:]), k.dtype) for k in found]
            for all_of, k in zip(keys, found, strict=True):
                all_of[part] = k
        assert keys, "no image was asked for"
        known = known.copy()
        known[missing] = True
        held = jax.device_put(tuple(keys))
        self._held = known, held
        return held
