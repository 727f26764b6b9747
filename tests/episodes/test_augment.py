"""Augmentation: what each operation does, in which order, how often, and that labels follow their images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit, random
from jax.sharding import Mesh, PartitionSpec
from ml_collections import FrozenConfigDict
from scipy import ndimage

from tests.fixtures import key
from universeg_jax.episode import split_query, stack_examples
from universeg_jax.episodes import augment, warp

LEVELS = ("task", "in_task")


def config_with(**ops):
    """A config in which only the operations named `level__op=p` or `level__op={field: value}` happen."""
    config = augment.get_config()
    for level in LEVELS:
        for op in config[level]:
            config[level][op].p = 0.0
    for name, value in ops.items():
        level, op = name.split("__")
        config[level][op].update({"p": 1.0} | value if isinstance(value, dict) else {"p": value})
    return config


def make_episode(images, labels):
    """From [n, H, W]; the first is the query."""
    images, labels = (jnp.asarray(x, jnp.float32)[..., None] for x in (images, labels))
    return split_query(images, labels)


def disc_episode(size=32, count=3, seed=0):
    """Bright discs, labelled, on a dark gradient."""
    rng = np.random.default_rng(seed)
    y, x = warp.grid(size)
    centers = rng.uniform(0.4 * size, 0.6 * size, (count, 2))
    labels = np.stack([np.hypot(y - a, x - b) < 0.22 * size for a, b in centers]).astype(np.float32)
    return make_episode(0.1 + 0.2 * x[None] / size + 0.6 * labels, labels)


def stacked(episode):
    """Images and labels [n, H, W], the query first."""
    images, labels = stack_examples(episode)
    return np.asarray(images[..., 0]), np.asarray(labels[..., 0])


@functools.partial(jit, static_argnums=2)
def jitted(key, episode, config):
    return augment.augment_episode(key, episode, config)


def run(config, episode, seed=0):
    """Images, labels and the number of repairs."""
    changed, repaired = jitted(key(seed), episode, FrozenConfigDict(config))
    return *stacked(changed), int(repaired)


def test_published_tables():
    """Every row of the two tables, probability and ranges."""
    config = augment.get_config()
    task, own = config.task, config.in_task
    assert own.affine.to_dict() == {"p": 0.5, "degrees": (0, 360), "translate": (0, 0.2), "scale": (0.8, 1.1)}
    assert task.affine == own.affine
    assert own.brightness_contrast.to_dict() == {"p": 0.25, "brightness": (-0.1, 0.1), "contrast": (0.5, 1.5)}
    assert task.brightness_contrast.to_dict() == {"p": 0.5, "brightness": (-0.1, 0.1), "contrast": (0.8, 1.2)}
    assert own.blur.to_dict() == {"p": 0.25, "kernel": 5, "sigma": (0.1, 1.1)}
    assert task.blur.to_dict() == {"p": 0.5, "kernel": 5, "sigma": (0.1, 1.1)}
    assert own.noise.to_dict() == {"p": 0.25, "mean": (0, 0.05), "variance": (0, 0.05)}
    assert task.noise.to_dict() == {"p": 0.5, "mean": (0, 0.05), "std": (0, 0.05)}
    assert (own.sharpness.p, task.sharpness.p, task.sharpness.factor) == (0.25, 0.5, (0, 5))
    assert own.elastic.to_dict() == {"p": 0.8, "alpha": (1, 2.5), "sigma": (7, 8)}
    assert task.elastic.to_dict() == {"p": 0.25, "alpha": (1, 2), "sigma": (6, 8)}
    for op in ("flip_intensities", "flip_labels", "flip_horizontal", "flip_vertical", "edge"):
        assert task[op].p == 0.5
        assert op not in own


def test_probabilities_of_0_change_nothing():
    episode = disc_episode()
    changed, repaired = augment.augment_episode(key(), episode, config_with())
    for before, after in zip(episode, changed, strict=True):
        np.testing.assert_array_equal(before, after)
    assert repaired == 0
    assert repaired.dtype == jnp.int32


def test_identity_parameters_are_the_identity():
    same = {
        "affine": {"degrees": (0.0, 0.0), "translate": (0.0, 0.0), "scale": (1.0, 1.0)},
        "elastic": {"alpha": (0.0, 0.0)},
        "brightness_contrast": {"brightness": (0.0, 0.0), "contrast": (1.0, 1.0)},
        "blur": {"sigma": (1e-6, 1e-6)},
        "sharpness": {"factor": (1.0, 1.0)},
    }
    noise = {"in_task__noise": {"mean": (0.0, 0.0), "variance": (0.0, 0.0)}}
    noise["task__noise"] = {"mean": (0.0, 0.0), "std": (0.0, 0.0)}
    config = config_with(**{f"{level}__{op}": value for level in LEVELS for op, value in same.items()}, **noise)
    for choice in ("nearest", "linear"):
        config.label_interpolation = choice
        images, labels, repaired = run(config, episode := disc_episode())
        before = stacked(episode)
        np.testing.assert_allclose(images, before[0], atol=1e-6)
        np.testing.assert_array_equal(labels, before[1])
        assert repaired == 0


# What makes an operation visible in every image at 8 pixels.
VISIBLE = {
    "affine": {"scale": (0.5, 0.6), "translate": (0.0, 0.0)},
    "brightness_contrast": {"brightness": (0.05, 0.06)},
    "blur": {"sigma": (20.0, 20.0)},
    "noise": {"mean": (0.05, 0.05)},
    "sharpness": {"factor": (3.0, 3.0)},
    "elastic": {"alpha": (4.0, 5.0)},
    "flip_intensities": {},
    "flip_labels": {},
    "flip_horizontal": {},
    "flip_vertical": {},
    "edge": {},
}


@pytest.mark.parametrize(("level", "op"), [(level, op) for level in LEVELS for op in augment.get_config()[level]])
def test_rate_of_an_operation_and_the_images_that_share_it(level, op):
    """The rate in 2,000 episodes is within 4σ; task operations change all images or none, in-task ones each alone."""
    draws, count, p = 2000, 3, 0.3
    config = config_with(**{f"{level}__{op}": VISIBLE[op] | {"p": p}})
    episode = disc_episode(size=8, count=count)
    before = stacked(episode)
    keys = jax.vmap(lambda i: random.fold_in(key(), i))(jnp.arange(draws))

    @jit
    @jax.vmap
    def changed(k):
        new, _ = augment.augment_episode(k, episode, config)
        images, labels = (x[..., 0] for x in stack_examples(new))
        different = jnp.maximum(jnp.abs(images - before[0]), jnp.abs(labels - before[1])).max((1, 2))
        return different > 1e-4

    happened = np.asarray(changed(keys))
    sigma = np.sqrt(p * (1 - p) / draws)
    assert np.abs(happened.mean(0) - p).max() < 4 * sigma  # of the query, and of each support entry
    if level == "task":
        assert (happened == happened[:, :1]).all()
    else:
        correlations = np.corrcoef(happened.T)[np.triu_indices(count, 1)]
        assert np.abs(correlations).max() < 4 / np.sqrt(draws)


@pytest.mark.parametrize("op", ["affine", "elastic", "blur", "brightness_contrast", "sharpness"])
def test_task_operations_are_equal_for_all_images_and_in_task_ones_differ(op):
    image, label = (x[0] for x in stacked(disc_episode()))
    episode = make_episode(np.stack([image] * 4), np.stack([label] * 4))
    images, labels, _ = run(config_with(**{f"task__{op}": VISIBLE[op]}), episode)
    assert np.abs(images - images[:1]).max() < 1e-6
    assert (labels == labels[:1]).all()
    images, _, _ = run(config_with(**{f"in_task__{op}": {"sigma": (2.0, 8.0)} if op == "blur" else {}}), episode)
    apart = np.abs(images[:, None] - images[None]).max((2, 3))
    assert (apart[~np.eye(4, dtype=bool)] > 1e-6).all()


def test_noise_of_a_task_has_one_strength_and_its_own_pixels():
    flat = make_episode(np.full((3, 32, 32), 0.5), np.eye(32)[None].repeat(3, 0))
    images, _, _ = run(config_with(task__noise={"mean": (0.03, 0.05), "std": (0.03, 0.05)}), flat)
    assert np.ptp(images.mean((1, 2))) < 0.01
    assert np.ptp(images.std((1, 2))) < 0.006
    assert 0.52 < images.mean() < 0.56
    assert 0.028 < images.std() < 0.052
    assert abs(np.corrcoef(images.reshape(3, -1))[0, 1]) < 0.15


def test_in_task_noise_is_published_by_its_variance():
    flat = make_episode(np.full((2, 64, 64), 0.5), np.eye(64)[None].repeat(2, 0))
    images, _, _ = run(config_with(in_task__noise={"mean": (0.0, 0.0), "variance": (0.01, 0.01)}), flat)
    np.testing.assert_allclose(images.std((1, 2)), 0.1, rtol=0.05)


@pytest.mark.parametrize("choice", ["nearest", "linear"])
def test_geometry_is_scipys(choice):
    """One gather by in-task(task(p)) equals SciPy's interpolation there, with zeros outside."""
    config = config_with(task__affine={}, task__elastic={}, task__flip_horizontal=0.5, in_task__affine={})
    config.in_task.elastic.p = 1.0
    config.label_interpolation = choice
    size, count = 24, 3
    rng = np.random.default_rng(5)
    images = rng.random((count, size, size)).astype(np.float32)
    labels = np.asarray(warp.grid(size)[0] + warp.grid(size)[1] < size, np.float32)[None].repeat(count, 0)
    new_images, new_labels, repaired = augment.geometry(key(3), jnp.asarray(images), jnp.asarray(labels), config)
    assert repaired == 0
    keys = random.split(key(3), 4)
    center = (size - 1) / 2

    def moved(key, section, at):
        matrix, offset, kernel, coefficients = (np.asarray(x) for x in augment.displacements(key, section, size))
        return np.tensordot(matrix, at, 1) + offset[:, None, None] + kernel @ coefficients @ kernel.T

    at = moved(keys[0], config.task, warp.grid(size) - center)
    for i, subkey in enumerate(random.split(keys[1], count)):
        source = moved(subkey, config.in_task, at) + center
        expected = ndimage.map_coordinates(images[i], source, order=1, mode="grid-constant")
        np.testing.assert_allclose(new_images[i], expected, atol=1e-4)
        order = 0 if choice == "nearest" else 1
        expected = ndimage.map_coordinates(labels[i], source, order=order, mode="grid-constant") >= 0.5
        assert (np.asarray(new_labels[i]) == expected).mean() > 0.99  # but for ties
        assert np.abs(np.asarray(new_images[i]) - images[i]).max() > 0.1


