"""Segmentation metrics of binary masks, each a function of four counts, alike for arrays on a device and for numbers.

On the device means travel as (sum, count) and are divided once, on the host.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Overlap(NamedTuple):
    """Counts of pixels: arrays of one shape, or numbers."""

    both: Array | float
    predicted: Array | float
    true: Array | float
    pixels: int  # of the image


def overlap(prediction: Array, truth: Array) -> Overlap:
    """Of binary masks [..., H, W], float32 [...]."""
    p, t = prediction.astype(jnp.float32), truth.astype(jnp.float32)
    both, predicted, true = (jnp.sum(x, (-2, -1)) for x in (p * t, p, t))
    return Overlap(both, predicted, true, p.shape[-2] * p.shape[-1])


def dice(found: Overlap) -> Array:
    """2|P∩T| / (|P| + |T|); 1 where both are empty.

    Official scores leave episodes with empty truth out (see `evaluation`): there the value only says whether the
    prediction was empty too.
    """
    size = found.predicted + found.true
    empty = size == 0
    return (2 * found.both + empty) / (size + empty)


def sensitivity(found: Overlap) -> Array:
    """|P∩T| / |T|, the share of the truth that was found; where T is empty 1 if P is too, else 0."""
    return _share(found.both, found.true, found.predicted)


def precision(found: Overlap) -> Array:
    """|P∩T| / |P|, the share of the prediction that is true; where P is empty 1 if T is too, else 0."""
    return _share(found.both, found.predicted, found.true)


def _share(both: Array, whole: Array, other: Array) -> Array:
    empty = whole == 0
    return (both + empty * (other == 0)) / (whole + empty)


def false_positive_area(found: Overlap) -> Array:
    """Share of the image wrongly marked, in [0, 1]; the figure for episodes with empty truth."""
    return (found.predicted - found.both) / found.pixels


METRICS = {f.__name__: f for f in (dice, sensitivity, precision, false_positive_area)}


def dice_score(prediction: Array, truth: Array) -> Array:
    """`dice` of binary masks [..., H, W], float32 [...]."""
    return dice(overlap(prediction, truth))


def masked_sum(values: Array, mask: Array) -> tuple[Array, Array]:
    """(sum, count) of the values whose mask is true; NaN elsewhere does not spread."""
    return jnp.sum(jnp.where(mask, values, 0.0)), jnp.sum(mask.astype(jnp.float32))
