"""TIFF files by the meaning of their axes, with every value kept; PNG of 16 bits per channel."""

import importlib.util
import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from universeg_jax.readers import checks, notes
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.images import read_image, read_label
from universeg_jax.readers.volume_files import is_volume, read_label_volume, read_volume

STACK = np.random.default_rng(0).integers(0, 250, (5, 12, 9)).astype(np.uint8)
IDS = np.random.default_rng(1).integers(0, 4, (12, 9))


def slices(volume):
    """The pages [N, H, W] that a volume was stacked from."""
    return volume.data[::-1, ::-1].transpose(2, 1, 0)


@pytest.mark.parametrize(
    ("options", "axes"),
    [
        ({"imagej": True}, "ZYX"), ({"imagej": True}, "TYX"), ({"ome": True}, "ZYX"), ({"ome": True}, "TYX"),
        ({"bigtiff": True, "photometric": "minisblack"}, "ZYX"), ({"photometric": "minisblack"}, "QYX"),
    ],
)  # fmt: skip
def test_slices_and_times_are_a_volume(tmp_path, options, axes):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, metadata={"axes": axes}, **options)
    assert is_volume(path)
    with notes.collect() as said:
        np.testing.assert_array_equal(slices(read_volume(path)), STACK)
        np.testing.assert_array_equal(slices(read_label_volume(path)), STACK)
    assert bool(said) == (axes == "TYX")


