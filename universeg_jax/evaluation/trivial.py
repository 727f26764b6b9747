"""Baselines without parameters: the mean label and the label of the nearest support image."""

import jax
import jax.numpy as jnp
import numpy as np

from universeg_jax.episode import Array, Episode

CELLS = 8  # per side; each cell has a histogram of edge directions
DIRECTIONS = 8  # bins over 180 degrees: opposite gradients share a bin


def mean_mask(params: None, episode: Episode) -> jax.Array:
    """Probabilities [B, H, W, 1]: the mean of the support labels, independent of the query."""
    weights = episode.support_mask / episode.support_mask.sum(1, keepdims=True)
    return jnp.einsum("bs,bshwc->bhwc", weights, episode.support_labels)


def nearest_label(params: None, episode: Episode) -> jax.Array:
    """Probabilities [B, H, W, 1]: the label of the support image nearest to the query in squared pixel difference."""
    return _label_of_nearest(episode, episode.query_image, episode.support_images)


def nearest_features(params: None, episode: Episode) -> jax.Array:
    """Probabilities [B, H, W, 1]: the label of the nearest support image by `edge_features`.

    Brightness, contrast and small shifts change these features little.
    """
    return _label_of_nearest(episode, edge_features(episode.query_image), edge_features(episode.support_images))


def _label_of_nearest(episode: Episode, query: Array, support: Array) -> jax.Array:
    """The label of the support entry [B, S, ...] with the smallest squared distance to the query [B, ...]."""
    distance = jnp.sum((support - query[:, None]) ** 2, range(2, support.ndim))
    nearest = jnp.argmin(jnp.where(episode.support_mask > 0, distance, jnp.inf), axis=1)
    return jnp.take_along_axis(episode.support_labels, jnp.expand_dims(nearest, (1, 2, 3, 4)), axis=1)[:, 0]


def edge_features(images: Array) -> jax.Array:
    """Histograms of gradient directions per cell of images [..., H, W, 1], normalized to length 1: float32 [..., D].

    H and W must be multiples of CELLS. From Dalal and Triggs (CVPR 2005), without their block normalization.
    """
    images = images[..., 0]
    *batch, height, width = images.shape
    down, right = jnp.gradient(images, axis=(-2, -1))
    strength = jnp.hypot(down, right)
    direction = jnp.arctan2(down, right) * (DIRECTIONS / np.pi) % DIRECTIONS

    def count(number: int) -> jax.Array:
        difference = jnp.abs(direction - number)
        share = jnp.maximum(0, 1 - jnp.minimum(difference, DIRECTIONS - difference))
        cells = (strength * share).reshape(*batch, CELLS, height // CELLS, CELLS, width // CELLS)
        return cells.sum((-3, -1)).reshape(*batch, CELLS * CELLS)

    features = jnp.concatenate([count(number) for number in range(DIRECTIONS)], -1)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-6)


METHODS = {"mean_mask": mean_mask, "nearest_label": nearest_label, "nearest_features": nearest_features}
