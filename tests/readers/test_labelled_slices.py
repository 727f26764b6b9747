"""Which slices of partial labels count as labelled."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from universeg_jax.errors import UserError
from universeg_jax.readers.labelled_slices import find_axis, find_labelled_slices, unused_slices

SHAPE = (30, 26, 34)


def ball(centre=(15, 13, 17), radius=10):
    grid = np.indices(SHAPE)
    return (sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2).astype(np.int32)


def keep(ids, axis, slices):
    part = np.zeros_like(ids)
    np.moveaxis(part, axis, 0)[list(slices)] = np.moveaxis(ids, axis, 0)[list(slices)]
    return part


@given(st.integers(0, 2), st.integers(2, 6), st.integers(0, 5))
def test_the_axis_and_the_slices_are_found(axis, step, first):
    ids = ball()
    slices = [z for z in range(first, SHAPE[axis], step) if np.moveaxis(ids, axis, 0)[z].any()]
    (found,) = find_labelled_slices(keep(ids, axis, slices))
    assert found.axis == axis
    assert sorted(set(found.slices) - set(found.empty)) == slices


def test_a_step_beyond_the_last_label_counts_as_empty():
    (found,) = find_labelled_slices(keep(ball(), 2, (10, 14, 18, 22)))
    assert (found.slices, found.empty) == ((6, 10, 14, 18, 22, 26), (6, 26))


def test_a_step_beyond_the_volume_is_not_made_up():
    (found,) = find_labelled_slices(keep(np.ones(SHAPE, np.int32), 2, (0, 8, 16, 24, 32)))
    assert (found.slices, found.empty) == ((0, 8, 16, 24, 32), ())


def test_one_slice_is_enough():
    (found,) = find_labelled_slices(keep(ball(), 1, (13,)))
    assert (found.axis, found.slices, found.empty) == (1, (13,), ())


def test_the_last_slice_may_touch_another():
    (found,) = find_labelled_slices(keep(ball(), 2, (9, 13, 17, 21, 22)))
    assert found.axis == 2
    assert {9, 13, 17, 21, 22} <= set(found.slices)


def test_runs_of_slices_are_found_by_the_gaps_between_them():
    (found,) = find_labelled_slices(keep(ball(), 0, (8, 9, 10, 20, 21, 22)))
    assert (found.axis, found.slices) == (0, (8, 9, 10, 20, 21, 22))


def test_slices_of_two_axes_are_found():
    ids = np.maximum(keep(ball(), 0, (12, 18)), keep(ball(), 2, (11, 17, 23)))
    first, second = find_labelled_slices(ids)
    assert (first.axis, first.slices) == (0, (6, 12, 18, 24))
    assert (second.axis, second.slices) == (2, (5, 11, 17, 23, 29))
    with pytest.raises(UserError, match="sagittal and axial slices are labelled: give the axis"):
        find_axis(ids)


def test_named_slices_count_whatever_they_hold():
    part = keep(ball(), 2, (9, 17))
    (found,) = find_labelled_slices(part, slices=(0, 17, 9, 30))
    assert (found.axis, found.slices, found.empty) == (2, (0, 9, 17, 30), ())
    assert unused_slices(keep(ball(), 2, (9, 12, 17)), found) == (12,)


def test_slices_without_the_ignored_id_count_whatever_they_hold():
    ids = np.full(SHAPE, 255, np.int32)
    np.moveaxis(ids, 1, 0)[[2, 9]] = np.moveaxis(ball(), 1, 0)[[2, 9]]
    assert not np.moveaxis(ball(), 1, 0)[2].any()
    (found,) = find_labelled_slices(ids, ignore=255)
    assert (found.axis, found.slices) == (1, (2, 9))


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (np.zeros(SHAPE, np.int32), {}, "no voxel is labelled"),
        (ball(), {}, "the labels do not tell which slices are labelled: give the axis"),
        (ball(), {"slices": (40,), "axis": 2}, "slice 40 does not exist: the axial slices are 0 to 33"),
        (ball(), {"ignore": 255}, "ignore=255: no voxel has this id"),
        (np.where(ball() > 0, 1, 9), {"ignore": 9}, "no axis alone has slices without ignored voxels"),
    ],
)
def test_what_cannot_be_told_is_refused(ids, options, message):
    with pytest.raises(UserError, match=message):
        find_labelled_slices(ids, **options)
