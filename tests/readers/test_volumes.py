"""Orientation, resampling, windows and slices of volumes, and every step of it back."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes

from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.preprocess import apply_window, preprocess_image, window_of_modality
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
from universeg_jax.readers.volumes import check_same_grid, make_volume, on_grid, slice_axis, to_spacing

shapes = st.tuples(*[st.integers(1, 9)] * 3)
spacings = st.tuples(*[st.floats(0.3, 6)] * 3)


def any_affine(seed, spacing):
    """A random orientation, a little oblique, with any origin."""
    rng = np.random.default_rng(seed)
    turn = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    turn = np.linalg.qr(turn + rng.uniform(-0.1, 0.1, (3, 3)))[0] * np.sign(np.diag(np.linalg.qr(turn)[1]))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing, rng.uniform(-100, 100, 3)
    return affine


@given(shape=shapes, spacing=spacings, seed=st.integers(0, 10**6))
def test_any_orientation_becomes_canonical_and_goes_back_exactly(shape, spacing, seed):
    data, affine = np.random.default_rng(seed).random(shape), any_affine(seed, spacing)
    volume = make_volume(data, affine)
    assert aff2axcodes(volume.affine) == ("R", "A", "S")
    expected = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    np.testing.assert_array_equal(volume.data, expected.get_fdata())
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-9)
    np.testing.assert_array_equal(volume.file_data(), data)
    np.testing.assert_allclose(volume.file_affine(), affine, atol=1e-9)


@given(shape=shapes, spacing=st.tuples(*[st.floats(1, 6)] * 3), seed=st.integers(0, 10**6))
def test_a_mask_resampled_to_a_finer_grid_comes_back_exactly(shape, spacing, seed):
    mask = np.random.default_rng(seed).integers(0, 3, shape).astype(np.int32)
    volume = make_volume(mask, any_affine(seed, spacing))
    fine = to_spacing(volume)
    assert max(abs(s * n / m - 1) for s, n, m in zip(volume.spacing, volume.shape, fine.shape, strict=True)) <= 0.5
    np.testing.assert_array_equal(on_grid(fine, volume.shape).data, volume.data)
    np.testing.assert_allclose(on_grid(fine, volume.shape).affine, volume.affine, atol=1e-6)


def test_resampling_is_linear_at_voxel_centres_in_space():
    x = np.linspace(-20, 20, 21).astype(np.float32)  # 2 mm apart, its value its place
    volume = make_volume(np.broadcast_to(x[:, None, None], (21, 4, 4)).copy(), np.diag([2.0, 1, 1, 1]))
    fine = to_spacing(volume)
    assert fine.shape == (42, 4, 4)
    place = fine.affine @ np.stack([np.arange(42), *np.zeros((2, 42)), np.ones(42)])
    np.testing.assert_allclose(fine.data[1:-1, 0, 0], place[0, 1:-1] - 20, atol=1e-5)


def test_windows_follow_the_modality():
    hounsfield = np.array([-3000, -500, 250, 1000, 5000], np.float32)
    np.testing.assert_allclose(apply_window(hounsfield, "ct"), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(apply_window(hounsfield, (0, 1000)), [0, 0, 0.25, 1, 1])
    signal = np.concatenate([np.zeros(1000), np.arange(1, 1002)]).astype(np.float32)
    assert (apply_window(signal, "mr")[1000:1006] == 0).all()  # 0.5 % of the voxels above 0
    assert (apply_window(signal, "mr")[-5:] == 1).all()
    np.testing.assert_allclose(apply_window(signal), signal / 1001, rtol=1e-6)
    modalities = ("cardiac CT", "brain MR T1w", "H&E histology", "brain MR Flair", "ACTH")
    assert [window_of_modality(modality) for modality in modalities] == ["ct", "mr", "none", "mr", "none"]


def test_planes_are_seen_as_radiologists_see_them():
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
    slices, positions, place = volume_slices(volume, 64, axis, "none")
    masks = mask_slices(label, 64, place, 5)
    assert masks.shape == slices.shape
    assert len(slices) <= volume.shape[axis]  # no slice is computed that the file does not have
    assert (np.diff(positions) > 0).all()
    assert 0 < positions[0] < positions[-1] < 1
    assert np.abs(slices - masks).mean() < 0.03  # the image is the mask here
    back = from_slices(masks.astype(np.float32), place)
    assert back.file_data().shape == mask.shape
    found = back.file_data() >= 0.5
    assert 2 * (found & mask).sum() / (found.sum() + mask.sum()) > 0.93


def test_slices_are_the_volumes_own_or_one_a_millimetre():
    def volume(*spacing):
        return make_volume(np.random.default_rng(0).random((6, 6, 6), np.float32), np.diag([*spacing, 1.0]))

    assert volume_slices(volume(5, 1, 1), 8)[0].shape == (6, 8, 8)
    assert volume_slices(volume(1, 1, 0.5), 8, axis=2)[0].shape == (3, 8, 8)


def test_slices_are_padded_to_the_cube_of_the_volume():
    data = np.random.default_rng(0).random((20, 30, 40)).astype(np.float32)
    padded = np.pad(plane(data, 2, 7), [(5, 5), (10, 10)])
    np.testing.assert_allclose(slice_image(data, 2, 7, 40), padded, atol=1e-6)
    np.testing.assert_allclose(
        slice_image(data, 0, 3, 16),
        preprocess_image(np.pad(plane(data, 0, 3), [(0, 0), (5, 5)]), 16, scale=False),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((0.7, 0.7, 0.625), 2), ((4.07, 4.07, 3), 2), ((0.8, 0.8, 5), 2), ((3, 0.9, 0.9), 0), ((1, 2.2, 1), 1)],
)
def test_only_clearly_longer_voxels_say_in_which_planes_a_volume_was_acquired(spacing, axis):
    volume = make_volume(np.zeros((4, 5, 6), np.float32), np.diag([*spacing, 1]))
    assert slice_axis(volume) == axis
    assert slice_axis(make_volume(np.zeros((4, 1, 6), np.float32), np.diag([*spacing, 1]))) == 1


def test_mid_and_max_slice():
    mask = np.zeros((4, 5, 6), bool)
    mask[1, :2], mask[3, :4] = True, True
    assert [middle_slice(mask, a) for a in range(3)] == [2, 2, 3]
    assert largest_slice(mask, 0) == 3
    assert largest_slice(mask, 1) == 0  # the first of equals


def test_what_has_no_place_or_another_place_is_refused():
    good = make_volume(np.zeros((3, 4, 5)), np.eye(4), "a.nii")
    for data, affine, word in (
        (np.zeros((3, 4)), np.eye(4), r"three axes.*\(3, 4\)"),
        (np.zeros((3, 4, 5)), np.diag([1.0, 0, 1, 1]), "cannot be inverted"),
        (np.zeros((3, 4, 5)), np.full((4, 4), np.nan), "cannot be inverted"),
        (
            np.zeros((3, 4, 5)),
            np.array([[1e6, 1e12, 0, 0], [0, 1e-4, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
            "an axis without direction",
        ),
    ):
        with pytest.raises(ImageError, match=f"b.nii: .*{word}"):
            make_volume(data, affine, "b.nii")
    with pytest.raises(ImageError, match="3x4x5 and 3x5x4"):
        check_same_grid(good, make_volume(np.zeros((3, 5, 4)), np.eye(4), "b.nii"))
    moved = np.eye(4)
    moved[0, 3] = 2
    with pytest.raises(ImageError, match="different places.*2.0 mm"):
        check_same_grid(good, make_volume(np.zeros((3, 4, 5)), moved, "b.nii"))
    check_same_grid(
        good,
        make_volume(
            np.zeros((3, 4, 5))[::-1],
            np.diag([-1.0, 1, 1, 1])
            + np.eye(4)[:, 3:] @ np.array([[0, 0, 0, 0]])
            + np.array([[0, 0, 0, 2.0]] + [[0] * 4] * 3),
        ),
    )
    with pytest.raises(ImageError, match="too many voxels"):
        to_spacing(make_volume(np.zeros((2, 2, 2)), np.diag([1e3, 1e3, 1e3, 1])))
