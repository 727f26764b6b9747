"""An episode, the data structure that every part of the package shares."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
OFFICIAL_SIZE = 128  # pixels; Dice is measured at this size for every model
OWN_SHARE = 0.5  # weight of a corrected query in its own support, relative to all other examples together


class Episode(NamedTuple):
    """A query to segment and the support set that defines the task.

    All arrays have a leading batch axis B, unless a function says otherwise. On the host they are uint8 (images 0..255,
    labels and mask 0 or 1), on the device float32 in [0, 1].
    """

    query_image: Array  # [B, H, W, 1]
    query_label: Array  # [B, H, W, 1]
    support_images: Array  # [B, S, H, W, 1]
    support_labels: Array  # [B, S, H, W, 1]
    support_mask: Array  # [B, S]; 1 for a support entry, 0 for padding


def stack_examples(episode: Episode) -> tuple[Array, Array]:
    """(images, labels) [..., 1 + S, H, W, 1], the query first; NumPy arrays where the episode is on the host."""
    xp = np if isinstance(episode.query_image, np.ndarray) else jnp
    images = xp.concatenate([xp.expand_dims(episode.query_image, -4), episode.support_images], -4)
    return images, xp.concatenate([xp.expand_dims(episode.query_label, -4), episode.support_labels], -4)


def split_query(images: Array, labels: Array, support_mask: Array | None = None) -> Episode:
    """The inverse of `stack_examples`; without `support_mask` every support entry counts."""
    if support_mask is None:
        xp = np if isinstance(labels, np.ndarray) else jnp
        support_mask = xp.ones(labels[..., 1:, 0, 0, 0].shape, labels.dtype)
    query = (..., 0, slice(None), slice(None), slice(None))
    support = (..., slice(1, None), slice(None), slice(None), slice(None))
    return Episode(images[query], labels[query], images[support], labels[support], support_mask)


def resize(x: Array, size: int) -> jax.Array:
    """Resizes [..., H, W, 1] to [..., size, size, 1] linearly, with anti-aliasing when shrinking."""
    if x.shape[-3:-1] == (size, size):
        return jnp.asarray(x)
    return jax.image.resize(x, (*x.shape[:-3], size, size, x.shape[-1]), "linear")


def to_device_floats(episode: Episode, size: int) -> Episode:
    """Converts a uint8 episode to float32 in [0, 1] at the model's size; labels are cut at 0.5, as in preprocessing."""

    def label(y: Array) -> jax.Array:
        return (resize(y.astype(jnp.float32), size) >= 0.5).astype(jnp.float32)

    return Episode(
        image_to_floats(episode.query_image, size),
        label(episode.query_label),
        image_to_floats(episode.support_images, size),
        label(episode.support_labels),
        episode.support_mask.astype(jnp.float32),
    )


def image_to_floats(images: Array, size: int) -> jax.Array:
    """uint8 → float32 in [0, 1] at another size."""
    return resize(images.astype(jnp.float32) / 255, size)


FLIPS = ((False, False), (False, True), (True, False), (True, True))  # whether rows and columns are flipped
