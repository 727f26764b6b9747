"""Losses against their formulas in float64, and where they must stay finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from universeg_jax.training import losses


def example(seed, scale=3.0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(3, 5, 4, 1)), (rng.random((3, 5, 4, 1)) > 0.6).astype(np.float64)


@given(seed=st.integers(0, 1000), squared=st.booleans())
def test_soft_dice(seed, squared):
    x, y = example(seed)
    p = 1 / (1 + np.exp(-x))
    sizes = (p**2 + y**2 if squared else p + y).sum((1, 2, 3))
    expected = 1 - (2 * (p * y).sum((1, 2, 3)) + 1e-7) / (sizes + 1e-7)
    np.testing.assert_allclose(losses.soft_dice(jnp.asarray(x), jnp.asarray(y), squared), expected, atol=1e-5)


@given(seed=st.integers(0, 1000), gamma=st.sampled_from([0.0, 1.0, 2.0, 20.0]))
def test_cross_entropies(seed, gamma):
    x, y = example(seed)
    p = 1 / (1 + np.exp(-x))
    p_t = np.where(y > 0, p, 1 - p)
    np.testing.assert_allclose(losses.bce(jnp.asarray(x), jnp.asarray(y)), -np.log(p_t).mean((1, 2, 3)), rtol=1e-4)
    expected = -((1 - p_t) ** gamma * np.log(p_t)).mean((1, 2, 3))
    np.testing.assert_allclose(losses.focal(jnp.asarray(x), jnp.asarray(y), gamma), expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("loss", [losses.soft_dice, losses.bce, losses.focal])
@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_large_logits_stay_finite_with_their_gradients(loss, truth):
    for logit in (-50.0, 50.0):
        x = jnp.full((1, 4, 4, 1), logit)
        value, grad = jax.value_and_grad(lambda x: loss(x, jnp.full_like(x, truth)).sum())(x)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()


def test_empty_labels():
    empty = jnp.zeros((2, 4, 4, 1))
    np.testing.assert_allclose(losses.soft_dice(empty - 50, empty), 0, atol=1e-6)
    np.testing.assert_allclose(losses.soft_dice(empty, empty), 1, atol=1e-6)


def test_the_total_is_the_weighted_sum():
    x, y = (jnp.asarray(a, jnp.float32) for a in example(0))
    config = ConfigDict({"soft_dice": 2.0, "squared": False, "bce": 0.5, "focal": 3.0, "focal_gamma": 2.0})
    expected = 2 * losses.soft_dice(x, y, False) + 0.5 * losses.bce(x, y) + 3 * losses.focal(x, y, 2.0)
    np.testing.assert_allclose(losses.total(x, y, config), expected, rtol=1e-6)
    assert losses.total(x, y, config).shape == (3,)
