"""From labels to images: what each part changes, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit, random
from ml_collections import FrozenConfigDict

from tests.fixtures import key, within_4_sigma
from universeg_jax.episodes import render, synthesis

DRAWS = 2000


def test_backgrounds_are_zeroed_as_often_as_configured():
    """A zeroed background has no noise."""
    config = synthesis.get_config()
    config.update({"std_min": (0.1, 0.1), "std_max": (0.1, 0.1), "texture": 0.0, "border": 0.0})
    config.blur_std = config.bias_std = (0.0, 0.0)
    labels = jnp.broadcast_to(jnp.arange(8)[:, None] // 4, (DRAWS, 8, 8))
    codes, kinds = jnp.zeros_like(labels), jnp.zeros(2, jnp.int32)
    images = jit(lambda k: render.render(k, labels, codes, kinds, jnp.asarray(False), config))(key())
    within_4_sigma(np.ptp(np.asarray(images)[:, :4], axis=(1, 2)) < 1e-6, config.background_zero)


def test_distractors_of_the_same_kind_have_the_opposite_sign():
    config = synthesis.get_config()
    contrast = jit(jax.vmap(lambda k, kinds: render.structure_contrasts(k, 3, kinds, config), (0, None)))
    same = np.asarray(contrast(random.split(key(), 100), jnp.asarray([2, 2])))
    assert (np.sign(same[..., 1]) == -np.sign(same[..., 3])).all()
    assert (same[..., 0] == 0).all()
    assert (np.sign(same[..., 1]) == np.sign(same[:, :1, 1])).all()  # of all subjects
    assert 0.3 < (same[:, 0, 1] > 0).mean() < 0.7
    other = np.asarray(contrast(random.split(key(), 100), jnp.asarray([2, 1])))
    assert 0.3 < (np.sign(other[:, 0, 1]) == np.sign(other[:, 0, 3])).mean() < 0.7


def test_borders_change_only_borders():
    image = np.zeros((1, 64, 64), np.float32)
    image[:, :, 32:] = 1
    changed = np.asarray(render.borders(key(), jnp.asarray(image), synthesis.get_config()))
    assert np.abs(changed - image)[:, :, 31:33].min() > 0.01
    np.testing.assert_allclose(changed[:, :, :20], 0, atol=1e-4)
    np.testing.assert_allclose(changed[:, :, 44:], 1, atol=1e-4)


def test_texture_belongs_to_labels():
    """Each label has texture in all subjects or in none, and textures have mean 0."""
    labels = jnp.broadcast_to((jnp.arange(64) // 8)[None, None], (3, 64, 64)).astype(jnp.int32)
    codes = jnp.zeros_like(labels)
    config = synthesis.get_config()
    config.texture_cell = (4.0, 6.0)
    added = jit(jax.vmap(lambda k: render.texture(k, labels, codes, config)))(random.split(key(), 20))
    strength = np.asarray(added).reshape(20, 3, 64, 8, 8).std((2, 4))
    has = strength > 1e-4
    assert (has == has[:, :1]).all()
    assert 0.3 < has.mean() < 0.7
    assert abs(np.asarray(added).mean()) < 0.02


def test_contrasts_are_log_uniform_and_noise_scales_with_contrast():
    config = synthesis.get_config()
    config.contrast_std = 0.0
    contrast = jit(jax.vmap(lambda k: render.structure_contrasts(k, 1, jnp.asarray([1, 0]), config)))
    sizes = np.sort(np.log(np.abs(np.asarray(contrast(random.split(key(), DRAWS)))[:, 0, 1])))
    low, high = np.log(config.contrast)
    assert low <= sizes[0] <= sizes[-1] <= high
    np.testing.assert_allclose(sizes, np.linspace(low, high, DRAWS), atol=0.05 * (high - low))

    # Half an image is a structure of one contrast: its noise over its contrast is that of a strong one.
    config.update({"texture": 0.0, "border": 0.0, "blur_std": (0.0, 0.0), "bias_std": (0.0, 0.0), "gamma_std": 0.0})
    config.update({"std_min": (0.2, 0.2), "std_max": (0.2, 0.2), "background_zero": 0.0})
    codes = jnp.broadcast_to((jnp.arange(64) < 32).astype(jnp.int32), (2, 64, 64))
    ratios = []
    for size in (0.03, 0.3):
        config.contrast = (size, size)
        image = render.render(
            key(), jnp.zeros_like(codes), codes, jnp.asarray([1, 0]), jnp.asarray(True), FrozenConfigDict(config)
        )
        left, right = np.asarray(image)[0, :, :32], np.asarray(image)[0, :, 32:]
        ratios.append(left.std() / abs(left.mean() - right.mean()))
    assert ratios[0] == pytest.approx(ratios[1], rel=0.01)
