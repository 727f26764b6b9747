"""Structures laid over a label map: trees of vessels, many ellipses, few nested ones (see synthesis.py).

Each is a function of a key and the subjects' displacements [n, 2, H, W]; lengths in pixels are of 256.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from ml_collections import ConfigDict

from universeg_jax.episodes import warp

Array = jax.Array

FAMILIES = ("shapes", "tubes", "blobs", "nests")  # the first has no structure
PUBLISHED_SIZE = 256  # of lengths in pixels
CODES = 5  # what lies over the label map: nothing, structure, its inside, distractor, its inside
DEPTH, LEAVES, WAVES = 5, 32, 10  # of a tree: branchings, curves, waves of a curve's bends


def structures(key: Array, family: Array, flow: Array, config: ConfigDict) -> tuple[Array, Array]:
    """Codes [n, H, W] and kinds [2]: a structure (1, inside 2) over a distractor (3, inside 4) over nothing (0).

    A kind is the index of its family; 0 is no structure.
    """
    keys = random.split(key, 3)
    count, _, size, _ = flow.shape
    draw = warp.uniforms(keys[0], count=2)
    kind = jnp.where(draw() < config.distractor, warp.whole(draw(), (1, len(FAMILIES))), 0)
    kinds = jnp.stack([family, jnp.where(family > 0, kind, 0)])
    drawn = {
        "tubes": lambda k: tubes(k, flow, config.tubes),
        "blobs": lambda k: ellipses(k, flow, config.blobs),
        "nests": lambda k: ellipses(k, flow, config.nests),
    }
    weights = {name: config.weights.get(name, 0) for name in FAMILIES}
    if not any(weights[name] for name in drawn):
        drawn = {}
    elif not config.distractor:
        drawn = {name: drawn[name] for name in drawn if weights[name]}

    def nothing(_):
        return jnp.zeros((count, size, size), jnp.int32)

    # What cannot be drawn is not compiled.
    branches = [drawn.get(name, nothing) for name in FAMILIES]
    first, below = lax.map(lambda x: lax.switch(x[0], branches, x[1]), (kinds, keys[1:]))
    return jnp.where(first > 0, first, jnp.where(below > 0, below + 2, 0)), kinds


def ellipses(key: Array, flow: Array, config: ConfigDict) -> Array:
    """1 in the ellipses of `config.blobs` or `config.nests`, 2 inside their insides, else 0: [n, H, W] int32."""
    count, _, size, _ = flow.shape
    most = config.count[1] - 1
    keys = random.split(key, 3)
    draw, same, own = (
        warp.uniforms(keys[0], count=6),
        warp.uniforms(keys[1], (1, most), 3),
        warp.uniforms(keys[2], (count, most), 8),
    )
    # Coordinates in which the image is [-1, 1]².
    y, x = jnp.moveaxis((flow + warp.grid(size)[None]) * (2 / (size - 1)) - 1, 1, 0)
    drawn = warp.whole(draw(), config.count)
    elongation, ratio = draw(config.elongation), draw(config.inner)
    # An ellipse has π r² of the 4 units of the image: many are smaller, so that they stay apart.
    radius = draw(config.radius) / (PUBLISHED_SIZE / 2)
    radius = jnp.minimum(radius, jnp.sqrt(4 * config.coverage / (np.pi * drawn)))
    nested = draw() < config.nested

    def place(bounds):
        return same(bounds) * (1 - config.redraw) + own(bounds) * config.redraw

    center_y, center_x = (place((-1, 1)) * (1 - radius) * 0.95 for _ in range(2))
    angle = place((0, np.pi))
    radii = radius * jnp.exp(own(warp.around(config.radius_std)))
    stretch = jnp.sqrt(1 + (elongation - 1) * own((0.5, 1)))
    inner = jnp.where(nested, jnp.minimum(ratio * own((0.85, 1.15)), 0.9), 0)
    shift_u, shift_v = (own((-0.6, 0.6)) * (1 - inner) for _ in range(2))
    cos, sin = jnp.cos(angle), jnp.sin(angle)

    def add(n, code):
        def at(values):
            return lax.dynamic_index_in_dim(values, n, 1)[..., None]

        dy, dx = y - at(center_y), x - at(center_x)
        u = (at(cos) * dx + at(sin) * dy) / at(radii * stretch)
        v = (at(cos) * dy - at(sin) * dx) / at(radii / stretch)
        outside = jnp.square(u) + jnp.square(v)
        inside = jnp.square(u - at(shift_u)) + jnp.square(v - at(shift_v))
        return jnp.maximum(code, jnp.where(inside < at(jnp.square(inner)), 2, jnp.where(outside < 1, 1, 0)))

    return lax.fori_loop(0, drawn, add, jnp.zeros((count, size, size), jnp.int32))


def tubes(key: Array, flow: Array, config: ConfigDict) -> Array:
    """1 on the vessels of a tree, else 0: [n, H, W] int32; each subject has a tree of its own.

    A tree is 32 curves in a frame whose rows t run along it: curves share their way up to the branching that parts
    them. In a radial frame t is the distance from a point and the other coordinate the angle, else both are straight.
    """
    count, _, size, _ = flow.shape
    keys = random.split(key, 4)
    draw, own = warp.uniforms(keys[0], count=10), warp.uniforms(keys[1], (count,), 3)
    branch = warp.uniforms(keys[2], (DEPTH + 1, count, LEAVES), 4)
    bends = random.normal(keys[3], (DEPTH + 1, count, LEAVES, WAVES))
    radial = draw() < config.radial
    levels = warp.whole(draw(), config.levels)
    trunks = warp.whole(draw(), (0, 3))  # log2 of the trees that start together
    spread, wiggle = draw(config.spread) * size, draw(config.wiggle) * size
    taper, trunk = draw(config.taper), draw(config.radius) * (size / PUBLISHED_SIZE)
    shift = jnp.where(radial, jnp.stack([draw((-0.3, 0.3)), draw((-0.3, 0.3))]), 0)
    center = (0.5 + shift[None] + jnp.stack([own((-0.1, 0.1)), own((-0.1, 0.1))], 1)) * (size - 1)
    turn = draw((0, 2 * np.pi)) + own((-0.5, 0.5))

    # Arrays are [level, subject, curve, t]. At a level there are 2^level branches, and a curve belongs to one of each.
    level = np.arange(DEPTH + 1)[:, None, None]
    node = np.arange(LEAVES) >> (DEPTH - level)
    first = (level > 0) & (level <= trunks)
    later = (level > trunks) & (level <= levels)

    def of(values, which):
        """Of values [level, subject, branch] what each curve's branch has."""
        return jnp.take_along_axis(values, jnp.broadcast_to(which, values.shape), axis=2)

    t = frame_rows(size)[None, None, None]
    scale = jnp.where(radial, jnp.maximum(t, 1.0), size / 4)  # pixels per unit of the other coordinate
    gap = jnp.where(level > trunks, of(branch((0.05, 0.35)), node >> 1), 0)  # siblings part in the same place
    since = jnp.maximum(t - size * jnp.cumsum(gap, 0)[..., None], 0)
    side = np.where(node % 2 == 0, -1.0, 1.0).astype(np.float32)
    apart = later * side * spread * 0.75**level * of(branch((0.3, 1.5)), node)
    # First partings are angles of a radial frame; later ones are pixels, so that branches do not fan out.
    together = first * side * 0.55**level * jnp.where(radial, 3.2, 2.8)
    waves_of_t = np.cos(np.pi * np.arange(WAVES) * np.linspace(0, 1, size)[:, None]) / (1 + np.arange(WAVES))
    bend = jnp.einsum("rk,lsnk->lsnr", waves_of_t.astype(np.float32), bends * wiggle, precision="highest")
    bend = jnp.take_along_axis(bend, jnp.broadcast_to(node, bends.shape[:3])[..., None], axis=2)
    bend = jnp.where((first | later | (level == 0))[..., None], bend * jnp.minimum(since / (0.2 * size), 1), 0)
    path = (together[..., None] + (apart[..., None] * (since / (since + 0.3 * size)) + bend) / scale).sum(0)
    thin = jnp.where(later, jnp.log(taper) * of(branch((0.5, 2.0)), node), 0)[..., None]
    width = trunk * jnp.exp(jnp.where(since > 0, thin, 0).sum(0))
    ends = branch((0.4, 1.6))[0, ..., None] * size
    frame = frame_of_curves(path, width, ends, radial)
    return jax.vmap(read_frame, (0, 0, 0, 0, None))(frame, flow, center, turn, radial).astype(jnp.int32)


