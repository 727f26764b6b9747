"""A first guess of the query's mask from frozen features that know what things look like (pretrained.py).

As in `matching.CellMatching` each cell of the query takes the average of all support cells' labels, weighted by how
alike they are and how near, head by head. Here cells are compared by learned projections of pretrained features at
strides 8, 16 and 32 of the image enlarged twice: cells of 4, 8 and 16 pixels. The guess is added to the query at every
level of the encoder by convolutions that are zero at first, so that a model which gets these keys computes what it did.

Keys of an image depend on no other image: those of a support set can be prepared once for all queries.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from universeg_jax.model import pretrained
from universeg_jax.model.layers import Array, Conv, MapSum, all_sum
from universeg_jax.model.matching import Layer, comparer, from_cells, wide

NETWORKS = ("none", "lite0")
Keys = tuple[Array, ...]  # for each of SCALES: unit vectors [..., rows, columns, heads, features]


class Scale(NamedTuple):
    """How cells of one stride are compared."""

    stride: int  # of the pretrained features, in pixels of the enlarged image
    share: float  # of the heads
    features: int  # that a head compares
    step: int  # of the support every such cell of every such row is asked


SCALES = (Scale(8, 0.5, 24, 2), Scale(16, 1.0, 48, 1), Scale(32, 1.0, 64, 1))
TEMPERATURE = 12.0  # at the start, of every head
LOCALITIES = (0.03, 30.0)  # at the start, of the first and the last head; 1 / image side²
ENLARGED = 2  # times, of images below SEEN pixels
SEEN = 256
MIXED = 24  # features of the guess beside itself


class Recognition(nn.Module):
    """What is added to the query's features at each level i of the encoder: [B, H / 2^i, W / 2^i, widths[i]]."""

    heads: int
    widths: Sequence[int]
    support_axis: str = ""  # as the model's

    def setup(self):
        counts = [max(1, round(self.heads * scale.share)) for scale in SCALES]
        self.norms = [nn.LayerNorm() for _ in SCALES]
        self.projections = [
            Conv(pretrained.FEATURES[scale.stride], count * scale.features, 1.0, size=1)
            for scale, count in zip(SCALES, counts, strict=True)
        ]
        self.temperatures = [
            self.param(f"log_temperature_{scale.stride}", nn.initializers.constant(np.log(TEMPERATURE)), (count,))
            for scale, count in zip(SCALES, counts, strict=True)
        ]
        self.localities = [
            self.param(f"log_locality_{scale.stride}", _spread, (count,))
            for scale, count in zip(SCALES, counts, strict=True)
        ]
        self.mix = Layer(2 * sum(counts), MIXED)
        self.enter = [Conv(2 * sum(counts) + MIXED, width, gain=0.0, size=1) for width in self.widths]

    def keys(self, images: Array) -> Keys:
        """Of all cells of query images [..., H, W, 1], float32 or wider."""
        seen, found = pretrained.features(enlarge(images)), []
        for scale, norm, project in zip(SCALES, self.norms, self.projections, strict=True):
            k = project(norm(seen[scale.stride]).astype(images.dtype))
            k = k.astype(wide(k)).reshape((*k.shape[:-1], -1, scale.features))
            found.append(k * jax.lax.rsqrt(jnp.square(k).sum(-1, keepdims=True) + 1e-6))
        return tuple(found)

    def support_keys(self, images: Array) -> Keys:
        """Of those cells of support images [..., H, W, 1] that are asked."""
        return tuple(
            k[..., :: scale.step, :: scale.step, :, :] for scale, k in zip(SCALES, self.keys(images), strict=True)
        )

    def __call__(
        self, query: Array, query_keys: Keys | None, entries: Any, entry_keys: Any, weights: Any, over: MapSum
    ) -> list[Array]:
        """query [B, H, W, 1]; entries, their keys and weights in chunks as `over` takes them.

        Keys that are None are computed here.
        """
        keys = self.keys(query) if query_keys is None else query_keys
        compares = [
            comparer(k, jnp.exp(temperature), jnp.exp(locality))
            for k, temperature, locality in zip(keys, self.temperatures, self.localities, strict=True)
        ]

        def chunk(x):
            entry, given, weight = x
            given = self.support_keys(entry[..., :1]) if given is None else given
            return [compare(k, entry[..., 1:], weight) for compare, k in zip(compares, given, strict=True)], None

        partial, _ = over(chunk, (entries, entry_keys, weights))
        sums = all_sum(partial, self.support_axis, keys[0].dtype)
        guesses = [_guess(x, k.shape, query.shape[1] // k.shape[1]) for x, k in zip(sums, keys, strict=True)]
        guess = jnp.concatenate(guesses, -1).astype(query.dtype)
        x, added = jnp.concatenate([guess, self.mix(guess)], -1), []
        for level, enter in enumerate(self.enter):
            x = mean_pool(x) if level else x
            added.append(enter(x))
        return added


def _spread(_: Any, shape: tuple[int]) -> Array:
    return jnp.asarray(np.linspace(np.log(LOCALITIES[0]), np.log(LOCALITIES[1]), shape[0]), jnp.float32)


def _guess(sums: Array, shape: tuple[int, ...], size: int) -> Array:
    """Sums of `comparer` → [B, H, W, 2 heads]: labels in [0, 1], and a tenth of the log of how much is alike.

    `shape` of the query's keys; `size`: pixels along a side of a cell.
    """
    labels, total = sums[..., : size**2], sums[..., size**2 :]
    alike = jnp.log(total / total.shape[2] + 1e-6) / 10
    found = jnp.stack([labels / (total + 1e-12), jnp.broadcast_to(alike, labels.shape)], 1)
    found = jnp.moveaxis(found.reshape((shape[0], -1, *found.shape[-2:])), 1, -1)  # [B, cells, size², 2 heads]
    return from_cells(found.reshape((*shape[:3], -1)), size)


def enlarge(images: Array) -> Array:
    """[..., H, W, C] twice as large, linearly, where a side is below SEEN. Raises ValueError where cells do not fit."""
    *before, height, width, channels = images.shape
    times = ENLARGED if min(height, width) < SEEN else 1
    if height * times % 32 or width * times % 32:
        step = 32 // times
        raise ValueError(f"image size {height}x{width}: with keys both sides must be multiples of {step}")
    return jax.image.resize(images, (*before, height * times, width * times, channels), "linear")


def mean_pool(x: Array) -> Array:
    """Means of 2x2 pixels of [B, H, W, C]."""
    return x.reshape((x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, x.shape[3])).mean((2, 4))
