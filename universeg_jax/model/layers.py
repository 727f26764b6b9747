"""Building blocks of the networks: convolution, pooling, upsampling, and sums over streamed support entries."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from universeg_jax.model.convolution import convolve

Array = jax.Array
DTYPES = ("float32", "bfloat16", "float64")
NORMS = ("none", "layer")
MapSum = Callable[[Callable[[Any], tuple[Any, Any]], Any], tuple[Any, Any]]  # as map_sum


def activate(x: Array) -> Array:
    """LeakyReLU(0.01)."""
    return nn.leaky_relu(x, 0.01)


def conv(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """Zero-padded convolution of x [..., H, W, C] by kernel [k, k, C, F], in x's dtype."""
    y = convolve(x.reshape((-1, *x.shape[-3:])), kernel).reshape((*x.shape[:-1], kernel.shape[-1]))
    return y if bias is None else y + jnp.expand_dims(bias.astype(x.dtype), range(y.ndim - 1))


@jax.custom_vjp
def add_to_each(once: Array, each: Array) -> Array:
    """once [B, ...] + each [B, S, ...] for every entry."""
    return once[:, None] + each


def _add_to_each_backward(_: None, d: Array) -> tuple[Array, Array]:
    # A product with ones: XLA:CPU's reduction over an inner axis takes ten times as long.
    return jnp.einsum("s,bs...->b...", jnp.ones(d.shape[1], d.dtype), d, preferred_element_type=d.dtype), d


add_to_each.defvjp(lambda once, each: (add_to_each(once, each), None), _add_to_each_backward)


def max_pool(x: Array) -> Array:
    """2x2 max-pool of [..., H, W, C]. Among equal values the first in row-major order gets the gradient."""

    def first_max(a: Array, b: Array) -> Array:
        return jnp.where(a >= b, a, b)

    rows = x.reshape((*x.shape[:-3], x.shape[-3] // 2, 2, x.shape[-2] // 2, 2, x.shape[-1]))
    top = first_max(rows[..., 0, :, 0, :], rows[..., 0, :, 1, :])
    bottom = first_max(rows[..., 1, :, 0, :], rows[..., 1, :, 1, :])
    return first_max(top, bottom)


def upsample(x: Array) -> Array:
    """Bilinear x2 with aligned corners of [..., H, W, C] (half-pixel resizing would be another function)."""

    def matrix(size: int) -> np.ndarray:
        position = np.arange(2 * size) * (size - 1) / (2 * size - 1)
        return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size)))

    rows, columns = (jnp.asarray(matrix(size), x.dtype) for size in x.shape[-3:-1])
    x = jnp.einsum("Hh,...hwc->...Hwc", rows, x)
    return jnp.einsum("Ww,...hwc->...hWc", columns, x)


def patches(x: Array, stride: int = 1) -> Array:
    """Zero-padded 3x3 neighbourhoods of every `stride`-th pixel and row of [..., H, W, C] as channels [..., 9 C],
    row-major, C fastest.
    """
    height, width = x.shape[-3:-1]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
    shifted = (padded[..., i : i + height, j : j + width, :] for i in range(3) for j in range(3))
    return jnp.concatenate([x[..., ::stride, ::stride, :] for x in shifted], axis=-1)


def concat(parts: Sequence[Array]) -> Array:
    """The decoder's input [upsampled, skip]; linear, so that it may act on means."""
    below, skip = parts
    return jnp.concatenate([upsample(below), skip], axis=-1)


def weighted_sum(weights: Array, tree: Any) -> Any:
    """Σ_s weights [B, s] x [B, s, ...] for every x of a tree, in float32 or wider whatever x is."""

    def one(x: Array) -> Array:
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.einsum("bs,bs...->b...", weights.astype(dtype), x.astype(dtype))

    return jax.tree.map(one, tree)


def chunked(tree: Any, size: int) -> Any:
    """[B, S, ...] → [n, B, size, ...], padded with zeros to whole chunks; size 0 makes one chunk of all S."""

    def one(x: Array) -> Array:
        if size == 0 or size >= x.shape[1]:
            return x[None]
        x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape((x.shape[0], -1, size, *x.shape[2:])), 1, 0)

    return jax.tree.map(one, tree)


