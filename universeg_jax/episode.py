"""The one data structure that every room shares: an episode."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
OFFICIAL_SIZE = 128  # pixels; Dice is measured there whatever the model's size


class Episode(NamedTuple):
    """One task seen once: a query to segment and the support set that defines the task.

    With a leading batch axis B everywhere, or without it where a function says so. On the host the arrays are
    uint8 (labels and mask 0/1, images 0..255), on the device float32 in [0, 1].
    """

    query_image: Array  # [B, H, W, 1]
    query_label: Array  # [B, H, W, 1]
    support_images: Array  # [B, S, H, W, 1]
    support_labels: Array  # [B, S, H, W, 1]
    support_mask: Array  # [B, S]; 1 for an entry, 0 for padding


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


def resize(x: jax.Array, size: int) -> jax.Array:
    """[..., H, W, 1] → [..., size, size, 1] linearly, with anti-aliasing where it shrinks; the identity at `size`."""
    if x.shape[-3:-1] == (size, size):
        return x
    return jax.image.resize(x, (*x.shape[:-3], size, size, x.shape[-1]), "linear")


def to_device_floats(episode: Episode, size: int) -> Episode:
    """uint8 (0..255, labels 0/1) → float32 in [0, 1] at the model's size; labels cut at 0.5 as in preprocessing."""

    def image(x: jax.Array) -> jax.Array:
        return resize(x.astype(jnp.float32) / 255, size)

    def label(y: jax.Array) -> jax.Array:
        return (resize(y.astype(jnp.float32), size) >= 0.5).astype(jnp.float32)

    return Episode(
        image(episode.query_image),
        label(episode.query_label),
        image(episode.support_images),
        label(episode.support_labels),
        episode.support_mask.astype(jnp.float32),
    )


FLIPS = ((False, False), (False, True), (True, False), (True, True))  # of rows, of columns
