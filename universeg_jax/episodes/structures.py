"""Structures over a label map: trees of vessels, many ellipses, few nested ellipses (see synthesis.py).

Each is a function of a key and the subjects' displacements [n, 2, H, W]. Lengths in pixels are of 256.
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
CODES = 5  # nothing, structure, its inside, distractor, its inside
DEPTH, LEAVES, WAVES = 5, 32, 10  # a tree's branchings and curves, waves of a curve's bends


def section_configs() -> dict[str, ConfigDict]:
    """The fields of config.synthesis.tubes, .blobs and .nests. Pixels (px) are of 256."""
    tubes = {
        "radius": (1.5, 5.0),  # px; of the trunk
        "taper": (0.6, 0.95),  # radius after a branching over radius before
        "levels": (2, 6),  # of branching, the upper bound excluded; at most 5
        "spread": (0.08, 0.35),  # of the size; how far branches separate
        "wiggle": (0.01, 0.06),  # of the size
        "radial": 0.5,  # probability that a tree starts in one point and not at a side
    }
    blobs = {
        "count": (6, 48),  # ellipses, the upper bound excluded
        "radius": (5.0, 20.0),  # px; mean of a task
        "radius_std": 0.2,  # of its log, within a subject
        "elongation": (1.0, 2.0),  # longer over shorter radius
        "nested": 0.3,  # probability that they have an inside
        "inner": (0.3, 0.7),  # radius of the inside over that of the outside
        "coverage": 0.35,  # largest share of the image that all of them cover
        "redraw": 1.0,  # share of the position that is new in every subject
    }
    nests = blobs | {"count": (1, 4), "radius": (20.0, 70.0), "radius_std": 0.15, "elongation": (1.0, 1.8)}
    nests |= {"nested": 1.0, "inner": (0.3, 0.85), "redraw": 0.15}
    return {name: ConfigDict(x) for name, x in (("tubes", tubes), ("blobs", blobs), ("nests", nests))}


def structures(key: Array, family: Array, flow: Array, config: ConfigDict) -> tuple[Array, Array]:
    """Samples codes [n, H, W] and kinds [2]: a structure (1, inside 2) over a distractor (3, inside 4), elsewhere 0.

    A kind is an index of FAMILIES; 0 is no structure.
    """
    keys = random.split(key, 3)
    count, _, size, _ = flow.shape
    per_task = warp.uniforms(keys[0], count=2)
    kind = jnp.where(per_task() < config.distractor, warp.integer(per_task(), (1, len(FAMILIES))), 0)
    kinds = jnp.stack([family, jnp.where(family > 0, kind, 0)])
    makers = {
        "tubes": lambda k: tubes(k, flow, config.tubes),
        "blobs": lambda k: ellipses(k, flow, config.blobs),
        "nests": lambda k: ellipses(k, flow, config.nests),
    }
    weights = {name: config.weights.get(name, 0) for name in FAMILIES}
    if not any(weights[name] for name in makers):
        makers = {}
    elif not config.distractor:
        makers = {name: makers[name] for name in makers if weights[name]}

    def nothing(_):
        return jnp.zeros((count, size, size), jnp.int32)

    # Families that cannot occur are not compiled.
    branches = [makers.get(name, nothing) for name in FAMILIES]
    first, below = lax.map(lambda x: lax.switch(x[0], branches, x[1]), (kinds, keys[1:]))
    return jnp.where(first > 0, first, jnp.where(below > 0, below + 2, 0)), kinds


def ellipses(key: Array, flow: Array, config: ConfigDict) -> Array:
    """Codes [n, H, W] (int32): 1 in the ellipses of `config.blobs` or `config.nests`, 2 in their insides, else 0."""
    count, _, size, _ = flow.shape
    most = config.count[1] - 1
    keys = random.split(key, 3)
    per_task, shared, per_subject = (
        warp.uniforms(keys[0], count=6),
        warp.uniforms(keys[1], (1, most), 3),
        warp.uniforms(keys[2], (count, most), 8),
    )
    # In these coordinates the image is [-1, 1]².
    y, x = jnp.moveaxis((flow + warp.grid(size)[None]) * (2 / (size - 1)) - 1, 1, 0)
    used = warp.integer(per_task(), config.count)
    elongation, ratio = per_task(config.elongation), per_task(config.inner)
    # An ellipse covers π r² of the image's area of 4; the more there are, the smaller they must be to stay apart.
    radius = per_task(config.radius) / (PUBLISHED_SIZE / 2)
    radius = jnp.minimum(radius, jnp.sqrt(4 * config.coverage / (np.pi * used)))
    nested = per_task() < config.nested

    def place(bounds):
        return shared(bounds) * (1 - config.redraw) + per_subject(bounds) * config.redraw

    center_y, center_x = (place((-1, 1)) * (1 - radius) * 0.95 for _ in range(2))
    angle = place((0, np.pi))
    radii = radius * jnp.exp(per_subject(warp.centred_bounds(config.radius_std)))
    stretch = jnp.sqrt(1 + (elongation - 1) * per_subject((0.5, 1)))
    inner = jnp.where(nested, jnp.minimum(ratio * per_subject((0.85, 1.15)), 0.9), 0)
    shift_u, shift_v = (per_subject((-0.6, 0.6)) * (1 - inner) for _ in range(2))
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

    return lax.fori_loop(0, used, add, jnp.zeros((count, size, size), jnp.int32))


def tubes(key: Array, flow: Array, config: ConfigDict) -> Array:
    """Codes [n, H, W] (int32): 1 on the vessels of a tree, else 0; each subject has its own tree.

    A tree is 32 curves in a frame whose rows t run along it; curves share their path up to the branching that separates
    them. In a radial frame t is the distance from a point and the other coordinate the angle; otherwise both are
    straight.
    """
    count, _, size, _ = flow.shape
    keys = random.split(key, 4)
    per_task, per_subject = warp.uniforms(keys[0], count=10), warp.uniforms(keys[1], (count,), 3)
    branch = warp.uniforms(keys[2], (DEPTH + 1, count, LEAVES), 4)
    bends = random.normal(keys[3], (DEPTH + 1, count, LEAVES, WAVES))
    radial = per_task() < config.radial
    levels = warp.integer(per_task(), config.levels)
    trunks = warp.integer(per_task(), (0, 3))  # log2 of the number of trees that start together
    spread, wiggle = per_task(config.spread) * size, per_task(config.wiggle) * size
    taper, trunk = per_task(config.taper), per_task(config.radius) * (size / PUBLISHED_SIZE)
    shift = jnp.where(radial, jnp.stack([per_task((-0.3, 0.3)), per_task((-0.3, 0.3))]), 0)
    center = (0.5 + shift[None] + jnp.stack([per_subject((-0.1, 0.1)), per_subject((-0.1, 0.1))], 1)) * (size - 1)
    turn = per_task((0, 2 * np.pi)) + per_subject((-0.5, 0.5))

    # Arrays are [level, subject, curve, t]. A level has 2^level branches; a curve belongs to one branch of each level.
    level = np.arange(DEPTH + 1)[:, None, None]
    node = np.arange(LEAVES) >> (DEPTH - level)
    first = (level > 0) & (level <= trunks)
    later = (level > trunks) & (level <= levels)

    def of_curves(values, which):
        """Values [level, subject, branch] → the value of each curve's branch."""
        return jnp.take_along_axis(values, jnp.broadcast_to(which, values.shape), axis=2)

    t = frame_rows(size)[None, None, None]
    scale = jnp.where(radial, jnp.maximum(t, 1.0), size / 4)  # pixels per unit of the other coordinate
    gap = jnp.where(
        level > trunks, of_curves(branch((0.05, 0.35)), node >> 1), 0
    )  # siblings separate in the same place
    since = jnp.maximum(t - size * jnp.cumsum(gap, 0)[..., None], 0)
    side = np.where(node % 2 == 0, -1.0, 1.0).astype(np.float32)
    apart = later * side * spread * 0.75**level * of_curves(branch((0.3, 1.5)), node)
    # The first branchings are angles in a radial frame, later ones pixels, so that branches do not fan out.
    together = first * side * 0.55**level * jnp.where(radial, 3.2, 2.8)
    waves_of_t = np.cos(np.pi * np.arange(WAVES) * np.linspace(0, 1, size)[:, None]) / (1 + np.arange(WAVES))
    bend = jnp.einsum("rk,lsnk->lsnr", waves_of_t.astype(np.float32), bends * wiggle, precision="highest")
    bend = jnp.take_along_axis(bend, jnp.broadcast_to(node, bends.shape[:3])[..., None], axis=2)
    bend = jnp.where((first | later | (level == 0))[..., None], bend * jnp.minimum(since / (0.2 * size), 1), 0)
    path = (together[..., None] + (apart[..., None] * (since / (since + 0.3 * size)) + bend) / scale).sum(0)
    thin = jnp.where(later, jnp.log(taper) * of_curves(branch((0.5, 2.0)), node), 0)[..., None]
    width = trunk * jnp.exp(jnp.where(since > 0, thin, 0).sum(0))
    ends = branch((0.4, 1.6))[0, ..., None] * size
    frame = frame_of_curves(path, width, ends, radial)
    return jax.vmap(read_frame, (0, 0, 0, 0, None))(frame, flow, center, turn, radial).astype(jnp.int32)


