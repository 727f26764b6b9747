"""Two baselines without parameters: what a support set says before anything is learnt."""

import jax
import jax.numpy as jnp

from universeg_jax.episode import Episode


def mean_mask(params: None, episode: Episode) -> jax.Array:
    """Probabilities [B, H, W, 1]: the mean of the support labels, whatever the query looks like."""
    weights = episode.support_mask / episode.support_mask.sum(1, keepdims=True)
    return jnp.einsum("bs,bshwc->bhwc", weights, episode.support_labels)


def nearest_label(params: None, episode: Episode) -> jax.Array:
    """Probabilities [B, H, W, 1]: the label of the support image nearest to the query in squared pixel difference."""
    distance = jnp.sum((episode.support_images - episode.query_image[:, None]) ** 2, (2, 3, 4))
    nearest = jnp.argmin(jnp.where(episode.support_mask > 0, distance, jnp.inf), axis=1)
    return jnp.take_along_axis(episode.support_labels, jnp.expand_dims(nearest, (1, 2, 3, 4)), axis=1)[:, 0]
