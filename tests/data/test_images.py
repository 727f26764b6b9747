"""Readers and the published preprocessing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from tests.fixtures import disc
from universeg_jax.data import images
from universeg_jax.data.images import (
    ImageError,
    min_max,
    preprocess_image,
    preprocess_mask,
    quantize,
    read_image,
    read_label,
    restore,
    to_grey,
)


def write(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("extension", [".png", ".tif", ".bmp", ".jpg"])
def test_grey_pictures_are_read_as_they_are(tmp_path, extension):
    array = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (8, 1))
    read = read_image(write(tmp_path / f"a{extension}", array))
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, array, atol=4 if extension == ".jpg" else 0)


def test_sixteen_bits_and_floats_keep_their_range(tmp_path):
    np.testing.assert_array_equal(
        read_image(write(tmp_path / "a.png", np.array([[0, 60_000]], np.uint16))), [[0, 60_000]]
    )
    values = np.array([[-1.5, 3e4]], np.float32)
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.tif", values)), values)


def test_colour_becomes_luma_and_alpha_is_dropped(tmp_path):
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0, :, :3] = np.diag([255, 255, 255])
    expected = np.zeros((2, 3))
    expected[0] = 255 * np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read_image(write(tmp_path / "a.png", rgba)), expected, rtol=1e-5)
    np.testing.assert_allclose(to_grey(rgba[..., :3]), expected, rtol=1e-5)


def test_a_palette_label_gives_its_indices(tmp_path):
    label = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8), "P")
    label.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    label.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), [[0, 1], [2, 2]])


def test_labels_of_three_equal_channels_are_read_and_colours_refused(tmp_path):
    ids = np.array([[0, 3], [3, 0]], np.uint8)
    np.testing.assert_array_equal(read_label(write(tmp_path / "a.png", np.stack([ids] * 3, -1))), ids)
    with pytest.raises(ImageError, match="colours"):
        read_label(write(tmp_path / "b.png", np.stack([ids, 0 * ids, ids], -1)))
    with pytest.raises(ImageError, match="whole numbers"):
        read_label(write(tmp_path / "c.tif", np.array([[0.5, 1]], np.float32)))


def test_every_bad_file_is_an_image_error_that_names_it(tmp_path, monkeypatch):
    whole = write(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    (tmp_path / "truncated.png").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    write(tmp_path / "constant.png", np.full((4, 4), 7, np.uint8))
    write(tmp_path / "nan.tif", np.array([[0, np.nan]], np.float32))
    for name in ("truncated.png", "empty.png", "text.png", "notes.txt", "constant.png", "nan.tif", "absent.png"):
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(ImageError, match="64x64"):
        read_image(whole)


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6))
def test_flipped_bytes_never_end_in_another_error(tmp_path_factory, seed):
    path = tmp_path_factory.getbasetemp() / f"flip{seed % 3}{('.png', '.tif', '.bmp')[seed % 3]}"
    rng = np.random.default_rng(seed)
    write(path, rng.integers(0, 255, (12, 9)).astype(np.uint8))
    data = bytearray(path.read_bytes())
    for position in rng.integers(0, len(data), 3):
        data[position] ^= 1 << rng.integers(8)
    path.write_bytes(bytes(data))
    for read in (read_image, read_label):
        try:
            outcome = read(path).ndim
        except ImageError as error:
            outcome = str(error)
        assert outcome == 2 or path.name in outcome


def test_preprocessing_is_pad_blur_and_linear_resize():
    image = np.random.default_rng(0).random((60, 100)).astype(np.float32) * 50
    padded = np.pad(min_max(image), [(20, 20), (0, 0)])
    blurred = ndimage.gaussian_filter(padded.astype(np.float64), 100 / 32 / 4, mode="constant", truncate=4)
    centres = (np.arange(32) + 0.5) * 100 / 32 - 0.5
    expected = ndimage.map_coordinates(blurred, np.meshgrid(centres, centres, indexing="ij"), order=1)
    actual = preprocess_image(image, 32)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-3)


@given(height=st.integers(20, 300), width=st.integers(20, 300), size=st.sampled_from([64, 128]))
def test_a_mask_comes_back_in_its_own_geometry(height, width, size):
    mask = disc(max(height, width), (height / 2, width / 3), min(height, width) / 3)[:height, :width]
    back = restore(preprocess_mask(mask, size), (height, width)) >= 0.5
    assert back.shape == mask.shape
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.9


def test_identity_at_its_own_size_and_quantisation():
    image = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    np.testing.assert_allclose(preprocess_image(image, 32), min_max(image), atol=1e-6)
    np.testing.assert_array_equal(quantize(np.array([0, 0.5, 1])), [0, 128, 255])
    assert not min_max(np.full((3, 3), 9.0)).any()