def map_sum(function: Callable[[Any], tuple[Any, Any]], chunks: Any) -> tuple[Any, Any]:
    """function(chunk) → (partial, kept) over the leading axis of `chunks`: (Σ partial, kept stacked)."""
    (length,) = {x.shape[0] for x in jax.tree.leaves(chunks)}
    first = jax.tree.map(lambda x: x[0], chunks)
    if length == 1:
        partial, kept = function(first)
        return partial, jax.tree.map(lambda x: x[None], kept)

    def body(total, chunk):
        partial, kept = function(chunk)
        return jax.tree.map(jnp.add, total, partial), kept

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first)[0])
    return lax.scan(body, zeros, chunks)


def sum_of_first(count: Array) -> MapSum:
    """Like `map_sum`, over the first `count` chunks alone, int32 []; what is kept of the others is 0.

    One program serves every count, and the other chunks cost no time. A loop of unknown length has no gradients.
    """

    def over(function: Callable[[Any], tuple[Any, Any]], chunks: Any) -> tuple[Any, Any]:
        (length,) = {x.shape[0] for x in jax.tree.leaves(chunks)}
        partial, kept = jax.eval_shape(function, jax.tree.map(lambda x: x[0], chunks))

        def body(i: Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
            total, stored = state
            chunk = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), chunks)
            partial, kept = function(chunk)
            put = functools.partial(lax.dynamic_update_index_in_dim, index=i, axis=0)
            return jax.tree.map(jnp.add, total, partial), jax.tree.map(put, stored, kept)

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), partial)
        empty = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), kept)
        return lax.fori_loop(0, count, body, (zeros, empty))

    return over


def all_sum(partial: Any, axis: str, dtype: Any) -> Any:
    """Partial sums over the local support entries → sums over all of them, also those of a mesh axis; in `dtype`."""
    total = lax.psum(partial, axis) if axis else partial
    return jax.tree.map(lambda x: x.astype(dtype), total)


class ConvKernel(nn.Module):
    """Kernel [size, size, features_in, features], Kaiming-normal (fan-in) with a given gain, and a zero bias."""

    features_in: int
    features: int
    gain: float
    size: int = 3

    def setup(self):
        shape = (self.size, self.size, self.features_in, self.features)
        init = nn.initializers.variance_scaling(self.gain**2, "fan_in", "normal")
        self.kernel = self.param("kernel", init, shape)
        self.bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))


class Conv(ConvKernel):
    """Zero-padded convolution of [..., H, W, C]."""

    def __call__(self, x: Array) -> Array:
        return conv(x, self.kernel, self.bias)


def check_shapes(
    query: Array, images: Array, labels: Array, mask: Array | None, levels: int, known: Array | None = None
) -> None:
    """Raises ValueError naming the first shape that does not fit."""
    step = 2 ** (levels - 1)
    if query.ndim != 4 or query.shape[-1] != 1:
        raise ValueError(f"query_image has shape {query.shape}; [B, H, W, 1] is needed")
    batch, height, width, _ = query.shape
    if height % step or width % step:
        raise ValueError(f"image size {height}x{width}: with {levels} levels both sides must be multiples of {step}")
    if images.ndim != 5 or images.shape[1] == 0:
        raise ValueError(f"support_images has shape {images.shape}; [B, S, H, W, 1] with S >= 1 is needed")
    if images.shape != (batch, images.shape[1], height, width, 1):
        raise ValueError(f"support_images has shape {images.shape}, but the query has {query.shape}")
    if labels.shape != images.shape:
        raise ValueError(f"support_labels has shape {labels.shape}, but support_images has {images.shape}")
    if known is not None and known.shape != images.shape:
        raise ValueError(f"support_known has shape {known.shape}, but support_images has {images.shape}")
    if mask is not None and mask.shape != images.shape[:2]:
        raise ValueError(f"support_mask has shape {mask.shape}; [B, S] = {images.shape[:2]} is needed")


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError naming the config field, its value and the choices."""
    if value not in choices:
        raise ValueError(f"config.model.{field}={value!r}: choose one of {', '.join(choices)}")
