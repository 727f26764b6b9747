"""A linear probe of frozen features, fitted to each support set: another guess of the query's mask.

In averages over cells that look alike (`recognition.columns`) every feature counts the same. Ridge regression finds
those that tell the foreground of this support from its background:

    p(x) = ȳ + w·(x - x̄)      (Cov(x, x) + λ) w = Cov(x, y)

over all asked cells of the support, with features x and share y of foreground. The regression has no trained
parameters. Of polyps, no two of which look alike, it finds far more than averages do (docs/recipe.md).

It needs sums over the support entries alone, so that entries are streamed, masked and sharded as everywhere in the
model.
"""

import jax
import jax.numpy as jnp

from universeg_jax.model.layers import Array
from universeg_jax.model.matching import to_cells, wide

RIDGE = 0.2  # λ, where the mean square of a feature is 1; docs/recipe.md
ITERATIONS = 48  # of conjugate gradients: for 344 features p is then exact to 1e-4 of its spread
SMALLEST = 0.02  # distance of the classes' means in p that is stretched to 1
RANGE = (-1, 2)  # of every guess


def moments(keys: Array, entry: Array, weights: Array, cell: int) -> tuple[Array, Array]:
    """Σ [x, 1][x, 1]ᵀ, [B, D + 1, D + 1], and Σ y [x, 1], [B, D + 1], over the asked cells of some entries.

    keys [B, s, r, c, 1, D], unit vectors; entry [B, s, H, W, 2 or 3], image, label and, if any, how far it is known;
    weights [B, s]; `cell`: pixels along a side of a cell.
    """
    x = features(keys)
    x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1)
    step = entry.shape[2] // cell // keys.shape[2]

    def asked(pixels: Array) -> Array:
        cells = to_cells(pixels, cell)[:, :, ::step, ::step]
        return weights[..., None] * cells.astype(x.dtype).mean(-1).reshape((*weights.shape, -1))

    label = entry[..., 1:2]
    known = entry[..., 2:] if entry.shape[-1] > 2 else jnp.ones_like(label)
    products = jnp.einsum("bsnd,bsne->bde", x * asked(known)[..., None], x, precision="highest")
    return products, jnp.einsum("bsnd,bsn->bd", x, asked(label * known), precision="highest")


def probed(keys: Array, products: Array, towards: Array) -> Array:
    """Three guesses [B, rows, columns, 3] of queries with `keys` [B, rows, columns, 1, D], from sums of `moments`.

    p; p stretched until the classes' means are 0 and 1, by 1 / SMALLEST at most; the distance of these means in p,
    0 where features say nothing of the labels and at most 1. Foreground that covers little of the support lies close
    to the rest in p, however clear it is. All are clipped to RANGE.
    """
    total = products[:, -1:, -1:]
    products, towards = products / total, towards / total[..., 0]
    mean, share = products[:, -1, :-1], towards[:, -1:]
    covariance = products[:, :-1, :-1] - mean[:, :, None] * mean[:, None]
    with_label = towards[:, :-1] - share * mean
    w = solve(covariance, with_label)
    apart = (w * with_label).sum(-1, keepdims=True) / jnp.maximum(share * (1 - share), 1e-6)
    x = features(keys[:, None])[:, 0]
    linear = jnp.einsum("bnd,bd->bn", x - mean[:, None], w, precision="highest")
    found = [share + linear, share + linear / jnp.maximum(apart, SMALLEST), jnp.broadcast_to(apart, linear.shape)]
    return jnp.stack([jnp.clip(y, *RANGE) for y in found], -1).reshape((*keys.shape[:3], len(found)))


def solve(matrix: Array, right: Array) -> Array:
    """w with (matrix + RIDGE) w = right, [B, D, D] and [B, D], by conjugate gradients.

    Written out for the ONNX export: jax2onnx 0.17.1 rejects `jax.scipy.sparse.linalg.cg` and does not come to an end
    with a Cholesky decomposition of this size.
    """
    tiny = jnp.finfo(right.dtype).tiny

    def step(_: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
        w, residual, direction, square = state
        product = jnp.einsum("bde,be->bd", matrix, direction, precision="highest") + RIDGE * direction
        size = square / jnp.maximum((direction * product).sum(-1, keepdims=True), tiny)
        residual = residual - size * product
        new = jnp.square(residual).sum(-1, keepdims=True)
        return w + size * direction, residual, residual + new / jnp.maximum(square, tiny) * direction, new

    start = (jnp.zeros_like(right), right, right, jnp.square(right).sum(-1, keepdims=True))
    return jax.lax.fori_loop(0, ITERATIONS, step, start)[0]


def features(keys: Array) -> Array:
    """Unit vectors [B, s, r, c, 1, D] → [B, s, r c, D], whose mean square is 1, in float32 or wider."""
    x = keys.reshape((*keys.shape[:2], -1, keys.shape[-1]))
    return x.astype(wide(x)) * x.shape[-1] ** 0.5
