"""Partly labelled examples: what stands in for the labels of pixels of which nothing is known.

The network reads a label for every pixel of every example. A pixel without one takes the prediction that the other
examples give, pixels with one keep it, and this is done before any query, so that all forms of the model take the
result as they are.
"""

from collections.abc import Callable

import numpy as np

from universeg_jax.prediction.options import Options, default_support_size
from universeg_jax.prediction.selection import select_examples
from universeg_jax.prediction.support import Support

UNKNOWN = 0.5  # label of an ignored pixel until it has a prediction
ROUNDS = 1  # predictions of each ignored pixel; the next one is made from the last
Segment = Callable[
    [np.ndarray, np.ndarray, np.ndarray], np.ndarray
]  # (masks [L, N, H, W], images, rows) → [Q, L, H, W]


def filled_masks(
    support: Support,
    segment: Segment,
    rows: np.ndarray,
    overlap: bool,
    start: float = UNKNOWN,
    rounds: int = ROUNDS,
    soft: bool = False,
) -> np.ndarray:
    """The masks of a support set [L, N, 128, 128] with a label for its ignored pixels, which must be some.

    rows, int [N, S]: the examples that each is predicted from; -1 is none. `soft`: labels are probabilities.
    """
    assert support.ignored is not None
    ignored = support.ignored[None]
    masks = np.where(ignored, np.float32(start), support.masks.astype(np.float32))
    todo = np.flatnonzero(support.ignored.any((1, 2)) & (rows >= 0).any(1))
    for _ in range(rounds if len(todo) else 0):
        p = segment(masks, support.images[todo], rows[todo][:, None]).swapaxes(0, 1)
        found = p if soft else as_labels(p, overlap)
        masks = masks.copy()
        masks[:, todo] = np.where(ignored[:, todo], found, masks[:, todo])
    return masks


def rows_of_others(support: Support, options: Options) -> np.ndarray:
    """int [N, S]: for each example those others that `predict` would choose for its image; -1 where there is none."""
    count, size = len(support), options.support_size or default_support_size(support)
    rows = np.full((count, min(size, max(count - 1, 1))), -1)
    places = [None] * count if support.positions is None else support.positions.tolist()
    for i in range(count if count > 1 else 0):
        others = np.delete(np.arange(count), i)
        rows[i] = select_examples(support, support.images[i], places[i], size, 1, options.choose, options.seed, others)[
            0
        ]
    return rows


def as_labels(probabilities: np.ndarray, overlap: bool) -> np.ndarray:
    """Probabilities [L, ...] → bool: the most probable label or background, or with `overlap` each from 0.5 on."""
    if overlap or len(probabilities) == 1:
        return probabilities >= 0.5
    best = np.arange(len(probabilities)).reshape((-1, *[1] * (probabilities.ndim - 1))) == probabilities.argmax(0)
    return best & (probabilities >= 1 - probabilities.sum(0))
