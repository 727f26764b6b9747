"""Displacements between slices."""

import numpy as np
from scipy.ndimage import gaussian_filter

from universeg_jax.prediction.motion import Motion, carry


def moving_blob(count=9, size=48, step=1.0):
    rows, columns = np.mgrid[:size, :size]
    planes = [np.exp(-((rows - 24) ** 2 + (columns - 18 - step * z) ** 2) / 60) for z in range(count)]
    return np.stack([gaussian_filter(plane, 1) for plane in planes]).astype(np.float32)


def test_displacements_add_up_over_the_slices_between():
    motion = Motion(moving_blob())
    middle = motion.to(source=0, index=6)[:, 24, 24]  # the blob has moved by 6 columns
    np.testing.assert_allclose(middle, [0, -6], atol=0.7)
    back = motion.to(source=6, index=0)[:, 24, 18]
    np.testing.assert_allclose(back, [0, 6], atol=0.7)


def test_a_slice_is_carried_to_where_its_structure_has_gone():
    planes = moving_blob()
    carried = carry(planes[0], Motion(planes).to(0, 6))
    assert np.abs(carried - planes[6]).max() < 0.2 * np.abs(planes[0] - planes[6]).max()


def test_nothing_moves_between_equal_slices():
    planes = np.repeat(moving_blob(1), 3, 0)
    assert np.abs(Motion(planes).to(2, 0)).max() < 1e-3
    np.testing.assert_array_equal(Motion(planes).to(1, 1), 0)


def test_forgetting_changes_nothing_but_the_memory():
    motion = Motion(moving_blob(4))
    before = motion.to(3, 0)
    motion.forget()
    np.testing.assert_array_equal(motion.to(3, 0), before)


def test_a_part_is_carried_as_the_whole_is():
    planes = moving_blob()
    moves, part = Motion(planes).to(0, 4), (slice(10, 30), slice(5, 40))
    carried = carry(planes[0], moves, part)
    np.testing.assert_array_equal(carried[part], carry(planes[0], moves)[part])
    carried[part] = 0
    assert not carried.any()
