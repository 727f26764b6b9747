"""The linear probe against ridge regression by NumPy, and where it has nothing to say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures import random_params
from universeg_jax.model import probe
from universeg_jax.model.factory import build_model, param_shapes
from universeg_jax.model.probe import ITERATIONS, RIDGE, moments, probed, solve

CELL, ROWS, STEP, WIDTH = 4, 4, 2, 7


def unit_vectors(rng, *shape):
    x = rng.normal(size=(*shape, 1, WIDTH))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def support(seed=0, batch=2, entries=3, known=True):
    """Keys of every second cell of every second row, and entries of random labels."""
    rng = np.random.default_rng(seed)
    side = CELL * ROWS
    parts = [rng.random((batch, entries, side, side, 1)), rng.random((batch, entries, side, side, 1)) > 0.6]
    parts += [rng.random((batch, entries, side, side, 1)) > 0.3] if known else []
    entry = np.concatenate(parts, -1).astype(np.float32)
    return unit_vectors(rng, batch, entries, ROWS // STEP, ROWS // STEP), entry


def asked_cells(pixels):
    """[s, H, W] → means of the asked cells [s, n]."""
    cells = pixels.reshape((-1, ROWS, CELL, ROWS, CELL)).mean((2, 4))
    return cells[:, ::STEP, ::STEP].reshape((len(pixels), -1))


def by_numpy(query, keys, entry, weights):
    """p and the distance of the classes' means in it, for one episode, in float64."""
    x = keys.reshape((-1, WIDTH)).astype(np.float64) * np.sqrt(WIDTH)
    known = entry[..., 2] if entry.shape[-1] > 2 else np.ones_like(entry[..., 1])
    counts = (asked_cells(known) * weights[:, None]).ravel()
    y = (asked_cells(known * entry[..., 1]) * weights[:, None]).ravel() / np.maximum(counts, 1e-30)
    counts = counts / counts.sum()
    mean, share = counts @ x, counts @ y
    covariance = (x - mean).T @ ((x - mean) * counts[:, None])
    w = np.linalg.solve(covariance + RIDGE * np.eye(WIDTH), (x - mean).T @ (counts * (y - share)))
    fitted = share + (x - mean) @ w
    inside, outside = counts * y, counts * (1 - y)
    apart = fitted @ inside / inside.sum() - fitted @ outside / outside.sum()
    return share + (query.reshape((-1, WIDTH)) * np.sqrt(WIDTH) - mean) @ w, apart


@pytest.mark.parametrize("known", [False, True])
def test_it_is_ridge_regression_on_the_asked_cells(known):
    keys, entry = support(known=known)
    weights = np.array([[0.2, 0.5, 0.3], [0.7, 0.3, 0.0]], np.float32)
    query = unit_vectors(np.random.default_rng(9), 2, ROWS, ROWS)
    found = np.asarray(probed(query, *moments(keys, entry, weights, CELL)))
    assert found.shape == (2, ROWS, ROWS, 3)
    for i in range(2):
        p, apart = by_numpy(query[i], keys[i], entry[i], weights[i])
        np.testing.assert_allclose(found[i, ..., 0].ravel(), p, atol=1e-5)
        np.testing.assert_allclose(found[i, ..., 2], apart, atol=1e-5)


def test_the_means_of_the_classes_become_0_and_1():
    keys, entry = support(batch=1, known=False)
    cells = np.kron(np.random.default_rng(1).random((3, ROWS, ROWS)) > 0.5, np.ones((CELL, CELL)))  # hard labels
    entry[0, ..., 1] = cells
    weights = np.full((1, 3), 1 / 3, np.float32)
    sums = moments(keys, entry, weights, CELL)
    found = np.asarray(probed(keys.reshape((1, 3, -1, 1, WIDTH)), *sums))[0, ..., 1].ravel()  # of the support itself
    inside = asked_cells(entry[0, ..., 1]).ravel() > 0
    np.testing.assert_allclose([found[~inside].mean(), found[inside].mean()], [0, 1], atol=1e-4)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_that_are_all_equal_are_all_that_it_says(label):
    keys, entry = support(known=False)
    entry[..., 1] = label
    query = unit_vectors(np.random.default_rng(2), 2, ROWS, ROWS)
    found = np.asarray(probed(query, *moments(keys, entry, np.full((2, 3), 1 / 3, np.float32), CELL)))
    np.testing.assert_allclose(found, np.broadcast_to([label, label, 0], found.shape), atol=1e-4)


