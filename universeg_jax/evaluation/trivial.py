"""Baselines without parameters: what a support set says before anything is learnt."""

import jax
import jax.numpy as jnp
import numpy as np

from universeg_jax.episode import Episode

CELLS = 8  # a side, in each of which the directions of edges are counted
DIRECTIONS = 8  # of half a turn: an edge and its reverse are one


def mean_mask(params: None, episode: Episode) -> jax.Array:
    """Probabilities [B, H, W, 1]: the mean of the support labels, whatever the query looks like."""
    weights = episode.support_mask / episode.support_mask.sum(1, keepdims=True)
    return jnp.einsum("bs,bshwc->bhwc", weights, episode.support_labels)


def nearest_label(params: None, episode: Episode) -> jax.Array:
    """Probabilities [B, H, W, 1]: the label of the support image nearest to the query in squared pixel difference."""
    return _label_of_nearest(episode, episode.query_image, episode.support_images)


def nearest_features(params: None, episode: Episode) -> jax.Array:
    """The same, nearest in `edge_features`, which brightness, contrast and small shifts change little."""
    return _label_of_nearest(episode, edge_features(episode.query_image), edge_features(episode.support_images))


def _label_of_nearest(episode: Episode, query: jax.Array, support: jax.Array) -> jax.Array:
    """By squared distance of query [B, ...] to support [B, S, ...]."""
    distance = jnp.sum((support - query[:, None]) ** 2, range(2, support.ndim))
    nearest = jnp.argmin(jnp.where(episode.support_mask > 0, distance, jnp.inf), axis=1)
    return jnp.take_along_axis(episode.support_labels, jnp.expand_dims(nearest, (1, 2, 3, 4)), axis=1)[:, 0]


def edge_features(images: jax.Array) -> jax.Array:
    """Histograms of the gradients' directions of images [..., H, W, 1] by cell, of length 1 in all: float32 [..., D].

    H and W multiples of CELLS; after Dalal and Triggs (CVPR 2005), without their blocks.
    """
    images = images[..., 0]
    *batch, height, width = images.shape
    down, right = jnp.gradient(images, axis=(-2, -1))
    strength = jnp.hypot(down, right)
    direction = jnp.arctan2(down, right) * (DIRECTIONS / np.pi) % DIRECTIONS

    def count(number: int) -> jax.Array:
        apart = jnp.abs(direction - number)
        share = jnp.maximum(0, 1 - jnp.minimum(apart, DIRECTIONS - apart))
        cells = (strength * share).reshape(*batch, CELLS, height // CELLS, CELLS, width // CELLS)
        return cells.sum((-3, -1)).reshape(*batch, CELLS * CELLS)

    features = jnp.concatenate([count(number) for number in range(DIRECTIONS)], -1)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-6)


METHODS = {"mean_mask": mean_mask, "nearest_label": nearest_label, "nearest_features": nearest_features}
