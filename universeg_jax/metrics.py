"""Segmentation metrics. On the device they travel as (sum, count) and are divided once, on the host."""

import jax
import jax.numpy as jnp

Array = jax.Array


def dice_score(prediction: Array, truth: Array) -> Array:
    """2|P∩T| / (|P| + |T|) of binary masks [..., H, W], float32 [...]; 1 where both are empty.

    Official scores leave episodes with empty truth out (see `evaluation`): there the value only says whether the
    prediction was empty too.
    """
    p, t = prediction.astype(jnp.float32), truth.astype(jnp.float32)
    size = jnp.sum(p, (-2, -1)) + jnp.sum(t, (-2, -1))
    return jnp.where(size > 0, 2 * jnp.sum(p * t, (-2, -1)) / jnp.maximum(size, 1), 1.0)


def sensitivity(prediction: Array, truth: Array) -> Array:
    """|P∩T| / |T|, the share of the truth that was found, float32 [...]; where T is empty 1 if P is too, else 0."""
    return _share(truth, prediction)


def precision(prediction: Array, truth: Array) -> Array:
    """|P∩T| / |P|, the share of the prediction that is true, float32 [...]; where P is empty 1 if T is too, else 0."""
    return _share(prediction, truth)


def _share(whole: Array, other: Array) -> Array:
    w, o = whole.astype(jnp.float32), other.astype(jnp.float32)
    size, empty = jnp.sum(w, (-2, -1)), jnp.sum(o, (-2, -1)) == 0
    return jnp.where(size > 0, jnp.sum(w * o, (-2, -1)) / jnp.maximum(size, 1), empty.astype(jnp.float32))


def false_positive_area(prediction: Array, truth: Array) -> Array:
    """Share of the image wrongly marked, float32 [...] in [0, 1]; the figure for episodes with empty truth."""
    return jnp.mean(prediction.astype(jnp.float32) * (1 - truth.astype(jnp.float32)), (-2, -1))


def masked_sum(values: Array, mask: Array) -> tuple[Array, Array]:
    """(sum, count) of the values whose mask is true; NaN elsewhere does not spread."""
    return jnp.sum(jnp.where(mask, values, 0.0)), jnp.sum(mask.astype(jnp.float32))
