"""What to label next: pure functions of features, expected Dice and what is labelled already.

    order                 as the names sort
    random                in an order drawn once
    diverse               k-centre: what differs most from all that is labelled
    doubt                 the first FIRST as "diverse", then what the network is least certain of

docs/annotate.md has the measurements behind the default.
"""

from collections.abc import Callable, Sequence

import numpy as np

from universeg_jax.annotation import POLICIES
from universeg_jax.errors import UserError

FIRST = 4  # images that "doubt" chooses by diversity, before the network can judge itself


def check_policy(policy: str) -> str:
    """Raises UserError for an unknown policy."""
    if policy not in POLICIES:
        raise UserError(f"order {policy!r}: choose one of {', '.join(POLICIES)}")
    return policy


def choose(
    policy: str,
    left: Sequence[int],
    labelled: Sequence[int],
    features: Callable[[], np.ndarray],
    expected_dice: Callable[[], np.ndarray],
    seed: int = 0,
) -> int:
    """The row of `left` to label next; rows number all images or slices in their natural order.

    `features`: unit vectors [N, D] of all rows. `expected_dice` [len(left)] of the predictions of what is left. Both
    are called only where the policy needs them.
    """
    if not len(left):
        raise UserError("nothing is left to label")
    if policy == "order":
        return min(left)
    if policy == "random":
        return min(left, key=lambda row: np.random.default_rng([seed, row]).random())
    if policy == "diverse" or len(labelled) < FIRST:
        return farthest(features(), left, labelled)
    return left[int(np.argmin(expected_dice()))]


def farthest(features: np.ndarray, left: Sequence[int], labelled: Sequence[int]) -> int:
    """Greedy k-centre: of `left` the row least alike to all `labelled`; without any, the one most alike to all."""
    alike = features[list(left)] @ features[list(labelled) or list(left)].T
    return left[int(np.argmin(alike.max(1)) if len(labelled) else np.argmax(alike.mean(1)))]
