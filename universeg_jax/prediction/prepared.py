"""Pretrained keys of a support set's images, computed once for all queries."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from universeg_jax.model.recognition import Keys

Array = jax.Array | np.ndarray
AT_A_TIME = 8  # images


class PreparedKeys:
    """Keys of images [N, H, W, 1], computed when they are first asked for. Thread-safe: at worst twice."""

    def __init__(self, compute: Callable[[Array], Keys], images: Array):
        """`compute` gives keys [n, ...] of images [n, H, W, 1]; it is called with AT_A_TIME of them, or all."""
        self._compute, self._images = compute, images
        self._held: tuple[np.ndarray, Keys | None] = np.zeros(len(images), bool), None

    def of(self, rows: np.ndarray) -> Keys:
        """Arrays [N, ...] that hold the keys of at least these images."""
        known, keys = self._held
        missing = np.setdiff1d(rows, np.flatnonzero(known))
        for start in range(0, len(missing), AT_A_TIME):
            part = np.resize(missing[start : start + AT_A_TIME], min(AT_A_TIME, len(known)))  # one shape, one program
            found = self._compute(self._images[part])
            if keys is None:
                keys = tuple(jnp.zeros((len(known), *k.shape[1:]), k.dtype) for k in found)
            keys = tuple(held.at[part].set(k) for held, k in zip(keys, found, strict=True))
        known = known.copy()
        known[missing] = True
        self._held = known, keys
        assert keys is not None, "no image was asked for"
        return keys
