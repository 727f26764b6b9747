"""Teaches the network to use corrections: queries that are examples of themselves, known where a first mask was wrong.

As in prediction (prediction/corrections.py) the query joins its support with OWN_SHARE of the weight of the others.
Strokes are simulated: discs about random pixels, most of them wrong in the mask that the network itself predicts.
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
    """Bool [H, W]: the pixels of one to MOST strokes, each of one label, from bool [H, W]."""
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
    params: Any, episodes: Episode, keys: Array, count: int, model: nn.Module
) -> tuple[Episode, Array]:
    """In the first `count` of the episodes [B, ...] the query takes the place of the last example, known at strokes.

    Also returns which labels of the support are known, float32 [B, S, H, W, 1]. `keys` [B].
    """
    some = jax.tree.map(lambda x: x[:count], episodes)
    logits: Any = model.apply({"params": jax.lax.stop_gradient(params)}, some.query_image, *some[2:])
    truth = some.query_label[..., 0] > 0.5
    drawn = jax.vmap(strokes)(keys[:count], (logits[..., 0] >= 0) != truth, truth)[..., None]
    weight = jnp.maximum(1.0, OWN_SHARE * some.support_mask[:, :-1].sum(1))
    images, labels, mask = (jnp.asarray(x) for x in episodes[2:])
    corrected = episodes._replace(
        support_images=images.at[:count, -1].set(some.query_image),
        support_labels=labels.at[:count, -1].set(some.query_label * drawn),
        support_mask=mask.at[:count, -1].set(weight),
    )
    return corrected, jnp.ones_like(labels).at[:count, -1].set(drawn)
