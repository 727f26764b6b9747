"""Images and 2D labels from files."""

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import disc
from universeg_jax.readers import checks, images, notes
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.images import read_colours, read_image, read_label
from universeg_jax.readers.preprocess import to_grey
from universeg_jax.readers.volume_files import read_volume


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
    write(tmp_path / "tga.png", noise, format="TGA")  # a format that is not read, under the name of one that is
    write(tmp_path / "pages.tif", noise, save_all=True, append_images=[Image.fromarray(noise)])
    write(tmp_path / "constant.png", np.full((4, 4), 7, np.uint8))
    write(tmp_path / "nan.tif", np.array([[0, np.nan]], np.float32))
    write(tmp_path / "lowest.tif", np.array([[0, np.finfo(np.float32).min]], np.float32))
    for name, problem in {
        "truncated.png": "truncated", "empty.png": "empty", "text.png": "none of PNG", "notes.txt": "extension",
        "folder.png": "directory", "tga.png": "none of PNG", "pages.tif": "2; save", "constant.png": "the same .7",
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


@pytest.mark.parametrize("ending", ["webp", "jp2", "jpg"])
def test_a_label_in_a_format_that_changes_values_is_a_mask_or_refused(tmp_path, ending):
    mask = np.kron(disc(32, (15, 15), 9), np.ones((2, 2)))
    options = (
        {"quality_mode": "rates", "quality_layers": [12], "irreversible": True} if ending == "jp2" else {"quality": 60}
    )
    for name, top in (("a", 255), ("b", 3)):
        write(tmp_path / f"{name}.{ending}", (mask * top).astype(np.uint8), **options)
    with notes.collect() as said:
        ids = read_label(tmp_path / f"a.{ending}")
    assert ((ids == 255) != mask).mean() < 0.01
    assert set(np.unique(ids)) == {0, 255}
    assert "pile up at 0 and at the maximum" in said.lines()[0]
    kind = {"webp": "lossy WebP", "jp2": "JPEG 2000", "jpg": "JPEG"}[ending]
    with pytest.raises(
        ImageError, match=f"b.{ending}: a label in {kind} .its compression .* class ids; save it as PNG"
    ):
        read_label(tmp_path / f"b.{ending}")
    image = 60 + 120 * mask
    assert np.abs(read_image(write(tmp_path / f"c.{ending}", image.astype(np.uint8), **options)) - image).mean() < 8


def test_webp_without_loss_holds_ids_and_an_animated_one_is_refused(tmp_path):
    ids = np.random.default_rng(0).integers(0, 4, (20, 30)).astype(np.uint8)
    file = write(tmp_path / "a.webp", ids, lossless=True)
    np.testing.assert_array_equal(read_label(file), ids)
    np.testing.assert_array_equal(read_label(file.read_bytes()), ids)
    np.testing.assert_array_equal(read_label(Image.open(file)), ids)
    write(
        tmp_path / "b.webp", ids, lossless=True, save_all=True, append_images=[Image.fromarray(ids.T.reshape(20, 30))]
    )
    with pytest.raises(ImageError, match="b.webp: has several pages .2;"):
        read_image(tmp_path / "b.webp")


def test_jpeg_2000_keeps_16_bits(tmp_path):
    image = (np.arange(64 * 64).reshape(64, 64) * 13).astype(np.uint16)
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.jp2", image)), image)


def test_labels_in_pgm_and_pbm_have_the_values_that_are_stored(tmp_path):
    ids = np.random.default_rng(0).integers(0, 4, (6, 8))
    ids[0, :4] = 0, 1, 2, 3
    plain = "\n".join(" ".join(map(str, row)) for row in ids)
    for name, top in (("a", 3), ("b", 255), ("c", 4095), ("d", 65535)):
        (tmp_path / f"{name}.pgm").write_text(f"P2\n8 6\n{top}\n{plain}\n")
        wide = ids.astype(">u2" if top > 255 else "u1").tobytes()
        (tmp_path / f"{name}{name}.pgm").write_bytes(f"P5\n8 6\n{top}\n".encode() + wide)
        for file in (f"{name}.pgm", f"{name}{name}.pgm"):
            np.testing.assert_array_equal(read_label(tmp_path / file), ids, err_msg=file)
    bits = ids > 1
    (tmp_path / "e.pbm").write_text("P1\n8 6\n" + "\n".join(" ".join(map(str, row)) for row in bits.astype(int)))
    (tmp_path / "f.pbm").write_bytes(b"P4\n8 6\n" + np.packbits(bits, 1).tobytes())
    for name in ("e.pbm", "f.pbm"):
        np.testing.assert_array_equal(read_label(tmp_path / name), bits)


@pytest.mark.parametrize(("bits", "step"), [(2, 1), (4, 5)])
def test_grey_pngs_of_2_and_4_bits_have_the_ids_that_are_stored(tmp_path, bits, step):
    ids = (np.random.default_rng(0).integers(0, 4, (6, 8)) * step).astype(np.uint8)
    file = write(tmp_path / "a.png", ids, bits=bits)
    np.testing.assert_array_equal(read_label(file), ids)
    np.testing.assert_array_equal(read_label(file.read_bytes()), ids)
    assert read_image(file).max() == 255  # an image is read as a viewer shows it


def test_transparent_ids_other_than_0_are_refused(tmp_path):
    ids = np.kron(disc(16, (7, 7), 4), np.ones((2, 2))).astype(np.uint8)
    palette = Image.fromarray(ids, "P")
    palette.putpalette([0] * 6)
    palette.save(tmp_path / "a.png", transparency=b"\xff\x00")
    palette.save(tmp_path / "b.png", transparency=1)
    Image.fromarray(ids * 7).save(tmp_path / "c.png", transparency=7)
    for name in ("a.png", "b.png", "c.png"):
        with pytest.raises(ImageError, match=f"{name}: its transparency shows another id than 0 as the background"):
            read_label(tmp_path / name)
    palette.save(tmp_path / "d.png", transparency=b"\x00\xff")
    np.testing.assert_array_equal(read_label(tmp_path / "d.png"), ids)


def test_a_palette_of_greys_that_are_not_the_ids_is_said(tmp_path):
    ids = np.kron(disc(16, (7, 7), 4), np.ones((2, 2))).astype(np.uint8)
    for name, array, words in (
        ("a.gif", ids * 5, "its palette shows id 1 as grey 5"),
        ("b.gif", ids * 255, ""),
        ("c.png", ids * 5, ""),
        ("d.gif", ids * 5 + np.eye(32, dtype=np.uint8) * 200, "its palette shows id"),
    ):
        with notes.collect() as said:
            found = read_label(write(tmp_path / name, array))
        assert len(np.unique(found)) == len(np.unique(array))
        assert [words in line for line in said.lines()] == ([True] if words else [])


def test_transparent_pixels_of_a_label_in_colours_are_background(tmp_path):
    ids = np.kron(disc(16, (7, 7), 4), np.ones((2, 2))).astype(np.uint8)
    red = np.stack([np.full_like(ids, 255), 0 * ids, 0 * ids, 128 * ids], -1)
    np.testing.assert_array_equal(read_colours(write(tmp_path / "a.png", red))[..., 0], 255 * ids)
    np.testing.assert_array_equal(read_colours(write(tmp_path / "b.png", red[..., :3]))[..., 0], 255)


@pytest.mark.parametrize("name", ["a.png", "a.nii.gz", "a.dcm"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
    with pytest.raises(ImageError, match=f"{name}: is a pointer of Git LFS, not the file itself .run git lfs pull"):
        (read_image if name == "a.png" else read_volume)(tmp_path / name)
