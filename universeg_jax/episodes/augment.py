"""Task and in-task augmentation of an episode, on the device (UniverSeg section 4 and its appendix on augmentation).

`augment_episode(key, episode, config)` is a pure function of a threefry2x32 key. Task augmentation is sampled once and
changes all 1 + S images alike, which makes a new task. In-task augmentation is sampled for every image, the query
included, which makes the images of a task differ more.

Order; each operation happens with its probability p:
1. Geometry, both levels in one displacement and one gather. An output pixel p reads from in-task(task(p)), where
   task(p) = affine or flip of p + elastic and in-task(q) = affine of q + elastic; both elastic fields are functions of
   the output pixel. Images are interpolated bilinearly. Labels are interpolated linearly and thresholded at 0.5, or
   take the nearest pixel (`config.label_interpolation`). Dice against labels rendered after the same geometry at four
   times the resolution, linear and nearest, at 128 pixels: 0.918 and 0.893 for vessels, 0.967 and 0.958 for small
   blobs, 0.991 and 0.988 for large ones.
2. Repair: an image whose label had foreground and background, and now lacks one of them, keeps its own geometry.
3. Label: flip (1 - y), then Sobel edge. If the edge leaves any label without foreground or background that had both,
   the whole task keeps its labels.
4. Intensities in-task, then those of the task, each in the order brightness and contrast, blur, noise, sharpness; then
   the task's flip (1 - x). Values are clipped to [0, 1] after each.

Pixels outside the image are 0, in image and label, as most scanners and the zero-padding of non-square images leave
them: the border of a rotated image looks like a border that exists. Reflection would repeat organs.

Lengths in pixels are published for 128 pixels and scaled with the size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from ml_collections import ConfigDict

from universeg_jax.episode import Episode, split_query, stack_examples
from universeg_jax.episodes import warp

Array = jax.Array

PUBLISHED_SIZE = 128  # of lengths in pixels
TASK_ONLY = ("flip_intensities", "flip_labels", "flip_horizontal", "flip_vertical", "edge")


def get_config() -> ConfigDict:
    """The two published tables. Pixels (px) are of 128, p is a probability."""
    config = ConfigDict()
    config.label_interpolation = "linear"  # (then 0.5) | "nearest"
    config.in_task = ConfigDict(
        {
            "affine": {
                "p": 0.5,
                "degrees": (0.0, 360.0),  # a later paper of the group: p .25, (-25, 25), (0, .1), (.9, 1.1)
                "translate": (0.0, 0.2),  # of the size, either way, per axis
                "scale": (0.8, 1.1),  # above 1 enlarges
            },
            "elastic": {
                "p": 0.8,
                "alpha": (1.0, 2.5),  # of coordinates in [-1, 1]; see warp.elastic for the displacement in px
                "sigma": (7.0, 8.0),  # px
            },
            "brightness_contrast": {
                "p": 0.25,
                "brightness": (-0.1, 0.1),  # added
                "contrast": (0.5, 1.5),  # factor
            },
            "blur": {
                "p": 0.25,
                "kernel": 5,  # px a side, odd; σ is cut there
                "sigma": (0.1, 1.1),  # px
            },
            "noise": {
                "p": 0.25,
                "mean": (0.0, 0.05),  # intensity
                "variance": (0.0, 0.05),  # intensity squared
            },
            "sharpness": {
                "p": 0.25,
                "factor": (0.0, 5.0),  # 0 smooths, 1 changes nothing; published as 5, the bound
            },
        }
    )
    config.task = config.in_task.copy_and_resolve_references()
    config.task.elastic.update({"p": 0.25, "alpha": (1.0, 2.0), "sigma": (6.0, 8.0)})
    config.task.brightness_contrast.update({"p": 0.5, "contrast": (0.8, 1.2)})
    config.task.blur.p = 0.5
    config.task.noise = ConfigDict(
        {
            "p": 0.5,
            "mean": (0.0, 0.05),  # intensity
            "std": (0.0, 0.05),  # intensity
        }
    )
    config.task.sharpness.p = 0.5
    for name in TASK_ONLY:
        config.task[name] = ConfigDict({"p": 0.5})
    return config


def augment_episode(key: Array, episode: Episode, config: ConfigDict) -> tuple[Episode, Array]:
    """Augments one episode without batch axis; also returns how many of its 1 + S images were repaired (int32).

    query_image [H, W, 1], support_images [S, H, W, 1], …, H = W; images uint8 or in [0, 1], labels 0 or 1. Returns
    float32 (uint8 images divided by 255), or the floating dtype of the input. support_mask does not change. With all
    probabilities 0 no value changes.
    """
    dtype = episode.query_image.dtype if jnp.issubdtype(episode.query_image.dtype, jnp.floating) else jnp.float32
    images, labels = (jnp.asarray(x)[..., 0] for x in stack_examples(episode))
    labels = labels.astype(jnp.float32)
    images = images.astype(jnp.float32) / (1 if jnp.issubdtype(images.dtype, jnp.floating) else 255)
    keys = random.split(key, 5)

    images, labels, repaired = geometry(keys[0], images, labels, config)
    labels, unedged = label_changes(keys[1], labels, config.task)
    own = random.split(keys[2], len(images))
    images = warp.map_each(lambda k, image: intensities(k, image[None], config.in_task)[0], own, images)
    images = intensities(keys[3], images, config.task)
    if config.task.flip_intensities.p:
        images = jnp.where(random.uniform(keys[4]) < config.task.flip_intensities.p, 1 - images, images)

    images, labels = images[..., None].astype(dtype), labels[..., None].astype(dtype)
    return split_query(images, labels, episode.support_mask), repaired + unedged


def geometry(key: Array, images: Array, labels: Array, config: ConfigDict) -> tuple[Array, Array, Array]:
    """Applies both levels of geometry to images and labels [n, H, W]; also returns the number of repaired images."""
    count, size, _ = images.shape
    ops = [config[level][op].p for level in ("task", "in_task") for op in ("affine", "elastic")]
    if not any((*ops, config.task.flip_horizontal.p, config.task.flip_vertical.p)):
        return images, labels, jnp.int32(0)
    keys = random.split(key, 4)  # the last two are unused; episodes of earlier versions keep their bits
    center = (size - 1) / 2
    at = moved(displacements(keys[0], config.task, size), warp.grid(size) - center)
    in_task = jax.vmap(lambda k: displacements(k, config.in_task, size))(random.split(keys[1], count))
    source = warp.map_each(lambda *displacement: moved(displacement, at) + center, *in_task)
    nearest = config.label_interpolation == "nearest"
    sample = jax.vmap(functools.partial(warp.sample_image_and_label, nearest=nearest))
    new_images, new_labels = sample(images, labels, source)
    bad = proper(labels) & ~proper(new_labels)
    repaired = bad[:, None, None]
    return jnp.where(repaired, images, new_images), jnp.where(repaired, labels, new_labels), bad.sum(dtype=jnp.int32)


def proper(labels: Array) -> Array:
    """Tells which of labels [n, H, W] have foreground and background: bool [n]."""
    return (labels.min((1, 2)) < 0.5) & (labels.max((1, 2)) > 0.5)


def moved(displacement: tuple[Array, ...], at: Array | np.ndarray) -> Array:
    """Maps coordinates `at` [2, H, W] about the centre to those they read from, by a result of `displacements`.

    Multiply-adds instead of a matrix product, because a GPU's matrix units would round coordinates.
    """
    matrix, offset, kernel, coefficients = displacement
    turned = matrix[:, 0, None, None] * at[0][None] + matrix[:, 1, None, None] * at[1][None]
    return turned + offset[:, None, None] + warp.separable(kernel, coefficients)


def displacements(key: Array, section: ConfigDict, size: int) -> tuple[Array, ...]:
    """Samples the geometry of a level about the centre: matrix [2, 2], offset [2] and the factors of `warp.elastic`.

    They map output to input coordinates: a scale of 1.1 reads from 1/1.1 of the distance.
    """
    keys = random.split(key)
    uniform = warp.uniforms(keys[0], count=16)
    matrix, offset, elastic = jnp.eye(2), jnp.zeros(2), (jnp.zeros((size, 1)), jnp.zeros((2, 1, 1)))
    if section.affine.p:
        on = uniform() < section.affine.p
        angle = uniform(section.affine.degrees) * (np.pi / 180)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        rotation = jnp.stack([jnp.stack([cos, sin]), jnp.stack([-sin, cos])]) / uniform(section.affine.scale)
        shift = [uniform(section.affine.translate) * jnp.where(uniform() < 0.5, -size, size) for _ in range(2)]
        matrix = jnp.where(on, rotation, matrix)
        offset = jnp.where(on, jnp.stack(shift), offset)
    for axis, flip in enumerate(("flip_vertical", "flip_horizontal")):
        if flip in section and section[flip].p:
            flipped = jnp.where(uniform() < section[flip].p, -1.0, 1.0)
            matrix = matrix * jnp.where(np.arange(2) == axis, flipped, 1.0)[None]
    if section.elastic.p:
        alpha = jnp.where(uniform() < section.elastic.p, uniform(section.elastic.alpha), 0.0)
        elastic = warp.elastic(keys[1], size, alpha, uniform(section.elastic.sigma), section.elastic.sigma)
    return matrix, offset, *elastic


def label_changes(key: Array, labels: Array, task: ConfigDict) -> tuple[Array, Array]:
    """Flips labels [n, H, W] and replaces them by their edges; also returns how many labels the edge would spoil."""
    keys = random.split(key)
    spoilt = jnp.int32(0)
    if task.flip_labels.p:
        labels = jnp.where(random.uniform(keys[0]) < task.flip_labels.p, 1 - labels, labels)
    if task.edge.p:
        edge = sobel_edge(labels)
        chosen = random.uniform(keys[1]) < task.edge.p
        spoilt = jnp.where(chosen, (proper(labels) & ~proper(edge)).sum(dtype=jnp.int32), 0)
        labels = jnp.where(chosen & (spoilt == 0), edge, labels)
    return labels, spoilt


def sobel_edge(labels: Array) -> Array:
    """Marks the pixels whose Sobel gradient of labels [n, H, W] is not 0; the label is extended beyond the border."""
    size = labels.shape[-1]
    padded = jnp.pad(labels, ((0, 0), (1, 1), (1, 1)), mode="edge")

    def smooth(x, axis):
        a, b, c = (lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(3))
        return a + 2 * b + c

    def difference(x, axis):
        return lax.slice_in_dim(x, 2, 2 + size, axis=axis) - lax.slice_in_dim(x, 0, size, axis=axis)

    vertical, horizontal = difference(smooth(padded, 2), 1), difference(smooth(padded, 1), 2)
    return ((vertical != 0) | (horizontal != 0)).astype(labels.dtype)


def intensities(key: Array, images: Array, section: ConfigDict) -> Array:
    """Applies the intensity operations of a level, sampled once, to images [n, H, W].

    Noise has one mean and strength for all images and its own pixels in each.
    """
    size = images.shape[-1]
    keys = random.split(key)
    uniform = warp.uniforms(keys[0], count=16)

    def when(op, change, images):
        return lax.cond(uniform() < section[op].p, lambda x: jnp.clip(change(x), 0, 1), lambda x: x, images)

    if section.brightness_contrast.p:
        brightness = uniform(section.brightness_contrast.brightness)
        contrast = uniform(section.brightness_contrast.contrast)
        images = when("brightness_contrast", lambda x: x * contrast + brightness, images)
    if section.blur.p:
        sigma = uniform(section.blur.sigma) * (size / PUBLISHED_SIZE)
        radius = int(np.ceil(section.blur.kernel // 2 * size / PUBLISHED_SIZE))
        images = when("blur", lambda x: warp.blur(x, sigma, radius), images)
    if section.noise.p:
        mean = uniform(section.noise.mean)
        std = uniform(section.noise.std) if "std" in section.noise else jnp.sqrt(uniform(section.noise.variance))
        images = when("noise", lambda x: x + mean + std * random.normal(keys[1], x.shape), images)
    if section.sharpness.p:
        factor = uniform(section.sharpness.factor)
        images = when("sharpness", lambda x: smoothed(x) + factor * (x - smoothed(x)), images)
    return images


def smoothed(x: Array) -> Array:
    """Filters x [n, H, W] by (1 1 1; 1 5 1; 1 1 1) / 13 with a repeated border: the result of sharpness 0."""
    size = x.shape[-1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :size] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :size] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * x) / 13
