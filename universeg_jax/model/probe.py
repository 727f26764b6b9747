"""A linear probe of frozen features, fitted to each support set: another guess of the query's mask.

In averages over cells that look alike (`recognition.columns`) every feature counts the same. Ridge regression finds
those that tell the foreground of this support from its background:

    p(x) = ȳ + w·(x - x̄)      (Cov(x, x) + λ) w = Cov(x, y)

over all asked cells of the support, with features x and share y of foreground. Nothing in it is trained. Of polyps,
no two of which look alike, it finds far more than averages do (docs/recipe.md).

It needs sums over the support entries alone, so that entries are streamed, masked and sharded as everywhere in the
model.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from universeg_jax.model.layers import Array, Conv
from universeg_jax.model.matching import Layer, to_cells, wide
from universeg_jax.model.recognition import MIXED, enter

RIDGE = 0.2  # λ, where the mean square of a feature is 1; docs/recipe.md
ITERATIONS = 48  # of conjugate gradients: p is then exact to 1e-4 of its spread
CHANNELS = 3  # of the guess


class Probe(nn.Module):
    """Adds the guess to the query at each level i of the encoder: [B, H / 2^i, W / 2^i, widths[i]]."""

    widths: Sequence[int]

    def setup(self):
        self.mix = Layer(CHANNELS, MIXED)
        self.enter = [Conv(CHANNELS + MIXED, width, gain=0.0, size=1) for width in self.widths]

    def __call__(self, keys: Array, sums: tuple[Array, Array], shape: tuple[int, ...], dtype: Any) -> list[Array]:
        """`keys` [B, rows, columns, 1, D] of queries of `shape`; `sums` of `moments` over the support."""
        guess = jax.image.resize(guesses(keys, *sums), (*shape[:3], CHANNELS), "linear")
        return enter(guess.astype(dtype), self.mix, self.enter)

    def moments(self, keys: Array, entry: Array, weights: Array, cell: int) -> tuple[Array, Array]:
        """Σ [x, 1][x, 1]ᵀ, [B, D + 1, D + 1], and Σ y [x, 1], [B, D + 1], over the asked cells of some entries.

        keys [B, s, r, c, 1, D]; entry [B, s, H, W, 2 or 3], image, label and, if any, how far it is known; weights
        [B, s]; `cell`: pixels along a side of a cell.
        """
        x = with_one(keys)
        step = entry.shape[2] // cell // keys.shape[2]
        label = entry[..., 1:2]
        known = entry[..., 2:] if entry.shape[-1] > 2 else jnp.ones_like(label)
        share, count = (
            weights[..., None] * _means(pixels, cell)[:, :, ::step, ::step].reshape((*weights.shape, -1))
            for pixels in (label * known, known)
        )
        products = jnp.einsum("bsnd,bsne->bde", x * count[..., None], x, precision="highest")
        return products, jnp.einsum("bsnd,bsn->bd", x, share, precision="highest")


def guesses(keys: Array, products: Array, towards: Array) -> Array:
    """p, p where the means of both classes become 0 and 1, and how far apart they are in p: [B, rows, columns, 3].

    The distance is 0 where features say nothing about the labels (or all labels are equal) and 1 where they say all.
    """
    total = products[:, -1:, -1:]
    products, towards = products / total, towards / total[..., 0]
    mean, share = products[:, -1, :-1], towards[:, -1:]
    covariance = products[:, :-1, :-1] - mean[:, :, None] * mean[:, None]
    target = towards[:, :-1] - share * mean
    w = solve(covariance, target)
    apart = (w * target).sum(-1, keepdims=True) / jnp.maximum(share * (1 - share), 1e-6)
    x = with_one(keys[:, None])[:, 0, :, :-1]
    linear = jnp.einsum("bnd,bd->bn", x - mean[:, None], w, precision="highest")
    found = [share + linear, share + linear / jnp.maximum(apart, 0.02), jnp.broadcast_to(apart, linear.shape)]
    return jnp.stack([jnp.clip(y, -1, 2) for y in found], -1).reshape((*keys.shape[:3], CHANNELS))


def solve(matrix: Array, right: Array) -> Array:
    """w with (matrix + RIDGE) w = right, [B, D, D] and [B, D]: by conjugate gradients, which every platform and every
    format of an exported program has, unlike a Cholesky decomposition.
    """
    tiny = jnp.finfo(right.dtype).tiny

    def step(_: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
        w, rest, along, square = state
        turned = jnp.einsum("bde,be->bd", matrix, along, precision="highest") + RIDGE * along
        length = square / jnp.maximum((along * turned).sum(-1, keepdims=True), tiny)
        rest = rest - length * turned
        new = jnp.square(rest).sum(-1, keepdims=True)
        return w + length * along, rest, rest + new / jnp.maximum(square, tiny) * along, new

    start = (jnp.zeros_like(right), right, right, jnp.square(right).sum(-1, keepdims=True))
    return jax.lax.fori_loop(0, ITERATIONS, step, start)[0]


def with_one(keys: Array) -> Array:
    """Unit vectors [B, s, r, c, 1, D] → [B, s, r c, D + 1], whose features have a mean square of 1, and a 1."""
    x = keys.reshape((*keys.shape[:2], -1, keys.shape[-1]))
    x = x.astype(wide(x)) * x.shape[-1] ** 0.5
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1)


def _means(pixels: Array, cell: int) -> Array:
    """[..., H, W, 1] → [..., rows, columns] of cells."""
    cells = to_cells(pixels, cell)
    return cells.astype(wide(cells)).mean(-1)