def frame_rows(size: int) -> np.ndarray:
    """The t of each row of a frame in pixels, float32 [size], up to 1.5 sizes; a straight frame is equally wide."""
    return np.arange(size, dtype=np.float32) * (1.5 * size / (size - 1))


def frame_of_curves(path: Array, width: Array, ends: Array, radial: Array) -> Array:
    """The distance to the nearest curve minus its radius in pixels, [n, rows, columns].

    path [n, curves, rows] holds the other coordinate of each curve, width its radius in pixels, ends [n, curves, 1] the
    t where it stops.
    """
    rows = path.shape[-1]
    columns, reach, t = 2 * rows, 1.5 * rows, frame_rows(rows)[None, None]
    scale = jnp.where(radial, jnp.maximum(t, 1.0), rows / 4)
    spacing = jnp.where(radial, 2 * np.pi * t, reach) / columns
    width = jnp.maximum(width, jnp.maximum(0.5, 0.55 * spacing))  # at least the resolution of frame and image
    width = jnp.where(t < ends, width, -1e3)
    slope = jnp.asarray(jnp.gradient(path, reach / (rows - 1), axis=2)) * scale
    upright = jnp.broadcast_to(scale, path.shape) / jnp.sqrt(1 + jnp.square(slope))
    column = np.linspace(-1, 1, columns, dtype=np.float32)
    across = jnp.where(radial, column * np.pi, column * (reach / 2) / (rows / 4))

    def nearest(leaf, best):
        def at(values):
            return lax.dynamic_index_in_dim(values, leaf, 1, keepdims=False)[..., None]

        apart = jnp.abs(across[None, None] - at(path))
        apart = jnp.where(radial, jnp.minimum(apart, jnp.abs(2 * np.pi - apart)), apart)
        return jnp.minimum(best, apart * at(upright) - at(width))

    start = jnp.full((len(path), rows, columns), 1e3, jnp.float32)
    return lax.fori_loop(0, path.shape[1], nearest, start)


def read_frame(frame: Array, flow: Array, center: Array, turn: Array, radial: Array) -> Array:
    """Marks (bool) the pixels, moved by `flow` [2, H, W], on curves of a frame at `center`, rotated by `turn`."""
    rows, columns = frame.shape
    reach = 1.5 * rows
    y, x = flow + warp.grid(rows) - center[:, None, None]
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    y, x = cos * y + sin * x, cos * x - sin * y
    along = jnp.where(radial, jnp.sqrt(jnp.square(y) + jnp.square(x)), y + reach / 2)
    other = jnp.where(radial, jnp.arctan2(x, y) / np.pi, x / (reach / 2))
    at = jnp.stack([along * ((rows - 1) / reach), (other + 1) / 2 * (columns - 1)])
    return warp.sample(frame[..., None], at)[..., 0] < 0
