"""Signed distances of masks."""

import numpy as np

from tests.fixtures import disc
from universeg_jax.prediction.interpolation import signed_distance, signed_distances


def test_the_distance_to_a_straight_outline():
    mask = np.zeros((5, 8), bool)
    mask[:, 3:] = True
    np.testing.assert_allclose(signed_distance(mask)[2], [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 4.5])


def test_a_full_mask_is_inside_everywhere():
    assert (signed_distance(np.ones((4, 6), bool)) > 0).all()


def test_halfway_between_two_discs_lies_the_disc_of_the_mean_radius():
    first, second = signed_distances(disc(64, (32, 32), 8), disc(64, (32, 32), 20))
    between = (first + second) / 2 > 0
    expected = disc(64, (32, 32), 14)
    assert 2 * (between & expected).sum() / (between.sum() + expected.sum()) > 0.98


def test_an_absent_structure_has_shrunk_to_nothing_halfway():
    present, absent = signed_distances(disc(64, (32, 32), 12), np.zeros((64, 64), bool))
    assert not (0.5 * present + 0.5 * absent > 0).any()
    assert (0.55 * present + 0.45 * absent > 0).any()
