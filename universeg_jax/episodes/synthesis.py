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
`min_foreground` of what is seen in two thirds of the subjects; if there is none, it is the label that does so in most,
and the background only if there is no other label. Then, for every family, subjects whose foreground covers less than
`min_foreground` are left out: the query is the first that remains and the supports are the others in order, repeated
if some are missing (the paper draws supports with replacement).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from ml_collections import ConfigDict

from universeg_jax.configuration import noise_nodes
from universeg_jax.episode import Episode, split_query
from universeg_jax.episodes import warp
from universeg_jax.episodes.render import field_of_view, most_labels, render
from universeg_jax.episodes.structures import FAMILIES, PUBLISHED_SIZE, structures
from universeg_jax.errors import UserError

Array = jax.Array


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
    config.quiet_noise = (0.02, 0.25)  # share of the published pixel noise
    config.quiet_blur = (0.05, 0.4)  # share of the published blur
    config.quiet_bias = (0.05, 0.5)  # share of the published bias field
    config.quiet_warp = (0.1, 0.5)  # share of the published velocity
    config.contrast = (0.03, 0.6)  # intensity of a structure over what is around it, up or down; log-uniform
    config.plain_contrast = 0.3  # intensity; below it, pixel noise and texture weaken with the contrast
    config.contrast_std = 0.15  # of its log, between subjects
    config.distractor = 0.4  # probability of a second structure below the first
    config.tubes = ConfigDict(
        {
            "radius": (1.5, 5.0),  # px; of the trunk
            "taper": (0.6, 0.95),  # radius after a branching over radius before
            "levels": (2, 6),  # of branching, the upper bound excluded; at most 5
            "spread": (0.08, 0.35),  # of the size; how far branches part
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
            "coverage": 0.35,  # of the image, at most, by all of them
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
            "coverage": 0.35,  # of the image, at most, by all of them
            "redraw": 0.15,  # share of the position that is new in every subject
        }
    )
    # Options of any family, drawn per task.
    config.texture = 0.3  # probability of texture
    config.texture_cell = (4.0, 24.0)  # px per cell, or half a period of stripes
    config.texture_std = (0.05, 0.3)  # intensity
    config.border = 0.3  # probability of borders that fade (0..1) or shine (-1..0)
    config.border_std = (1.0, 6.0)  # px
    config.view = 0.2  # probability of a field of view smaller than the image
    config.view_radius = (0.4, 0.6)  # of the size
    return config


def synthetic_episode(key: Array, size: int, support_size: int, config: ConfigDict) -> Episode:
    """One episode without batch axis: query_image [H, W, 1], support_images [S, H, W, 1], …, support_mask [S] ones.

    float32; images in [0, 1], labels in {0, 1}; H = W = size. Call `configuration.check_fields` first.
    """
    if support_size < 1:
        raise UserError(f"config.support_size must be at least 1, got {support_size}")
    count = support_size + 1
    keys = random.split(key, 7)
    family = draw_family(keys[0], config)
    quiet = family > 0
    base = label_map(keys[1], size, quiet, config)
    flow = subject_flows(keys[2], count, size, quiet, config)
    labels = jax.vmap(warp.sample_nearest, (None, 0))(base, flow + warp.grid(size)[None])
    view = field_of_view(keys[6], count, size, config)
    labels, areas = drop_small(labels, view, config)
    codes, kinds = structures(keys[3], family, flow, config)
    of_label, of_code = foreground_tables(keys[4], areas, codes, config)
    foreground = jnp.where(quiet, of_code[codes], of_label[labels])
    images = render(keys[5], labels, codes, kinds, quiet, config)
    images, foreground = images * view, foreground & view
    order = usable_first(foreground.mean((1, 2)) >= config.min_foreground)
    images, foreground = images[order][..., None], foreground[order][..., None].astype(jnp.float32)
    return split_query(images, foreground)


def draw_family(key: Array, config: ConfigDict) -> Array:
    """The index in FAMILIES, by `config.weights`."""
    weights = jnp.asarray([config.weights.get(name, 0) for name in FAMILIES], jnp.float32)
    return random.categorical(key, jnp.log(weights))


def usable_first(usable: Array) -> Array:
    """Subjects [n] in order: the query first, then the supports, from those of `usable` [n] if there are any."""
    order = jnp.argsort(~usable, stable=True)
    total = usable.sum()
    place = np.arange(len(usable))
    wrapped = jnp.where(place > 0, 1 + (place - 1) % jnp.maximum(total - 1, 1), 0)
    return order[jnp.where(total > 0, jnp.minimum(wrapped, jnp.maximum(total - 1, 0)), place)]


