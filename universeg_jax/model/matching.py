"""A first guess of the query's mask from what looks like it in the support, wherever it lies.

UniverSeg compares query and support pixel by pixel in place. Two small networks that see images alone, query and
support alike, add what can be said from anywhere; the model gets it as further channels of its query:

* `CellMatching`: images become cells, 16x16 of them from 64, 128 or 256 pixels a side. Each query cell takes the
  average of all support cells' labels (with their pixels), weighted by exp(τ (cosine - 1) - λ distance²), with a
  temperature τ and a locality λ of each head.
* `PixelMatching`: each pixel belongs softly to kinds that are learned once for all tasks. A kind is as likely
  foreground as the support says, for foreground and background of equal size.

Both are sums over the support entries (the exponent is bounded and needs no maximum), so that entries are streamed,
masked and sharded as everywhere in the model. What they see of an image, its keys, depends on no other image: those of
a support set can be prepared once for all queries.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from universeg_jax.model.layers import Array, Conv, MapSum, activate, all_sum, conv, max_pool, patches, upsample

SEEN = 64  # pixels along a side that cells are embedded from, where there are more
KEY = 16  # features of a cell that a head compares
TEMPERATURE = 10.0  # at the start, of every head
LOCALITIES = (0.1, 100.0)  # at the start, of the first and the last head; 1 / image side²
KINDS = 16  # of pixels, for each head
PRIOR = 1e-3  # of a kind that no support pixel has
STRIDE = 2  # of the support's pixels that are asked


class Layer(nn.Module):
    """Convolution, layer norm, activation."""

    features_in: int
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.features_in, self.features, np.sqrt(2))(x)
        return activate(nn.LayerNorm()(x).astype(x.dtype))


class CellMatching(nn.Module):
    """Soft labels [B, H, W, heads] in [0, 1]."""

    heads: int
    features: int = 64
    support_axis: str = ""  # as the model's

    def setup(self):
        half, full = self.features // 2, self.features
        self.stem, self.first, self.second = Layer(8, half), Layer(half, full), Layer(full, full)
        self.context = [Layer(full, full), Layer(full, full)]
        self.key = Conv(full, self.heads * KEY, 1.0, size=1)
        spread = np.linspace(np.log(LOCALITIES[0]), np.log(LOCALITIES[1]), self.heads)
        self.locality = self.param("log_locality", lambda _: jnp.asarray(spread, jnp.float32))
        self.temperature = self.param("log_temperature", lambda _: jnp.full(self.heads, np.log(TEMPERATURE)))

    def keys(self, image: Array) -> Array:
        """Unit vectors [..., rows, columns, heads, KEY] of [..., H, W, 1], float32 or wider."""
        seen = to_cells(image, cell_size(image.shape) // 4).mean(-1, keepdims=True)
        x = self.first(max_pool(self.stem(to_cells(with_negative(seen), 2))))
        x = x + self.second(x)
        context = max_pool(x)
        for layer in self.context:
            context = layer(context)
        x = x + upsample(context)
        k = self.key(x).astype(wide(x)).reshape((*x.shape[:-1], self.heads, KEY))
        return k * jax.lax.rsqrt(jnp.square(k).sum(-1, keepdims=True) + 1e-6)

    def support_keys(self, images: Array) -> Array:
        """Keys of the cells of support images, the same as `keys`."""
        return self.keys(images)

    def __call__(
        self, query: Array, query_keys: Array | None, entries: Any, entry_keys: Any, weights: Any, over: MapSum
    ) -> Array:
        """query [B, H, W, 1]; entries, their keys and weights in chunks as `over` takes them.

        Keys that are None are computed here.
        """
        keys = self.keys(query) if query_keys is None else query_keys
        compare = comparer(keys, jnp.exp(self.temperature), jnp.exp(self.locality))

        def chunk(x):
            entry, given, weight = x
            given = self.support_keys(entry[..., :1]) if given is None else prepared(given, weight)
            return compare(given, entry[..., 1:], weight), None

        partial, _ = over(chunk, (entries, entry_keys, weights))
        found = all_sum(partial, self.support_axis, wide(query))
        size = cell_size(query.shape)
        found = jnp.moveaxis(found[..., : size**2] / (found[..., size**2 :] + 1e-12), 1, -1)
        return from_cells(found.reshape((*keys.shape[:3], -1)), size).astype(query.dtype)


class PixelMatching(nn.Module):
    """How likely each pixel is foreground [B, H, W, heads], 0.5 where the support says nothing.

    Of the support every second pixel of every second row is asked: a quarter of the work.
    """

    heads: int
    features: int = 32
    support_axis: str = ""  # as the model's

    def setup(self):
        self.local = Layer(2, self.features // 2)
        self.around = Conv(self.features // 2, self.features, np.sqrt(2))
        self.norm = nn.LayerNorm()
        self.kind = Conv(self.features, self.heads * KINDS, 2.0, size=1)

    def kinds(self, image: Array, stride: int) -> Array:
        """Shares [..., H / stride, W / stride, heads, KINDS] that sum to 1, float32 or wider."""
        x = self.local(with_negative(image))
        if stride > 1:
            kernel = self.around.kernel.reshape((1, 1, -1, self.features))
            x = conv(patches(x, stride), kernel, self.around.bias)
        else:
            x = self.around(x)
        x = activate(self.norm(x).astype(x.dtype))
        x = self.kind(x)
        x = x.astype(wide(x))
        return jax.nn.softmax(x.reshape((*x.shape[:-1], self.heads, KINDS)), axis=-1)

    def keys(self, images: Array) -> Array:
        """Kinds of all pixels of query images [..., H, W, 1]."""
        return self.kinds(images, 1)

    def support_keys(self, images: Array) -> Array:
        """Kinds of those pixels of support images [..., H, W, 1] that are asked."""
        return self.kinds(images, STRIDE)

    def __call__(
        self, query: Array, query_keys: Array | None, entries: Any, entry_keys: Any, weights: Any, over: MapSum
    ) -> Array:
        """query, entries, their keys and weights: the same as for `CellMatching`."""

        def chunk(x):
            entry, given, weight = x
            kinds = self.support_keys(entry[..., :1]) if given is None else prepared(given, weight)
            kinds = kinds.reshape((query.shape[0], -1, self.heads * KINDS))
            label = entry[..., ::STRIDE, ::STRIDE, 1].reshape((*weight.shape, -1)).astype(wide(query))
            both = jnp.stack([label, 1 - label], 2)
            if entry.shape[-1] > 2:
                both = both * entry[..., ::STRIDE, ::STRIDE, 2].reshape((*weight.shape, 1, -1)).astype(wide(query))
            both = (both * weight[..., None, None]).swapaxes(1, 2)
            return both.reshape((query.shape[0], 2, -1)) @ kinds, None

        partial, _ = over(chunk, (entries, entry_keys, weights))
        counts = all_sum(partial, self.support_axis, wide(query)).reshape((query.shape[0], 2, self.heads, KINDS))
        shares = counts / (counts.sum(-1, keepdims=True) + 1e-12) + PRIOR
        foreground = shares[:, 0] / shares.sum(1)
        kinds = self.kinds(query, 1) if query_keys is None else query_keys
        return jnp.einsum("bhwnk,bnk->bhwn", kinds, foreground).astype(query.dtype)


def comparer(keys: Array, temperature: Array, locality: Array) -> Callable[[Array, Array, Array], Array]:
    """compare(keys [B, s, r, c, heads, D], labels [B, s, H, W, 1], weights [B, s]) of support entries, for a query with
    keys [B, rows, columns, heads, D], all unit vectors; temperature and locality [heads].

    It gives [B, heads, cells of the query, size² + 1]: sums over all support cells of their labels, size² pixels a cell
    of the query's size, and of 1, times exp(temperature (cosine - 1) - locality distance²) and the entry's weight. A
    support may give every n-th cell of every n-th row alone. Labels [B, s, H, W, 2] have a weight for each pixel: then
    there are size² sums of the weights too.
    """
    batch, rows, columns, heads, width = keys.shape
    at = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
    positions = at / max(rows, columns)  # [rows, columns, 2], where the longer side of the image is 1
    temperature, locality = temperature[:, None, None], locality[:, None, None]

    def flat(keys: Array, *more: Array | np.ndarray) -> Array:
        """[B, ..., heads, D] and numbers of a cell [heads or 1, cells, n] → [B, heads, all cells, D + 4]."""
        keys = jnp.moveaxis(keys.reshape((batch, -1, more[0].shape[1], heads, width)), 3, 1)
        shape = keys.shape[:-1]
        numbers = [jnp.broadcast_to(jnp.asarray(x, keys.dtype)[None, :, None], (*shape, x.shape[-1])) for x in more]
        return jnp.concatenate([keys, *numbers], -1).reshape((batch, heads, -1, width + 4))

    def places(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = positions[::step, ::step].reshape((1, -1, 2))
        return x, np.square(x).sum(-1, keepdims=True), np.ones((1, x.shape[1], 1))

    # The exponent as one product: τ cosine - τ - λ |a - b|² = (τ q)·k + (2 λ a)·b - (τ + λ |a|²) - λ |b|²
    place, square, one = places(1)
    asked = flat(
        keys * temperature.reshape((1, 1, 1, -1, 1)),
        2 * locality * place,
        -(temperature + locality * square),
        -locality * one,
    )

    def compare(given: Array, labels: Array, weights: Array) -> Array:
        size, step = labels.shape[-3] // rows, rows // given.shape[-4]
        place, square, one = places(step)
        given = flat(given, place, one, square)

        def cells(pixels: Array) -> Array:
            pixels = to_cells(pixels, size)[..., ::step, ::step, :].reshape((*weights.shape, -1, size**2))
            return pixels.astype(keys.dtype)

        if labels.shape[-1] > 1:
            parts = [cells(labels[..., :1] * labels[..., 1:]), cells(labels[..., 1:])]
        else:
            label = cells(labels)
            parts = [label, jnp.ones_like(label[..., :1])]
        summed = jnp.concatenate(parts, -1) * weights[..., None, None]
        like = jnp.exp(jnp.einsum("bhqd,bhkd->bhqk", asked, given, precision="highest"))  # TF32 would not do
        return jnp.einsum("bhqk,bkp->bhqp", like, summed.reshape((batch, -1, summed.shape[-1])))

    return compare


MATCHES = (CellMatching, PixelMatching)


def stored(keys: Array) -> Array:
    """Keys as they wait for queries: in float16, or float64."""
    return keys.astype(jnp.float16) if keys.dtype == jnp.float32 else keys


def prepared(keys: Array, weights: Array) -> Array:
    """Keys [B, s, ...] of entries with weights [B, s] in float32 or wider; 0 for padding, which may hold anything."""
    return jnp.where(jnp.expand_dims(weights > 0, tuple(range(2, keys.ndim))), keys.astype(wide(keys)), 0)


def wide(x: Array) -> Any:
    """The dtype of sums over the support: float32 or wider."""
    return jnp.promote_types(x.dtype, jnp.float32)


def with_negative(image: Array) -> Array:
    """[..., 1] → [..., 2]: beside 1 - image, since layer norm would take the brightness out of one channel."""
    return jnp.concatenate([image, 1 - image], axis=-1)


def to_cells(x: Array, size: int) -> Array:
    """[..., H, W, C] → [..., H / size, W / size, size² C]."""
    *before, height, width, channels = x.shape
    x = x.reshape((*before, height // size, size, width // size, size, channels)).swapaxes(-4, -3)
    return x.reshape((*before, height // size, width // size, size**2 * channels))


def from_cells(x: Array, size: int) -> Array:
    """The inverse of `to_cells`."""
    *before, rows, columns, channels = x.shape
    x = x.reshape((*before, rows, columns, size, size, channels // size**2)).swapaxes(-4, -3)
    return x.reshape((*before, rows * size, columns * size, channels // size**2))


def cell_size(shape: tuple[int, ...]) -> int:
    """Pixels along a side of a cell of images [..., H, W, 1]; ValueError where they do not fit."""
    height, width = shape[-3:-1]
    times = max(1, min(height, width) // SEEN)
    if height % (8 * times) or width % (8 * times):
        raise ValueError(f"image size {height}x{width}: with matching both sides must be multiples of {8 * times}")
    return 4 * times