def test_a_hyperstack_in_one_directory_is_a_whole_volume(tmp_path):
    """ImageJ writes one directory and all planes behind it where a stack is larger than 4 GB."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "ZYX"}, contiguous=True)
    with tifffile.TiffFile(path) as file:
        first = file.pages[0]
        offset = first.offset + 2 + 12 * len(first.tags)
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = bytes(4)  # no next directory
    path.write_bytes(data)
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 1
    assert is_volume(path)
    np.testing.assert_array_equal(slices(read_volume(path)), STACK)


@pytest.mark.parametrize("options", [{"ome": True}, {"imagej": True}])
def test_channels_are_no_slices(tmp_path, options):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK[:3], metadata={"axes": "CYX"}, photometric="minisblack", **options)
    assert not is_volume(path)
    with notes.collect() as said:
        np.testing.assert_allclose(read_image(path), STACK[:3].mean(0), rtol=1e-6)
    assert "its 3 channels are averaged" in said.lines()[0]
    with pytest.raises(ImageError, match="a label with several channels .3"):
        read_label(path)
    both = np.stack([STACK, STACK + 5], 1)  # ZCYX
    tifffile.imwrite(path, both, metadata={"axes": "ZCYX"}, photometric="minisblack", **options)
    np.testing.assert_array_equal(slices(read_volume(path, channel=1)), both[:, 1])
    with pytest.raises(ImageError, match="number 2 was requested"):
        read_volume(path, channel=2)
    times = np.stack([STACK, STACK])
    tifffile.imwrite(path, times, metadata={"axes": "TZYX"}, photometric="minisblack", **options)
    with pytest.raises(ImageError, match="2 times and 5 slices"):
        read_volume(path)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]
)
def test_every_type_of_number_is_read(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", IDS.astype(dtype))
    np.testing.assert_array_equal(read_label(tmp_path / "a.tif"), IDS)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), IDS)
    tifffile.imwrite(tmp_path / "b.tif", np.stack([IDS, IDS]).astype(dtype), photometric="minisblack")
    np.testing.assert_array_equal(slices(read_label_volume(tmp_path / "b.tif")), [IDS, IDS])


def test_white_is_zero_in_images_and_values_count_in_labels(tmp_path):
    for dtype in (np.uint8, np.uint16):
        mask = np.where(IDS == 1, 255, 0).astype(dtype)
        tifffile.imwrite(tmp_path / "a.tif", mask, photometric="miniswhite")
        with notes.collect() as said:
            np.testing.assert_array_equal(read_label(tmp_path / "a.tif"), mask)
        assert "0 is shown as white" in said.lines()[0]
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.iinfo(dtype).max - mask)
    with notes.collect():
        np.testing.assert_array_equal(read_label((tmp_path / "a.tif").read_bytes()), mask)
        tifffile.imwrite(tmp_path / "b.tif", mask.astype(np.uint8), photometric="miniswhite")
        np.testing.assert_array_equal(read_label(Image.open(tmp_path / "b.tif")), mask)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "group4"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_compressions_of_8_bits_keep_the_stored_values(tmp_path, compression, photometric):
    mask = IDS == 1
    image = Image.fromarray(mask if compression == "group4" else mask.astype(np.uint8) * 7)
    image.save(tmp_path / "a.tif", compression=compression, tiffinfo={262: photometric})
    stored = mask * 1 if compression == "group4" else mask * 7
    if photometric == 0:  # Pillow stores what shows the image that it was given
        stored = 1 - stored if compression == "group4" else 255 - stored
    with notes.collect():
        np.testing.assert_array_equal(read_label(tmp_path / "a.tif"), stored)


def test_a_compression_that_nothing_here_undoes_names_the_extra(tmp_path, monkeypatch):
    Image.fromarray(IDS.astype(np.uint8)).save(tmp_path / "a.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    tag = data.index(bytes([3, 1, 3, 0, 1, 0, 0, 0]))  # compression, one short
    data[tag + 8 : tag + 10] = (34887).to_bytes(2, "little")  # LERC
    (tmp_path / "a.tif").write_bytes(data)
    if importlib.util.find_spec("imagecodecs"):  # where the extra is installed: as tifffile says without it

        def lacks(series, *args, **options):
            raise ValueError("<COMPRESSION.LERC: 34887> requires the 'imagecodecs' package")

        monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", lacks)
    with pytest.raises(ImageError, match=r"imagecodecs .LERC; .*universeg_jax\[tiff\]"):
        read_label(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", ["zstd", "lzw", "jpeg2000", "packbits"])
def test_compressions_of_the_extra_keep_every_value(tmp_path, compression):
    pytest.importorskip("imagecodecs")
    values = (STACK[0].astype(np.uint16) * 201).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), values)


def png16(channels: np.ndarray) -> bytes:
    """A PNG with 16 bits per channel, written by its specification."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    height, width, count = channels.shape
    kind = {2: 4, 3: 2, 4: 6}[count]
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, kind, 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("count", [2, 3, 4])
def test_16_bit_channels_keep_every_level(tmp_path, count):
    grey = np.arange(3000, 3108, dtype=np.uint16).reshape(12, 9)  # 108 levels within one level of 8 bits and a half
    channels = np.stack([grey] * count, -1)
    if count in (2, 4):
        channels[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(png16(channels))
    if count > 2:
        tifffile.imwrite(tmp_path / "a.tif", channels[..., :3], photometric="rgb")
    for path in tmp_path.iterdir():
        np.testing.assert_allclose(read_image(path), grey, rtol=1e-5)
        np.testing.assert_array_equal(read_label(path), grey)


def test_too_many_pixels_are_refused_with_the_way_around_it(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "MAX_PIXELS", 100)
    tifffile.imwrite(tmp_path / "a.tif", STACK[0])
    Image.fromarray(STACK[0]).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        with pytest.raises(ImageError, match=f"{name}: too many pixels .9x12; at most 100 .*tiles of at most 10x10"):
            read_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit comes first for very large files
    with pytest.raises(ImageError, match="a.png: too many pixels .*tiles"):
        read_image(tmp_path / "a.png")


def test_paths_bytes_and_opened_images_are_one(tmp_path):
    wide = np.random.default_rng(0).integers(0, 255, (12, 20)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(wide).save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(wide, -1)
    data = (tmp_path / "a.png").read_bytes()
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), data, Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(read_image(source), expected)
        np.testing.assert_array_equal(read_image(source, upright=False), wide)
    tifffile.imwrite(tmp_path / "a.tif", wide, extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)


def test_cmyk_and_lightness_are_shown_as_a_viewer_does(tmp_path):
    grey = np.linspace(0, 255, 12 * 9).reshape(12, 9).astype(np.uint8)
    Image.fromarray(grey).convert("RGB").convert("CMYK").save(tmp_path / "a.tif")
    np.testing.assert_allclose(read_image(tmp_path / "a.tif"), grey, atol=1)
    inks = np.stack([0 * grey, 0 * grey, 0 * grey, 255 - grey], -1)  # all in the black ink
    tifffile.imwrite(tmp_path / "b.tif", inks, photometric="separated")
    np.testing.assert_allclose(read_image(tmp_path / "b.tif"), grey, atol=1)
    other = np.random.default_rng(0).integers(0, 255, (12, 9, 2)).astype(np.uint8)
    for kind in ("cielab", "ycbcr"):
        tifffile.imwrite(tmp_path / "c.tif", np.concatenate([grey[..., None], other], -1), photometric=kind)
        np.testing.assert_array_equal(read_image(tmp_path / "c.tif"), grey)


def test_a_stack_of_labels_with_equal_colours_and_alpha_is_read(tmp_path):
    ids = (STACK > 100).astype(np.uint8) * 255
    pages = np.stack([ids] * 3 + [np.full_like(ids, 255)], -1)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(slices(read_label_volume(tmp_path / "a.tif")), ids)
    pages[..., 0] = 7
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(ImageError, match="a label in colours"):
        read_label_volume(tmp_path / "a.tif")


def test_a_header_does_not_choose_which_other_files_are_read(tmp_path):
    tifffile.imwrite(tmp_path / "other.ome.tif", STACK, ome=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(tmp_path / "other.ome.tif") as file:
        uuid = "urn:uuid:" + "0" * 8
        xml = file.ome_metadata.replace(
            "<TiffData", f'<TiffData FirstZ="0"><UUID FileName="other.ome.tif">{uuid}</UUID>'
        )
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK[0], description=xml.replace("/>", "</TiffData>", 1), metadata=None)
    np.testing.assert_array_equal(read_image(tmp_path / "a.ome.tif"), STACK[0])


def test_animations_are_refused(tmp_path):
    frames = [Image.fromarray(page) for page in STACK]
    for ending in ("png", "gif"):
        frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
        with pytest.raises(ImageError, match="has several pages .5"):
            read_image(tmp_path / f"a.{ending}")


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("photometric", [0, 1])
def test_tiffs_of_2_and_4_bits_have_the_values_that_are_stored(tmp_path, bits, photometric):
    ids = np.random.default_rng(0).integers(0, 1 << bits, (6, 8))
    ids[0, :2] = 0, (1 << bits) - 1
    of_pixel = np.unpackbits(ids.astype(np.uint8)[..., None], -1)[..., -bits:]
    data = np.packbits(of_pixel.reshape(6, -1), 1).tobytes()
    tags = (
        (256, 8),
        (257, 6),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, 6),
        (279, len(data)),
    )
    start = 8 + len(data)
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    header = struct.pack("<2sHI", b"II", 42, start)
    file = tmp_path / "a.tif"
    file.write_bytes(header + data + struct.pack("<H", len(tags)) + directory + bytes(4))
    with notes.collect():
        np.testing.assert_array_equal(read_label(file), ids)
