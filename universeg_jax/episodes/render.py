"""From labels and structures to images: intensities, borders, texture, blur, bias, what is seen (see synthesis.py)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from ml_collections import ConfigDict

from universeg_jax.episodes import warp
from universeg_jax.episodes.structures import CODES, PUBLISHED_SIZE

Array = jax.Array


def most_labels(config: ConfigDict) -> int:
    """The most labels that a map may have."""
    return max(config.labels[1], config.quiet_labels[1]) - 1


def render(key: Array, labels: Array, codes: Array, kinds: Array, quiet: Array, config: ConfigDict) -> Array:
    """Images [n, H, W] in [0, 1] of labels [n, H, W] with structures `codes` [n, H, W] over them."""
    count, size, _ = labels.shape
    scale = size / PUBLISHED_SIZE
    most, nodes = most_labels(config), int(np.ceil(PUBLISHED_SIZE / config.bias_res[0])) + 1
    keys = random.split(key, 11)
    draw, own = warp.uniforms(keys[0], count=16), warp.uniforms(keys[1], (count, 1, 1), 8)
    each, each_own = warp.uniforms(keys[2], (1, most), 1), warp.uniforms(keys[3], (count, most), 2)

    def share(bounds):
        """Of a published strength: all of it in shapes, less under a structure."""
        return jnp.where(quiet, draw(bounds), 1.0)

    bound = each()
    other = jnp.clip(bound + draw(config.interimage_std) * random.normal(keys[9], (1, most)), 0, 1)
    means = 0.5 + (bound + (other - bound) * each_own() - 0.5) * share(config.quiet_contrast)
    low, high = draw(config.std_min), draw(config.std_max)
    stds = (low + (high - low) * each_own()) * share(config.quiet_noise)
    zeroed = (own()[..., 0] < config.background_zero) & (np.arange(most)[None] == 0)
    means, stds = jnp.where(zeroed, 0, means), jnp.where(zeroed, 0, stds)
    steps = structure_contrasts(keys[4], count, kinds, config)
    # Nobody could see a faint structure in strong noise; vessels of a fundus differ by 0.01 from what is around them.
    faint = jnp.where(quiet, jnp.minimum(jnp.abs(steps[:, 1:2]) / config.plain_contrast, 1), 1.0)
    stds = stds * faint

    lookup = jax.vmap(lambda table, index: table[index])
    image = lookup(means, labels) + lookup(steps, codes)
    image = lax.cond(draw() < config.border, lambda x: borders(keys[5], x, config), lambda x: x, image)
    image = lax.cond(
        draw() < config.texture,
        lambda x: x + faint[..., None] * texture(keys[6], labels, codes, config),
        lambda x: x,
        image,
    )
    image = image + lookup(stds, labels) * random.normal(keys[7], labels.shape)
    sigma = own()[:, 0, 0] * draw(config.blur_std) * share(config.quiet_blur)
    image = warp.blur(image, sigma * scale)
    field = own() * draw(config.bias_std) * share(config.quiet_bias) * random.normal(keys[8], (count, nodes, nodes))
    image = image * jnp.exp(warp.separable(warp.spaced_matrix(size, draw(config.bias_res) * scale, nodes), field))
    return warp.minmax(image) ** jnp.exp(config.gamma_std * random.normal(keys[10], (count, 1, 1)))


def structure_contrasts(key: Array, count: int, kinds: Array, config: ConfigDict) -> Array:
    """What each code [n, CODES] adds to the intensity below it; the sign and size belong to the task.

    A distractor of the same kind as the structure has the other sign, or no one could tell them apart.
    """
    keys = random.split(key)
    draw, own = warp.uniforms(keys[0], (1, 4), 2), warp.uniforms(keys[1], (count, 4), 1)
    size = jnp.exp(draw(tuple(np.log(config.contrast))) + own(warp.around(config.contrast_std)))
    step = jnp.where(draw() < 0.5, -1, 1) * size
    outer, inner, below, below_inner = jnp.moveaxis(step, 1, 0)
    below = jnp.where(kinds[0] == kinds[1], -jnp.sign(outer) * jnp.abs(below), below)
    return jnp.stack([jnp.zeros(count), outer, outer + inner, below, below + below_inner], 1)


def borders(key: Array, image: Array, config: ConfigDict) -> Array:
    """image [n, H, W] with borders that fade, or with a rim that shines."""
    draw = warp.uniforms(key, count=2)
    soft = warp.blur(image, draw(config.border_std) * (image.shape[-1] / PUBLISHED_SIZE))
    return image + draw((-1, 1)) * (soft - image)


def texture(key: Array, labels: Array, codes: Array, config: ConfigDict) -> Array:
    """Texture [n, H, W], smooth noise or stripes, of a strength that each label and structure of the task has."""
    count, size, _ = labels.shape
    scale, most = size / PUBLISHED_SIZE, most_labels(config) + CODES
    keys = random.split(key, 4)
    draw, own = warp.uniforms(keys[0], count=4), warp.uniforms(keys[1], (count, 1, 1), 2)
    each = warp.uniforms(keys[2], (most,), 2)
    finest = max(config.texture_cell[0] * scale, 1.0)
    cell, nodes = jnp.maximum(draw(config.texture_cell) * scale, finest), int(np.ceil(size / finest)) + 1
    noise = warp.separable(warp.spaced_matrix(size, cell, nodes), random.normal(keys[3], (count, nodes, nodes)))
    angle = draw((0, np.pi)) + own((-0.35, 0.35))
    y, x = warp.grid(size)[:, None]
    stripes = jnp.sin(
        (jnp.cos(angle) * x + jnp.sin(angle) * y) * (np.pi / jnp.maximum(cell, 1.5)) + own((0, 2 * np.pi))
    )
    strength = draw(config.texture_std) * each() * (each() < 0.5)
    return jnp.where(draw() < 0.5, noise, stripes) * strength[jnp.where(codes > 0, most - CODES + codes, labels)]


def field_of_view(key: Array, count: int, size: int, config: ConfigDict) -> Array:
    """What is seen, [n, H, W] (bool): all, or per task a circle or a sector, which moves a little between subjects."""
    keys = random.split(key)
    draw, own = warp.uniforms(keys[0], count=4), warp.uniforms(keys[1], (count, 1, 1), 3)
    y, x = warp.grid(size)[:, None] / (size - 1) - 0.5
    y, x = y + own((-0.05, 0.05)), x + own((-0.05, 0.05))
    radius = draw(config.view_radius) * own((0.95, 1.05))
    circle = jnp.square(y) + jnp.square(x) < jnp.square(radius)
    # A sector: between two lines that meet above the image, as deep as an arc around that point.
    down = y + 0.55
    sector = (jnp.abs(x) < jnp.tan(draw((0.5, 0.9))) * down) & (jnp.square(x) + jnp.square(down) < 1.05**2)
    return (draw() >= config.view) | jnp.where(draw() < 0.5, sector, circle)