def test_affine_rotates_scales_and_translates_by_its_parameters():
    """A marker after a quarter turn at half the size, and after a translation."""
    image = np.zeros((1, 65, 65), np.float32)
    image[0, 28:37, 48:57] = 1  # 20 pixels right of the centre
    fixed = {"degrees": (90.0, 90.0), "scale": (0.5, 0.5), "translate": (0.0, 0.0)}
    _, labels, _ = run(config_with(task__affine=fixed), make_episode(image.repeat(2, 0), image.repeat(2, 0)))
    assert (labels.sum((1, 2)) == 25).all()
    y, x = ndimage.center_of_mass(labels[0])
    assert abs(x - 32) < 0.6
    assert abs(abs(y - 32) - 10) < 0.6
    moved = {"degrees": (0.0, 0.0), "scale": (1.0, 1.0), "translate": (0.2, 0.2)}
    _, labels, _ = run(config_with(task__affine=moved), make_episode(image.repeat(2, 0), image.repeat(2, 0)))
    y, x = ndimage.center_of_mass(labels[0])
    assert abs(abs(y - 32) - 13) < 0.6
    assert abs(x - 52 + 13) < 0.6  # moved right it would have left the image


@pytest.mark.parametrize("choice", ["nearest", "linear"])
def test_labels_follow_their_images(choice):
    """A marker in image and label still overlaps itself after the geometry."""
    ops = ("affine", "elastic")
    config = config_with(**{f"{level}__{op}": 0.5 for level in LEVELS for op in ops}, task__flip_vertical=0.5)
    config.label_interpolation = choice
    _, label = stacked(disc_episode(64, 4))
    for seed in range(3):
        images, labels, _ = run(config, make_episode(label, label), seed)
        marker = images >= 0.5
        overlap = 2 * (marker & (labels > 0)).sum((1, 2)) / (marker.sum((1, 2)) + labels.sum((1, 2)))
        assert (overlap > 0.95).all()
        assert (labels.sum((1, 2)) > 0).all()
        assert set(np.unique(labels)) <= {0, 1}
        if choice == "linear":
            assert overlap.min() > 0.999