def frame_rows(size: int) -> np.ndarray:
    """The t of each row of a frame, in pixels: [size] float32, up to 1.5 sizes, which is its width too if straight."""
    return np.arange(size, dtype=np.float32) * (1.5 * size / (size - 1))


def frame_of_curves(path: Array, width: Array, ends: Array, radial: Array) -> Array:
    """The distance to the nearest curve minus its radius, in pixels: [n, rows, columns].

    path [n, curves, rows] is the other coordinate of each curve, width its radius in pixels, ends [n, curves, 1] the t
    where it stops.
    """
    rows = path.shape[-1]
    columns, reach, t = 2 * rows, 1.5 * rows, frame_rows(rows)[None, None]
    scale = jnp.where(radial, jnp.maximum(t, 1.0), rows / 4)
    spacing = jnp.where(radial, 2 * np.pi * t, reach) / columns
    width = jnp.maximum(width, jnp.maximum(0.5, 0.55 * spacing))  # nothing thinner than the frame or a pixel shows
    width = jnp.where(t < ends, width, -1e3)
    slope = jnp.gradient(path, reach / (rows - 1), axis=2) * scale
    upright = jnp.broadcast_to(scale, path.shape) / jnp.sqrt(1 + jnp.square(slope))
    across = np.linspace(-1, 1, columns, dtype=np.float32)
    across = jnp.where(radial, across * np.pi, across * (reach / 2) / (rows / 4))

    def nearest(leaf, best):
        def at(values):
            return lax.dynamic_index_in_dim(values, leaf, 1, keepdims=False)[..., None]

        apart = jnp.abs(across[None, None] - at(path))
        apart = jnp.where(radial, jnp.minimum(apart, jnp.abs(2 * np.pi - apart)), apart)
        return jnp.minimum(best, apart * at(upright) - at(width))

    start = jnp.full((len(path), rows, columns), 1e3, jnp.float32)
    return lax.fori_loop(0, path.shape[1], nearest, start)


def read_frame(frame: Array, flow: Array, center: Array, turn: Array, radial: Array) -> Array:
    """Where an image moved by `flow` [2, H, W] lies on a curve of a frame that is put at `center` and turned: bool."""
    rows, columns = frame.shape
    reach = 1.5 * rows
    y, x = flow + warp.grid(rows) - center[:, None, None]
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    y, x = cos * y + sin * x, cos * x - sin * y
    along = jnp.where(radial, jnp.sqrt(jnp.square(y) + jnp.square(x)), y + reach / 2)
    other = jnp.where(radial, jnp.arctan2(x, y) / np.pi, x / (reach / 2))
    at = jnp.stack([along * ((rows - 1) / reach), (other + 1) / 2 * (columns - 1)])
    return warp.sample(frame[..., None], at)[..., 0] < 0
