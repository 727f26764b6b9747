"""Values of labels: each kind of file that people have gives its ids, or one line that names the cause."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.fixtures import disc, write_folder
from universeg_jax.readers import notes
from universeg_jax.readers.errors import FolderError, ImageError
from universeg_jax.readers.folder import read_folder, read_support
from universeg_jax.readers.images import read_label
from universeg_jax.readers.label_values import one_class, rim_ids, to_ids
from universeg_jax.readers.labels import check_label

DISC = disc(96, (40, 50), 25)
ROWS, COLUMNS = np.mgrid[:96, :96]


def ids_and_notes(values):
    with notes.collect() as collected:
        return to_ids(np.asarray(values), "a"), collected.lines()


@pytest.mark.parametrize("quality", [20, 50, 75, 95])
def test_a_mask_that_was_a_jpeg_is_thresholded_and_said(quality):
    file = io.BytesIO()
    Image.fromarray(np.where(DISC, 255, 0).astype(np.uint8)).save(file, "JPEG", quality=quality)
    ids, said = ids_and_notes(Image.open(file))
    assert ((ids > 0) != DISC).mean() < 0.002
    assert set(np.unique(ids)) == {0, 255}
    assert "pile up at 0" in said[0]


@pytest.mark.parametrize("top", [1.0, 255, 65535])
@pytest.mark.parametrize("blur", [0.7, 2])
def test_soft_edges_and_probabilities_are_thresholded_at_the_middle(top, blur):
    soft = ndimage.gaussian_filter(DISC.astype(float), blur) * top
    soft = soft if top == 1 else np.round(soft).astype(int)
    ids, said = ids_and_notes(soft)
    np.testing.assert_array_equal(ids > 0, soft >= top / 2)
    assert set(np.unique(ids)) == {0, 1 if top == 1 else 255}
    assert len(said) == 1


def test_ids_stay_ids():
    cells = np.zeros((96, 96), np.int32)
    for number, (y, x) in enumerate([(y, x) for y in range(4, 92, 7) for x in range(4, 92, 7)], 1):
        cells[(ROWS - y) ** 2 + (COLUMNS - x) ** 2 <= 9] = number
    points = np.zeros((96, 96), np.int32)
    points[::7, ::5] = np.arange(points[::7, ::5].size).reshape(points[::7, ::5].shape)
    bordered = np.where(DISC, 1 + COLUMNS // 25, 0)
    bordered[DISC & ~ndimage.binary_erosion(DISC, iterations=2)] = 255  # a border, as in Pascal VOC
    regions = ndimage.label(ndimage.gaussian_filter(np.random.default_rng(0).random((96, 96)), 3) > 0.5)[0]
    for ids in (cells, cells % 256, points, bordered, regions, np.where(DISC, 255, 0) + (ROWS < 5)):
        same, said = ids_and_notes(ids)
        np.testing.assert_array_equal(same, ids)
        assert not said


def test_slopes_are_rounded_and_other_fractions_refused():
    for value in (3.0005, 2.9995):
        np.testing.assert_array_equal(ids_and_notes(np.where(DISC, value, 0))[0], np.where(DISC, 3, 0))
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((96, 96)), 2)
    several = ndimage.gaussian_filter(np.where(DISC, 100.0, 0) + np.where(ROWS > 70, 200.0, 0), 1)
    for values, problem in (
        (np.where(DISC, 0.999, 0), "0.999; whole numbers"),
        (np.where(DISC, 1.5, 0), "1.5; whole numbers"),
        (np.where(DISC, 0.7, 0.2), "probabilities: threshold"),
        (np.where(DISC, -1, 0).astype(np.int8), "-1, which 8 bits with a sign make of 255"),
        (np.where(DISC, -1, 0), "-1; whole"),
        (np.where(DISC, np.nan, 0), "NaN"),
        (np.where(DISC, 2**40, 0), "1099511627776 is above"),
        (np.array([[2**70, 0]]), "object"),
        ((255 * (image - image.min()) / np.ptp(image)).astype(np.uint8), "image and label exchanged"),
        (several.astype(np.uint8), "JPEG, a resize"),
    ):
        with pytest.raises(ImageError, match=f"a: values are not class ids .*{problem}"):
            to_ids(values, "a")


def test_alpha_is_the_mask_where_colours_say_nothing():
    white = np.full((96, 96), 255, np.uint8)
    mask = np.where(DISC, 255, 0).astype(np.uint8)
    with notes.collect() as said:
        np.testing.assert_array_equal(check_label(np.stack([white] * 3 + [mask], -1), "a"), mask)
        np.testing.assert_array_equal(check_label(np.stack([white, mask], -1), "a"), mask)
    assert said.lines() == ("a: the colours are the same everywhere, so its alpha is taken as the mask",)
    np.testing.assert_array_equal(check_label(np.stack([mask] * 3 + [white], -1), "a"), mask)
    np.testing.assert_array_equal(check_label(np.stack([mask] * 4, -1), "a"), mask)
    with pytest.raises(ImageError, match="alpha and its grey values say different things"):
        check_label(np.stack([255 - mask] * 3 + [mask], -1), "a")


def palette_file(path, indices, colours):
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(np.asarray(colours, np.uint8).ravel().tolist())
    image.save(path)
    return path


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_palette_that_shows_another_id_as_the_background_is_refused(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    for colours in ([[255] * 3, [0] * 3], [[200, 10, 10], [3, 2, 1]]):
        with pytest.raises(ImageError, match="its palette shows another id than 0 as the background .0 is shown"):
            read_label(palette_file(path, ~DISC, colours))
    np.testing.assert_array_equal(read_label(palette_file(path, DISC, [[0] * 3, [255] * 3])), DISC)
    np.testing.assert_array_equal(read_label(palette_file(path, DISC, [[9, 9, 250], [250, 9, 9]])), DISC)
    inverting = np.repeat(255 - np.arange(256), 3)  # as ImageJ writes it
    with notes.collect() as said:
        np.testing.assert_array_equal(read_label(palette_file(tmp_path / "a.png", 255 * DISC, inverting)), 255 * DISC)
    assert "its palette shows 0 as white" in said.lines()[0]


def test_masks_of_1_and_masks_of_255_are_one_class(tmp_path):
    assert one_class([{1}, {255}, set()]) == (1, 255)
    for several in ([{1}, {2}], [{1, 255}, {1}], [{1}, {1}], []):
        assert one_class(several) == ()
    folder = write_folder(tmp_path / "s", count=4)
    for name in ("p1_0", "p3_0"):
        path = folder / "labels" / f"{name}.png"
        Image.fromarray((np.asarray(Image.open(path)) * 255).astype(np.uint8)).save(path)
    with notes.collect() as said:
        labels = read_support(folder)[1]
    assert [set(np.unique(label)) for label in labels] == [{0, 1}] * 4
    assert read_folder(folder).labels == {1: "label 1"}
    assert said.lines() == ("s/labels: some masks hold 0 and 1, others 0 and 255: both mean one class, id 1",)
    (folder / "meta.json").write_text('{"labels": {"1": "disc"}}')
    assert [set(np.unique(label)) for label in read_support(folder)[1]] == [{0, 1}] * 4


@pytest.mark.filterwarnings("ignore:.*ids without names")
def test_instances_are_named_and_become_one_class(tmp_path):
    folder = write_folder(tmp_path / "s", count=2, shape=(40, 600), ids=tuple(range(1, 31)))
    with notes.collect() as said:
        assert len(read_folder(folder).labels) == 30
    assert "30 ids without names: each is taken for a class of its own; if they number objects" in said.lines()[0]
    (folder / "meta.json").write_text('{"instances": true}')
    assert read_folder(folder).labels == {1: "object"}
    assert [set(np.unique(label)) for label in read_support(folder)[1]] == [{0, 1}] * 2


@pytest.mark.parametrize("quality", [60, 75, 90])
def test_a_third_level_is_no_noise_between_two(quality):
    small = disc(96, (80, 80), 5)
    grey = np.where(DISC, 255, np.where(small, 127, 0)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=quality)
    for values in (np.asarray(Image.open(file)), ndimage.gaussian_filter(grey, 0.8)):
        with pytest.raises(ImageError, match="JPEG, a resize"):
            to_ids(values, "a")
    with pytest.raises(
        ImageError, match="0.00392157; whole numbers from 0; they are whole after a multiplication by 255"
    ):
        to_ids(DISC / np.float32(255), "a")


def rewrite(folder, change):
    for i, file in enumerate(sorted((folder / "labels").iterdir())):
        Image.fromarray(change(i, np.asarray(Image.open(file))).astype(np.uint8)).save(file)


def test_255_beside_small_ids_may_be_ignored(tmp_path):
    folder = write_folder(tmp_path / "s", count=2, ids=(1, 2))
    rewrite(folder, lambda i, ids: np.where(ids == 2, 255, ids))
    with notes.collect() as said:
        assert set(read_folder(folder).labels) == {1, 255}
    assert '"ignore": [255]' in said.lines()[0]
    for meta in ('{"ignore": [255]}', '{"ignore": [255], "labels": {"1": "disc"}}'):
        (folder / "meta.json").write_text(meta)
        with notes.collect() as said:
            assert set(read_folder(folder).labels) == {1}
            assert [set(np.unique(label)) for label in read_support(folder)[1]] == [{0, 1}] * 2
        assert not said
    (folder / "meta.json").write_text('{"ignore": [255], "instances": true}')
    assert [set(np.unique(label)) for label in read_support(folder)[1]] == [{0, 1}] * 2
    (folder / "meta.json").write_text('{"ignore": 255}')
    with pytest.raises(FolderError, match='"ignore" is 255; write a list of ids above 0'):
        read_folder(folder)


def test_two_greys_that_never_meet_are_said(tmp_path):
    folder = write_folder(tmp_path / "s", count=2)
    rewrite(folder, lambda i, ids: np.where(ids, 255 if i else 128, 0))
    with notes.collect() as said:
        assert set(read_folder(folder).labels) == {128, 255}
    assert "each mask holds one value above 0, but not all the same (128, 255)" in said.lines()[0]
    rewrite(folder, lambda i, ids: np.where(ids, 1 + i, 0))  # a class for each image is common
    with notes.collect() as said:
        read_folder(folder)
    assert not said


def test_objects_in_colours_are_one_class_with_a_table_and_without(tmp_path):
    folder = write_folder(tmp_path / "s", count=2, ids=(1, 2))
    expected = [label > 0 for label in read_support(folder)[1]]
    colours = np.array([[0, 0, 0], [200, 30, 0], [0, 90, 240]], np.uint8)
    for file in (folder / "labels").iterdir():
        Image.fromarray(colours[np.asarray(Image.open(file))]).save(file)
    with pytest.raises(FolderError, match='a label in colours .*or "instances": true where each colour is an object'):
        read_folder(folder)
    for table in ("", ', "colours": {"1": [200, 30, 0], "2": [0, 90, 240]}', ', "labels": {"1": "cell"}'):
        (folder / "meta.json").write_text(f'{{"instances": true{table}}}')
        assert list(read_folder(folder).labels) == [1]
        np.testing.assert_array_equal(np.stack(read_support(folder)[1]), np.stack(expected))
    (folder / "meta.json").write_text('{"instances": true, "colours": {"1": [200, 30, 0]}}')
    with pytest.raises(ImageError, match="holds colours that are not in"):
        read_support(folder)


@pytest.mark.parametrize(("ids", "between"), [((0, 2), {1}), ((0, 1, 3), {2}), ((0, 4), {1, 2, 3}), ((2, 4), {3})])
@pytest.mark.parametrize("times", [3, 4])
def test_a_rim_that_interpolation_leaves_between_two_ids_is_said(tmp_path, ids, between, times):
    inner = disc(96, (40, 50), 10)
    small = np.select([inner, DISC], (ids[-1], ids[1]), ids[0]).astype(np.uint8)
    zoomed = ndimage.zoom(small.astype(float), times, order=1)
    assert rim_ids(np.rint(zoomed).astype(np.int32)) == between
    assert rim_ids(np.repeat(np.rint(zoomed).astype(np.int32)[..., None], 20, 2)) == between
    assert rim_ids(small.repeat(times, 0).repeat(times, 1).astype(np.int32)) == set()
    folder = write_folder(tmp_path / "s", count=2, shape=zoomed.shape)
    rewrite(folder, lambda i, label: np.rint(zoomed))
    with notes.collect() as said:
        read_folder(folder)
    listed = ", ".join(map(str, sorted(between)))
    assert said.lines() == (
        f"s/labels: id {listed} is a rim of one or two pixels between two other ids, as a resize with interpolation "
        "makes it: resize labels by the nearest neighbour; if it is a class, name it in meta.json",
    )
    names = {str(i): f"class {i}" for i in (*ids, *between) if i}
    (folder / "meta.json").write_text(json.dumps({"labels": names}))
    with notes.collect() as said:
        read_folder(folder)
    assert not said


def test_classes_of_their_own_are_no_rims():
    wall = disc(96, (40, 50), 29)
    heart = np.select([DISC, wall], (3, 2), 0)  # a wall of four pixels around a cavity
    beside = np.where(DISC, 3, np.where(ndimage.shift(DISC, (0, 1), order=0), 2, 0))  # only on one side
    layers = np.where(ROWS > 60, 3, np.where(ROWS > 50, 2, np.where(ROWS > 46, 1, 0)))
    for ids in (heart, beside, layers, np.where(DISC, 1, 0)):
        assert rim_ids(ids.astype(np.int32)) == set()


def test_thin_strokes_amid_255_stay_ids():
    """Without the id to ignore they look like a mask of 0 and 255 whose edges were smoothed."""
    label = np.full((64, 64), 255, np.uint8)
    label[10] = label[30] = 0
    label[20] = label[40, ::2] = 1
    assert set(np.unique(to_ids(label, "a", (255,)))) == {0, 1, 255}
    np.testing.assert_array_equal(to_ids(label, "a", (255,)), label)
    np.testing.assert_array_equal(to_ids(label.astype(np.float32), "a", (255,)), label)