def test_a_small_target_is_told_as_clearly_as_a_large_one():
    """p shrinks with the share of foreground; p by the means of the classes does not."""
    rng = np.random.default_rng(4)
    side = 64
    target = np.zeros((side, side), bool)
    target[0, :8] = True
    x = rng.normal(size=(side, side, 1, WIDTH)) * 0.3
    x[..., 0, 0] += np.where(target, 3, -1)
    keys = (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)[None]
    pixels = np.kron(target, np.ones((CELL, CELL)))
    entry = np.stack([pixels, pixels], -1)[None, None].astype(np.float32)
    weights = np.ones((1, 1), np.float32)
    p, scaled, _ = np.moveaxis(np.asarray(probed(keys, *moments(keys[:, None], entry, weights, CELL)))[0], -1, 0)
    assert p[target].mean() < 0.5
    np.testing.assert_allclose([scaled[~target].mean(), scaled[target].mean()], [0, 1], atol=1e-3)


def test_unknown_pixels_have_no_effect():
    keys, entry = support()
    weights = np.full((2, 3), 1 / 3, np.float32)
    other = entry.copy()
    other[..., 1] = np.where(entry[..., 2] > 0, entry[..., 1], 1 - entry[..., 1])
    for a, b in zip(*(moments(keys, x, weights, CELL) for x in (entry, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def cells_like_those_of_images(seed, count, width=344):
    """Features whose spectrum falls as that of columns does: from 60 to less than RIDGE, mean square 1."""
    rng = np.random.default_rng(seed)
    spread = np.sqrt(60.0 / np.arange(1, width + 1) ** 1.3)
    x = (rng.normal(size=(count, width)) * spread) @ np.linalg.qr(rng.normal(size=(width, width)))[0]
    return x / np.sqrt(np.square(x).mean())


def error_of_p(seed, count, signal):
    """Largest error of p over its spread, where the labels depend on the feature of one direction."""
    x = cells_like_those_of_images(seed, count)
    y = x @ np.linalg.svd(x, full_matrices=False)[2][signal] > 0.5
    covariance, right = np.cov(x.T, bias=True), (x - x.mean(0)).T @ (y - y.mean()) / count
    exact = x @ np.linalg.solve(covariance + RIDGE * np.eye(x.shape[1]), right)
    found = np.asarray(solve(jnp.asarray(covariance[None], jnp.float32), jnp.asarray(right[None], jnp.float32)))[0]
    return np.abs(x @ found - exact).max() / exact.std()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([256, 1024]), st.sampled_from([0, 20, 100]))
def test_conjugate_gradients_are_exact(seed, count, signal):
    assert error_of_p(seed, count, signal) < 1e-3


def test_a_few_conjugate_gradients_are_not(monkeypatch):
    monkeypatch.setattr(probe, "ITERATIONS", 12)
    assert error_of_p(0, 1024, 20) > 1e-2


def test_nothing_to_solve_is_zero_and_finite():
    found = solve(jnp.eye(5)[None], jnp.zeros((1, 5)))
    np.testing.assert_array_equal(found, np.zeros((1, 5)))
    assert ITERATIONS > 5  # it goes on after the exact solution: no 0 / 0
    np.testing.assert_allclose(solve(jnp.eye(5)[None], jnp.ones((1, 5))), np.full((1, 5), 1 / (1 + RIDGE)), rtol=1e-6)


def test_it_needs_columns():
    fields = {"encoder_blocks": (4, 5), "keys": "lite0", "key_probe": True}
    with pytest.raises(ValueError, match="key_probe needs config.model.key_columns"):
        param_shapes(build_model(fields))


def test_it_is_small():
    shapes = param_shapes(
        build_model({"encoder_blocks": (4, 5), "keys": "lite0", "key_columns": True, "key_probe": True})
    )
    assert sum(x.size for x in jax.tree.leaves(random_params(shapes["probe"]))) < 2_000
