"""Makes and augments training episodes on the device: real, synthetic, superpixel and painted ones."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from universeg_jax.episode import Episode, split_query, stack_examples, to_device_floats
from universeg_jax.episodes import augment, painting, superpixel, synthesis, warp
from universeg_jax.episodes.sampler import KINDS, Batch

Array = jax.Array


def device_episode(index: Array, kind: Array, raw: Episode, config: ConfigDict) -> tuple[Episode, Array]:
    """Converts a real uint8 episode to float32 at the model's size, or makes one of another kind; then augments it.

    A pure function of (seed, index). Also returns how many labels augmentation repaired, int32 [].
    """
    plain, repaired = plain_episode(index, kind, raw, config)
    episode, more = augment.augment_episode(episode_keys(index, config)[1], plain, config.augment)
    return episode, repaired + more


def episode_keys(index: Array, config: ConfigDict) -> tuple[Array, Array]:
    """The two keys of an episode: for making and for augmenting it."""
    make, change = jax.random.split(jax.random.fold_in(jax.random.key(config.seed, impl="threefry2x32"), index))
    return make, change


def plain_episode(index: Array, kind: Array, raw: Episode, config: ConfigDict) -> tuple[Episode, Array]:
    """`device_episode` before augmentation, and the number of labels repaired in the views of superpixels."""
    key, support_size = episode_keys(index, config)[0], raw.support_images.shape[0]

    def real() -> tuple[Episode, Array]:
        return to_device_floats(raw, config.image_size), jnp.int32(0)

    def synthetic() -> tuple[Episode, Array]:
        episode = synthesis.synthetic_episode(key, config.image_size, support_size, config.synthesis)
        return episode._replace(support_mask=raw.support_mask.astype(jnp.float32)), jnp.int32(0)

    def superpixels() -> tuple[Episode, Array]:
        image = jnp.asarray(to_device_floats(raw, config.image_size).query_image)[..., 0]
        episode, repaired = superpixel.superpixel_episode(key, image, support_size, config.superpixel)
        return episode._replace(support_mask=raw.support_mask.astype(jnp.float32)), repaired

    def painted() -> tuple[Episode, Array]:
        codes = stack_examples(raw)[1]
        marked = raw._replace(query_label=raw.query_label == 1, support_labels=raw.support_labels == 1)
        images, labels = stack_examples(to_device_floats(marked, config.image_size))
        codes = jax.image.resize(codes, images.shape, "nearest").astype(jnp.int32)
        codes = jnp.where(labels > 0, 1, jnp.where(codes == 1, 0, codes))  # paint ends where the resized label does
        images = painting.paint(key, jnp.asarray(images)[..., 0], codes[..., 0], config.painting)[..., None]
        return split_query(images, labels, raw.support_mask.astype(jnp.float32)), jnp.int32(0)

    # A kind of weight 0 is not compiled.
    used = [name for name in KINDS if config.kinds[name]]
    makers = {"real": real, "synthetic": synthetic, "superpixel": superpixels, "painted": painted}
    if len(used) == 1:
        return makers[used[0]]()
    place = np.array([used.index(name) if name in used else 0 for name in KINDS], np.int32)
    return jax.lax.switch(jnp.asarray(place)[kind], [makers[name] for name in used])


def device_episodes(batch: Batch, config: ConfigDict) -> tuple[Episode, Array]:
    """`device_episode` of each episode of a batch.

    One at a time on a CPU, where kinds that do not occur then cost nothing; all at once elsewhere.
    """

    def one(index: Array, kind: Array, raw: Episode) -> tuple[Episode, Array]:
        return device_episode(index, kind, raw, config)

    return warp.map_each(one, batch.index, batch.kind, batch.episode)


def support_size_of(step: int, config: ConfigDict) -> tuple[int, int]:
    """(support size, array length) at a step: a pure function of (seed, step), the same on every host.

    The length is the next power of two, so that a run compiles few sizes; the surplus is masked.
    """
    largest = config.support_size
    if config.support_schedule == "fixed":
        return largest, largest
    u = np.random.default_rng([config.seed, step, 1]).random()
    size = 1 + int(u * largest) if config.support_schedule == "uniform" else int((largest + 1) ** u)
    return size, min(1 << (size - 1).bit_length(), largest)


def trim_support(batch: Batch, size: int, slots: int) -> Batch:
    """Keeps the first `size` support entries in arrays of `slots`."""
    episode = batch.episode
    mask = episode.support_mask[:, :slots] * (np.arange(slots) < size).astype(episode.support_mask.dtype)
    images, labels = episode.support_images[:, :slots], episode.support_labels[:, :slots]
    trimmed = episode._replace(support_images=images, support_labels=labels, support_mask=mask)
    return batch._replace(episode=trimmed)
