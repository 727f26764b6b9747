"""The published preprocessing and its inverse."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from universeg_jax.readers.preprocess import (
    apply_window,
    min_max,
    preprocess_image,
    preprocess_mask,
    quantize,
    restore,
    window_of_modality,
)


def test_preprocessing_is_pad_blur_and_linear_resize():
    image = np.random.default_rng(0).random((60, 100)).astype(np.float32) * 50
    padded = np.pad(min_max(image), [(20, 20), (0, 0)])
    blurred = ndimage.gaussian_filter(padded.astype(np.float64), 100 / 32 / 4, mode="constant", truncate=4)
    centres = (np.arange(32) + 0.5) * 100 / 32 - 0.5
    expected = ndimage.map_coordinates(blurred, np.meshgrid(centres, centres, indexing="ij"), order=1)
    actual = preprocess_image(image, 32)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-3)
    mask = image > 25
    expected = ndimage.gaussian_filter(np.pad(mask, [(20, 20), (0, 0)]).astype(float), 100 / 32 / 4, truncate=4)
    expected = ndimage.map_coordinates(expected, np.meshgrid(centres, centres, indexing="ij"), order=1)
    sure = np.abs(expected - 0.5) > 1e-3
    sure[[0, -1]] = sure[:, [0, -1]] = False
    np.testing.assert_array_equal(preprocess_mask(mask, 32)[sure], expected[sure] >= 0.5)


@given(
    height=st.integers(1, 70), width=st.integers(1, 70), size=st.integers(8, 64),
    low=st.floats(-1e30, 1e30), span=st.floats(0, 1e30), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_image_lies_between_0_and_1_with_padding_0(height, width, size, low, span, seed):
    image = (low + span * np.random.default_rng(seed).random((height, width))).astype(np.float32)
    ready = preprocess_image(image, size)
    assert ready.shape == (size, size)
    assert ready.min() >= 0
    assert ready.max() <= 1
    assert restore(ready, (height, width)).shape == (height, width)
    short, long = sorted((height, width))
    band = preprocess_mask(np.ones((height, width)), size).sum(int(height < width))  # pixels set a row, or a column
    assert set(band.tolist()) <= {0, size}  # a band of whole rows or columns in the middle, as wide as the image
    assert abs(np.count_nonzero(band) - size * short / long) <= 2


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


def test_a_long_strip_is_preprocessed_without_its_square():
    strip = np.zeros((2, 90_000), np.float32)  # its square would hold 8e9 pixels
    strip[:, 45_000:] = 1
    assert preprocess_image(strip, 16).shape == (16, 16)
    assert restore(np.eye(16), strip.shape).shape == strip.shape


def ellipse(height, width, share):
    y, x = np.mgrid[:height, :width]
    return ((2 * y + 1) / height - 1) ** 2 + ((2 * x + 1) / width - 1) ** 2 <= share**2


@given(
    height=st.integers(40, 300), aspect=st.floats(0.2, 5), share=st.floats(0.6, 0.95), size=st.sampled_from([64, 128])
)
def test_a_mask_comes_back_in_its_own_geometry(height, aspect, share, size):
    mask = ellipse(height, round(height * aspect), share)
    back = restore(preprocess_mask(mask, size), mask.shape) >= 0.5
    assert back.shape == mask.shape
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) >= 0.9


def test_preprocessing_at_the_same_size_is_min_max():
    image = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    np.testing.assert_allclose(preprocess_image(image, 32), min_max(image), atol=1e-6)
    np.testing.assert_array_equal(restore(image, (32, 32)), image)
    np.testing.assert_array_equal(quantize(np.array([0, 0.5, 1])), [0, 128, 255])
    assert not min_max(np.full((3, 3), 9.0)).any()