def test_outside_is_zero_before_the_flips():
    size = 33
    half = {"degrees": (0.0, 0.0), "scale": (0.5, 0.5), "translate": (0.0, 0.0)}
    label = np.zeros((2, size, size), np.float32)
    label[:, 12:20, 12:20] = 1
    episode = make_episode(np.full((2, size, size), 0.25), label)
    images, labels, _ = run(config_with(in_task__affine=half), episode)
    assert (images[:, :7] == 0).all()
    np.testing.assert_allclose(images[:, 10:23, 10:23], 0.25, atol=1e-6)
    assert (labels[:, :7] == 0).all()
    flips = {"task__flip_intensities": 1.0, "task__flip_labels": 1.0}
    images, labels, _ = run(config_with(in_task__affine=half, **flips), episode)
    assert (images[:, :7] == 1).all()
    np.testing.assert_allclose(images[:, 10:23, 10:23], 0.75, atol=1e-6)
    assert (labels[:, :7] == 1).all()


def test_order_of_intensities():
    """In-task before task; brightness, blur, noise, sharpness; the flip last; clipped after each."""
    flat = make_episode(np.full((2, 16, 16), 0.5), np.eye(16)[None].repeat(2, 0))

    def contrast(level, brightness, factor):
        return {f"{level}__brightness_contrast": {"brightness": (brightness,) * 2, "contrast": (factor,) * 2}}

    own, task = contrast("in_task", 0.1, 0.2), contrast("task", 0.05, 2.0)
    images, _, _ = run(config_with(**own, **task), flat)
    np.testing.assert_allclose(images, (0.5 * 0.2 + 0.1) * 2 + 0.05, atol=1e-6)
    images, _, _ = run(config_with(**own, **task, task__flip_intensities=1.0), flat)
    np.testing.assert_allclose(images, 1 - 0.45, atol=1e-6)
    images, _, _ = run(config_with(**contrast("in_task", 0.0, 3.0), **contrast("task", 0.0, 0.5)), flat)
    np.testing.assert_allclose(images, 0.5, atol=1e-6)  # 1.5 was cut to 1
    noise = {"mean": (0.0, 0.0), "variance": (0.01, 0.01)}
    noisy, _, _ = run(config_with(in_task__noise=noise), flat)
    both, _, _ = run(config_with(in_task__noise=noise, in_task__blur={"sigma": (40.0, 40.0)}), flat)
    np.testing.assert_allclose(both.std(), noisy.std(), rtol=0.2)  # blurred first, or it would be a third
    smooth, _, _ = run(config_with(in_task__noise=noise, in_task__sharpness={"factor": (0.0, 0.0)}), flat)
    assert smooth.std() < 0.6 * noisy.std()  # noise first, or it would not be smoothed


