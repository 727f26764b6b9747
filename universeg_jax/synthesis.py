"""Synthetic segmentation tasks, drawn on the device (UniverSeg section 4 and its appendix on synthetic tasks).

`synthetic_episode(key, size, support_size, config)` is a pure function of a threefry2x32 key, so tasks never end and
any of them can be drawn again alone. A task is drawn once; each of its 1 + support_size subjects then differs.

The published family, "shapes":
1. Label map of the task: one multi-scale smooth-noise channel per label, each warped by a smooth displacement of its
   own, then the arg max.
2. Intensities: per label two bounds, m ~ U(0, 1) and m + N(0, s) clipped; each subject draws its mean between them.
3. Each subject: the label map warped (nearest) by the flow of a stationary velocity field at half resolution; pixels
   N(mean, std); background sometimes 0; Gaussian blur; times exp(smooth bias field); min-max; gamma exp(N(0, .25)).
Labels under 0.1 % of the area become background. The foreground is one label, or a random union of labels.

Beyond the paper, families that lay a structure over a quieter label map (chosen by `config.weights`):
* "tubes": trees of vessels, which start in one point or run side by side, branch, taper and end; a task shares
  calibre, contrast and style, each subject has its own tree.
* "blobs": many ellipses, with or without a nucleus, in new places in every subject.
* "nests": few large ellipses with another inside, in about the same place (ventricle in myocardium, cell and nucleus).
A second structure may distract below the first. Options of any family, drawn per task: texture in some labels, borders
that fade or shine, and a field of view outside which the image is black and has no label.

Lengths are published for 256 pixels. Those in pixels are scaled with `size`, those that are cells of a noise grid keep
the number of cells, so that tasks look alike at every size.

An empty foreground. In shapes the foreground is drawn among labels, background excluded, that cover at least
`min_foreground` in two thirds of the subjects; if there is none, it is the label that does so in most. Then, for every
family, subjects whose foreground covers less than `min_foreground` are left out: the query is the first that remains
and the supports are the others in order, repeated if some are missing (the paper draws supports with replacement).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from ml_collections import ConfigDict

from universeg_jax import warp
from universeg_jax.episode import Episode

Array = jax.Array

FAMILIES = ("shapes", "tubes", "blobs", "nests")
PUBLISHED_SIZE = 256  # of lengths in pixels
CODES = 5  # what lies over the label map: nothing, structure, its inside, distractor, its inside


def get_config() -> ConfigDict:
    """The published ranges, and ours for what is beyond the paper. Pixels (px) are of 256."""
    config = ConfigDict()
    config.weights = ConfigDict({"shapes": 0.4, "tubes": 0.2, "blobs": 0.2, "nests": 0.2})  # of families, any sum
    # The published family.
    config.labels = (5, 20)  # labels of a task, the upper bound excluded
    config.shapes_scales = (32, 64, 128)  # px per noise cell of the label map
    config.shapes_std = (0.5, 5.0)  # bound on the noise of one scale; its ratios matter, not its size
    config.shapes_warp_scales = (16, 32, 64, 128)  # px per noise cell of each label's displacement
    config.shapes_warp_std = (4.0, 15.0)  # px; bound on the displacement of one scale
    config.warp_scales = (8, 16, 32, 64)  # px per noise cell of a subject's velocity
    config.warp_std = (1.0, 20.0)  # px; bound on the velocity of one scale
    config.squarings = 5  # of the velocity's integration
    config.std_min = (0.01, 0.1)  # intensity; lower bound on a label's pixel noise
    config.std_max = (0.2, 1.0)  # intensity; upper bound on a label's pixel noise
    config.interimage_std = (0.01, 0.1)  # intensity; how far a label's mean moves between subjects
    config.background_zero = 0.2  # probability that a subject's background is 0
    config.blur_std = (0.5, 5.0)  # px; bound on a subject's blur
    config.bias_res = (32.0, 50.0)  # px per cell of the bias field
    config.bias_std = (0.1, 1.0)  # log intensity; bound on the bias field
    config.gamma_std = 0.25  # of the log of gamma
    config.min_label_area = 0.001  # of the image; smaller labels become background
    # The foreground.
    config.union = 0.2  # probability that it is a union of labels; the paper: 0
    config.union_share = (0.1, 0.5)  # probability of each further label to be in the union
    config.max_foreground = 0.75  # of the image; a larger union is one label again
    config.min_foreground = 0.002  # of the image; smaller foregrounds are avoided, see above
    # Under a structure: a quieter label map, so that the structure stands out.
    config.quiet_labels = (1, 7)  # labels, the upper bound excluded
    config.quiet_contrast = (0.0, 0.4)  # share of the published spread of means
    config.quiet_noise = (0.05, 0.4)  # share of the published pixel noise
    config.quiet_blur = (0.05, 0.4)  # share of the published blur
    config.quiet_warp = (0.1, 0.5)  # share of the published velocity
    config.contrast = (0.15, 0.6)  # intensity of a structure over what is around it, up or down
    config.contrast_std = 0.15  # of its log, between subjects
    config.distractor = 0.4  # probability of a second structure below the first
    config.tubes = ConfigDict(
        {
            "radius": (1.5, 5.0),  # px; of the trunk
            "taper": (0.6, 0.95),  # radius after a branching over radius before
            "levels": (2, 6),  # of branching, the upper bound excluded; at most 5
            "spread": (0.05, 0.25),  # of the size; how far branches part
            "wiggle": (0.01, 0.06),  # of the size
            "radial": 0.5,  # probability that a tree starts in one point and not at a side
        }
    )
    config.blobs = ConfigDict(
        {
            "count": (6, 48),  # ellipses, the upper bound excluded
            "radius": (5.0, 20.0),  # px; mean of a task
            "radius_std": 0.2,  # of its log, within a subject
            "elongation": (1.0, 2.0),  # longer over shorter radius
            "nested": 0.3,  # probability that they have an inside
            "inner": (0.3, 0.7),  # radius of the inside over that of the outside
            "redraw": 1.0,  # share of the position that is new in every subject
        }
    )
    config.nests = ConfigDict(
        {
            "count": (1, 4),  # ellipses, the upper bound excluded
            "radius": (20.0, 70.0),  # px; mean of a task
            "radius_std": 0.15,  # of its log, within a subject
            "elongation": (1.0, 1.8),  # longer over shorter radius
            "nested": 1.0,  # probability that they have an inside
            "inner": (0.3, 0.85),  # radius of the inside over that of the outside
            "redraw": 0.15,  # share of the position that is new in every subject
        }
    )
    # Options of any family, drawn per task.
    config.texture = 0.3  # probability of texture
    config.texture_cell = (3.0, 16.0)  # px per cell, or half a period of stripes
    config.texture_std = (0.05, 0.3)  # intensity
    config.border = 0.3  # probability of borders that fade (0..1) or shine (-1..0)
    config.border_std = (1.0, 6.0)  # px
    config.view = 0.2  # probability of a field of view smaller than the image
    config.view_radius = (0.4, 0.6)  # of the size
    return config


def validate(config: ConfigDict, size: int) -> None:
    """Raises ValueError that names the field if `config` cannot be drawn from at `size` pixels."""

    def check(good: bool, field: str, why: str) -> None:
        if not good:
            raise ValueError(f"synthesis.{field}: {why}")

    weights = [config.weights.get(family, 0) for family in FAMILIES]
    unknown = sorted(set(config.weights) - set(FAMILIES))
    check(not unknown, "weights", f"unknown families {', '.join(unknown)}; choose from {', '.join(FAMILIES)}")
    check(all(np.isfinite(w) and w >= 0 for w in weights), "weights", f"must be at least 0, got {weights}")
    check(sum(weights) > 0, "weights", "sum to 0")
    sections = [("", config), *((f"{name}.", config[name]) for name in ("tubes", "blobs", "nests"))]
    for prefix, section in sections:
        for name, value in section.items():
            field = f"{prefix}{name}"
            if isinstance(value, tuple) and not name.endswith("_scales"):
                check(len(value) == 2, field, f"must be (lowest, highest), got {value}")
                check(0 <= value[0] <= value[1], field, f"must be 0 ≤ lowest ≤ highest, got {value}")
            elif isinstance(value, int | float):
                check(value >= 0, field, f"must be at least 0, got {value}")
    for field in ("background_zero", "union", "distractor", "texture", "border", "view", "min_label_area"):
        check(config[field] <= 1, field, f"must lie in [0, 1], got {config[field]}")
    for field in ("max_foreground", "min_foreground"):
        check(config[field] <= 1, field, f"must lie in [0, 1], got {config[field]}")
    for field in ("union_share",):
        check(config[field][1] <= 1, field, f"must lie in [0, 1], got {config[field]}")
    for name, field in (("tubes", "radial"), ("blobs", "nested"), ("nests", "nested")):
        check(config[name][field] <= 1, f"{name}.{field}", f"must lie in [0, 1], got {config[name][field]}")
    counts = {"labels": 2, "quiet_labels": 1, "blobs.count": 1, "nests.count": 1, "tubes.levels": 1}
    for field, least in counts.items():
        section, name = field.split(".") if "." in field else ("", field)
        low, high = (config[section] if section else config)[name]
        check(least <= low < high, field, f"must be {least} ≤ lowest < highest, which is excluded, got {(low, high)}")
    check(config.tubes.levels[1] <= 6, "tubes.levels", f"at most 5 levels, got {config.tubes.levels}")
    for field in ("bias_res", "texture_cell"):
        check(config[field][0] > 0, field, f"must be above 0, got {config[field]}")
    for field in ("shapes_scales", "shapes_warp_scales", "warp_scales"):
        check(len(config[field]) > 0 and min(config[field]) > 0, field, f"must be above 0, got {config[field]}")
        most = max(_nodes(config[field]))
        check(size >= 2 * most, field, f"its grid of {most} cells needs a size of at least {2 * most}, got {size}")
    check(config.squarings == int(config.squarings), "squarings", f"must be a whole number, got {config.squarings}")


def synthetic_episode(key: Array, size: int, support_size: int, config: ConfigDict) -> Episode:
    """One episode without batch axis: query_image [H, W, 1], support_images [S, H, W, 1], …, support_mask [S] ones.

    float32; images in [0, 1], labels in {0, 1}; H = W = size. Call `validate(config, size)` first.
    """
    count = support_size + 1
    keys = random.split(key, 8)
    weights = jnp.asarray([config.weights.get(name, 0) for name in FAMILIES], jnp.float32)
    family = random.categorical(keys[0], jnp.log(weights))
    quiet = family > 0
    base = label_map(keys[1], size, quiet, config)
    flow = subject_flows(keys[2], count, size, quiet, config)
    labels = jax.vmap(warp.sample_nearest, (None, 0))(base, flow + warp.grid(size)[None])
    labels = drop_small(labels, config)
    codes = lax.cond(
        quiet, lambda: structures(keys[3], family, flow, config), lambda: jnp.zeros((count, size, size), jnp.int32)
    )
    over = structure_foreground(keys[4], family, config)
    foreground = jnp.where(quiet, over[codes], label_foreground(keys[5], labels, config))
    images = render(keys[6], labels, codes, quiet, family, config)
    view = field_of_view(keys[7], count, size, config)
    images, foreground = images * view, foreground * view
    order = usable_first(foreground.mean((1, 2)) >= config.min_foreground)
    images, foreground = images[order][..., None], foreground[order][..., None].astype(jnp.float32)
    return Episode(images[0], foreground[0], images[1:], foreground[1:], jnp.ones(support_size, jnp.float32))


def usable_first(usable: Array) -> Array:
    """Subjects [n] in order: the query first, then the supports, from those of `usable` [n] if there are any."""
    order = jnp.argsort(~usable, stable=True)
    total = usable.sum()
    place = np.arange(len(usable))
    wrapped = jnp.where(place > 0, 1 + (place - 1) % jnp.maximum(total - 1, 1), 0)
    return order[jnp.where(total > 0, jnp.minimum(wrapped, jnp.maximum(total - 1, 0)), place)]


def _nodes(scales: tuple[int, ...]) -> tuple[int, ...]:
    """Nodes along a side of a noise grid whose cells are `scales` px of 256."""
    return tuple(max(2, int(np.ceil(PUBLISHED_SIZE / scale))) for scale in scales)


def _uniform(key: Array, bounds: tuple[float, float], shape: tuple[int, ...] = ()) -> Array:
    return random.uniform(key, shape, jnp.float32, *bounds)


def _noise(key: Array, shape: tuple[int, ...], bound: Array, scales: tuple[int, ...], size: int) -> Array:
    """Multi-scale noise [*shape, size, size], the standard deviation of each scale ~ U(0, bound)."""
    keys = random.split(key)
    std = random.uniform(keys[0], (*shape, len(scales))) * bound
    return warp.multiscale_noise(keys[1], std, _nodes(scales), size)


def label_map(key: Array, size: int, quiet: Array, config: ConfigDict) -> Array:
    """Label map [size, size] of a task, int32. Channels are drawn at half size: their cells are 16 px or more."""
    keys = random.split(key, 6)
    half, most = size // 2, max(config.labels[1], config.quiet_labels[1]) - 1
    channels = _noise(keys[0], (most,), _uniform(keys[1], config.shapes_std), config.shapes_scales, half)
    bound = _uniform(keys[2], config.shapes_warp_std) * (half / PUBLISHED_SIZE)
    moves = _noise(keys[3], (most, 2), bound, config.shapes_warp_scales, half)
    channels = jax.vmap(warp.sample)(channels[..., None], moves + warp.grid(half)[None])[..., 0]
    few, many = random.randint(keys[4], (), *config.quiet_labels), random.randint(keys[5], (), *config.labels)
    counts = np.arange(most) < jnp.where(quiet, few, many)
    return jnp.where(counts[:, None, None], warp.resize(channels, size), -jnp.inf).argmax(0).astype(jnp.int32)


def subject_flows(key: Array, count: int, size: int, quiet: Array, config: ConfigDict) -> Array:
    """Displacements [count, 2, size, size] in pixels: each subject's flow, integrated at half size."""
    keys = random.split(key, 3)
    half = size // 2
    bound = _uniform(keys[0], config.warp_std) * jnp.where(quiet, _uniform(keys[1], config.quiet_warp), 1.0)
    velocity = _noise(keys[2], (count, 2), bound * (half / PUBLISHED_SIZE), config.warp_scales, half)
    return warp.resize_displacement(jax.vmap(lambda v: warp.integrate(v, config.squarings))(velocity), size)


