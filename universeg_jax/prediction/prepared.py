"""Keys of a support set's images, computed once for all queries."""

import threading
from collections.abc import Callable

import jax
import numpy as np

from universeg_jax.model.recognition import Keys

Array = jax.Array | np.ndarray
AT_A_TIME = 8  # images


class PreparedKeys:
    """Keys of images [N, H, W, 1], computed when they are first asked for. Thread-safe.

    They wait in arrays for all N images, whose memory the system gives when a row is first written. A CPU reads these;
    an accelerator gets a copy after each change.
    """

    def __init__(self, compute: Callable[[Array], Keys], images: Array):
        """`compute` gives keys [n, ...] of images [n, H, W, 1]; n is AT_A_TIME, or 1 where there is a single image."""
        self._compute, self._images = compute, np.asarray(images)  # rows of NumPy arrays need no program
        self._known, self._lock = np.zeros(len(images), bool), threading.Lock()
        self._held: tuple[np.ndarray, ...] = ()
        self._copy: Keys | None = None

    def of(self, rows: np.ndarray) -> tuple[Array, ...]:
        """Arrays [N, ...] that hold the keys of at least these images."""
        on_cpu = jax.default_backend() == "cpu"
        if on_cpu and self._known[rows].all() and self._held:
            return self._held  # others may wait for what is computed now
        with self._lock:
            missing = np.setdiff1d(rows, np.flatnonzero(self._known))
            size = AT_A_TIME if len(self._images) > 1 else 1
            for start in range(0, len(missing), size):
                part = np.resize(missing[start : start + size], size)  # few shapes, few programs
                found = self._compute(self._images[part])
                self._copy = None
                self._held = self._held or jax.tree.map(self._room, found)
                for all_of, k in zip(jax.tree.leaves(self._held), jax.tree.leaves(found), strict=True):
                    all_of[part] = k
                self._known[part] = True
            assert self._held, "no image was asked for"
            if on_cpu:
                return self._held
            if self._copy is None:
                self._copy = jax.device_put(self._held)
            return self._copy

    def _room(self, k: Array) -> np.ndarray:
        return np.zeros((len(self._known), *k.shape[1:]), k.dtype)
