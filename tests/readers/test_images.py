"""Images and 2D labels from files."""

import numpy as np
import pytest
from PIL import Image

from universeg_jax.readers import checks, images
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.images import read_image, read_label
from universeg_jax.readers.preprocess import to_grey


def write(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("extension", [".png", ".tif", ".bmp", ".jpg"])
def test_grey_images_keep_their_values(tmp_path, extension):
    array = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (8, 1))
    read = read_image(write(tmp_path / f"a{extension}", array))
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, array, atol=4 if extension == ".jpg" else 0)


@pytest.mark.parametrize("extension", [".png", ".tif"])
def test_16_bits_keep_their_range(tmp_path, extension):
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


def test_a_palette_means_colours_in_an_image_and_ids_in_a_label(tmp_path):
    palette_image = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8), "P")
    palette_image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    palette_image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), [[0, 1], [2, 2]])
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), 255 * np.array([[0, 0.299], [0.114, 0.114]]), rtol=1e-5)


@pytest.mark.parametrize("extension", [".png", ".tif", ".jpg"])
def test_the_exif_orientation_is_applied_once(tmp_path, extension):
    array = np.zeros((16, 8), np.uint8)
    array[:8] = 200  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise: then the right half is bright
    read = read_image(write(tmp_path / f"a{extension}", array, exif=exif))
    assert read.shape == (8, 16)
    assert read[:, 8:].min() > 190 > 10 > read[:, :8].max()


def test_labels_with_equal_channels_are_read_and_other_colours_refused(tmp_path):
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


def test_every_bad_file_raises_an_image_error_with_its_name(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    whole = write(tmp_path / "whole.png", noise)
    (tmp_path / "truncated.png").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image")
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


def test_a_contour_is_filled_and_a_bad_one_refused(tmp_path, monkeypatch):
    path = tmp_path / "contour.txt"
    path.write_text("2 1\n6 1\n6 4\n2 4\n")
    expected = np.zeros((6, 9), np.int32)
    expected[1:5, 2:7] = 1  # the outline is part of it
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
