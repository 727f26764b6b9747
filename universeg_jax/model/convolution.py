"""Convolution whose filter gradient is fast on a CPU.

XLA:CPU computes the filter gradient of a 3x3 convolution as a convolution with a kernel as large as the image, at a
fifth of the speed of the other two passes (30 of 150 GFLOP/s on 2 cores), so that it takes two thirds of a training
step. Here it is a sum of matrix products over blocks of pixels that stay in the cache: 50 to 120 GFLOP/s. The numbers
are in docs/performance.md. Accelerators keep XLA's.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

BLOCK = 1024  # pixels whose shifted copies fit into a core's second-level cache
FEWEST = 4096  # pixels; below this XLA's own gradient is faster


def convolve(x: Array, kernel: Array) -> Array:
    """Zero-padded convolution of x [N, H, W, C] by kernel [k, k, C, F] with k odd, in x's dtype: [N, H, W, F]."""
    return _convolve(x, kernel.astype(x.dtype))


def _xla(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


_convolve = jax.custom_vjp(_xla)


def _backward(inputs: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = inputs
    (dx,) = jax.linear_transpose(lambda x: _xla(x, kernel), x)(dy)

    def by_xla(x: Array, dy: Array) -> Array:
        return jax.linear_transpose(lambda kernel: _xla(x, kernel), kernel)(dy)[0]

    pixels = x.shape[0] * x.shape[1] * x.shape[2]
    if pixels < FEWEST or x.dtype == jnp.bfloat16:
        return dx, by_xla(x, dy)
    size = kernel.shape[0]
    return dx, lax.platform_dependent(x, dy, cpu=lambda x, dy: filter_gradient(x, dy, size), default=by_xla)


_convolve.defvjp(lambda x, kernel: (_xla(x, kernel), (x, kernel)), _backward)


def filter_gradient(x: Array, dy: Array, size: int) -> Array:
    """d(kernel) [k, k, C, F] of `convolve` for x [N, H, W, C] and dy [N, H, W, F], k = `size`.

    Lay the padded images out as one long row of pixels: a tap of the kernel is then a shift of x against dy along the
    row. One product of k copies of x (one pixel apart) with k copies of dy (one line apart) gives all k² taps. dy is
    padded with zeros, so the ends of lines contribute nothing.
    """
    channels, features, radius = x.shape[-1], dy.shape[-1], size // 2
    width = x.shape[2] + 2 * radius
    row = jnp.pad(x, [(0, 0), (radius, radius), (radius, radius), (0, 0)]).reshape(-1, channels)
    drow = jnp.pad(dy, [(0, 0), (0, 2 * radius), (0, 2 * radius), (0, 0)]).reshape(-1, features)
    blocks = -(-len(row) // BLOCK)
    rest = blocks * BLOCK - len(row)
    row = jnp.pad(row, [(0, rest + 2 * radius), (0, 0)])
    drow = jnp.pad(drow, [(2 * radius * width, rest), (0, 0)])

    def body(total: Array, start: Array) -> tuple[Array, None]:
        columns = [lax.dynamic_slice_in_dim(row, start + j, BLOCK) for j in range(size)]
        lines = [lax.dynamic_slice_in_dim(drow, start + (size - 1 - i) * width, BLOCK) for i in range(size)]
        product = lax.dot_general(jnp.concatenate(lines, 1), jnp.concatenate(columns, 1), (((0,), (0,)), ((), ())))
        return total + product, None

    zero = jnp.zeros((size * features, size * channels), x.dtype)
    total, _ = lax.scan(body, zero, jnp.arange(blocks) * BLOCK)
    return total.reshape((size, features, size, channels)).transpose((0, 2, 3, 1))
