"""Tasks from images without labels: a superpixel, or a union of them, is the label (Ouyang et al., ECCV 2020).

`superpixel_episode(key, image, support_size, config)` is a pure function of a threefry2x32 key and one real image. The
1 + S images of the episode are views of it, each with its own warp and intensities. So unlabelled images become tasks,
with textures that synthesis.py does not have.

Superpixels are regions of a geodesic distance from jittered seeds on a grid: a step to the next pixel costs the
difference of the intensities plus `compactness`, and a pixel belongs to the nearest seed. A superpixel is connected by
construction and ends where intensity changes. Distances are integers, so that every device finds the same regions.

A union contains all superpixels that a seed reaches through neighbours whose mean intensity differs from the seed's by
at most `tolerance`. The label is sampled among the unions that fit `area`, are no dark background and differ by
`contrast` from their surroundings along a share `outline` of their border; a border through homogeneous tissue, or cut
by the frame of the image, is visible in no image. If there is none, the union with the best outline is taken. If no
union fits `area`, single superpixels are tried; if none of them fits, the largest is taken.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from ml_collections import ConfigDict

from universeg_jax.episode import Episode, split_query
from universeg_jax.episodes import augment, warp

Array = jax.Array

LEVELS = 255 * 16  # of an intensity, after a filter whose weights sum to 16
FAR = 2**30


def get_config() -> ConfigDict:
    """Our own choices; UniverSeg has no superpixel tasks. Intensities are of an image in [0, 1]."""
    config = ConfigDict()
    config.cells = (4, 11)  # superpixels along a side, the upper bound excluded
    config.compactness = (0.005, 0.05)  # intensity that a step costs; more gives squares, less follows edges
    config.union = 0.7  # probability that the label is a union
    config.tolerance = (0.05, 0.15)  # intensity; largest difference of a union's means from that of its seed
    config.hops = (2, 9)  # superpixels from the seed of a union to its end, the upper bound excluded
    config.area = (0.004, 0.4)  # share of the image that the label covers
    config.darkest = 0.12  # mean intensity below which a label is background
    config.contrast = 0.06  # intensity; difference of means that makes a border
    config.outline = 0.8  # smallest share of the label's border with this contrast
    config.gamma_std = 0.25  # of the log of gamma, of each view
    config.bias_std = 0.2  # log intensity; smooth shading of each view
    config.bias_nodes = 4  # along a side of the shading's grid
    config.views = augment.get_config()  # augmentation of each view, before config.augment
    for section in config.views.task.values():
        section.p = 0.0
    config.views.in_task.affine.update({"p": 1.0, "degrees": (-30.0, 30.0), "translate": (0.0, 0.1)})
    config.views.in_task.affine.scale = (0.8, 1.25)
    config.views.in_task.elastic.p = 1.0
    config.views.in_task.brightness_contrast.update({"p": 1.0, "contrast": (0.6, 1.4)})
    config.views.in_task.noise.variance = (0.0, 0.01)
    return config


def superpixel_episode(key: Array, image: Array, support_size: int, config: ConfigDict) -> tuple[Episode, Array]:
    """Makes an episode without batch axis of image [H, W] in [0, 1], H = W; also returns the number of repaired views.

    query_image [H, W, 1], support_images [S, H, W, 1], …, support_mask [S] ones; float32, labels in {0, 1}. Call
    `configuration.check_fields` first.
    """
    keys = random.split(key, 4)
    levels = smoothed_levels(image)
    regions = superpixels(keys[0], levels, config)
    label = choose_label(keys[1], regions, levels, config).astype(jnp.float32)
    count = support_size + 1
    images = shaded(keys[2], jnp.broadcast_to(image, (count, *image.shape)), config)[..., None]
    labels = jnp.broadcast_to(label, images.shape[:-1])[..., None]
    return augment.augment_episode(keys[3], split_query(images, labels), config.views)


def smoothed_levels(image: Array) -> Array:
    """Image [H, W] in [0, 1] → int32 in [0, LEVELS], smoothed by (1 2 1; 2 4 2; 1 2 1) against noise."""
    # Halved images have values in 64ths of a level; this offset keeps all of them away from the rounding threshold.
    rounded = jnp.floor(image * 255 + 0.503).astype(jnp.int32)
    size = rounded.shape[0]
    padded = jnp.pad(rounded, 1, mode="edge")
    rows = padded[:size] + 2 * padded[1:-1] + padded[2:]
    return rows[:, :size] + 2 * rows[:, 1:-1] + rows[:, 2:]


def superpixels(key: Array, levels: Array, config: ConfigDict) -> Array:
    """Regions [H, W] (int32) of levels [H, W], numbered below (config.cells[1] - 1)²; not every number occurs."""
    size, most = levels.shape[0], config.cells[1] - 1
    keys = random.split(key)
    uniform, per_seed = warp.uniforms(keys[0], count=2), warp.uniforms(keys[1], (most * most,), 2)
    cells = warp.integer(uniform(), config.cells)
    compactness = jnp.round(uniform(config.compactness) * LEVELS).astype(jnp.int32)
    row, column = np.divmod(np.arange(most * most), most)
    y, x = (((place + per_seed((0.2, 0.8))) * (size / cells)).astype(jnp.int32) for place in (row, column))
    seeds = jnp.where((row < cells) & (column < cells), y * size + x, size * size)  # outside: dropped
    down, right = (compactness + jnp.abs(jnp.diff(levels, axis=axis)) for axis in (0, 1))
    return nearest_seeds(seeds, down, right)


def nearest_seeds(seeds: Array, down: Array, right: Array) -> Array:
    """Finds the nearest of seeds [n] (flat positions) to each pixel; steps cost `down` [H-1, W] and `right` [H, W-1].

    int32 [H, W]. Distance and seed are packed as distance · n + seed, so that one minimum updates both.
    """
    height, width, count = right.shape[0], down.shape[1], len(seeds)
    start = jnp.full(height * width, FAR).at[seeds].min(np.arange(count), mode="drop").reshape(height, width)
    down, right = down * count, right * count

    def relax(state):
        code, _ = state
        new = jnp.minimum(code, jnp.pad(code[:-1] + down, ((1, 0), (0, 0)), constant_values=FAR))
        new = jnp.minimum(new, jnp.pad(new[1:] + down, ((0, 1), (0, 0)), constant_values=FAR))
        new = jnp.minimum(new, jnp.pad(new[:, :-1] + right, ((0, 0), (1, 0)), constant_values=FAR))
        new = jnp.minimum(new, jnp.pad(new[:, 1:] + right, ((0, 0), (0, 1)), constant_values=FAR))
        return new, (new != code).any()

    code, _ = lax.while_loop(lambda state: state[1], relax, (start, jnp.asarray(True)))
    return code % count


def choose_label(key: Array, regions: Array, levels: Array, config: ConfigDict) -> Array:
    """Samples the label [H, W] (bool) by the rule in the module's docstring."""
    most = (config.cells[1] - 1) ** 2
    uniform, per_seed = warp.uniforms(random.split(key)[0], count=3), random.uniform(random.split(key)[1], (most,))
    flat = regions.reshape(-1)
    areas = jnp.zeros(most).at[flat].add(1)
    totals = jnp.zeros(most, jnp.int32).at[flat].add(levels.reshape(-1) // 16)
    means = totals / jnp.maximum(areas, 1) / 255
    borders = border_lengths(regions, most)
    steps = jnp.abs(means[:, None] - means[None])

    tolerance = jnp.where(uniform() < config.union, uniform(config.tolerance), -1.0)
    alike = (steps <= tolerance) & (areas > 0)[None]
    touching = (borders > 0).astype(jnp.float32)

    def grow(_, members):  # members[s]: the union whose seed is s
        return members | (alike & (jnp.matmul(members.astype(jnp.float32), touching) > 0))

    single = jnp.eye(most, dtype=bool)
    members = lax.fori_loop(0, warp.integer(uniform(), config.hops), grow, single)

    def total(members, values):  # sum over each union
        return jnp.matmul(members.astype(jnp.float32), values, precision="highest")

    def share(members):
        return total(members, areas) / flat.size

    def fits(members):
        return (share(members) >= config.area[0]) & (share(members) <= config.area[1]) & (areas > 0)

    members = jnp.where(fits(members).any(), members, single)
    intensity = total(members, areas * means) / jnp.maximum(total(members, areas), 1)
    clear = borders * (steps >= config.contrast)
    seen, whole = (jnp.where(members, 0, total(members, lengths)).sum(1) for lengths in (clear, borders))
    outline = seen / jnp.maximum(whole + total(members, frame_lengths(regions, most)), 1)
    good = fits(members) & (intensity >= config.darkest) & (outline >= config.outline)
    score = jnp.where(good, 3 + per_seed, jnp.where(fits(members), 1 + outline, share(members)))
    return members[score.argmax()][regions]


def border_lengths(regions: Array, count: int) -> Array:
    """Counts the pixel edges between regions i ≠ j: float32 [count, count], symmetric."""
    pairs = [(regions[:-1], regions[1:]), (regions[:, :-1], regions[:, 1:])]
    flat = jnp.concatenate([(a * count + b).reshape(-1) for a, b in pairs])
    counts = jnp.zeros(count * count).at[flat].add(1).reshape(count, count)
    return (counts + counts.T) * (1 - jnp.eye(count))


def frame_lengths(regions: Array, count: int) -> Array:
    """Counts the pixels of each region at the image's frame, corners twice: float32 [count]."""
    frame = jnp.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    return jnp.zeros(count).at[frame].add(1)


def shaded(key: Array, images: Array, config: ConfigDict) -> Array:
    """Multiplies images [n, H, W] in [0, 1] by smooth fields, scales them to [0, 1] and applies gamma, each its own."""
    count, size, _ = images.shape
    keys = random.split(key)
    nodes = config.bias_nodes
    field = warp.resize_aligned(config.bias_std * random.normal(keys[0], (count, nodes, nodes)), size)
    gamma = jnp.exp(config.gamma_std * random.normal(keys[1], (count, 1, 1)))
    return warp.minmax(images * jnp.exp(field)) ** gamma
