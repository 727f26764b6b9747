"""Displacements, gathers, blurs and smooth noise for synthesis and augmentation.

Conventions: a displacement or a coordinate array is [..., 2, H, W], row first, in pixels; pixel centres are integers.
All functions compute in float32 and are pure, so they work under jit, vmap and `lax.map`.

Fast on a CPU: one gather serves image, label and all four neighbours; smooth fields are sampled on coarse grids and
upsampled by two small matrix products; a blur is two products with a banded matrix.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random

Array = jax.Array


def grid(size: int) -> np.ndarray:
    """The coordinates [2, size, size] of every pixel."""
    return np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij")).astype(np.float32)


def linear_matrix(size: int, nodes: int) -> np.ndarray:
    """[size, nodes] linear interpolation from nodes spread evenly from the first pixel to the last."""
    position = np.arange(size) * ((nodes - 1) / max(size - 1, 1))
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(nodes))).astype(np.float32)


def separable(rows: Array | np.ndarray, x: Array, columns: Array | np.ndarray | None = None) -> Array:
    """rows @ x @ columns.T over the last two axes of x; columns defaults to rows.

    Matrices are [out, in], or [..., out, in] with the leading axes of x.
    """
    columns = rows if columns is None else columns
    x = jnp.einsum("yh,...hw->...yw" if rows.ndim == 2 else "...yh,...hw->...yw", rows, x, precision="highest")
    return jnp.einsum("xw,...yw->...yx" if columns.ndim == 2 else "...xw,...yw->...yx", columns, x, precision="highest")


def resize_aligned(x: Array, size: int) -> Array:
    """Linear resize of [..., h, h] to [..., size, size] with aligned corners."""
    return separable(linear_matrix(size, x.shape[-1]), x)


def resize_displacement(displacement: Array, size: int) -> Array:
    """`resize_aligned` of a displacement, its values rescaled to pixels of the new size."""
    return resize_aligned(displacement, size) * ((size - 1) / max(displacement.shape[-1] - 1, 1))


def uniforms(key: Array, shape: tuple[int, ...] = (), count: int = 32) -> Callable[..., Array]:
    """Returns a function that gives a new uniform array of `shape` between given bounds at each of `count` calls.

    All come from one call of `random.uniform`: each further call would add to the time of compilation.
    """
    values = iter(list(random.uniform(key, (count, *shape))))

    def uniform(bounds: tuple[float, float] = (0.0, 1.0)) -> Array:
        return bounds[0] + (bounds[1] - bounds[0]) * next(values)

    return uniform


def centred_bounds(std: float) -> tuple[float, float]:
    """Gives the bounds of the uniform distribution with mean 0 and this standard deviation."""
    return -np.sqrt(3) * std, np.sqrt(3) * std


def integer(uniform: Array, bounds: tuple[int, int]) -> Array:
    """Maps `uniform` in [0, 1) to an integer (int32) in bounds, the upper one excluded."""
    return jnp.minimum(bounds[0] + (uniform * (bounds[1] - bounds[0])).astype(jnp.int32), bounds[1] - 1)


def multiscale_noise(noise: Array, std: Array, nodes: tuple[int, ...], size: int) -> Array:
    """Σ_k std[..., k] · linear upsampling of the next nodes[k]² values of noise [..., Σ nodes²]: [..., size, size]."""
    total = jnp.zeros((*std.shape[:-1], size, size), jnp.float32)
    parts = jnp.split(noise, np.cumsum(np.square(nodes))[:-1], axis=-1)
    for k, (part, count) in enumerate(zip(parts, nodes, strict=True)):
        values = part.reshape((*std.shape[:-1], count, count)) * jnp.expand_dims(std[..., k], (-1, -2))
        total = total + resize_aligned(values, size)
    return total


def spaced_matrix(size: int, spacing: Array, nodes: int) -> Array:
    """[size, nodes] linear interpolation from nodes `spacing` pixels apart, the first on pixel 0."""
    return jnp.maximum(0, 1 - jnp.abs((np.arange(size, dtype=np.float32) / spacing)[:, None] - np.arange(nodes)[None]))


def gaussian_matrix(size: int, sigma: Array, radius: int | None = None) -> Array:
    """[..., size, size] Gaussian blur along one axis, σ in pixels, cut at `radius` pixels if given.

    Rows sum to 1: near a border the pixels outside do not count. σ = 0 is the identity. sigma [...].
    """
    distance = np.abs(np.arange(size)[:, None] - np.arange(size)).astype(np.float32)
    sigma = jnp.maximum(jnp.asarray(sigma, jnp.float32), 0.01)[..., None, None]
    weights = jnp.exp(-0.5 * jnp.square(jnp.expand_dims(distance, range(sigma.ndim - 2)) / sigma))
    if radius is not None:
        weights = weights * jnp.expand_dims(distance <= radius, range(sigma.ndim - 2))
    return weights / weights.sum(-1, keepdims=True)


def blur(x: Array, sigma: Array, radius: int | None = None) -> Array:
    """Gaussian blur of [..., H, H] with σ [...] or a scalar, in pixels; see gaussian_matrix for the border."""
    return separable(gaussian_matrix(x.shape[-1], sigma, radius), x)


def corners(table: Array, coordinates: Array) -> tuple[list[Array], Array, Array]:
    """Values [h, w, C] of table [H, W, C] at the four pixels around each coordinate, and the remainders y, x [h, w, 1].

    Coordinates outside are moved to the border. Order: upper left, upper right, lower left, lower right. The four are
    concatenated first, so that a pixel costs one gather of a short row: on a CPU 2-3 times as fast as four gathers.
    """
    height, width, channels = table.shape
    at = [jnp.clip(coordinates[axis], 0, last) for axis, last in enumerate((height - 1, width - 1))]
    # The last pixel is the pixel before it with remainder 1, so that all four corners exist.
    whole = [jnp.minimum(jnp.floor(at[axis]), last) for axis, last in enumerate((height - 2, width - 2))]
    index = whole[0].astype(jnp.int32) * (width - 1) + whole[1].astype(jnp.int32)
    rows = jnp.concatenate([table[:-1, :-1], table[:-1, 1:], table[1:, :-1], table[1:, 1:]], axis=-1)
    values = rows.reshape(-1, 4 * channels).at[index].get(mode="promise_in_bounds")
    return jnp.split(values, 4, axis=-1), (at[0] - whole[0])[..., None], (at[1] - whole[1])[..., None]


def bilinear(values: list[Array], y: Array, x: Array) -> Array:
    """Interpolates between the four values of `corners`."""
    upper, lower = (values[i] * (1 - x) + values[i + 1] * x for i in (0, 2))
    return upper * (1 - y) + lower * y


def sample(table: Array, coordinates: Array) -> Array:
    """Bilinear values [h, w, C] of table [H, W, C] (H, W ≥ 2) at coordinates [2, h, w]; the edge pixel outside."""
    return bilinear(*corners(table, coordinates))


def sample_image_and_label(image: Array, label: Array, coordinates: Array, nearest: bool) -> tuple[Array, Array]:
    """Image and label at coordinates [2, h, w] from one gather; 0 outside. image [H, W] in [0, 1], label [H, W] 0 or 1.

    The image is bilinear; the label is that of the nearest pixel, or bilinear and thresholded at 0.5. Both are packed
    into one number, image or -1 - image, which costs a precision of 1e-7 and halves the gather.
    """
    both = jnp.where(label >= 0.5, -1 - image, image)
    values, y, x = corners(jnp.pad(both, 1)[..., None], coordinates + 1)
    images = [jnp.where(v < 0, -1 - v, v) for v in values]
    if nearest:
        upper, lower = (jnp.where(x >= 0.5, values[i + 1], values[i]) for i in (0, 2))
        marked = jnp.where(y >= 0.5, lower, upper) < 0
    else:
        marked = bilinear([(v < 0).astype(jnp.float32) for v in values], y, x) >= 0.5
    return bilinear(images, y, x)[..., 0], marked[..., 0].astype(label.dtype)


def sample_nearest(table: Array, coordinates: Array) -> Array:
    """Nearest values [h, w] of table [H, W] at coordinates [2, h, w]; the edge pixel outside."""
    height, width = table.shape
    y = jnp.clip(jnp.round(coordinates[0]), 0, height - 1).astype(jnp.int32)
    x = jnp.clip(jnp.round(coordinates[1]), 0, width - 1).astype(jnp.int32)
    return table.reshape(-1).at[y * width + x].get(mode="promise_in_bounds")


def integrate(velocity: Array, steps: int) -> Array:
    """Displacement [n, 2, H, W] of the unit-time flow of stationary velocity fields, by scaling and `steps` squarings.

    The loop keeps XLA from fusing the gathers of unrolled steps, which took twelve times as long on a CPU.
    """
    identity = jnp.asarray(grid(velocity.shape[-1]))[None]

    def square(_, displacement):
        at = identity + jnp.moveaxis(displacement, -1, 1)
        return displacement + jax.vmap(sample)(displacement, at)

    return jnp.moveaxis(lax.fori_loop(0, steps, square, jnp.moveaxis(velocity, 1, -1) / 2**steps), -1, 1)


def elastic(key: Array, size: int, alpha: Array, sigma: Array, bounds: tuple[float, float]) -> tuple[Array, Array]:
    """Samples a displacement in pixels as kernel [size, m] and coefficients [2, m, m] of `separable`.

    The published displacement is uniform noise in [-1, 1] per pixel, blurred by σ (in `bounds`), times α·size/2. α and
    σ are for 128 pixels, with coordinates from -1 to 1; σ is scaled with the size here. The standard deviation is
    α/(2√(3π)σ)·size/2: 2.8 pixels of 128 for α = 2, σ = 7.5. White noise blurred by σ of several pixels is a Gaussian
    field, so this samples normal noise on nodes the smallest σ apart, which changes its covariance by less than 1e-3,
    with 4σ of nodes outside the borders, which make it stationary.
    """
    low, high = (bound * size / 128 for bound in bounds)
    spacing = low
    margin = int(np.ceil(4 * high / spacing))
    nodes = (np.arange(int(np.ceil((size - 1) / spacing)) + 1 + 2 * margin) - margin) * spacing
    distance = (np.arange(size)[:, None] - nodes).astype(np.float32)
    scaled = sigma * (size / 128)
    kernel = jnp.exp(-0.5 * jnp.square(distance / scaled))
    # Per axis Σ_nodes kernel² = √π σ / spacing; divided out, the field has unit variance.
    strength = alpha / (2 * np.sqrt(3 * np.pi) * sigma) * size / 2 / (np.sqrt(np.pi) * scaled / spacing)
    return kernel, random.normal(key, (2, len(nodes), len(nodes))) * strength


def map_each(function: Callable[..., Any], *xs: Any) -> Any:
    """Maps function over arrays [n, ...]: by vmap on an accelerator, in a loop on a CPU.

    The loop skips branches that `lax.cond` does not take, and limits XLA's fusion, which otherwise computes a value
    again in every gather and reduction that uses it.
    """
    return lax.platform_dependent(
        *xs, cpu=lambda *xs: lax.map(lambda x: function(*x), xs), default=lambda *xs: jax.vmap(function)(*xs)
    )


def minmax(x: Array) -> Array:
    """Scales x to [0, 1] over its last two axes; constant x becomes 0."""
    low, high = x.min((-2, -1), keepdims=True), x.max((-2, -1), keepdims=True)
    return jnp.clip((x - low) / jnp.maximum(high - low, 1e-6), 0, 1)