def test_blur_and_sharpness():
    image = np.random.default_rng(0).random((2, 128, 128)).astype(np.float32) * 0.2 + 0.4
    episode = make_episode(image, np.eye(128)[None].repeat(2, 0))
    images, _, _ = run(config_with(in_task__blur={"sigma": (1.1, 1.1)}), episode)
    expected = np.stack([ndimage.gaussian_filter(x, 1.1, truncate=2 / 1.1, mode="nearest") for x in image])
    np.testing.assert_allclose(images[:, 4:-4, 4:-4], expected[:, 4:-4, 4:-4], atol=1e-5)
    smooth = np.stack([ndimage.convolve(x, np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13) for x in image])
    images, _, _ = run(config_with(task__sharpness={"factor": (0.0, 0.0)}), episode)
    np.testing.assert_allclose(images[:, 1:-1, 1:-1], smooth[:, 1:-1, 1:-1], atol=1e-5)
    images, _, _ = run(config_with(task__sharpness={"factor": (2.0, 2.0)}), episode)
    np.testing.assert_allclose(images[:, 1:-1, 1:-1], (2 * image - smooth)[:, 1:-1, 1:-1], atol=1e-5)


def test_flips_mirror():
    image = np.random.default_rng(0).random((2, 16, 16)).astype(np.float32)
    label = (image > 0.5).astype(np.float32)
    for op, axis in (("flip_vertical", 1), ("flip_horizontal", 2)):
        images, labels, _ = run(config_with(**{f"task__{op}": 1.0}), make_episode(image, label))
        np.testing.assert_allclose(images, np.flip(image, axis), atol=1e-6)
        np.testing.assert_array_equal(labels, np.flip(label, axis))


