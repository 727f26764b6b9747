"""Palettes of label files: where they show that an index is no class, and the table of colours that helps."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.fixtures import write_folder
from universeg_jax.prediction.support import make_support
from universeg_jax.readers import notes
from universeg_jax.readers.errors import FolderError, ImageError
from universeg_jax.readers.folder import read_folder, read_support
from universeg_jax.readers.images import read_label

BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0)


def with_palettes(path, palettes, order=lambda i, ids: ids):
    """A folder of masks of the ids 1 and 2, whose i-th file has the i-th palette and `order(i, ids)` as values."""
    folder = write_folder(path, count=len(palettes), ids=(1, 2))
    for i, (file, palette) in enumerate(zip(sorted((folder / "labels").iterdir()), palettes, strict=True)):
        image = Image.fromarray(order(i, np.asarray(Image.open(file))), "P")
        image.putpalette([part for colour in palette for part in colour])
        image.save(file)
    return folder


def swap_in_second(i, ids):
    return np.array([0, 2, 1], np.uint8)[ids] if i == 1 else ids


def test_one_colour_with_two_ids_is_refused_and_the_suggested_table_reads_it(tmp_path):
    expected = read_support(write_folder(tmp_path / "plain", count=3, ids=(1, 2)))[1]
    palettes = [(BLACK, RED, GREEN), (BLACK, GREEN, RED), (BLACK, RED, GREEN)]
    folder = with_palettes(tmp_path / "s", palettes, swap_in_second)
    with pytest.raises(FolderError, match="p1_0.png: its palette gives #00ff00 the id 1, that of .*p0_0.png") as error:
        read_folder(folder)
    with pytest.raises(FolderError, match="p1_0.png: its palette gives #00ff00 the id 1"):
        make_support(*(sorted((folder / part).iterdir()) for part in ("images", "labels")))
    table = str(error.value).partition("write ")[2].partition(" into")[0]
    assert table == '"colours": {"1": "#ff0000", "2": "#00ff00"}'
    (folder / "meta.json").write_text(f"{{{table}}}")
    np.testing.assert_array_equal(np.stack(read_support(folder)[1]), np.stack(expected))
    (folder / "meta.json").write_text('{"instances": true}')
    assert read_folder(folder).labels == {1: "object"}


def test_one_id_with_two_colours_is_said(tmp_path):
    folder = with_palettes(tmp_path / "s", [(BLACK, RED, GREEN), (BLACK, (255, 9, 9), GREEN)])
    with notes.collect() as said:
        assert set(read_folder(folder).labels) == {1, 2}
        assert [set(np.unique(label)) for label in read_support(folder)[1]] == [{0, 1, 2}] * 2
    (line,) = said.lines()
    assert "id 1 is #ff0000 in p0_0.png, #ff0909 in others; the ids count" in line


def test_equal_palettes_and_unused_colours_say_nothing(tmp_path):
    repeated = [BLACK, RED, GREEN, RED, GREEN]  # a long palette repeats its colours
    folders = [
        with_palettes(tmp_path / "a", [(BLACK, RED, GREEN)] * 2),
        with_palettes(tmp_path / "b", [(BLACK, RED, GREEN), (BLACK, RED, GREEN, WHITE, BLACK)]),
        with_palettes(
            tmp_path / "c", [repeated] * 2, lambda i, ids: np.where(i and ids, ids + 2, ids).astype(np.uint8)
        ),
    ]
    with notes.collect() as said:
        for folder in folders:
            read_folder(folder)
    assert not said


def test_the_palette_of_a_tiff_passes_the_same_check(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 7:20] = 1
    for background in (WHITE, RED):
        colours = np.zeros((3, 256), np.uint16)
        colours[:, 0] = np.array(background) * 257
        tifffile.imwrite(tmp_path / "a.tif", 1 - mask, photometric="palette", colormap=colours)
        with pytest.raises(ImageError, match="its palette shows another id than 0 as the background"):
            read_label(tmp_path / "a.tif")
    colours = np.roll(colours, 1, 1)
    tifffile.imwrite(tmp_path / "a.tif", mask, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(read_label(tmp_path / "a.tif"), mask)


def test_colours_without_a_table_are_refused_with_the_table_that_reads_them(tmp_path):
    folder = write_folder(tmp_path / "s", count=2, ids=(1, 2))
    expected = read_support(folder)[1]
    for file in (folder / "labels").iterdir():
        Image.fromarray(np.array([BLACK, GREEN, RED], np.uint8)[np.asarray(Image.open(file))]).save(file)
    with pytest.raises(FolderError, match='a label in colours .*write such as "colours": ') as error:
        read_folder(folder)
    table = str(error.value).partition("such as ")[2].partition(" into")[0]
    colours = json.loads(f"{{{table}}}")["colours"]
    assert sorted(colours.values()) == ["#00ff00", "#ff0000"]
    (folder / "meta.json").write_text(json.dumps({"colours": {"1": "#00ff00", "2": "#ff0000"}}))
    np.testing.assert_array_equal(np.stack(read_support(folder)[1]), np.stack(expected))


def test_palettes_of_an_nnunet_folder_are_compared_too(tmp_path):
    folder = with_palettes(tmp_path / "s", [(BLACK, RED, GREEN), (BLACK, GREEN, RED)], swap_in_second)
    (folder / "labels").rename(folder / "labelsTr")
    (folder / "images").rename(folder / "imagesTr")
    for file in (folder / "imagesTr").iterdir():
        file.rename(file.with_stem(f"{file.stem}_0000"))
    spec = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(spec))
    with pytest.raises(
        FolderError, match="p1_0.png: its palette gives #00ff00 .* id 2; where ids count, save the labels"
    ):
        read_folder(folder)
    for file in (folder / "labelsTr").iterdir():
        Image.fromarray(np.where(np.asarray(Image.open(file)) == 1, 255, 0).astype(np.uint8)).save(file)
    (folder / "dataset.json").write_text(json.dumps({**spec, "labels": {"background": 0, "a": 1}}))
    with notes.collect() as said:
        assert [set(np.unique(label)) for label in read_support(folder)[1]] == [{0, 1}] * 2
    assert "it means the only id that dataset.json names" in said.lines()[0]
