"""Gaps between labelled slices, and windows of planes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import disc
from universeg_jax.prediction.gaps import Gap, Window, find_gaps, nearest_slices, window_around


@given(st.sets(st.integers(0, 30), min_size=1), st.integers(31, 40))
def test_gaps_are_the_slices_that_are_not_labelled(labelled, count):
    gaps = find_gaps(sorted(labelled), count)
    assert [z for gap in gaps for z in range(gap.start, gap.stop)] == sorted(set(range(count)) - labelled)
    for gap in gaps:
        assert (gap.before in labelled) == (gap.start > 0)
        assert (gap.after in labelled) == (gap.stop < count)


def test_shares_grow_evenly_from_one_labelled_slice_to_the_next():
    np.testing.assert_allclose(Gap(5, 8, 4, 8).shares(), [0.25, 0.5, 0.75])
    assert (Gap(0, 3, None, 3).shares() == 1).all()
    assert (Gap(9, 12, 8, None).shares() == 0).all()


def test_nearest_slices_come_first():
    assert nearest_slices((0, 8, 16, 24), Gap(9, 16, 8, 16), 3).tolist() == [8, 16, 0]
    assert nearest_slices((0, 8), Gap(9, 16, 8, None), 5).tolist() == [8, 0]


@given(st.integers(-20, 50), st.integers(-20, 50), st.integers(2, 70))
def test_a_window_holds_its_part_of_the_plane_and_zeros(row, column, side):
    plane, window = np.arange(1, 31 * 23 + 1).reshape(31, 23), Window(row, column, side)
    expected = np.pad(plane, 100)[row + 100 : row + 100 + side, column + 100 : column + 100 + side]
    np.testing.assert_array_equal(window.cut(plane), expected)


def test_values_go_back_to_where_they_were_cut():
    plane = disc(100, (30, 70), 14).astype(np.float32)
    window = window_around(plane > 0, 2.0)
    back = np.zeros_like(plane)
    back[window.part(plane.shape)] = window.back(window.mask(plane, 128).astype(np.float32), plane.shape)
    assert ((back >= 0.5) == (plane > 0)).mean() > 0.999


def test_a_window_is_twice_the_structure_and_inside_the_plane():
    window = window_around(disc(100, (20, 70), 20), 2.0)
    assert window == Window(0, 18, 82)
    assert window_around(np.ones((40, 100), bool), 2.0) == Window(-30, 0, 100)
