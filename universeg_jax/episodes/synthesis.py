"""Synthetic segmentation tasks, made on the device (UniverSeg section 4 and its appendix on synthetic tasks).

`synthetic_episode(key, size, support_size, config)` is a pure function of a threefry2x32 key: tasks never run out, and
each can be made again alone. A task is sampled once; its 1 + support_size subjects then differ.

The published family, "shapes":
1. Label map of the task: one multi-scale smooth-noise channel per label, each warped by its own smooth displacement,
   then the arg max.
2. Intensities: per label two bounds, m ~ U(0, 1) and m + N(0, s) clipped; each subject's mean lies between them.
3. Each subject: the label map warped (nearest) by the flow of a stationary velocity field at half resolution; pixels
   N(mean, std); background sometimes 0; Gaussian blur; times exp(smooth bias field); min-max; gamma exp(N(0, .25)).
Labels under 0.1 % of the area become background. The foreground is one label, or a random union of labels.

Families beyond the paper put a structure over a quieter label map (`config.weights` chooses):
* "tubes": trees of vessels that start in one point or run side by side, branch, taper and end. A task shares calibre,
  contrast and style; each subject has its own tree.
* "blobs": many ellipses, with or without a nucleus, in new places in every subject.
* "nests": few large ellipses with another inside, in about the same place (ventricle in myocardium, nucleus in cell).
A second structure below the first may distract. Options of any family, sampled per task: texture in some labels,
borders that fade or shine, and a field of view outside which the image is black and unlabelled.

Lengths are published for 256 pixels. Lengths in pixels scale with `size`; cells of noise grids keep their number, so
that tasks look alike at every size.

Empty foregrounds: in shapes the foreground is sampled among the labels, background excluded, that cover at least
`min_foreground` of the field of view in two thirds of the subjects. Without such a label it is the one that does so in
most subjects, and the background only if there is no other label. In every family, subjects whose foreground covers
less than `min_foreground` are left out: the query is the first of the others and the supports follow in order, repeated
if there are too few (the paper samples supports with replacement).
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
from universeg_jax.episodes.structures import FAMILIES, PUBLISHED_SIZE, section_configs, structures
from universeg_jax.errors import UserError

Array = jax.Array


def get_config() -> ConfigDict:
    """The published ranges, and our own for additions. Pixels (px) are of 256."""
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
    config.min_foreground = 0.002  # of the image; smaller foregrounds are avoided
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
    config.update(section_configs())
    # Options of any family, sampled per task.
    config.texture = 0.3  # probability of texture
    config.texture_cell = (4.0, 24.0)  # px per cell, or half a period of stripes
    config.texture_std = (0.05, 0.3)  # intensity
    config.border = 0.3  # probability of borders that fade (0..1) or shine (-1..0)
    config.border_std = (1.0, 6.0)  # px
    config.view = 0.2  # probability of a field of view smaller than the image
    config.view_radius = (0.4, 0.6)  # of the size
    return config


def synthetic_episode(key: Array, size: int, support_size: int, config: ConfigDict) -> Episode:
    """Makes an episode without batch axis: query_image [H, W, 1], support_images [S, H, W, 1], …, support_mask [S] 1s.

    float32; images in [0, 1], labels in {0, 1}; H = W = size. Call `configuration.check_fields` first.
    """
    if support_size < 1:
        raise UserError(f"config.support_size must be at least 1, got {support_size}")
    count = support_size + 1
    keys = random.split(key, 7)
    family = sample_family(keys[0], config)
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


def sample_family(key: Array, config: ConfigDict) -> Array:
    """Samples an index of FAMILIES by `config.weights`."""
    weights = jnp.asarray([config.weights.get(name, 0) for name in FAMILIES], jnp.float32)
    return random.categorical(key, jnp.log(weights))


def usable_first(usable: Array) -> Array:
    """Orders subjects [n]: the query first, then the supports, all from `usable` [n] (bool) if it has any."""
    order = jnp.argsort(~usable, stable=True)
    total = usable.sum()
    place = np.arange(len(usable))
    wrapped = jnp.where(place > 0, 1 + (place - 1) % jnp.maximum(total - 1, 1), 0)
    return order[jnp.where(total > 0, jnp.minimum(wrapped, jnp.maximum(total - 1, 0)), place)]


def _noise(key: Array, shape: tuple[int, ...], bound: Array, scales: tuple[int, ...], size: int) -> Array:
    """Samples multi-scale noise [*shape, size, size]; the standard deviation of each scale is ~ U(0, bound)."""
    keys, nodes = random.split(key), noise_nodes(scales)
    std = random.uniform(keys[0], (*shape, len(scales))) * bound
    noise = random.normal(keys[1], (*shape, sum(n * n for n in nodes)))
    return warp.multiscale_noise(noise, std, nodes, size)


def label_map(key: Array, size: int, quiet: Array, config: ConfigDict) -> Array:
    """Samples the label map [size, size] (int32) of a task, from half-size channels: their cells are 16 px or more."""
    keys = random.split(key, 3)
    per_task = warp.uniforms(keys[0], count=4)
    half, most = size // 2, most_labels(config)
    channels = _noise(keys[1], (most,), per_task(config.shapes_std), config.shapes_scales, half)
    bound = per_task(config.shapes_warp_std) * (half / PUBLISHED_SIZE)
    moves = _noise(keys[2], (most, 2), bound, config.shapes_warp_scales, half)
    channels = jax.vmap(warp.sample)(channels[..., None], moves + warp.grid(half)[None])[..., 0]
    labels = jnp.where(quiet, warp.integer(per_task(), config.quiet_labels), warp.integer(per_task(), config.labels))
    counts = (np.arange(most) < labels)[:, None, None]
    return jnp.where(counts, warp.resize_aligned(channels, size), -jnp.inf).argmax(0).astype(jnp.int32)


def subject_flows(key: Array, count: int, size: int, quiet: Array, config: ConfigDict) -> Array:
    """Samples each subject's displacement [count, 2, size, size] in pixels: its flow, integrated at half size."""
    keys = random.split(key)
    per_task = warp.uniforms(keys[0], count=2)
    half = size // 2
    bound = per_task(config.warp_std) * jnp.where(quiet, per_task(config.quiet_warp), 1.0) * (half / PUBLISHED_SIZE)
    velocity = _noise(keys[1], (count, 2), bound, config.warp_scales, half)
    return warp.resize_displacement(warp.integrate(velocity, config.squarings), size)


