"""Segmentation metrics of binary masks, each a function of four pixel counts, on the device or on the host."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
Number = TypeVar("Number", jax.Array, np.ndarray, float)


class Overlap(NamedTuple, Generic[Number]):
    """Pixel counts: arrays of one shape, or numbers."""

    both: Number
    predicted: Number
    true: Number
    pixels: int  # in the image


def overlap(prediction: Array, truth: Array) -> Overlap[jax.Array]:
    """Counts float32 [...] of binary masks [..., H, W], on the device."""
    p, t = prediction.astype(jnp.float32), truth.astype(jnp.float32)
    both, predicted, true = (jnp.sum(x, (-2, -1)) for x in (p * t, p, t))
    return Overlap(both, predicted, true, p.shape[-2] * p.shape[-1])


def overlap_on_host(prediction: np.ndarray, truth: np.ndarray, axes: Sequence[int] = (-2, -1)) -> Overlap[np.ndarray]:
    """Counts float64 [...] of masks, or of probabilities, summed over `axes`; NumPy only."""
    axes = tuple(axes)
    both, predicted, true = (
        np.asarray(np.sum(x, axes, dtype=np.float64)) for x in (prediction * truth, prediction, truth)
    )
    return Overlap(both, predicted, true, int(np.prod([truth.shape[axis] for axis in axes])))


def dice(counts: Overlap[Number]) -> Number:
    """2|P∩T| / (|P| + |T|); 1 where both are empty.

    Means over cases leave out the cases with an empty truth: there the value only says whether the prediction is empty.
    """
    size = counts.predicted + counts.true
    empty = size == 0
    return (2 * counts.both + empty) / (size + empty)


def sensitivity(counts: Overlap[Number]) -> Number:
    """|P∩T| / |T|, the share of the truth that is predicted; where T is empty, 1 if P is empty too, else 0."""
    return _share(counts.both, counts.true, counts.predicted)


def precision(counts: Overlap[Number]) -> Number:
    """|P∩T| / |P|, the share of the prediction that is true; where P is empty, 1 if T is empty too, else 0."""
    return _share(counts.both, counts.predicted, counts.true)


def _share(both: Number, whole: Number, other: Number) -> Number:
    empty = whole == 0
    return (both + empty * (other == 0)) / (whole + empty)


def false_positive_area(counts: Overlap[Number]) -> Number:
    """The share of the image that is marked wrongly, in [0, 1]; the score of cases with an empty truth."""
    return (counts.predicted - counts.both) / counts.pixels


METRICS = {f.__name__: f for f in (dice, sensitivity, precision, false_positive_area)}


def dice_score(prediction: Array, truth: Array) -> jax.Array:
    """`dice` float32 [...] of binary masks [..., H, W], on the device."""
    return dice(overlap(prediction, truth))


def dice_on_host(prediction: np.ndarray, truth: np.ndarray, axes: Sequence[int] = (-2, -1)) -> np.ndarray:
    """`dice` float64 [...] of masks, or of probabilities (soft Dice), summed over `axes`; NumPy only."""
    return np.asarray(dice(overlap_on_host(prediction, truth, axes)))


def masked_sum(values: Array, mask: Array) -> tuple[jax.Array, jax.Array]:
    """(sum, count) of the values whose mask is true; NaN elsewhere does not spread."""
    return jnp.sum(jnp.where(mask, values, 0.0)), jnp.sum(mask.astype(jnp.float32))
