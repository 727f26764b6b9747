"""Simulates corrections in training, so that the network learns to use them.

A corrected query joins its own support, as in prediction (prediction/corrections.py). Its label is known at a few discs
only, most of which lie where the network's own mask is wrong.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from universeg_jax.episode import OWN_SHARE, Episode

Array = jax.Array

MOST = 4  # strokes
RADII = (1.0, 4.5)  # pixels of 128
ANYWHERE = 0.2  # share of the strokes that are about any pixel, wrong or not


def strokes(key: Array, wrong: Array, truth: Array) -> Array:
    """Samples one to MOST strokes, each within one label: bool [H, W], from bool [H, W]."""
    height, width = truth.shape
    keys = jax.random.split(key, 4)
    count = jax.random.randint(keys[0], (), 1, MOST + 1)
    anywhere = jax.random.uniform(keys[1], (MOST,)) < ANYWHERE
    radii = jax.random.uniform(keys[2], (MOST,), minval=RADII[0], maxval=RADII[1]) * (height / 128)
    rows, columns = jnp.mgrid[:height, :width]

    def one(key: Array, anywhere: Array, radius: Array) -> Array:
        chance = jax.random.uniform(key, (height, width), minval=0.5) * jnp.where(wrong | anywhere, 1.0, 0.1)
        at = jnp.argmax(chance)  # of all pixels where none is wrong
        row, column = at // width, at % width
        return ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2) & (truth == truth[row, column])

    drawn = jax.vmap(one)(jax.random.split(keys[3], MOST), anywhere, radii)
    return (drawn & (jnp.arange(MOST) < count)[:, None, None]).any(0)


def with_corrections(
    params: Any, episodes: Episode, keys: Array, share: float, model: nn.Module
) -> tuple[Episode, Array]:
    """Corrects the queries of a random `share` of the episodes [B, ...]; keys [B] decide which, and by what strokes.

    Such a query takes the place of the last example. Also returns which labels of the support are known, float32
    [B, S, H, W, 1]. An episode with no other example stays as it is.
    """

    def corrected(key: Array, episode: Episode) -> tuple[Episode, Array]:
        batch: Any = jax.tree.map(lambda x: x[None], episode)
        logits: Any = model.apply({"params": params}, batch.query_image, *batch[2:])
        truth = jnp.asarray(episode.query_label[..., 0] > 0.5)
        known = strokes(key, (logits[0, ..., 0] >= 0) != truth, truth)[..., None]
        images, labels, mask = (jnp.asarray(x) for x in episode[2:])
        changed = episode._replace(
            support_images=images.at[-1].set(episode.query_image),
            support_labels=labels.at[-1].set(episode.query_label * known),
            support_mask=mask.at[-1].set(jnp.maximum(1.0, OWN_SHARE * mask[:-1].sum())),
        )
        return changed, jnp.ones_like(labels).at[-1].set(known)

    def one(x: tuple[Array, Episode]) -> tuple[Episode, Array]:
        key, episode = x
        which, how = jax.random.split(key)
        chosen = (jax.random.uniform(which) < share) & (episode.support_mask[:-1].sum() > 0)
        return jax.lax.cond(chosen, corrected, lambda _, e: (e, jnp.ones_like(e.support_labels)), how, episode)

    return jax.lax.map(one, (keys, episodes))  # one at a time, so that the others cost nothing