def drop_small(labels: Array, view: Array, config: ConfigDict) -> tuple[Array, Array]:
    """Turns labels [n, H, W] under `min_label_area` of a subject into background; also returns their areas [n, L].

    An area is the share of the image that a label covers inside `view` [n, H, W]. The background's area excludes the
    labels turned into it.
    """
    seen = jnp.where(view, labels, -1)
    areas = lax.map(lambda label: (seen == label).mean((1, 2), dtype=jnp.float32), jnp.arange(most_labels(config))).T
    small = areas < config.min_label_area
    kept = jnp.where(small, 0, np.arange(areas.shape[1])[None])
    return jax.vmap(lambda table, label: table[label])(kept, labels), jnp.where(small, 0, areas)


def foreground_tables(key: Array, areas: Array, codes: Array, config: ConfigDict) -> tuple[Array, Array]:
    """Samples the labels [L] and codes [CODES] (bool) that are foreground, given areas [n, L] and codes [n, H, W].

    Shapes: one label or a union, by the rule in the module's docstring. Structures: all of it or, if both are large
    enough, only its inside or its ring.
    """
    keys = random.split(key)
    most = areas.shape[1]
    per_task, per_label = warp.uniforms(keys[0], count=3), warp.uniforms(keys[1], (most,), 2)
    present = (areas >= config.min_foreground).mean(0)
    present = jnp.where(present[1:].max() > 0, present * (np.arange(most) > 0), present)
    good = present >= jnp.minimum(2 / 3, present.max())
    one = np.arange(most) == jnp.where(good, per_label(), -1).argmax()
    union = one | (good & (per_label() < per_task(config.union_share)))
    fits = (areas.mean(0) * union).sum() <= config.max_foreground
    parts = jnp.asarray([[0, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0]], bool)
    both = jnp.stack([(codes == code).mean() for code in (1, 2)]).min() >= 2 * config.min_foreground
    of_label = jnp.where((per_task() < config.union) & fits, union, one)
    return of_label, parts[jnp.where(both, warp.integer(per_task(), (0, 3)), 0)]
