"""Metrics against counts of pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from universeg_jax.evaluation import metrics

overlap = jax.jit(lambda prediction, truth: metrics.overlap(prediction, truth)[:3])  # pixels is static
dice_score = jax.jit(metrics.dice_score)


@given(seed=st.integers(0, 1000))
def test_dice_and_false_positives_by_counting(seed):
    rng = np.random.default_rng(seed)
    p, t = rng.random((2, 4, 6, 5)) > rng.random((2, 4, 1, 1))
    both, either = (p & t).sum((1, 2)), p.sum((1, 2)) + t.sum((1, 2))
    expected = np.where(either > 0, 2 * both / np.maximum(either, 1), 1)
    np.testing.assert_allclose(dice_score(p, t), expected, rtol=1e-6)
    np.testing.assert_array_equal(metrics.dice_on_host(p, t.astype(np.uint8)), expected)
    soft = rng.random(p.shape) * p
    volume = 2 * (soft * t).sum() / (soft.sum() + t.sum()) if soft.sum() + t.sum() else 1
    assert metrics.dice_on_host(soft, t, (0, 1, 2)) == pytest.approx(volume)
    wrong = metrics.false_positive_area(metrics.Overlap(*overlap(p, t), 30))
    np.testing.assert_allclose(wrong, (p & ~t).mean((1, 2)), rtol=1e-6, atol=1e-7)


@given(seed=st.integers(0, 1000))
def test_sensitivity_and_precision_by_counting(seed):
    rng = np.random.default_rng(seed)
    p, t = rng.random((2, 4, 6, 5)) > rng.choice([0.3, 0.9, 1.0], (2, 4, 1, 1))
    both, both_empty = (p & t).sum((1, 2)), (~p.any((1, 2)) & ~t.any((1, 2))).astype(float)
    for name, whole in (("sensitivity", t), ("precision", p)):
        size = whole.sum((1, 2))
        expected = np.where(size > 0, both / np.maximum(size, 1), both_empty)
        metric = metrics.METRICS[name]
        np.testing.assert_allclose(metric(metrics.Overlap(*overlap(p, t), 30)), expected, rtol=1e-6)
        counts = zip(both.tolist(), p.sum((1, 2)).tolist(), t.sum((1, 2)).tolist(), strict=True)
        assert [metric(metrics.Overlap(*of_one, 30)) for of_one in counts] == pytest.approx(expected.tolist())


def test_masked_sums_leave_out_masked_values():
    total, count = metrics.masked_sum(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([True, False, True]))
    assert (float(total), float(count)) == (4.0, 2.0)
