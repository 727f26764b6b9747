"""Lesions laid into real images: tasks of a thing that lies elsewhere in every subject.

Organs have their place, and a model that has seen organs alone looks there. A polyp, a tumour or a scar has a look and
no place. `lesion_episode(key, episode, config)` is a pure function of a threefry2x32 key and an episode of real images:
into each of its images it lays one lesion or a few, and they are the label in the place of what was labelled.

The lesions of a task share their look: size, raggedness, how sharp their border is, how bright they are against what is
beneath, texture, how much of what is beneath can still be seen, and the shading of a bump that is lit from one side.
They lie anywhere but in dark background; those of some tasks lie in what is labelled in the real images, as a tumour
lies in its organ. An outline is a turned ellipse with waves: radius · (1 + Σ_k a_k cos(k θ + φ_k)).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from ml_collections import ConfigDict

from universeg_jax import warp
from universeg_jax.episode import Episode
from universeg_jax.errors import UserError

Array = jax.Array

WAVES = np.arange(2, 8)  # of an outline
TEXTURE_NODES = (8, 16, 32)  # along a side of the texture's grids
SHARES = ("inside", "darkest", "seen", "bump", "ragged", "radius")
RANGES = ("radius", "elongation", "ragged", "edge", "contrast", "texture", "seen", "bump")


def get_config() -> ConfigDict:
    """Nothing of it is published with UniverSeg. Lengths are shares of the side, intensities of an image in [0, 1]."""
    config = ConfigDict()
    config.count = (1, 4)  # lesions of an image, the upper bound excluded
    config.radius = (0.03, 0.25)  # mean of a task; log-uniform
    config.radius_std = 0.3  # of its log, between lesions
    config.elongation = (1.0, 2.0)  # longer over shorter radius, at most, of a task
    config.ragged = (0.0, 0.4)  # of the radius, how far its waves go
    config.edge = (0.002, 0.03)  # width of the border over which it fades in
    config.contrast = (0.03, 0.5)  # of the lesions over what is beneath, up or down; log-uniform
    config.contrast_std = 0.25  # of its log, between lesions
    config.texture = (0.0, 0.1)  # intensity; standard deviation of the noise in it
    config.seen = (0.2, 1.0)  # share of what is beneath that is seen through it
    config.bump = (0.0, 0.5)  # of the intensity, from the lit side to the middle
    config.inside = 0.3  # probability that the lesions of a task lie in the label of the real images
    config.darkest = 0.08  # intensity under which a pixel is background, where no lesion has its middle
    return config


def validate(config: ConfigDict) -> None:
    """Raises UserError (a ValueError) that names the field if `config` cannot be drawn from."""

    def check(good: bool, field: str, why: str) -> None:
        if not good:
            raise UserError(f"config.lesion.{field} {why}, got {config[field]}")

    for field in RANGES:
        bounds = config[field]
        check(len(bounds) == 2 and 0 <= bounds[0] <= bounds[1] < np.inf, field, "must be 0 ≤ lowest ≤ highest")
    for field in SHARES:
        check(0 <= np.max(config[field]) <= 1, field, "must lie in [0, 1]")
    for field in ("radius", "edge", "contrast"):
        check(config[field][0] > 0, field, "must be above 0")
    check(config.elongation[0] >= 1, "elongation", "must be at least 1")
    for field in ("radius_std", "contrast_std"):
        check(0 <= config[field] < np.inf, field, "must be at least 0")
    good = len(config.count) == 2 and all(isinstance(bound, int) for bound in config.count)
    check(
        good and 1 <= config.count[0] < config.count[1],
        "count",
        "must be whole numbers, 1 ≤ lowest < highest (which is excluded)",
    )


def lesion_episode(key: Array, episode: Episode, config: ConfigDict) -> Episode:
    """The episode (float32, without batch axis) with lesions in its images [H, W, 1], H = W, and their labels.

    Labels are in {0, 1} and never empty. Call `validate(config)` first.
    """
    images = jnp.concatenate([episode.query_image[None], episode.support_images])[..., 0]
    labels = jnp.concatenate([episode.query_label[None], episode.support_labels])[..., 0]
    images, labels = (x[..., None] for x in laid(key, images, labels > 0, config))
    return Episode(images[0], labels[0], images[1:], labels[1:], episode.support_mask)


def laid(key: Array, images: Array, organs: Array, config: ConfigDict) -> tuple[Array, Array]:
    """images [n, H, W] with lesions, and where they are (float32); `organs` (bool) is what is labelled in them."""
    count, size, _ = images.shape
    most = config.count[1] - 1
    keys = random.split(key, 5)
    draw, own = warp.uniforms(keys[0], count=12), warp.uniforms(keys[1], (count, most), 8)
    waves = random.uniform(keys[2], (2, count, most, len(WAVES)))
    radius = log_uniform(draw(), config.radius) * size
    elongation, ragged, width = draw(config.elongation), draw(config.ragged), draw(config.edge) * size
    places = lesion_places(keys[3], images, organs & (draw() < config.inside), most, config)
    light = draw((0, 2 * np.pi))
    drawn = warp.whole(own()[:, :1], config.count)  # of each image
    radii = radius * jnp.exp(own(warp.around(config.radius_std)))
    stretch = jnp.sqrt(1 + (elongation - 1) * own((0.0, 1.0)))
    angle = own((0, np.pi))
    strength = jnp.exp(own(warp.around(config.contrast_std)))
    y, x = warp.grid(size)
    k = WAVES[None, :, None, None]

    def add(n: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """(how much of a lesion there is in [0, 1], how lit it is, where it is), with the n-th lesion of each image."""

        def at(values: Array) -> Array:
            return lax.dynamic_index_in_dim(values, n, 1, keepdims=False)[:, None, None]

        dy, dx = y[None] - at(places[..., 0]), x[None] - at(places[..., 1])
        cos, sin = jnp.cos(at(angle)), jnp.sin(at(angle))
        u, v = (cos * dx + sin * dy) / at(stretch), (cos * dy - sin * dx) * at(stretch)
        theta, away = jnp.arctan2(v, u), jnp.sqrt(jnp.square(u) + jnp.square(v))
        each = lax.dynamic_index_in_dim(waves, n, 2, keepdims=False)[..., None, None]  # [2, images, WAVES, 1, 1]
        turns = k * theta[:, None] + 2 * np.pi * each[1]
        outline = at(radii) * (1 + ragged * (each[0] / k * jnp.cos(turns)).sum(1))
        outline = jnp.maximum(outline, 1.0)  # a pixel is the least that is seen
        there = at(jnp.arange(most)[None] < drawn)
        soft = jnp.where(there, jax.nn.sigmoid((outline - away) * (4 / width)), 0)
        lit = jnp.where(away < outline, (jnp.cos(light) * dx + jnp.sin(light) * dy) / outline, 0)
        amount, shade, label = state
        more = soft > amount
        return (
            jnp.where(more, soft * at(strength), amount),
            jnp.where(more, lit, shade),
            label | (there & (away < outline)),
        )

    zeros = jnp.zeros_like(images)
    amount, shade, label = lax.fori_loop(0, most, add, (zeros, zeros, zeros > 0))
    # Bright lesions are clipped on a bright ground and dark ones on a dark one: which they are depends on it.
    ground = (images * label).sum() / jnp.maximum(label.sum(), 1)
    sign = jnp.where(draw() < 1 - ground, 1.0, -1.0)
    contrast = sign * log_uniform(draw(), config.contrast)
    std, seen, bump = draw(config.texture), draw(config.seen), draw(config.bump)
    noise = random.normal(keys[4], (count, sum(n * n for n in TEXTURE_NODES)))
    texture = warp.multiscale_noise(noise, jnp.full((count, len(TEXTURE_NODES)), std / 2), TEXTURE_NODES, size)
    beneath = (images * label).sum((1, 2), keepdims=True) / jnp.maximum(label.sum((1, 2), keepdims=True), 1)
    look = (seen * images + (1 - seen) * beneath + texture) * (1 + bump * shade)
    covered = jnp.minimum(amount, 1)
    found = images + covered * (look - images) + amount * contrast
    return jnp.clip(found, 0, 1), label.astype(jnp.float32)


def lesion_places(key: Array, images: Array, organs: Array, count: int, config: ConfigDict) -> Array:
    """Row and column [n, count, 2] (int32) of the middle of each lesion.

    It is one of the pixels of `organs` [n, H, W] where there are any, else of those above `darkest`, else any.
    """
    bright = images > config.darkest
    allowed = jnp.where(organs.any((1, 2), keepdims=True), organs, bright)
    allowed = jnp.where(allowed.any((1, 2), keepdims=True), allowed, True)
    order = jnp.cumsum(allowed.reshape((len(images), -1)), axis=1, dtype=jnp.int32)
    chosen = random.uniform(key, (len(images), count))
    rank = jnp.floor(chosen * order[:, -1:]).astype(jnp.int32)  # whole numbers: the same on every device
    flat = jax.vmap(lambda a, v: jnp.searchsorted(a, v, side="right"))(order, rank)
    return jnp.stack(jnp.divmod(flat, images.shape[2]), -1)


def log_uniform(uniform: Array, bounds: tuple[float, float]) -> Array:
    """Between the bounds, its logarithm uniform."""
    low, high = np.log(bounds)
    return jnp.exp(low + (high - low) * uniform)