def drop_small(labels: Array, config: ConfigDict) -> Array:
    """labels [n, H, W] with those of a subject under `min_label_area` turned into background."""
    areas = label_areas(labels, max(config.labels[1], config.quiet_labels[1]) - 1)
    kept = jnp.where(areas < config.min_label_area, 0, np.arange(areas.shape[1])[None])
    return jax.vmap(lambda table, label: table[label])(kept, labels)


def label_areas(labels: Array, most: int) -> Array:
    """Share [n, most] of the image that each label of labels [n, H, W] covers."""
    return jnp.stack([(labels == label).mean((1, 2), dtype=jnp.float32) for label in range(most)], 1)


def label_foreground(key: Array, labels: Array, config: ConfigDict) -> Array:
    """Foreground [n, H, W] (bool) of a shapes task: one label, or a union; the rule is in the module's docstring."""
    keys = random.split(key, 4)
    most = max(config.labels[1], config.quiet_labels[1]) - 1
    areas = label_areas(labels, most)
    present = (areas >= config.min_foreground).mean(0) * (np.arange(most) > 0)
    good = present >= jnp.minimum(2 / 3, present.max())
    chosen = random.categorical(keys[0], jnp.where(good, 0.0, -jnp.inf))
    one = np.arange(most) == chosen
    more = random.uniform(keys[1], (most,)) < _uniform(keys[2], config.union_share)
    union = one | (more & good)
    fits = (areas.mean(0) * union).sum() <= config.max_foreground
    return jnp.where((random.uniform(keys[3]) < config.union) & fits, union, one)[labels]


