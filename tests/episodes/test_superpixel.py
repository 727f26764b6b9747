"""Superpixel tasks: regions that are connected and end where intensity does, labels that follow their views."""

import functools
import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit, lax, random
from jax.sharding import Mesh, PartitionSpec
from ml_collections import FrozenConfigDict
from scipy import ndimage

from tests.fixtures import disc, key
from universeg_jax.episode import stack_examples
from universeg_jax.episodes import superpixel

SIZE, SUPPORT = 32, 3


def small_config(**changes):
    config = superpixel.get_config()
    config.cells = (3, 7)
    config.update(changes)
    return FrozenConfigDict(config)


def pictures(count, size=SIZE):
    """Discs of three intensities on noise, [count, size, size]."""
    rng = np.random.default_rng(0)
    images = 0.1 * rng.random((count, size, size))
    for image in images:
        for value in (0.3, 0.6, 0.9):
            image[disc(size, rng.uniform(0.2 * size, 0.8 * size, 2), size * rng.uniform(0.15, 0.3))] += value
    return jnp.asarray(np.clip(images, 0, 1), jnp.float32)


@functools.partial(jit, static_argnums=2)
def draw(indices, images, config):
    def one(x):
        return superpixel.superpixel_episode(random.fold_in(key(), x[0]), x[1], SUPPORT, config)

    return lax.map(one, (indices, images))


@functools.partial(jit, static_argnums=2)
def regions_and_labels(indices, images, config):
    def one(x):
        keys, levels = random.split(random.fold_in(key(), x[0])), superpixel.smoothed_levels(x[1])
        regions = superpixel.superpixels(keys[0], levels, config)
        return regions, superpixel.choose_label(keys[1], regions, levels, config)

    return lax.map(one, (indices, images))


def stacked(episodes):
    """Images and labels [B, 1 + S, H, W], the query first."""
    images, labels = stack_examples(jax.device_get(episodes))
    return images[..., 0], labels[..., 0]


def dijkstra(seeds, down, right):
    """(distance, number of the seed) of each pixel, the smallest pair."""
    height, width = right.shape[0], down.shape[1]
    best = {}
    queue = [(0, number, divmod(int(seed), width)) for number, seed in enumerate(seeds) if seed < height * width]
    heapq.heapify(queue)
    while queue:
        distance, number, (y, x) = heapq.heappop(queue)
        if (y, x) in best:
            continue
        best[y, x] = (distance, number)
        for cost, place in (
            (down[y - 1, x] if y else None, (y - 1, x)),
            (down[y, x] if y < height - 1 else None, (y + 1, x)),
            (right[y, x - 1] if x else None, (y, x - 1)),
            (right[y, x] if x < width - 1 else None, (y, x + 1)),
        ):
            if cost is not None and place not in best:
                heapq.heappush(queue, (distance + int(cost), number, place))
    return np.array([[best[y, x][1] for x in range(width)] for y in range(height)])


def test_regions_equal_those_of_dijkstra():
    rng = np.random.default_rng(1)
    seeds = np.array([3, 40, 99, 117, 144, 3])  # the fifth is outside, the sixth shares its pixel
    down, right = rng.integers(1, 9, (11, 12)), rng.integers(1, 9, (12, 11))
    found = superpixel.nearest_seeds(*(jnp.asarray(x, jnp.int32) for x in (seeds, down, right)))
    np.testing.assert_array_equal(found, dijkstra(seeds, down, right))


def test_levels_are_a_filter_and_do_not_depend_on_rounding():
    image = np.random.default_rng(0).integers(0, 256, (9, 9))
    kernel = np.outer([1, 2, 1], [1, 2, 1])
    expected = ndimage.convolve(image, kernel, mode="nearest")
    np.testing.assert_array_equal(superpixel.smoothed_levels(jnp.asarray(image / 255, jnp.float32)), expected)
    ties = (image + np.arange(81).reshape(9, 9) % 64 / 64).astype(np.float32) / 255  # what halving an image gives
    one, other = (superpixel.smoothed_levels(jnp.asarray(x)) for x in (ties, np.nextafter(ties, 2)))
    np.testing.assert_array_equal(one, other)


def test_superpixels_and_labels_are_connected_and_labels_have_their_size():
    config = small_config()
    images = pictures(48)
    regions, labels = jax.device_get(regions_and_labels(jnp.arange(48), images, config))
    counts = []
    for region in regions:
        numbers = np.unique(region)
        counts.append(len(numbers))
        assert all(ndimage.label(region == number)[1] == 1 for number in numbers)
    assert min(counts) >= 7  # 3 x 3, of which a seed or two may lose everything
    assert max(counts) <= 36
    assert all(ndimage.label(label)[1] == 1 for label in labels)
    areas = labels.mean((1, 2))
    assert areas.min() >= config.area[0]
    assert areas.max() <= config.area[1]
    assert len(np.unique(areas)) > 30
    inside = np.array([len(np.unique(region[label])) for region, label in zip(regions, labels, strict=True)])
    assert (inside == 1).any()
    assert (inside > 2).any()  # unions
    for region, label in zip(regions, labels, strict=True):
        assert set(region[label]) & set(region[~label]) == set()  # of whole superpixels


