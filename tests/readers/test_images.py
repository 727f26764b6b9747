"""Readers and the published preprocessing."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from universeg_jax.readers import checks, images
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.images import read_image, read_label
from universeg_jax.readers.preprocess import min_max, preprocess_image, preprocess_mask, quantize, restore, to_grey


def write(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("extension", [".png", ".tif", ".bmp", ".jpg"])
def test_grey_pictures_are_read_as_they_are(tmp_path, extension):
    array = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (8, 1))
    read = read_image(write(tmp_path / f"a{extension}", array))
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, array, atol=4 if extension == ".jpg" else 0)


@pytest.mark.parametrize("extension", [".png", ".tif"])
def test_sixteen_bits_keep_their_range(tmp_path, extension):
    array = np.array([[0, 257], [60_000, 3]], np.uint16)
    np.testing.assert_array_equal(read_image(write(tmp_path / f"a{extension}", array)), array)
    np.testing.assert_array_equal(read_label(tmp_path / f"a{extension}"), array)


def test_floats_and_bits_keep_their_values(tmp_path):
    values = np.array([[-1.5, 3e4]], np.float32)
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.tif", values)), values)
    bits = np.array([[True, False], [False, False]])
    np.testing.assert_array_equal(read_label(write(tmp_path / "b.png", bits)), bits)


def test_colour_becomes_luma_and_alpha_is_dropped(tmp_path):
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0, :, :3] = np.diag([255, 255, 255])
    expected = np.zeros((2, 3))
    expected[0] = 255 * np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read_image(write(tmp_path / "a.png", rgba)), expected, rtol=1e-5)
    np.testing.assert_allclose(to_grey(rgba[..., :3]), expected, rtol=1e-5)
    with pytest.raises(ImageError, match=r"\(2, 3, 5\)"):
        to_grey(np.zeros((2, 3, 5)))


def test_a_palette_is_colours_in_an_image_and_ids_in_a_label(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8), "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), [[0, 1], [2, 2]])
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), 255 * np.array([[0, 0.299], [0.114, 0.114]]), rtol=1e-5)


@pytest.mark.parametrize("extension", [".png", ".tif", ".jpg"])
def test_a_picture_to_be_shown_turned_is_turned_once(tmp_path, extension):
    array = np.zeros((16, 8), np.uint8)
    array[:8] = 200  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter: then the right half is bright
    read = read_image(write(tmp_path / f"a{extension}", array, exif=exif))
    assert read.shape == (8, 16)
    assert read[:, 8:].min() > 190 > 10 > read[:, :8].max()


def test_labels_of_three_equal_channels_are_read_and_what_is_no_label_is_refused(tmp_path):
    ids = np.array([[0, 3], [3, 0]], np.uint8)
    np.testing.assert_array_equal(read_label(write(tmp_path / "a.png", np.stack([ids] * 3, -1))), ids)
    np.testing.assert_array_equal(read_label(write(tmp_path / "f.tif", ids.astype(np.float32))), ids)
    for name, array, problem in (
        ("b.png", np.stack([ids, 0 * ids, ids], -1), "colours.*one grey or palette channel"),
        ("c.tif", np.array([[0.5, 1]], np.float32), "whole numbers"),
        ("d.tif", np.array([[-1, 1]], np.int32), "whole numbers"),
        ("e.jpg", ids, "label in JPEG.*save it as PNG"),
    ):
        with pytest.raises(ImageError, match=f"{name}: .*{problem}"):
            read_label(write(tmp_path / name, array))


def test_every_bad_file_is_an_image_error_that_names_it(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    whole = write(tmp_path / "whole.png", noise)
    (tmp_path / "truncated.png").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    write(tmp_path / "webp.png", noise, format="WEBP")  # a format that is not read, under the name of one that is
    write(tmp_path / "pages.tif", noise, save_all=True, append_images=[Image.fromarray(noise)])
    write(tmp_path / "constant.png", np.full((4, 4), 7, np.uint8))
    write(tmp_path / "nan.tif", np.array([[0, np.nan]], np.float32))
    write(tmp_path / "lowest.tif", np.array([[0, np.finfo(np.float32).min]], np.float32))
    for name, problem in {
        "truncated.png": "truncated", "empty.png": "empty", "text.png": "none of PNG", "notes.txt": "extension",
        "folder.png": "directory", "webp.png": "none of PNG", "pages.tif": "2; save", "constant.png": "the same .7",
        "nan.tif": "NaN", "lowest.tif": "missing data", "absent.png": "No such file",
    }.items():  # fmt: skip
        with pytest.raises(ImageError, match=f"{name}: .*{problem}"):
            read_image(tmp_path / name)
    for limit, value, problem in (
        ("MAX_PIXELS", 64 * 64 - 1, "64x64"),
        ("MAX_SIDE", 63, "64x64"),
        ("MAX_BYTES", 100, "too large"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(checks, limit, value)
            for read in (read_image, read_label):
                with pytest.raises(ImageError, match=problem):
                    read(whole)
    assert read_image(whole).shape == (64, 64)


def test_a_contour_is_filled_and_what_is_none_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "contour.txt"
    path.write_text("2 1\n6 1\n6 4\n2 4\n")
    expected = np.zeros((6, 9), np.int32)
    expected[1:5, 2:7] = 1  # the line belongs to it
    np.testing.assert_array_equal(images.read_contour(path, (6, 9)), expected)
    for text, problem in (("1 2 3 4", "three lines"), ("1 2 3 4 5 6 7", "three lines"), ("1 2 x 4 5 6", "convert"),
                          ("1 2 3 inf 5 6", "three lines"), ("1 2 3 4 5 1e9", "three lines")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ImageError, match=f"contour.txt: .*{problem}"):
            images.read_contour(path, (6, 9))
    with pytest.raises(ImageError, match="No such file"):
        images.read_contour(tmp_path / "absent.txt", (6, 9))
    monkeypatch.setattr(images, "MAX_CONTOUR_BYTES", 3)
    with pytest.raises(ImageError, match="at most 3 bytes"):
        images.read_contour(path, (6, 9))


def test_an_image_error_passes_between_processes():
    error = pickle.loads(pickle.dumps(ImageError("a.png", "is bad", "very")))
    assert (str(error), error.problem) == ("a.png: is bad (very)", "is bad")


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6))
def test_flipped_bytes_never_end_in_another_error(tmp_path_factory, seed):
    path = tmp_path_factory.getbasetemp() / f"flip{seed % 4}{('.png', '.tif', '.bmp', '.jpg')[seed % 4]}"
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
def test_any_picture_ends_between_0_and_1_with_its_padding_0(height, width, size, low, span, seed):
    image = (low + span * np.random.default_rng(seed).random((height, width))).astype(np.float32)
    ready = preprocess_image(image, size)
    assert ready.shape == (size, size)
    assert ready.min() >= 0
    assert ready.max() <= 1
    assert restore(ready, (height, width)).shape == (height, width)
    short, long = sorted((height, width))
    band = preprocess_mask(np.ones((height, width)), size).sum(int(height < width))  # pixels set a row, or a column
    assert set(band.tolist()) <= {0, size}  # a band of whole rows or columns in the middle, as wide as the picture
    assert abs(np.count_nonzero(band) - size * short / long) <= 2


def test_a_long_strip_needs_no_square_of_its_length():
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


def test_identity_at_its_own_size_and_quantisation():
    image = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    np.testing.assert_allclose(preprocess_image(image, 32), min_max(image), atol=1e-6)
    np.testing.assert_array_equal(restore(image, (32, 32)), image)
    np.testing.assert_array_equal(quantize(np.array([0, 0.5, 1])), [0, 128, 255])
    assert not min_max(np.full((3, 3), 9.0)).any()
