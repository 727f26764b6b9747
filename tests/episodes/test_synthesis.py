"""Synthetic tasks: pure, valid, as published, and with labels that follow their images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit, lax, random
from jax.sharding import Mesh, PartitionSpec
from ml_collections import FrozenConfigDict
from scipy import ndimage

from tests.fixtures import key, within_4_sigma
from universeg_jax.episode import stack_examples
from universeg_jax.episodes import render, structures, synthesis

SIZE, SUPPORT = 32, 3


def small_config(**changes):
    """The defaults with velocities coarse enough for 32 pixels."""
    config = synthesis.get_config()
    config.warp_scales = (16, 32, 64)
    config.update(changes)
    return config


@functools.partial(jit, static_argnums=(1, 2))
def draw(indices, config, size=SIZE):
    def one(i):
        return synthesis.synthetic_episode(random.fold_in(key(), i), size, SUPPORT, config)

    return lax.map(one, indices)


def stacked(episodes):
    """Images and labels [B, 1 + S, H, W], the query first."""
    images, labels = stack_examples(jax.device_get(episodes))
    return images[..., 0], labels[..., 0]


@pytest.fixture(scope="module")
def episodes():
    return draw(jnp.arange(96), FrozenConfigDict(small_config()))


def test_shapes_and_types(episodes):
    assert episodes.query_image.shape == episodes.query_label.shape == (96, SIZE, SIZE, 1)
    assert episodes.support_images.shape == episodes.support_labels.shape == (96, SUPPORT, SIZE, SIZE, 1)
    np.testing.assert_array_equal(episodes.support_mask, np.ones((96, SUPPORT)))
    assert {x.dtype for x in episodes} == {jnp.dtype("float32")}


def test_images_and_labels_are_valid(episodes):
    images, labels = stacked(episodes)
    assert np.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std((2, 3)).min() > 0.005
    assert set(np.unique(labels)) == {0, 1}
    areas = labels.mean((2, 3))
    assert areas.min() >= synthesis.get_config().min_foreground  # none is empty
    assert areas.max() < 1
    assert np.unique(areas[:, 0]).size > 70  # tasks differ


def test_same_key_same_bytes(episodes):
    again = draw(jnp.arange(96), FrozenConfigDict(small_config()))
    for a, b in zip(episodes, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_episode_does_not_depend_on_its_place_in_a_batch(episodes):
    backwards = draw(jnp.arange(96)[::-1], FrozenConfigDict(small_config()))
    for a, b in zip(episodes, backwards, strict=True):
        np.testing.assert_array_equal(a, b[::-1])


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_any_number_of_devices_by_vmap_or_map_gives_the_same_pixels(devices):
    config = flat_config("shapes")
    expected = draw(jnp.arange(16), config)

    def one(i):
        return synthesis.synthetic_episode(random.fold_in(key(), i), SIZE, SUPPORT, config)

    mesh = Mesh(np.array(jax.devices()[:devices]), "batch")
    split = PartitionSpec("batch")
    run = jit(jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=split, out_specs=split, check_vma=False))
    for a, b in zip(expected, run(jnp.arange(16)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_published_values():
    """The ranges of the appendix, all at 256 pixels."""
    config = synthesis.get_config()
    assert config.labels == (5, 20)
    assert (config.shapes_std, config.shapes_warp_std) == ((0.5, 5), (4, 15))
    assert (config.std_min, config.std_max, config.interimage_std) == ((0.01, 0.1), (0.2, 1), (0.01, 0.1))
    assert (config.warp_std, config.squarings) == ((1, 20), 5)
    assert (config.bias_res, config.bias_std, config.blur_std) == ((32, 50), (0.1, 1), (0.5, 5))
    assert config.shapes_scales == (32, 64, 128)
    assert config.shapes_warp_scales == (16, 32, 64, 128)
    assert config.warp_scales == (8, 16, 32, 64)
    assert (config.background_zero, config.gamma_std, config.min_label_area) == (0.2, 0.25, 0.001)


DRAWS = 2000


def test_families_and_distractors_occur_as_often_as_configured():
    config = synthesis.get_config()
    keys = random.split(key(), DRAWS)
    config.weights = {"shapes": 1.0, "tubes": 2.0, "blobs": 0.0, "nests": 5.0}
    families = np.asarray(jit(jax.vmap(lambda k: synthesis.sample_family(k, config)))(keys))
    for place, p in enumerate((1 / 8, 2 / 8, 0, 5 / 8)):
        within_4_sigma(families == place, p)
    config.weights = {"shapes": 1.0, "tubes": 0.0, "blobs": 0.0, "nests": 0.0}  # nothing to compile
    flow = jnp.zeros((1, 2, 8, 8))
    kinds = jit(jax.vmap(lambda k: structures.structures(k, jnp.int32(1), flow, config)[1]))(keys)
    within_4_sigma(np.asarray(kinds)[:, 1] > 0, config.distractor)


def test_label_map_has_the_sampled_number_of_labels_and_looks_alike_at_every_size():
    config = synthesis.get_config()
    maps = {
        size: np.asarray(
            jit(jax.vmap(lambda k, size=size: synthesis.label_map(k, size, False, config)))(random.split(key(), 40))
        )
        for size in (32, 64)
    }
    present = [len(np.unique(labels)) for labels in maps[64]]
    assert max(present) <= 19
    assert min(present) >= 3  # of 5 or more some may win nowhere
    assert np.mean(present) > 8
    nearest = ndimage.zoom(maps[64], (1, 0.5, 0.5), order=0, grid_mode=False)
    assert (nearest == maps[32]).mean() > 0.85
    quiet = jit(lambda k: synthesis.label_map(k, 32, True, config))
    assert max(int(quiet(k).max()) for k in random.split(key(), 10)) < config.quiet_labels[1] - 1


def test_flow_has_the_published_strength():
    """Small velocities move by their size: four scales, each with std ~ U(0, bound), which is U(1, 20) of 256."""
    config = synthesis.get_config()
    config.warp_std = (0.5, 0.5)
    flows = jit(lambda k: synthesis.subject_flows(k, 64, 64, False, config))(key())
    assert flows.shape == (64, 2, 64, 64)
    # Variance of one scale: bound²/3, times that of linear interpolation, (2/3)² on average over a cell.
    expected = np.sqrt(4 / 3) * 0.5 * 64 / 256 * (2 / 3)
    assert float(flows.std()) == pytest.approx(expected, rel=0.15)


def test_small_labels_become_background():
    labels = np.zeros((2, 40, 40), np.int32)
    labels[0, :20], labels[0, 39, 39], labels[1, 30:] = 3, 5, 5  # 5 covers 1/1600 of the first
    view = np.ones(labels.shape, bool)
    kept, areas = synthesis.drop_small(jnp.asarray(labels), jnp.asarray(view), synthesis.get_config())
    expected = np.where(labels == 5, [[[0]], [[5]]], labels)
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_allclose(areas[:, 3], [0.5, 0], atol=1e-6)
    np.testing.assert_allclose(areas[:, 5], [0, 0.25], atol=1e-6)
    view[1, :, :20] = False  # what is not seen does not count
    _, areas = synthesis.drop_small(jnp.asarray(labels), jnp.asarray(view), synthesis.get_config())
    np.testing.assert_allclose(areas[:, 5], [0, 0.125], atol=1e-6)


def test_foreground_is_a_label_that_most_subjects_have():
    config = synthesis.get_config()
    areas = np.zeros((4, 19), np.float32)
    areas[:, 0], areas[:, 2], areas[:3, 3], areas[:2, 4], areas[0, 5] = 0.5, 0.1, 0.1, 0.2, 0.4
    codes = jnp.zeros((4, 8, 8), jnp.int32)
    pick = jit(jax.vmap(lambda k, a: synthesis.foreground_tables(k, a, codes, config)[0], (0, None)))
    picked = np.asarray(pick(random.split(key(), 2000), jnp.asarray(areas)))
    assert set(np.flatnonzero(picked.any(0))) == {2, 3}
    alone = picked.sum(1) == 1
    assert alone.mean() > 1 - config.union
    assert picked[alone][:, 2].mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(alone.sum()))
    union = config.union * np.mean(config.union_share)
    assert (~alone).mean() == pytest.approx(union, abs=4 * np.sqrt(union / 2000))
    rare = np.zeros((4, 19), np.float32)
    rare[0, 7], rare[:2, 8] = 0.9, 0.01
    assert set(np.flatnonzero(np.asarray(pick(random.split(key(), 50), jnp.asarray(rare))).any(0))) == {8}


def test_large_unions_are_replaced_by_one_label():
    config = synthesis.get_config()
    config.union, config.union_share = 1.0, (1.0, 1.0)
    areas = np.zeros((3, 19), np.float32)
    areas[:, 1:4] = 0.3
    codes = jnp.zeros((3, 8, 8), jnp.int32)
    full, _ = synthesis.foreground_tables(key(), jnp.asarray(areas), codes, config)
    assert full.sum() == 1
    fits, _ = synthesis.foreground_tables(key(), jnp.asarray(areas / 2), codes, config)
    assert fits.sum() == 3


def test_foreground_of_a_structure_is_all_of_it_its_inside_or_its_ring():
    config = synthesis.get_config()
    areas = jnp.zeros((2, 19))
    codes = np.zeros((2, 8, 8), np.int32)
    codes[:, 1:6, 1:6] = 1
    pick = jit(jax.vmap(lambda k, c: synthesis.foreground_tables(k, areas, c, config)[1], (0, None)))
    keys = random.split(key(), 200)
    assert (np.asarray(pick(keys, jnp.asarray(codes))) == [0, 1, 1, 0, 0]).all()
    codes[:, 2:4, 2:4] = 2
    assert {tuple(row) for row in np.asarray(pick(keys, jnp.asarray(codes))).astype(int)} == {
        (0, 1, 1, 0, 0),
        (0, 0, 1, 0, 0),
        (0, 1, 0, 0, 0),
    }


@pytest.mark.parametrize(
    ("usable", "order"),
    [
        ([1, 1, 1, 1], [0, 1, 2, 3]),
        ([0, 1, 1, 1], [1, 2, 3, 2]),
        ([1, 0, 1, 0], [0, 2, 2, 2]),
        ([0, 0, 1, 0], [2, 2, 2, 2]),
        ([0, 0, 0, 0], [0, 1, 2, 3]),
    ],
)
def test_subjects_without_foreground_are_left_out(usable, order):
    np.testing.assert_array_equal(synthesis.usable_first(jnp.asarray(usable, bool)), order)


def flat_config(*families):
    """Images of the labels' means alone; structures lie on one label and have no inside."""
    config = small_config(weights={name: float(name in families) for name in structures.FAMILIES})
    config.update({"texture": 0.0, "border": 0.0, "distractor": 0.0, "quiet_labels": (1, 2)})
    config.update({"union": 0.0, "background_zero": 0.0, "view": float(families == ("shapes",))})
    for field in ("std_min", "std_max", "blur_std", "bias_std"):
        config[field] = (0.0, 0.0)
    config.blobs.nested = config.nests.nested = 0.0
    return FrozenConfigDict(config)


