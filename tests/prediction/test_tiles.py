"""The second pass: tiles cover the image, join without loss, and are segmented like images of their own."""

import numpy as np
import pytest

from benchmarks.tiles import bound, measure
from tests.fixtures import disc, write_folder
from tests.prediction.test_support import write_volumes
from universeg_jax.cli import main
from universeg_jax.errors import UserError
from universeg_jax.prediction.options import Options
from universeg_jax.prediction.support import make_support, read_support_folder
from universeg_jax.prediction.tiles import (
    MIN_PROBABILITY,
    cut_tiles,
    downsample,
    join_tiles,
    min_max_tiles,
    retained_dice,
    tile_corners,
    upsample,
)
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.preprocess import preprocess_image, restore
from universeg_jax.readers.volumes import make_volume


@pytest.mark.parametrize("times", [2, 3, 5])
def test_joining_inverts_cutting(times):
    whole = np.random.default_rng(0).random((2, 128 * times, 128 * times), np.float32)
    tiles = cut_tiles(whole, times)
    assert tiles.shape == (2, (2 * times - 1) ** 2, 128, 128)
    np.testing.assert_allclose(join_tiles(tiles.swapaxes(0, 1), times), whole, atol=1e-6)
    np.testing.assert_allclose(downsample(np.ones_like(whole), times), 1)
    for tile, (row, column) in zip(tiles[0], tile_corners(times), strict=True):
        np.testing.assert_array_equal(tile, whole[0, row : row + 128, column : column + 128])


def test_each_tile_is_scaled_by_its_own_range():
    tiles = np.random.default_rng(0).random((3, 128, 128), np.float32) * np.array([[[0.1]], [[0.5]], [[0]]]) + 0.3
    scaled = min_max_tiles(tiles)
    np.testing.assert_allclose(scaled[:2].min((1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(scaled[:2].max((1, 2)), 1, atol=1e-6)
    np.testing.assert_array_equal(scaled[2], 0)


def lines(shape=(300, 300), width=2):
    """Thin lines that 128x128 pixels cannot hold."""
    label = np.zeros(shape, np.uint8)
    for start in range(10, shape[0], 40):
        label[start : start + width] = 1
    return label


def test_thin_labels_ignore_the_first_pass():
    rng = np.random.default_rng(0)
    thin, thick = lines(), 3 * disc(300, (150, 150), 70).astype(np.uint8)
    images = rng.random((3, 300, 300))
    assert make_support(images, [thin] * 3, tiles=2).tile_support.first_weight == 0
    support = make_support(images, [thick] * 3, ["a", "b", "c"], tiles=2)
    assert support.tile_support.first_weight == 0.5
    fine = np.zeros((256, 256), np.uint8)
    fine[::2] = 1
    assert retained_dice(np.ones((128, 128), np.uint8), fine) == pytest.approx(2 / 3)
    tiles = support.tile_support.support
    assert tiles.masks.any((2, 3)).all()  # around the labels
    assert len(tiles) == len(tiles.names) == len(tiles.subjects) == len(tiles.positions)
    assert set(tiles.subjects) == {"a", "b", "c"}
    assert tiles.labels == (3,)
    assert make_support(images, [thick] * 3).tile_support is None
    assert support.digest() != make_support(images, [thick] * 3).digest()


@pytest.mark.parametrize("thin", [True, False])
def test_the_second_pass_is_the_model_on_tiles_of_query_and_support(predictor, thin):
    """Against the steps written out: the same tiles of 256x256 pixels, each segmented as an image."""
    rng = np.random.default_rng(1)
    label = lines() if thin else disc(300, (150, 150), 70).astype(np.uint8)
    images = [np.clip(0.5 * label + rng.random(label.shape), 0, 1) for _ in range(3)]
    query = rng.random((200, 310))
    segment = predictor.for_support(images, [label] * 3, tiles=2)
    prediction = segment(query)
    first = predictor.for_support(images, [label] * 3)
    coarse = upsample(first.probabilities(preprocess_image(query, 128)[None])[0], 2)
    tiles, expected = cut_tiles(preprocess_image(query, 256), 2), cut_tiles(coarse, 2).swapaxes(0, 1)
    segmented = 0
    for place, tile in enumerate(tiles):
        if expected[place].max() < MIN_PROBABILITY:
            continue
        segmented += 1
        scaled = (tile - tile.min()) / (tile.max() - tile.min())
        fine = segment.tile_segmenter.probabilities(scaled[None], np.array([(place + 0.5) / 9]))[0]
        expected[place] = fine if thin else (fine + expected[place]) / 2
    assert segmented
    whole = join_tiles(expected, 2)
    np.testing.assert_allclose(prediction.probabilities, restore(whole[0], query.shape), atol=1e-5)
    assert prediction.mask.shape == query.shape
    np.testing.assert_array_equal(prediction.seen, preprocess_image(query, 128)[None])


def test_the_command_takes_tiles_of_images_only(checkpoint, predictor, tmp_path, capsys):
    folder = write_folder(tmp_path / "s", count=3, shape=(150, 140), ids=(1, 2))
    queries = ["--queries", str(folder / "images")]
    arguments = ["predict", "--checkpoint", str(checkpoint), "--support", str(folder), "--tiles", "2"]
    assert main([*arguments, *queries, "--out", str(tmp_path / "out")]) == 0
    one = read_support_folder(folder, label=2, tiles=2)
    assert one.labels == one.tile_support.support.labels == (2,)
    assert main([*arguments[:-1], "3", *queries, "--out", str(tmp_path / "out")]) == 1  # other options
    assert "other weights or options" in capsys.readouterr().err
    volumes = str(write_volumes(tmp_path / "v", radii=(0.5,)))
    assert main([*arguments[:-3], volumes, "--tiles", "2", *queries, "--out", str(tmp_path / "x")]) == 1
    assert "leave out --tiles" in capsys.readouterr().err
    segmenter = predictor.segmenter(read_support_folder(folder, tiles=2), Options(tiles=2))
    with pytest.raises(ImageError, match="tiles are for images"):
        segmenter(make_volume(np.zeros((4, 4, 4), np.float32), np.eye(4)))
    with pytest.raises(UserError, match="make the support set with the same tiles"):
        predictor.segmenter(read_support_folder(folder), Options(tiles=2))
    for wrong in (1, -2, 17):
        with pytest.raises(UserError, match=f"tiles={wrong}"):
            Options(tiles=wrong)


def test_the_benchmark_keeps_support_and_queries_apart(predictor, tmp_path):
    folder = write_folder(tmp_path / "s", count=6, shape=(140, 150))
    row = measure(predictor, folder, 0, queries=1, support_size=4)
    assert (row["pool"], row["queries"], row["share_of_first_look"]) == (4, 1, 1)
    assert 0 <= row["dice"] <= 1
    assert bound(lines() > 0) < 0.8 < bound(disc(300, (150, 150), 70))