def test_superpixels_end_where_intensity_changes():
    image = np.full((SIZE, SIZE), 0.2, np.float32)
    image[:, 13:] = 0.7
    config = small_config(compactness=(0.01, 0.01), cells=(4, 7))
    regions, _ = regions_and_labels(jnp.arange(12), jnp.asarray(image)[None].repeat(12, 0), config)
    for region in np.asarray(regions):
        assert set(region[:, :12].ravel()) & set(region[:, 14:].ravel()) == set()  # the filter blurs two columns


def test_the_label_is_the_structure_that_stands_out():
    """The only bright structure is the label; its inside and the dark surroundings have no outline."""
    image = 0.02 + 0.8 * disc(SIZE, (15, 17), 8)
    config = small_config(union=1.0, hops=(8, 9), tolerance=(0.3, 0.3), compactness=(0.005, 0.005))
    _, labels = regions_and_labels(jnp.arange(12), jnp.asarray(image, jnp.float32)[None].repeat(12, 0), config)
    target = image > 0.5
    dice = [2 * (label & target).sum() / (label.sum() + target.sum()) for label in np.asarray(labels)]
    assert min(dice) > 0.9


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_constant_image_has_a_label_too(value):
    _, labels = regions_and_labels(jnp.arange(12), jnp.full((12, SIZE, SIZE), value), small_config())
    areas = np.asarray(labels).mean((1, 2))
    assert areas.min() > 0
    assert areas.max() < 0.5


def test_episodes_are_valid_and_views_differ():
    episodes, repaired = draw(jnp.arange(24), pictures(24), small_config())
    images, labels = stacked(episodes)
    assert images.shape == labels.shape == (24, SUPPORT + 1, SIZE, SIZE)
    assert images.dtype == labels.dtype == np.float32
    np.testing.assert_array_equal(episodes.support_mask, np.ones((24, SUPPORT)))
    assert np.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std((2, 3)).min() > 0.005
    assert set(np.unique(labels)) == {0, 1}
    assert (labels.mean((2, 3)) > 0).all()
    assert (labels.mean((2, 3)) < 1).all()
    assert repaired.dtype == jnp.int32
    apart = np.abs(images[:, :, None] - images[:, None]).mean((3, 4))
    assert apart[:, ~np.eye(SUPPORT + 1, dtype=bool)].min() > 0.005


def test_labels_follow_their_views():
    """The one bright disc is the label in every view."""
    config = superpixel.get_config()
    config.update({"cells": (3, 7), "union": 1.0, "hops": (8, 9), "tolerance": (0.3, 0.3), "bias_std": 0.0})
    config.views.in_task.noise.p = config.views.in_task.brightness_contrast.p = 0.0
    config.views.in_task.sharpness.p = 0.0
    image = jnp.asarray(0.02 + 0.8 * disc(SIZE, (15, 17), 8), jnp.float32)
    episodes, _ = draw(jnp.arange(8), image[None].repeat(8, 0), FrozenConfigDict(config))
    images, labels = stacked(episodes)
    bright = images > 0.5 * images.max((2, 3), keepdims=True)
    dice = 2 * (bright & (labels > 0)).sum((2, 3)) / (bright.sum((2, 3)) + labels.sum((2, 3)))
    assert dice.min() > 0.85
    centres = np.array([ndimage.center_of_mass(label) for label in labels.reshape(-1, SIZE, SIZE)])
    assert centres.std(0).min() > 0.5  # they moved


def test_same_key_same_bytes_at_any_place_in_a_batch():
    config, images = small_config(), pictures(8)
    first = draw(jnp.arange(8), images, config)
    for a, b in zip(*map(jax.tree.leaves, (first, draw(jnp.arange(8), images, config))), strict=True):
        np.testing.assert_array_equal(a, b)
    backwards = draw(jnp.arange(8)[::-1], images[::-1], config)
    for a, b in zip(*map(jax.tree.leaves, (first, backwards)), strict=True):
        np.testing.assert_array_equal(a, b[::-1])
    other, _ = draw(jnp.arange(8, 16), images, config)
    assert (stacked(other)[1] != stacked(first[0])[1]).any((1, 2, 3)).all()


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_any_number_of_devices_gives_the_same_pixels(devices):
    config, images = small_config(), pictures(8)
    expected = draw(jnp.arange(8), images, config)

    mesh = Mesh(np.array(jax.devices()[:devices]), "batch")
    split = PartitionSpec("batch")
    share = functools.partial(draw.__wrapped__, config=config)
    run = jit(jax.shard_map(share, mesh=mesh, in_specs=split, out_specs=split, check_vma=False))
    for a, b in zip(*map(jax.tree.leaves, (expected, run(jnp.arange(8), images))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
