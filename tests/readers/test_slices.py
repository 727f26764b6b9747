"""Slices of volumes, and back to the volume."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.readers.test_volumes import any_affine
from universeg_jax.readers.preprocess import preprocess_image
from universeg_jax.readers.slices import (
    from_planes,
    from_slices,
    largest_slice,
    mask_slices,
    middle_slice,
    plane,
    slice_image,
    volume_slices,
)
from universeg_jax.readers.volumes import make_volume


def test_planes_are_in_radiological_view():
    x, y, z = np.mgrid[:3, :4, :5]  # to the right, to the front, to the head
    assert plane(z, 0, 1)[0].tolist() == [4] * 4  # sagittal: the head is up,
    assert plane(y, 0, 1)[0].tolist() == [3, 2, 1, 0]  # the face to the left
    assert plane(z, 1, 1)[0].tolist() == [4] * 3
    assert plane(x, 1, 1)[0].tolist() == [2, 1, 0]  # coronal and axial: the patient's right on the left
    assert plane(y, 2, 1)[0].tolist() == [3] * 3
    assert plane(x, 2, 1)[0].tolist() == [2, 1, 0]
    for axis in range(3):
        data = x + 10 * y + 100 * z
        np.testing.assert_array_equal(
            from_planes(np.stack([plane(data, axis, i) for i in range(data.shape[axis])]), axis), data
        )


@settings(max_examples=20)
@given(spacing=st.tuples(*[st.floats(0.8, 3)] * 3), seed=st.integers(0, 10**6), axis=st.integers(0, 2))
def test_a_mask_goes_through_all_steps_and_back_in_its_own_geometry(spacing, seed, axis):
    shape = np.round(40 / np.array(spacing)).astype(int) + np.random.default_rng(seed).integers(0, 12, 3)
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    mask = sum(g**2 for g in grid) < 0.7
    affine = any_affine(seed, spacing)
    volume, label = make_volume(mask.astype(np.float32), affine), make_volume(5 * mask.astype(np.int32), affine)
    slices, positions, origin = volume_slices(volume, 64, axis, "none")
    masks = mask_slices(label, 64, origin, 5)
    assert masks.shape == slices.shape
    assert len(slices) <= volume.shape[axis]  # no slice is computed that the file does not have
    assert (np.diff(positions) > 0).all()
    assert 0 < positions[0] < positions[-1] < 1
    assert np.abs(slices - masks).mean() < 0.03  # the image is the mask here
    back = from_slices(masks.astype(np.float32), origin)
    assert back.file_data().shape == mask.shape
    restored = back.file_data() >= 0.5
    assert 2 * (restored & mask).sum() / (restored.sum() + mask.sum()) > 0.93


@pytest.mark.filterwarnings("ignore:.*taken for CT")
def test_slices_are_those_of_the_volume_or_one_per_millimetre():
    def volume(*spacing):
        return make_volume(np.random.default_rng(0).random((6, 6, 6), np.float32), np.diag([*spacing, 1.0]))

    assert volume_slices(volume(5, 1, 1), 8)[0].shape == (6, 8, 8)
    assert volume_slices(volume(1, 1, 0.5), 4, axis=2)[0].shape == (3, 4, 4)


def test_slices_are_padded_to_the_cube_of_the_volume():
    data = np.random.default_rng(0).random((20, 30, 40)).astype(np.float32)
    padded = np.pad(plane(data, 2, 7), [(5, 5), (10, 10)])
    np.testing.assert_allclose(slice_image(data, 2, 7, 40), padded, atol=1e-6)
    np.testing.assert_allclose(
        slice_image(data, 0, 3, 16),
        preprocess_image(np.pad(plane(data, 0, 3), [(0, 0), (5, 5)]), 16, scale=False),
        atol=1e-6,
    )


def test_mid_and_max_slice():
    mask = np.zeros((4, 5, 6), bool)
    mask[1, :2], mask[3, :4] = True, True
    assert [middle_slice(mask, a) for a in range(3)] == [2, 2, 3]
    assert largest_slice(mask, 0) == 3
    assert largest_slice(mask, 1) == 0  # the first of equals