def test_a_shapes_label_is_where_its_intensity_is():
    """Without noise, blur and bias the foreground of a task with one label has one intensity in every subject."""
    images, labels = stacked(draw(jnp.arange(16), flat_config("shapes")))
    for image, label in zip(images.reshape(-1, SIZE, SIZE), labels.reshape(-1, SIZE, SIZE), strict=True):
        assert np.ptp(image[label > 0]) < 1e-4
        assert len(np.unique(image.round(4))) > 2


def test_a_structures_label_is_where_its_intensity_is_in_every_subject():
    """Two intensities, one of them the foreground's; it is the brighter one in all subjects of a task, or in none."""
    images, labels = stacked(draw(jnp.arange(24), flat_config("blobs", "nests")))
    for image, label in zip(images.reshape(-1, SIZE, SIZE), labels.reshape(-1, SIZE, SIZE), strict=True):
        assert np.ptp(image[label > 0]) < 1e-4
        assert np.ptp(image[label == 0]) < 1e-4
        assert abs(image[label > 0].mean() - image[label == 0].mean()) > 0.99
    brighter = (images * labels).sum((2, 3)) > 0
    assert (brighter == brighter[:, :1]).all()
    assert 0.2 < brighter.mean() < 0.8


def test_outside_the_field_of_view_nothing_is_seen_or_labelled():
    config = synthesis.get_config()
    view = jit(jax.vmap(lambda k: render.field_of_view(k, 3, 16, config)))
    seen = np.asarray(view(random.split(key(), 2000)))
    cut = ~seen.all((1, 2, 3))
    sigma = np.sqrt(config.view * (1 - config.view) / 2000)
    assert cut.mean() == pytest.approx(config.view, abs=4 * sigma)
    assert seen[cut].mean((2, 3)).min() > 0.25
    assert not seen[cut][:, :, 0, 0].any()
    images, labels = stacked(draw(jnp.arange(16), flat_config("shapes")))
    for corner in (0, -1):
        assert (images[:, :, 0, corner] == 0).all()
        assert (labels[:, :, 0, corner] == 0).all()


def test_an_episode_without_support_is_refused():
    with pytest.raises(ValueError, match="support_size must be at least 1, got 0"):
        synthesis.synthetic_episode(key(), 64, 0, synthesis.get_config())
