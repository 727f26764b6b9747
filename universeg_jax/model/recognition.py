"""A first guess of the query's mask from frozen features that know what things look like (pretrained.py).

As in `matching.CellMatching` each cell of the query takes the average of all support cells' labels, weighted by how
alike they are and how near, head by head. Here cells are compared by learned projections of pretrained features at
strides 8, 16 and 32 of the image enlarged twice: cells of 4, 8 and 16 pixels. The guess is added to the query at every
level of the encoder by convolutions that are zero at first, so that a model which gets these keys computes what it did.

`Columns` compares the features of all three strides at once as they are, without a projection: of tasks that nobody saw
this guess finds more than any learned head (docs/recipe.md). `Probe` fits a linear probe of them to the support
(probe.py).

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
from universeg_jax.model.matching import Layer, comparer, from_cells, prepared, stored, wide
from universeg_jax.model.probe import moments, probed

NETWORKS = ("none", "lite0")
Keys = tuple[Array, ...]  # for each of SCALES, then columns: unit vectors [..., rows, columns, heads, features]


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
COLUMN_STRIDE = 8  # of the cells of columns, in pixels of the enlarged image
COLUMN_STEP = 2  # of the support every such cell of every such row is asked
COLUMN_TEMPERATURE, COLUMN_LOCALITY = 25.0, 1.0  # docs/recipe.md


class Recognition(nn.Module):
    """What is added to the query's features at each level i of the encoder: [B, H / 2^i, W / 2^i, widths[i]]."""

    heads: int
    widths: Sequence[int]
    support_axis: str = ""  # as the model's
    columns: "Columns | None" = None  # a further guess
    probe: "Probe | None" = None  # another, of the same keys as columns

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
        """Computes the keys of all cells of query images [..., H, W, 1]: float32 or wider, those of columns float16."""
        seen, found = pretrained.features(enlarge(images)), []
        for scale, norm, project in zip(SCALES, self.norms, self.projections, strict=True):
            k = project(norm(seen[scale.stride]).astype(images.dtype))
            k = k.astype(wide(k)).reshape((*k.shape[:-1], -1, scale.features))
            found.append(unit(k))
        return (*found, columns(seen)) if self.columns else tuple(found)

    def support_keys(self, images: Array) -> Keys:
        """Of those cells of support images [..., H, W, 1] that are asked."""
        steps = [scale.step for scale in SCALES] + [COLUMN_STEP]
        return tuple(k[..., ::step, ::step, :, :] for step, k in zip(steps, self.keys(images), strict=False))

    def __call__(
        self, query: Array, query_keys: Keys | None, entries: Any, entry_keys: Any, weights: Any, over: MapSum
    ) -> list[Array]:
        """query [B, H, W, 1]; entries, their keys and weights in chunks as `over` takes them.

        Keys that are None are computed here.
        """
        keys = [k.astype(wide(k)) for k in (self.keys(query) if query_keys is None else query_keys)]
        sharpness = [
            (jnp.exp(temperature), jnp.exp(locality))
            for temperature, locality in zip(self.temperatures, self.localities, strict=True)
        ]
        if self.columns:
            sharpness.append((jnp.full(1, COLUMN_TEMPERATURE), jnp.full(1, COLUMN_LOCALITY)))
        compares = [comparer(k, *both) for k, both in zip(keys, sharpness, strict=True)]
        cell = query.shape[1] // keys[-1].shape[1]

        def chunk(x):
            entry, given, weight = x
            if given is None:
                given = [k.astype(wide(k)) for k in self.support_keys(entry[..., :1])]
            else:
                given = [prepared(k, weight) for k in given]
            found = [compare(k, entry[..., 1:], weight) for compare, k in zip(compares, given, strict=True)]
            areas = _areas(entry, weight) if self.columns else ()
            fit = moments(given[-1], entry, weight, cell) if self.probe else ()
            return (found, areas, fit), None

        partial, _ = over(chunk, (entries, entry_keys, weights))
        sums, areas, fit = all_sum(partial, self.support_axis, keys[0].dtype)
        guesses = [_guess(x, k.shape, query.shape[1] // k.shape[1]) for x, k in zip(sums, keys, strict=True)]
        learned = jnp.concatenate(guesses[: len(SCALES)], -1).astype(query.dtype)
        added = enter(learned, self.mix, self.enter)
        if self.columns:
            extra = self.columns(guesses[-1], areas[..., 0] / jnp.maximum(areas[..., 1], 1e-12), query.dtype)
            added = [x + more for x, more in zip(added, extra, strict=True)]
        if self.probe:
            extra = self.probe(keys[-1], fit, query.shape, query.dtype)
            added = [x + more for x, more in zip(added, extra, strict=True)]
        return added


class Columns(nn.Module):
    """Adds the guess by `columns` to the query at each level, as `Recognition` does."""

    widths: Sequence[int]

    def setup(self):
        self.mix = Layer(3, MIXED)
        self.enter = [Conv(3 + MIXED, width, gain=0.0, size=1) for width in self.widths]

    def __call__(self, guess: Array, share: Array, dtype: Any) -> list[Array]:
        """`guess` [B, H, W, 2] of one head; `share` [B] of the support's pixels that are foreground."""
        label, p = guess[..., :1], jnp.expand_dims(jnp.clip(share, 1e-4, 1 - 1e-4), (1, 2, 3))
        balanced = label * (1 - p) / (label * (1 - p) + (1 - label) * p)  # as if both covered the same area
        return enter(jnp.concatenate([guess, balanced], -1).astype(dtype), self.mix, self.enter)


class Probe(nn.Module):
    """Adds the guesses of a linear probe of columns to the query at each level, as `Recognition` does."""

    widths: Sequence[int]

    def setup(self):
        self.mix = Layer(3, MIXED)
        self.enter = [Conv(3 + MIXED, width, gain=0.0, size=1) for width in self.widths]

    def __call__(self, keys: Array, fit: tuple[Array, Array], shape: tuple[int, ...], dtype: Any) -> list[Array]:
        """`keys` of columns [B, rows, columns, 1, D] of a query of `shape`; `fit`: sums of `moments`."""
        found = probed(keys, *fit)
        found = jax.image.resize(found, (*shape[:3], found.shape[-1]), "linear")
        return enter(found.astype(dtype), self.mix, self.enter)


def columns(seen: dict[int, Array]) -> Array:
    """Keys [..., rows, columns, 1, features] of cells of COLUMN_STRIDE: unit vectors in float16, or float64.

    The features of every stride, with mean 0 and variance 1 over the image and brought to one length, one after the
    other: hypercolumns (Hariharan et al., CVPR 2015). `seen` as `pretrained.features` gives it.
    """
    *before, rows, width, _ = seen[COLUMN_STRIDE].shape
    found = []
    for x in seen.values():
        x = x.astype(wide(x))
        x = x - x.mean((-3, -2), keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean((-3, -2), keepdims=True) + 1e-3)
        found.append(unit(jax.image.resize(x, (*before, rows, width, x.shape[-1]), "linear")))
    return stored(unit(jnp.concatenate(found, -1))[..., None, :])


def unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)


def enter(guess: Array, mix: nn.Module, levels: Sequence[nn.Module]) -> list[Array]:
    """Computes what to add to the query at each level from a guess [B, H, W, C]."""
    x, added = jnp.concatenate([guess, mix(guess)], -1), []
    for level, conv in enumerate(levels):
        x = mean_pool(x) if level else x
        added.append(conv(x))
    return added


def _areas(entry: Array, weights: Array) -> Array:
    """[B, 2]: weighted sums of the foreground and of all known pixels of entries [B, s, H, W, 2 or 3]."""
    label, known = entry[..., 1], entry[..., -1] if entry.shape[-1] > 2 else jnp.ones_like(entry[..., 1])
    both = jnp.stack([label * known, known], -1).astype(wide(label)).sum((2, 3))
    return jnp.einsum("bs,bsn->bn", weights.astype(both.dtype), both)


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
