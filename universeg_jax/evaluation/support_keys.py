"""Keys of support images, each computed once in an evaluation instead of once for every case it supports."""

import functools
import hashlib
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from universeg_jax.episode import Array
from universeg_jax.evaluation.scoring import Method
from universeg_jax.model.recognition import Keys
from universeg_jax.startup import compiler_options

AT_A_TIME = 16  # images; one shape, one program
HELD = 1024  # images whose keys are in memory: about 370 MB


class SupportKeys:
    """Keys of the support of batches of cases; () where the method has none or computes them better itself.

    An accelerator computes keys faster than they reach it, and flipped images have other keys. They are light
    (`UniverSeg.keys_of`).
    """

    def __init__(self, method: Method, params: Any, flips: bool = False) -> None:
        usable = getattr(method, "has_keys", False) and not flips and jax.default_backend() == "cpu"
        self._compute = functools.partial(_compiled(method), params) if usable else None
        self._held: OrderedDict[bytes, tuple[np.ndarray | None, ...]] = OrderedDict()

    def of(self, images: Array) -> Keys:
        """Arrays [N, K, S, ...] for images uint8 [N, K, S, H, W, 1]."""
        if self._compute is None:
            return ()
        flat = np.asarray(images).reshape((-1, *images.shape[3:]))
        names = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in flat]
        places = dict(zip(names, range(len(names)), strict=True))
        missing = [name for name in places if name not in self._held]
        for start in range(0, len(missing), AT_A_TIME):
            part = missing[start : start + AT_A_TIME]
            rows = np.resize([places[name] for name in part], AT_A_TIME)
            found = jax.device_get(self._compute(flat[rows]))
            for i, name in enumerate(part):
                self._held[name] = tuple(None if k is None else k[i] for k in found)
        for name in places:
            self._held.move_to_end(name)
        lead = images.shape[:3]
        stacked = jax.tree.map(
            lambda *each: jnp.asarray(np.stack(each).reshape((*lead, *each[0].shape))),
            *(self._held[name] for name in names),
        )
        while len(self._held) > max(HELD, len(places)):
            self._held.popitem(last=False)
        return stacked


@functools.lru_cache(maxsize=4)
def _compiled(method: Any) -> Any:
    return jax.jit(method.keys_of, compiler_options=compiler_options())
