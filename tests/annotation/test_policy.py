"""What to label next, on points in the plane."""

import numpy as np
import pytest

from universeg_jax.annotation.policy import FIRST, check_policy, choose, farthest
from universeg_jax.errors import UserError


def points(*angles: float) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def never():
    raise AssertionError("not needed")


def test_order_and_random_ask_no_network():
    assert choose("order", [3, 1, 2], [0], never, never) == 1
    drawn = []
    for seed in range(20):
        left, labelled = list(range(8)), []
        while left:
            row = choose("random", left, labelled, never, never, seed)
            left.remove(row)
            labelled.append(row)
        assert sorted(labelled) == list(range(8))
        drawn.append(labelled)
    assert len({tuple(each) for each in drawn}) == 20
    assert drawn[0] == [choose("random", sorted(drawn[0][i:]), drawn[0][:i], never, never, 0) for i in range(8)]


def test_diversity_takes_the_middle_first_and_then_what_is_farthest():
    features = points(0.0, 0.1, 0.2, 1.5, -1.0)
    assert farthest(features, [0, 1, 2, 3, 4], []) == int((features @ features.T).mean(1).argmax())
    assert farthest(features, [0, 2, 3, 4], [1]) == 3
    assert farthest(features, [0, 2, 4], [1, 3]) == 4


def test_doubt_is_diverse_first_and_then_takes_the_least_certain():
    features = points(*np.linspace(0, 3, 8))
    labelled = list(range(FIRST))
    left = list(range(FIRST, 8))
    assert choose("doubt", left, labelled[:-1], lambda: features, never) == 7
    assert choose("doubt", left, labelled, never, lambda: np.array([0.9, 0.2, 0.5, 0.6])) == left[1]


def test_what_cannot_be_chosen_is_named():
    with pytest.raises(UserError, match="nothing is left to label"):
        choose("order", [], [0], never, never)
    with pytest.raises(UserError, match="order 'best': choose one of order, random, diverse, doubt"):
        check_policy("best")