def structure_foreground(key: Array, family: Array, config: ConfigDict) -> Array:
    """Which codes [CODES] (bool) are foreground: the whole structure, or with nests also the inside or the ring."""
    table = np.array([[0, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0]], bool)
    choice = random.randint(key, (), 0, 3)
    return jnp.asarray(table)[jnp.where(family == FAMILIES.index("nests"), choice, 0)]


def structures(key: Array, family: Array, flow: Array, config: ConfigDict) -> Array:
    """Codes [n, H, W]: the structure of `family` (1, inside 2) over a distractor (3, inside 4) over nothing (0)."""
    keys = random.split(key, 4)
    draws = [
        lambda k: tubes(k, flow, config.tubes),
        lambda k: ellipses(k, flow, config.blobs),
        lambda k: ellipses(k, flow, config.nests),
    ]
    first = lax.switch(jnp.maximum(family - 1, 0), draws, keys[0])
    below = lax.cond(
        random.uniform(keys[1]) < config.distractor,
        lambda: lax.switch(random.randint(keys[2], (), 0, 3), draws, keys[3]),
        lambda: jnp.zeros_like(first),
    )
    return jnp.where(first > 0, first, jnp.where(below > 0, below + 2, 0))


def ellipses(key: Array, flow: Array, config: ConfigDict) -> Array:
    """1 in the ellipses of `config.blobs` or `config.nests`, 2 inside their insides, else 0: [n, H, W] int32."""
    count, _, size, _ = flow.shape
    keys = iter(random.split(key, 16))
    most = config.count[1] - 1
    # Coordinates in which the image is [-1, 1]².
    y, x = jnp.moveaxis((flow + warp.grid(size)[None]) * (2 / (size - 1)) - 1, 1, 0)
    radius = _uniform(next(keys), config.radius) / (PUBLISHED_SIZE / 2)
    spread = (1 - radius) * 0.9
    shared = _uniform(next(keys), (-1, 1), (1, most, 2))
    own = _uniform(next(keys), (-1, 1), (count, most, 2))
    center = (shared * (1 - config.redraw) + own * config.redraw) * spread
    elongation = _uniform(next(keys), config.elongation)
    ratio = jnp.sqrt(1 + (elongation - 1) * _uniform(next(keys), (0.5, 1), (count, most)))
    radii = radius * jnp.exp(config.radius_std * random.normal(next(keys), (count, most)))
    angle = _uniform(next(keys), (0, np.pi), (1, most)) * (1 - config.redraw) + config.redraw * _uniform(
        next(keys), (0, np.pi), (count, most)
    )
    inner = _uniform(next(keys), config.inner) * jnp.exp(0.1 * random.normal(next(keys), (count, most)))
    inner = jnp.where(random.uniform(next(keys)) < config.nested, jnp.minimum(inner, 0.9), 0)
    shift = _uniform(next(keys), (-0.7, 0.7), (count, most, 2)) * (1 - inner)[..., None]
    drawn = random.randint(next(keys), (), *config.count)
    cos, sin = jnp.cos(angle), jnp.sin(angle)

    def add(n, code):
        def at(values):
            return lax.dynamic_index_in_dim(values, n, 1)[..., None]

        dy, dx = y - at(center[..., 0]), x - at(center[..., 1])
        long, short = at(radii * ratio), at(radii / ratio)
        u, v = (at(cos) * dx + at(sin) * dy) / long, (at(cos) * dy - at(sin) * dx) / short
        outside = jnp.square(u) + jnp.square(v)
        inside = jnp.square(u - at(shift[..., 0])) + jnp.square(v - at(shift[..., 1]))
        return jnp.maximum(code, jnp.where(inside < at(jnp.square(inner)), 2, jnp.where(outside < 1, 1, 0)))

    return lax.fori_loop(0, drawn, add, jnp.zeros((count, size, size), jnp.int32))