def _noise(key: Array, shape: tuple[int, ...], bound: Array, scales: tuple[int, ...], size: int) -> Array:
    """Multi-scale noise [*shape, size, size], the standard deviation of each scale ~ U(0, bound)."""
    keys, nodes = random.split(key), noise_nodes(scales)
    std = random.uniform(keys[0], (*shape, len(scales))) * bound
    noise = random.normal(keys[1], (*shape, sum(n * n for n in nodes)))
    return warp.multiscale_noise(noise, std, nodes, size)


def label_map(key: Array, size: int, quiet: Array, config: ConfigDict) -> Array:
    """Label map [size, size] of a task, int32. Channels are drawn at half size: their cells are 16 px or more."""
    keys = random.split(key, 3)
    draw = warp.uniforms(keys[0], count=4)
    half, most = size // 2, most_labels(config)
    channels = _noise(keys[1], (most,), draw(config.shapes_std), config.shapes_scales, half)
    bound = draw(config.shapes_warp_std) * (half / PUBLISHED_SIZE)
    moves = _noise(keys[2], (most, 2), bound, config.shapes_warp_scales, half)
    channels = jax.vmap(warp.sample)(channels[..., None], moves + warp.grid(half)[None])[..., 0]
    labels = jnp.where(quiet, warp.whole(draw(), config.quiet_labels), warp.whole(draw(), config.labels))
    counts = (np.arange(most) < labels)[:, None, None]
    return jnp.where(counts, warp.resize(channels, size), -jnp.inf).argmax(0).astype(jnp.int32)


def subject_flows(key: Array, count: int, size: int, quiet: Array, config: ConfigDict) -> Array:
    """Displacements [count, 2, size, size] in pixels: each subject's flow, integrated at half size."""
    keys = random.split(key)
    draw = warp.uniforms(keys[0], count=2)
    half = size // 2
    bound = draw(config.warp_std) * jnp.where(quiet, draw(config.quiet_warp), 1.0) * (half / PUBLISHED_SIZE)
    velocity = _noise(keys[1], (count, 2), bound, config.warp_scales, half)
    return warp.resize_displacement(warp.integrate(velocity, config.squarings), size)


def drop_small(labels: Array, view: Array, config: ConfigDict) -> tuple[Array, Array]:
    """labels [n, H, W] with those of a subject under `min_label_area` turned into background, and their areas [n, L].

    An area is the share of the image that a label covers inside `view` [n, H, W]; that of the background does not
    count what it gained.
    """
    seen = jnp.where(view, labels, -1)
    areas = lax.map(lambda label: (seen == label).mean((1, 2), dtype=jnp.float32), jnp.arange(most_labels(config))).T
    small = areas < config.min_label_area
    kept = jnp.where(small, 0, np.arange(areas.shape[1])[None])
    return jax.vmap(lambda table, label: table[label])(kept, labels), jnp.where(small, 0, areas)


def foreground_tables(key: Array, areas: Array, codes: Array, config: ConfigDict) -> tuple[Array, Array]:
    """Which labels [L] and which codes [CODES] (bool) are foreground, given areas [n, L] and codes [n, H, W].

    In shapes one label or a union, by the rule in the module's docstring; with a structure all of it or, where both
    cover enough, only its inside or its ring.
    """
    keys = random.split(key)
    most = areas.shape[1]
    draw, each = warp.uniforms(keys[0], count=3), warp.uniforms(keys[1], (most,), 2)
    present = (areas >= config.min_foreground).mean(0)
    present = jnp.where(present[1:].max() > 0, present * (np.arange(most) > 0), present)
    good = present >= jnp.minimum(2 / 3, present.max())
    one = np.arange(most) == jnp.where(good, each(), -1).argmax()
    union = one | (good & (each() < draw(config.union_share)))
    fits = (areas.mean(0) * union).sum() <= config.max_foreground
    parts = jnp.asarray([[0, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0]], bool)
    both = jnp.stack([(codes == code).mean() for code in (1, 2)]).min() >= 2 * config.min_foreground
    return jnp.where((draw() < config.union) & fits, union, one), parts[jnp.where(both, warp.whole(draw(), (0, 3)), 0)]
