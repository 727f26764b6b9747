"""Renders label maps and structures: intensities, borders, texture, blur, bias, field of view (see synthesis.py)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from ml_collections import ConfigDict

from universeg_jax.episodes import warp
from universeg_jax.episodes.structures import CODES, PUBLISHED_SIZE

Array = jax.Array


def most_labels(config: ConfigDict) -> int:
    """The largest number of labels of a map."""
    return max(config.labels[1], config.quiet_labels[1]) - 1


def render(key: Array, labels: Array, codes: Array, kinds: Array, quiet: Array, config: ConfigDict) -> Array:
    """Renders labels [n, H, W], covered by structures `codes` [n, H, W], as images [n, H, W] in [0, 1]."""
    count, size, _ = labels.shape
    scale = size / PUBLISHED_SIZE
    most, nodes = most_labels(config), int(np.ceil(PUBLISHED_SIZE / config.bias_res[0])) + 1
    keys = random.split(key, 11)
    per_task, per_subject = warp.uniforms(keys[0], count=16), warp.uniforms(keys[1], (count, 1, 1), 8)
    per_label, per_subject_label = warp.uniforms(keys[2], (1, most), 1), warp.uniforms(keys[3], (count, most), 2)

    def share(bounds):
        """Share of a published strength: 1 for shapes, less under a structure."""
        return jnp.where(quiet, per_task(bounds), 1.0)

    bound = per_label()
    other = jnp.clip(bound + per_task(config.interimage_std) * random.normal(keys[9], (1, most)), 0, 1)
    means = 0.5 + (bound + (other - bound) * per_subject_label() - 0.5) * share(config.quiet_contrast)
    low, high = per_task(config.std_min), per_task(config.std_max)
    stds = (low + (high - low) * per_subject_label()) * share(config.quiet_noise)
    zeroed = (per_subject()[..., 0] < config.background_zero) & (np.arange(most)[None] == 0)
    means, stds = jnp.where(zeroed, 0, means), jnp.where(zeroed, 0, stds)
    steps = structure_contrasts(keys[4], count, kinds, config)
    # A faint structure would be invisible in strong noise; vessels of a fundus differ by 0.01 from their surroundings.
    faint = jnp.where(quiet, jnp.minimum(jnp.abs(steps[:, 1:2]) / config.plain_contrast, 1), 1.0)
    stds = stds * faint

    lookup = jax.vmap(lambda table, index: table[index])
    image = lookup(means, labels) + lookup(steps, codes)
    image = lax.cond(per_task() < config.border, lambda x: borders(keys[5], x, config), lambda x: x, image)
    image = lax.cond(
        per_task() < config.texture,
        lambda x: x + faint[..., None] * texture(keys[6], labels, codes, config),
        lambda x: x,
        image,
    )
    image = image + lookup(stds, labels) * random.normal(keys[7], labels.shape)
    sigma = per_subject()[:, 0, 0] * per_task(config.blur_std) * share(config.quiet_blur)
    image = warp.blur(image, sigma * scale)
    field = (
        per_subject()
        * per_task(config.bias_std)
        * share(config.quiet_bias)
        * random.normal(keys[8], (count, nodes, nodes))
    )
    image = image * jnp.exp(warp.separable(warp.spaced_matrix(size, per_task(config.bias_res) * scale, nodes), field))
    return warp.minmax(image) ** jnp.exp(config.gamma_std * random.normal(keys[10], (count, 1, 1)))


def structure_contrasts(key: Array, count: int, kinds: Array, config: ConfigDict) -> Array:
    """Samples the intensity that each code [n, CODES] adds to the one below it; sign and size belong to the task.

    A distractor of the same kind as the structure has the opposite sign, which tells them apart.
    """
    keys = random.split(key)
    per_task, per_subject = warp.uniforms(keys[0], (1, 4), 2), warp.uniforms(keys[1], (count, 4), 1)
    size = jnp.exp(per_task(tuple(np.log(config.contrast))) + per_subject(warp.centred_bounds(config.contrast_std)))
    step = jnp.where(per_task() < 0.5, -1, 1) * size
    outer, inner, below, below_inner = jnp.moveaxis(step, 1, 0)
    below = jnp.where(kinds[0] == kinds[1], -jnp.sign(outer) * jnp.abs(below), below)
    return jnp.stack([jnp.zeros(count), outer, outer + inner, below, below + below_inner], 1)


def borders(key: Array, image: Array, config: ConfigDict) -> Array:
    """Blurs the borders of image [n, H, W], or sharpens them to a bright rim."""
    per_task = warp.uniforms(key, count=2)
    soft = warp.blur(image, per_task(config.border_std) * (image.shape[-1] / PUBLISHED_SIZE))
    return image + per_task((-1, 1)) * (soft - image)


def texture(key: Array, labels: Array, codes: Array, config: ConfigDict) -> Array:
    """Samples texture [n, H, W], smooth noise or stripes; each label and structure of a task has its own strength."""
    count, size, _ = labels.shape
    scale, most = size / PUBLISHED_SIZE, most_labels(config) + CODES
    keys = random.split(key, 4)
    per_task, per_subject = warp.uniforms(keys[0], count=4), warp.uniforms(keys[1], (count, 1, 1), 2)
    per_label = warp.uniforms(keys[2], (most,), 2)
    finest = max(config.texture_cell[0] * scale, 1.0)
    cell, nodes = jnp.maximum(per_task(config.texture_cell) * scale, finest), int(np.ceil(size / finest)) + 1
    noise = warp.separable(warp.spaced_matrix(size, cell, nodes), random.normal(keys[3], (count, nodes, nodes)))
    angle = per_task((0, np.pi)) + per_subject((-0.35, 0.35))
    y, x = warp.grid(size)[:, None]
    stripes = jnp.sin(
        (jnp.cos(angle) * x + jnp.sin(angle) * y) * (np.pi / jnp.maximum(cell, 1.5)) + per_subject((0, 2 * np.pi))
    )
    strength = per_task(config.texture_std) * per_label() * (per_label() < 0.5)
    return jnp.where(per_task() < 0.5, noise, stripes) * strength[jnp.where(codes > 0, most - CODES + codes, labels)]


def field_of_view(key: Array, count: int, size: int, config: ConfigDict) -> Array:
    """Samples a field of view [n, H, W] (bool) per task: all, a circle or a sector, slightly moved in each subject."""
    keys = random.split(key)
    per_task, per_subject = warp.uniforms(keys[0], count=4), warp.uniforms(keys[1], (count, 1, 1), 3)
    y, x = warp.grid(size)[:, None] / (size - 1) - 0.5
    y, x = y + per_subject((-0.05, 0.05)), x + per_subject((-0.05, 0.05))
    radius = per_task(config.view_radius) * per_subject((0.95, 1.05))
    circle = jnp.square(y) + jnp.square(x) < jnp.square(radius)
    # A sector lies between two lines that meet above the image and is bounded by an arc around that point.
    down = y + 0.55
    sector = (jnp.abs(x) < jnp.tan(per_task((0.5, 0.9))) * down) & (jnp.square(x) + jnp.square(down) < 1.05**2)
    return (per_task() >= config.view) | jnp.where(per_task() < 0.5, sector, circle)