def tubes(key: Array, flow: Array, config: ConfigDict) -> Array:
    """1 on the vessels of a tree, else 0: [n, H, W] int32; each subject has a tree of its own.

    A tree is 32 curves in a frame whose rows t run along it: curves share their way up to the branching that parts
    them. In a radial frame t is the distance from a point and the other coordinate the angle, else both are straight.
    The frame holds the distance to the nearest curve minus its radius, in pixels, and is read once per pixel.
    """
    count, _, size, _ = flow.shape
    keys = iter(random.split(key, 24))
    depth, leaves, knots = 5, 32, 12
    rows, columns = size, 2 * size
    reach = 1.5 * size  # length of the frame along t and, if straight, across, in pixels
    radial = random.uniform(next(keys)) < config.radial
    levels = random.randint(next(keys), (), *config.levels)
    trunks = random.randint(next(keys), (), 0, 3)  # log2 of the trees that start together
    spread = _uniform(next(keys), config.spread) * size
    wiggle = _uniform(next(keys), config.wiggle) * size
    taper = _uniform(next(keys), config.taper)
    trunk = _uniform(next(keys), config.radius) * (size / PUBLISHED_SIZE)
    center = 0.5 + jnp.where(radial, _uniform(next(keys), (-0.3, 0.3), (2,)), 0)[None] * jnp.ones((count, 1))
    center = (center + 0.05 * random.normal(next(keys), (count, 2))) * (size - 1)
    turn = _uniform(next(keys), (0, 2 * np.pi)) + 0.3 * random.normal(next(keys), (count,))

    t = (np.arange(rows, dtype=np.float32) * (reach / (rows - 1)))[None, None]  # [1, 1, rows]
    scale = jnp.where(radial, jnp.maximum(t, 1.0), size / 4)  # pixels per unit of the other coordinate
    path = jnp.zeros((count, leaves, rows))
    width = jnp.full((count, leaves, rows), trunk)
    start = jnp.zeros((count, 1))
    wiggles = random.normal(next(keys), (depth + 1, count, leaves, knots))
    bends = warp.linear_matrix(rows, knots)
    for level in range(depth + 1):
        nodes = 2**level  # branches of this level; each stands for leaves / nodes curves

        def per_leaf(values, nodes=nodes):
            return jnp.repeat(values, leaves // nodes, axis=1)

        subkeys = random.split(next(keys), 4)
        first = level <= trunks
        if level:
            gap = _uniform(subkeys[0], (0.05, 0.35), (count, nodes // 2)) * size
            start = jnp.repeat(start + jnp.where(first, 0, gap), 2, axis=1)  # siblings part in the same place
            side = jnp.where(np.arange(nodes)[None] % 2 == 0, -1.0, 1.0)
            apart = side * spread * 0.75**level * _uniform(subkeys[1], (0.3, 1.5), (count, nodes))
            apart = jnp.where(first, side * size * jnp.where(radial, 1.0, 0.7) * 0.55**level, apart)
        since = jnp.maximum(t - per_leaf(start)[..., None], 0)
        alive = (level <= levels) | first
        if level:
            opened = jnp.where(first, 1.0, since / (since + 0.15 * size))
            # First partings are angles of a radial frame; later ones are pixels, so that branches do not fan out.
            unit = jnp.where(first & radial, size / 3.2, scale)
            path = path + jnp.where(alive, per_leaf(apart)[..., None] * opened / unit, 0)
            thin = taper ** _uniform(subkeys[2], (0.5, 2.0), (count, nodes))
            width = width * jnp.where(alive & ~first & (since > 0), per_leaf(thin)[..., None], 1.0)
        bend = jnp.einsum("rk,snk->snr", bends, per_leaf(wiggles[level][:, :nodes]), precision="highest")
        path = path + jnp.where(alive, bend * wiggle * jnp.minimum(since / (0.2 * size), 1) / scale, 0)
    ends = _uniform(next(keys), (0.4, 1.6), (count, leaves, 1)) * size
    spacing = jnp.where(radial, 2 * np.pi * t, reach) / columns
    width = jnp.maximum(width, jnp.maximum(0.5, 0.55 * spacing))  # nothing thinner than the frame or a pixel shows
    slope = jnp.gradient(path, reach / (rows - 1), axis=2) * scale
    cosine = 1 / jnp.sqrt(1 + jnp.square(slope))
    width = jnp.where(t < ends, width, -1e3)
    across = np.linspace(-1, 1, columns, dtype=np.float32)
    across = jnp.where(radial, across * np.pi, across * (reach / 2) / (size / 4))

    def nearest(leaf, best):
        def at(values):
            return lax.dynamic_index_in_dim(values, leaf, 1, keepdims=False)[..., None]

        apart = jnp.abs(across[None, None] - at(path))
        apart = jnp.where(radial, jnp.minimum(apart, jnp.abs(2 * np.pi - apart)), apart)
        return jnp.minimum(best, apart * at(jnp.broadcast_to(scale, path.shape) * cosine) - at(width))

    frame = lax.fori_loop(0, leaves, nearest, jnp.full((count, rows, columns), 1e3, jnp.float32))

    def read(frame, flow, center, turn):
        y, x = flow + warp.grid(size) - center[:, None, None]
        cos, sin = jnp.cos(turn), jnp.sin(turn)
        y, x = cos * y + sin * x, cos * x - sin * y
        along = jnp.where(radial, jnp.sqrt(jnp.square(y) + jnp.square(x)), y + reach / 2)
        other = jnp.where(radial, jnp.arctan2(x, y) / np.pi, x / (reach / 2))
        at = jnp.stack([along * ((rows - 1) / reach), (other + 1) / 2 * (columns - 1)])
        return warp.sample(frame[..., None], at)[..., 0] < 0

    return jax.vmap(read)(frame, flow, center, turn).astype(jnp.int32)


def render(key: Array, labels: Array, codes: Array, quiet: Array, family: Array, config: ConfigDict) -> Array:
    """Images [n, H, W] in [0, 1] of labels [n, H, W] with structures `codes` [n, H, W] over them."""
    count, size, _ = labels.shape
    scale = size / PUBLISHED_SIZE
    most = max(config.labels[1], config.quiet_labels[1]) - 1
    keys = iter(random.split(key, 32))

    def quieter(bounds):
        return jnp.where(quiet, _uniform(next(keys), bounds), 1.0)

    bound = _uniform(next(keys), (0, 1), (1, most))
    other = bound + _uniform(next(keys), config.interimage_std) * random.normal(next(keys), (1, most))
    means = bound + (jnp.clip(other, 0, 1) - bound) * random.uniform(next(keys), (count, most))
    means = 0.5 + (means - 0.5) * quieter(config.quiet_contrast)
    low, high = _uniform(next(keys), config.std_min), _uniform(next(keys), config.std_max)
    stds = low + (high - low) * random.uniform(next(keys), (count, most))
    stds = stds * quieter(config.quiet_noise)
    zeroed = (random.uniform(next(keys), (count, 1)) < config.background_zero) & (np.arange(most)[None] == 0)
    means, stds = jnp.where(zeroed, 0, means), jnp.where(zeroed, 0, stds)
    steps = structure_contrasts(next(keys), count, config)

    lookup = jax.vmap(lambda table, index: table[index])
    clean = lookup(means, labels) + jnp.where(quiet, lookup(steps, codes), 0)
    clean = lax.cond(
        random.uniform(next(keys)) < config.border, lambda k: borders(k, clean, config), lambda _: clean, next(keys)
    )
    clean = lax.cond(
        random.uniform(next(keys)) < config.texture,
        lambda k: clean + texture(k, labels, codes, config),
        lambda _: clean,
        next(keys),
    )
    image = clean + lookup(stds, labels) * random.normal(next(keys), labels.shape)
    sigma = _uniform(next(keys), config.blur_std) * quieter(config.quiet_blur) * random.uniform(next(keys), (count,))
    image = warp.blur(image, sigma * scale)
    nodes = int(np.ceil(PUBLISHED_SIZE / config.bias_res[0])) + 1
    std = _uniform(next(keys), config.bias_std) * random.uniform(next(keys), (count, 1, 1))
    field = warp.spaced_matrix(size, _uniform(next(keys), config.bias_res) * scale, nodes)
    image = image * jnp.exp(warp.separable(field, std * random.normal(next(keys), (count, nodes, nodes))))
    gamma = jnp.exp(config.gamma_std * random.normal(next(keys), (count, 1, 1)))
    return warp.minmax(image) ** gamma


def structure_contrasts(key: Array, count: int, config: ConfigDict) -> Array:
    """What each code [n, CODES] adds to the intensity below it; the sign and size belong to the task."""
    keys = random.split(key, 3)
    step = _uniform(keys[0], config.contrast, (1, 4)) * random.rademacher(keys[1], (1, 4), jnp.float32)
    step = step * jnp.exp(config.contrast_std * random.normal(keys[2], (count, 4)))
    outer, inner, below, below_inner = jnp.moveaxis(step, 1, 0)
    return jnp.stack([jnp.zeros(count), outer, outer + inner, below, below + below_inner], 1)


def borders(key: Array, image: Array, config: ConfigDict) -> Array:
    """image [n, H, W] with borders that fade, or with a rim that shines."""
    keys = random.split(key)
    soft = warp.blur(image, _uniform(keys[0], config.border_std) * (image.shape[-1] / PUBLISHED_SIZE))
    return image + _uniform(keys[1], (-1, 1)) * (soft - image)


def texture(key: Array, labels: Array, codes: Array, config: ConfigDict) -> Array:
    """Texture [n, H, W], smooth noise or stripes, of a strength that each label and structure of the task has."""
    count, size, _ = labels.shape
    keys = iter(random.split(key, 10))
    cell = _uniform(next(keys), config.texture_cell) * (size / PUBLISHED_SIZE)
    nodes = int(np.ceil(PUBLISHED_SIZE / config.texture_cell[0])) + 1
    noise = warp.separable(warp.spaced_matrix(size, cell, nodes), random.normal(next(keys), (count, nodes, nodes)))
    angle = _uniform(next(keys), (0, np.pi)) + 0.2 * random.normal(next(keys), (count, 1, 1))
    y, x = warp.grid(size)[:, None]
    phase = _uniform(next(keys), (0, 2 * np.pi), (count, 1, 1))
    stripes = jnp.sin((jnp.cos(angle) * x + jnp.sin(angle) * y) * (np.pi / jnp.maximum(cell, 1.5)) + phase)
    pattern = jnp.where(random.uniform(next(keys)) < 0.5, noise, stripes)
    most = max(config.labels[1], config.quiet_labels[1]) - 1
    strength = _uniform(next(keys), config.texture_std) * random.uniform(next(keys), (most + CODES,))
    strength = strength * (random.uniform(next(keys), (most + CODES,)) < 0.5)
    return pattern * strength[jnp.where(codes > 0, most + codes, labels)]


def field_of_view(key: Array, count: int, size: int, config: ConfigDict) -> Array:
    """What is seen, [n, H, W] (bool): all, or per task a circle or a sector, which moves a little between subjects."""
    keys = iter(random.split(key, 8))
    y, x = warp.grid(size)[:, None] / (size - 1) - 0.5
    drawn, sector = random.uniform(next(keys)) < config.view, random.uniform(next(keys)) < 0.5
    radius = _uniform(next(keys), config.view_radius) * jnp.exp(0.03 * random.normal(next(keys), (count, 1, 1)))
    move_y, move_x = 0.03 * random.normal(next(keys), (2, count, 1, 1))
    circle = jnp.square(y + move_y) + jnp.square(x + move_x) < jnp.square(radius)
    # A sector: between two lines that meet above the image, as deep as an arc around that point.
    opening = jnp.tan(_uniform(next(keys), (0.5, 0.9)))
    down = y + 0.55 + move_y
    wedge = (jnp.abs(x + move_x) < opening * down) & (jnp.square(x + move_x) + jnp.square(down) < 1.05**2)
    return jnp.where(drawn, jnp.where(sector, wedge, circle), True)
