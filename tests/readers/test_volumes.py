"""Orientation and resampling of volumes, and the way back."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes

from universeg_jax.readers.errors import ImageError
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
def test_any_orientation_becomes_canonical_and_back_exactly(shape, spacing, seed):
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


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((0.7, 0.7, 0.625), 2), ((4.07, 4.07, 3), 2), ((0.8, 0.8, 5), 2), ((3, 0.9, 0.9), 0), ((1, 2.2, 1), 1)],
)
def test_only_clearly_longer_voxels_tell_the_acquired_planes(spacing, axis):
    volume = make_volume(np.zeros((4, 5, 6), np.float32), np.diag([*spacing, 1]))
    assert slice_axis(volume) == axis
    assert slice_axis(make_volume(np.zeros((4, 1, 6), np.float32), np.diag([*spacing, 1]))) == 1


def test_a_bad_affine_or_another_grid_is_refused():
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
