"""Gathers, blurs and noise against SciPy, and the laws that they follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from scipy import ndimage

from universeg_jax.episodes import warp


def elastic(keys, size, alpha, sigma):
    """Displacements [n, 2, size, size]."""
    draw = jax.vmap(lambda k: warp.elastic(k, size, jnp.float32(alpha), jnp.float32(sigma), (6.0, 8.0)))
    return jax.vmap(warp.separable)(*draw(keys))


def coordinates(size, shape, seed=0, margin=3.0):
    """Random coordinates [2, *shape] that also leave an image of `size`."""
    return np.random.default_rng(seed).uniform(-margin, size - 1 + margin, (2, *shape)).astype(np.float32)


@pytest.mark.parametrize(("size", "nodes"), [(16, 4), (9, 9), (7, 2), (5, 12)])
def test_linear_matrix_is_interpolation(size, nodes):
    values = np.random.default_rng(0).normal(size=nodes)
    expected = np.interp(np.linspace(0, 1, size), np.linspace(0, 1, nodes), values)
    np.testing.assert_allclose(warp.linear_matrix(size, nodes) @ values, expected, atol=1e-5)


def test_spaced_matrix_is_interpolation():
    values = np.random.default_rng(0).normal(size=8)
    expected = np.interp(np.arange(16), 2.5 * np.arange(8), values)
    np.testing.assert_allclose(warp.spaced_matrix(16, jnp.float32(2.5), 8) @ values, expected, atol=1e-5)


def test_bilinear_sample_is_scipys():
    image = np.random.default_rng(1).normal(size=(9, 12, 3)).astype(np.float32)
    at = coordinates(9, (20, 5))
    expected = np.stack([ndimage.map_coordinates(image[..., c], at, order=1, mode="nearest") for c in range(3)], -1)
    np.testing.assert_allclose(warp.sample(jnp.asarray(image), jnp.asarray(at)), expected, atol=1e-5)


def test_nearest_sample_is_scipys():
    labels = np.random.default_rng(1).integers(0, 9, (9, 12))
    at = coordinates(9, (20, 5))
    expected = ndimage.map_coordinates(labels, np.clip(at, 0, [[[8]], [[11]]]), order=0, mode="nearest")
    np.testing.assert_array_equal(warp.sample_nearest(jnp.asarray(labels), jnp.asarray(at)), expected)


@pytest.mark.parametrize("nearest", [True, False])
def test_image_and_label_are_scipys_with_zeros_outside(nearest):
    rng = np.random.default_rng(2)
    image, label = rng.random((11, 11), np.float32), (rng.random((11, 11)) > 0.5).astype(np.float32)
    at = coordinates(11, (40, 40))
    new_image, new_label = warp.sample_image_and_label(jnp.asarray(image), jnp.asarray(label), jnp.asarray(at), nearest)
    expected = ndimage.map_coordinates(image, at, order=1, mode="grid-constant")
    np.testing.assert_allclose(new_image, expected, atol=1e-5)
    smooth = ndimage.map_coordinates(label, at, order=1, mode="grid-constant")
    if nearest:
        expected = ndimage.map_coordinates(label, at, order=0, mode="grid-constant")
        sure = (np.abs(at - np.floor(at) - 0.5) > 1e-4).all(0)
    else:
        expected, sure = smooth >= 0.5, np.abs(smooth - 0.5) > 1e-4
    np.testing.assert_array_equal(np.asarray(new_label)[sure], expected[sure])
    assert 0.1 < new_label.mean() < 0.9


def test_every_pixel_of_the_identity_is_itself():
    rng = np.random.default_rng(2)
    image, label = rng.random((8, 8), np.float32), (rng.random((8, 8)) > 0.5).astype(np.float32)
    for nearest in (True, False):
        same = warp.sample_image_and_label(jnp.asarray(image), jnp.asarray(label), jnp.asarray(warp.grid(8)), nearest)
        np.testing.assert_allclose(same[0], image, atol=2e-7)
        np.testing.assert_array_equal(same[1], label)
    np.testing.assert_array_equal(warp.sample(jnp.asarray(image[..., None]), warp.grid(8))[..., 0], image)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5])
def test_blur_is_scipys_among_the_pixels_inside(sigma):
    image = np.random.default_rng(3).random((24, 24))
    inside = ndimage.gaussian_filter(np.ones((24, 24)), sigma, mode="constant", truncate=12)
    expected = ndimage.gaussian_filter(image, sigma, mode="constant", truncate=12) / inside
    np.testing.assert_allclose(warp.blur(jnp.asarray(image, jnp.float32), jnp.float32(sigma)), expected, atol=1e-5)


def test_blur_with_a_radius_is_the_published_kernel():
    impulse = np.zeros((15, 15), np.float32)
    impulse[7, 7] = 1
    kernel = np.exp(-np.square(np.arange(-2, 3)) / (2 * 1.1**2))
    kernel /= kernel.sum()
    blurred = np.asarray(warp.blur(jnp.asarray(impulse), jnp.float32(1.1), radius=2))
    np.testing.assert_allclose(blurred[5:10, 5:10], np.outer(kernel, kernel), atol=1e-6)
    assert blurred.sum() == pytest.approx(1, abs=1e-5)


def test_blur_takes_a_sigma_per_image_and_zero_is_the_identity():
    images = random.uniform(random.key(0), (3, 8, 8))
    sigmas = jnp.asarray([0.0, 1.0, 2.0])
    blurred = warp.blur(images, sigmas)
    np.testing.assert_array_equal(blurred[0], images[0])
    for i in (1, 2):
        np.testing.assert_allclose(blurred[i], warp.blur(images[i], sigmas[i]), atol=1e-6)


def test_multiscale_noise_is_numpys():
    rng = np.random.default_rng(4)
    noise, std = rng.normal(size=(2, 4 + 25)), rng.random((2, 2))
    expected = np.zeros((2, 10, 10))
    for i in range(2):
        for k, (start, nodes) in enumerate(((0, 2), (4, 5))):
            field = std[i, k] * noise[i, start : start + nodes**2].reshape(nodes, nodes)
            place = np.linspace(0, nodes - 1, 10)
            at = np.stack(np.meshgrid(place, place, indexing="ij"))
            expected[i] += ndimage.map_coordinates(field, at, order=1)
    result = warp.multiscale_noise(jnp.asarray(noise, jnp.float32), jnp.asarray(std, jnp.float32), (2, 5), 10)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_flow_of_a_constant_velocity_is_a_translation():
    velocity = jnp.broadcast_to(jnp.asarray([1.5, -2.0])[None, :, None, None], (1, 2, 12, 12))
    np.testing.assert_allclose(warp.integrate(velocity, 5), velocity, atol=1e-5)


def test_flow_of_a_rotating_velocity_is_a_rotation():
    size, angle = 33, 0.4
    y, x = warp.grid(size) - (size - 1) / 2
    velocity = jnp.asarray(np.stack([-angle * x, angle * y])[None])
    moved = np.asarray(warp.integrate(velocity, 6))[0] + np.stack([y, x])
    expected = np.stack([np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x])
    middle = slice(10, 23)  # whose way does not leave the image
    np.testing.assert_allclose(moved[:, middle, middle], expected[:, middle, middle], atol=0.05)


def test_flow_backwards_undoes_the_flow():
    size = 32
    noise = random.normal(random.key(0), (2, 16))
    velocity = warp.multiscale_noise(noise, jnp.full((2, 1), 2.0), (4,), size)[None]
    forth, back = warp.integrate(velocity, 5)[0], warp.integrate(-velocity, 5)[0]
    way = forth + jnp.moveaxis(warp.sample(jnp.moveaxis(back, 0, -1), warp.grid(size) + forth), -1, 0)
    middle = slice(10, 22)
    assert float(jnp.abs(way[:, middle, middle]).max()) < 0.15
    assert float(jnp.abs(forth[:, middle, middle]).max()) > 1


def test_resize_displacement_scales_its_pixels():
    fine = warp.resize_displacement(jnp.broadcast_to(jnp.asarray([1.0, 2.0])[:, None, None], (2, 9, 9)), 17)
    np.testing.assert_allclose(fine[0], 2.0, atol=1e-5)
    np.testing.assert_allclose(fine[1], 4.0, atol=1e-5)


@pytest.mark.parametrize("size", [64, 128])
def test_elastic_has_the_published_strength_at_any_size(size):
    """α 2, σ 7.5 at 128 pixels: 2.8 pixels, correlated as blurred noise is; half of both at 64."""
    keys = random.split(random.key(1), 40)
    fields = np.asarray(elastic(keys, size, 2, 7.5)) * (128 / size)
    assert fields.std() == pytest.approx(2.78, rel=0.05)
    for place in (0, size // 3, size - 1):  # as strong at the borders
        assert fields[:, :, :, place].std() == pytest.approx(2.78, rel=0.15)
    apart = 10 * size // 128
    correlation = (fields[..., apart:] * fields[..., :-apart]).mean() / fields.var()
    assert correlation == pytest.approx(np.exp(-(10**2) / (4 * 7.5**2)), abs=0.06)


def test_elastic_is_blurred_noise():
    """The definition: uniform noise in [-1, 1] per pixel, a Gaussian filter, times α in coordinates from -1 to 1."""
    noise = np.random.default_rng(0).uniform(-1, 1, (6, 128 + 120, 128 + 120))
    blurred = np.stack([ndimage.gaussian_filter(n, 6.5)[60:-60, 60:-60] for n in noise]) * 1.5 * 128 / 2
    keys = random.split(random.key(2), 12)
    ours = elastic(keys, 128, 1.5, 6.5)
    assert float(ours.std()) == pytest.approx(blurred.std(), rel=0.12)
    assert float(jnp.diff(ours).std()) == pytest.approx(np.diff(blurred).std(), rel=0.12)


def test_uniforms_fill_their_bounds_and_run_out():
    draw = warp.uniforms(random.key(0), (1000,), 2)
    values = np.asarray(draw((2.0, 4.0)))
    assert 2 <= values.min() < 2.05 < 3.95 < values.max() < 4
    assert abs(np.corrcoef(values, draw())[0, 1]) < 4 / np.sqrt(1000)
    with pytest.raises(StopIteration):
        draw()


def test_centred_bounds_have_their_standard_deviation():
    low, high = warp.centred_bounds(0.3)
    values = np.linspace(low, high, 10_001)
    assert values.mean() == pytest.approx(0, abs=1e-9)
    assert values.std() == pytest.approx(0.3, rel=1e-3)


def test_integers_are_equally_likely():
    values = np.asarray(warp.integer(random.uniform(random.key(0), (6000,)), (5, 8)))
    assert set(values) == {5, 6, 7}
    assert np.abs(np.bincount(values)[5:] / 6000 - 1 / 3).max() < 4 * np.sqrt(2 / 9 / 6000)
    assert warp.integer(jnp.float32(np.nextafter(1, 0, dtype=np.float32)), (0, 1000)) == 999


def test_minmax_fills_the_range_and_maps_constants_to_0():
    scaled = warp.minmax(jnp.stack([jnp.arange(9.0).reshape(3, 3) - 4, jnp.full((3, 3), 7.0)]))
    np.testing.assert_allclose(scaled[0], np.arange(9).reshape(3, 3) / 8, atol=1e-6)
    np.testing.assert_array_equal(scaled[1], 0)
