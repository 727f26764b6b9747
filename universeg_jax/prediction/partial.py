"""Partly labelled examples: what stands in for the labels of pixels that have none.

The network reads a label for every pixel of every example. A pixel without one takes the label that the other examples
predict, pixels with one keep it. This is done once, before any query, so that every form of the model takes the result
as it takes other examples. Measurements: docs/own-data.md.
"""

from collections.abc import Callable

import numpy as np

from universeg_jax.errors import UserError
from universeg_jax.prediction.options import Options, default_support_size
from universeg_jax.prediction.selection import select_examples
from universeg_jax.prediction.support import Support

ROUNDS = 1  # predictions of each ignored pixel, each from the labels of the one before
# (masks float32 [L, N, 128, 128], images [Q, 128, 128], rows [Q, 1, S]) → probabilities [Q, L, 128, 128]
Segment = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def filled_masks(
    support: Support,
    segment: Segment,
    options: Options,
    start: float | None = None,
    rounds: int = ROUNDS,
    soft: bool = False,
) -> np.ndarray:
    """Masks float32 [L, N, 128, 128] with a label for each ignored pixel of a support set, which must have some.

    `start`: the label that such a pixel has in the first prediction of others; default: each label's share of the
    pixels that have a label. `soft`: give probabilities, not 0 or 1. Raises UserError where no pixel is known to be
    background.
    """
    assert support.ignored is not None
    if not (support.known & ~support.masks.any(0)).any():
        raise UserError(
            "no pixel of any example is labelled as background, so that everything looks like the structure: mark some "
            "background with 0 in at least one"
        )
    ignored, known = support.ignored[None], support.known.sum()
    shares = support.masks.sum((1, 2, 3)) / known if start is None else np.full(len(support.labels), start)
    masks = np.where(ignored, shares[:, None, None, None], support.masks).astype(np.float32)
    todo = np.flatnonzero(support.ignored.any((1, 2)))
    rows = rows_of_others(support, options)[todo]
    for _ in range(rounds):
        p = segment(masks, support.images[todo], rows[:, None]).swapaxes(0, 1)
        masks = masks.copy()
        found = p if soft else as_labels(p, options.overlap)
        masks[:, todo] = np.where(ignored[:, todo], found, masks[:, todo])
    return masks


def rows_of_others(support: Support, options: Options) -> np.ndarray:
    """int [N, S]: for each example those others that `predict` would choose for its image; of one, itself."""
    count, size = len(support), options.support_size or default_support_size(support)
    if count == 1:
        return np.zeros((1, 1), int)
    places = [None] * count if support.positions is None else support.positions.tolist()
    rows = []
    for i, (image, place) in enumerate(zip(support.images, places, strict=True)):
        others = np.delete(np.arange(count), i)
        rows.append(select_examples(support, image, place, size, 1, options.choose, options.seed, others)[0])
    return np.stack(rows)


def as_labels(probabilities: np.ndarray, overlap: bool) -> np.ndarray:
    """Probabilities [L, ...] → bool: the most probable label or background, or with `overlap` each from 0.5 on."""
    if overlap or len(probabilities) == 1:
        return probabilities >= 0.5
    best = np.arange(len(probabilities)).reshape((-1, *[1] * (probabilities.ndim - 1))) == probabilities.argmax(0)
    return np.asarray(best & (probabilities >= 1 - probabilities.sum(0)))