def test_edge_is_where_the_sobel_gradient_is():
    label = np.zeros((2, 16, 16), np.float32)
    label[:, 4:9, 5:12] = 1
    label[:, 13:, :] = 1  # on the border of the image, which is no edge
    gradient = [np.hypot(ndimage.sobel(x, 0, mode="nearest"), ndimage.sobel(x, 1, mode="nearest")) for x in label]
    _, labels, _ = run(config_with(task__edge=1.0), make_episode(label, label))
    np.testing.assert_array_equal(labels, np.stack(gradient) > 0)
    _, flipped, _ = run(config_with(task__edge=1.0, task__flip_labels=1.0), make_episode(label, label))
    np.testing.assert_array_equal(flipped, labels)  # flip before edge: an edge is never the background
    assert (labels[:, 15] == 0).all()


def test_labels_that_leave_the_image_keep_their_geometry():
    """Two of four are moved out and repaired; one was empty and one was full before."""
    size = 32
    label = np.zeros((5, size, size), np.float32)
    label[[0, 1], 1:4, 1:4] = 1
    label[2, 12:20, 12:20] = 1
    label[4] = 1
    image = np.random.default_rng(0).random((5, size, size)).astype(np.float32)
    enlarged = {"degrees": (0.0, 0.0), "translate": (0.0, 0.0), "scale": (2.0, 2.0)}
    images, labels, repaired = run(config_with(task__affine=enlarged), make_episode(image, label))
    assert repaired == 2
    np.testing.assert_array_equal(labels[[0, 1, 3, 4]], label[[0, 1, 3, 4]])
    np.testing.assert_array_equal(images[:2], image[:2])
    assert labels[2].sum() == 4 * label[2].sum()
    assert (np.abs(images[2:] - image[2:]).max((1, 2)) > 0.1).all()


def test_labels_stay_if_an_edge_fills_an_image():
    label = np.zeros((2, 8, 8), np.float32)
    label[0, 2:6, 2:6] = 1
    label[1] = np.array([0, 1, 1, 0, 0, 1, 1, 0])  # its edge is everywhere
    _, labels, repaired = run(config_with(task__edge=1.0), make_episode(label, label))
    assert repaired == 1
    np.testing.assert_array_equal(labels, label)


def test_same_key_same_bytes_and_another_key_another_episode():
    config, episode = FrozenConfigDict(augment.get_config()), disc_episode()
    one, again, other = (jitted(key(seed), episode, config) for seed in (7, 7, 8))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(jnp.abs(one[0].query_image - other[0].query_image).max()) > 0.1
    np.testing.assert_array_equal(one[0].support_mask, episode.support_mask)


def test_range_dtypes_and_uint8_input():
    config, episode = FrozenConfigDict(augment.get_config()), disc_episode()
    host = jax.tree.map(lambda x: np.asarray(x * 255, np.uint8), episode._replace(query_label=0, support_labels=0))
    host = host._replace(
        query_label=np.asarray(episode.query_label, np.uint8),
        support_labels=np.asarray(episode.support_labels, np.uint8),
    )
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), episode)
    full, _ = jitted(key(1), episode, config)
    for given, dtype, tolerance in ((episode, jnp.float32, 0), (half, jnp.bfloat16, 0.03), (host, jnp.float32, 0.02)):
        changed, _ = jitted(key(1), given, config)
        images, labels = stacked(changed)
        assert changed.query_image.dtype == changed.query_label.dtype == dtype
        assert np.isfinite(images.astype(np.float32)).all()
        assert images.min() >= 0
        assert images.max() <= 1
        assert set(np.unique(labels.astype(np.float32))) <= {0, 1}
        assert images.astype(np.float32).std((1, 2)).min() > 0.01
        assert np.abs(images.astype(np.float32) - stacked(full)[0]).mean() <= tolerance


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_any_number_of_devices_by_vmap_or_map_gives_the_same_pixels(devices):
    config = FrozenConfigDict(augment.get_config())
    episode = disc_episode(16)

    def by_index(i):
        return augment.augment_episode(random.fold_in(key(), i), episode, config)

    def by_map(indices):
        return jax.lax.map(by_index, indices)

    indices = jnp.arange(100, 104)
    expected = jit(by_map)(indices)
    mesh = Mesh(np.array(jax.devices()[:devices]), "batch")
    split = PartitionSpec("batch")
    mapped = jax.shard_map(by_map, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    # By vmap, which an accelerator does, images are sums in another order; it takes long to compile here.
    for run, tolerance in ((mapped, 1e-6), (jax.vmap(by_index), 1e-5))[: 1 if devices == 4 else 2]:
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(jit(run)(indices)), strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance)
