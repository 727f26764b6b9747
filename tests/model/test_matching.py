"""The first guess: its sums against the definition, its properties, and what it must find."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import random_params
from universeg_jax.model.layers import chunked, map_sum
from universeg_jax.model.matching import (
    KEY,
    KINDS,
    PRIOR,
    CellMatching,
    PixelMatching,
    cell_size,
    from_cells,
    to_cells,
)

HEADS = 2


def episode(seed=0, batch=2, support=3, height=32, width=32):
    rng = np.random.default_rng(seed)
    query = rng.random((batch, height, width, 1)).astype(np.float32)
    images = rng.random((batch, support, height, width, 1)).astype(np.float32)
    labels = (rng.random(images.shape) > 0.6).astype(np.float32)
    return query, np.concatenate([images, labels], -1)


def weighted(support, batch=2):
    weights = np.random.default_rng(1).random((batch, support)).astype(np.float32)
    return weights / weights.sum(1, keepdims=True)


def made(kind, query, entries, weights):
    module = kind(HEADS)
    init = functools.partial(module.init, jax.random.key(0))
    shapes = jax.eval_shape(lambda q, e, w: init(q, None, e, None, w, map_sum), query, entries[None], weights[None])
    return module, random_params(shapes)


def apply(module, variables, query, entries, weights, chunk=0):
    entries, weights = chunked((jnp.asarray(entries), jnp.asarray(weights)), chunk)
    return module.apply(variables, query, None, entries, None, weights, map_sum)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 24), (128, 128)])
def test_cells_average_labels_by_likeness_and_distance(height, width):
    query, entries = episode(height=height, width=width)
    weights, cell = weighted(3), cell_size(query.shape)
    module, variables = made(CellMatching, query, entries, weights)
    rows, columns = height // cell, width // cell
    q, k = (np.asarray(module.apply(variables, x, method="keys")) for x in (query, entries[..., :1]))
    assert q.shape == (2, rows, columns, HEADS, KEY)
    np.testing.assert_allclose(np.linalg.norm(k, axis=-1), 1, atol=1e-3)
    temperature, locality = (np.exp(variables["params"][f"log_{name}"]) for name in ("temperature", "locality"))
    y, x = (places / max(rows, columns) for places in np.mgrid[:rows, :columns])
    apart = np.square(y[..., None, None] - y) + np.square(x[..., None, None] - x)
    expected = np.zeros((2, height, width, HEADS))
    for h in range(HEADS):
        cosine = np.einsum("bijd,bskld->bijskl", q[..., h, :], k[..., h, :])
        like = (
            np.exp(temperature[h] * cosine - locality[h] * apart[None, :, :, None])
            * weights[:, None, None, :, None, None]
        )
        like /= like.sum((3, 4, 5), keepdims=True)
        pixels = entries[..., 1].reshape((2, 3, rows, cell, columns, cell))
        guess = np.einsum("bijskl,bskplr->bipjr", like, pixels)
        expected[..., h] = guess.reshape((2, height, width))
    np.testing.assert_allclose(apply(module, variables, query, entries, weights), expected, atol=2e-5)


def test_pixels_are_as_likely_foreground_as_their_kinds():
    query, entries = episode()
    weights = weighted(3)
    module, variables = made(PixelMatching, query, entries, weights)
    kinds = np.asarray(module.apply(variables, entries[..., :1], 1, method="kinds"))[:, :, ::2, ::2]
    label = entries[:, :, ::2, ::2, 1, None, None]
    counts = [np.einsum("bs,bshwnk->bnk", weights, kinds * part) for part in (label, 1 - label)]
    shares = [count / count.sum(-1, keepdims=True) + PRIOR for count in counts]
    foreground = shares[0] / (shares[0] + shares[1])
    asked = np.asarray(module.apply(variables, query, 1, method="kinds"))
    assert asked.shape == (2, 32, 32, HEADS, KINDS)
    np.testing.assert_allclose(asked.sum(-1), 1, atol=1e-5)
    expected = np.einsum("bhwnk,bnk->bhwn", asked, foreground)
    np.testing.assert_allclose(apply(module, variables, query, entries, weights), expected, atol=2e-5)


def test_kinds_of_every_second_pixel_are_those_of_all_pixels():
    query, entries = episode()
    module, variables = made(PixelMatching, query, entries, weighted(3))
    every, second = (module.apply(variables, query, stride, method="kinds") for stride in (1, 2))
    np.testing.assert_allclose(second, every[:, ::2, ::2], atol=1e-5)


@pytest.mark.parametrize("kind", [CellMatching, PixelMatching])
def test_the_support_is_a_set_that_may_be_streamed_and_padded(kind):
    query, entries = episode(support=5)
    weights = weighted(5)
    module, variables = made(kind, query, entries, weights)
    expected = apply(module, variables, query, entries, weights)
    order = np.array([3, 0, 4, 1, 2])
    for chunk in (1, 2):
        np.testing.assert_allclose(
            apply(module, variables, query, entries[:, order], weights[:, order], chunk), expected, atol=1e-5
        )
    padded = np.pad(entries, [(0, 0), (0, 2), (0, 0), (0, 0), (0, 0)])
    np.testing.assert_allclose(
        apply(module, variables, query, padded, np.pad(weights, [(0, 0), (0, 2)])), expected, atol=1e-5
    )


@pytest.mark.parametrize("kind", [CellMatching, PixelMatching])
def test_prepared_keys_give_the_same_whatever_those_of_padding_hold(kind):
    query, entries = episode()
    weights = weighted(3)
    weights[0, 1] = 0
    module, variables = made(kind, query, entries, weights)
    of_query = module.apply(variables, query, method="keys")
    of_support = module.apply(variables, entries[..., :1], method="support_keys").astype(jnp.float16)
    of_support = of_support.at[0, 1].set(jnp.nan)
    for chunk in (0, 1):
        given = *chunked((jnp.asarray(entries), of_support), chunk), chunked(jnp.asarray(weights), chunk)
        found = module.apply(variables, query, of_query, *given, map_sum)
        np.testing.assert_allclose(found, apply(module, variables, query, entries, weights), atol=1e-4)


@pytest.mark.parametrize("kind", [CellMatching, PixelMatching])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_support_without_foreground_or_background_gives_a_clear_guess(kind, value):
    query, entries = episode()
    entries[..., 1] = value
    weights = weighted(3)
    module, variables = made(kind, query, entries, weights)
    guess = np.asarray(apply(module, variables, query, entries, weights))
    assert np.isfinite(guess).all()
    assert (np.abs(guess - value) < 0.1).all()


def test_a_query_that_is_in_the_support_gets_its_label_from_a_sharp_head():
    query, entries = episode(batch=1)
    entries[:, 1, ..., :1] = query
    weights = weighted(3, batch=1)
    module, variables = made(CellMatching, query, entries, weights)
    variables["params"]["log_temperature"] = jnp.full(HEADS, np.log(3e4))
    variables["params"]["log_locality"] = jnp.full(HEADS, np.log(1e-3))
    guess = apply(module, variables, query, entries, weights)
    for head in range(HEADS):
        np.testing.assert_allclose(guess[..., head], entries[:, 1, ..., 1], atol=0.01)


def test_bright_pixels_are_found_wherever_they_are():
    rng = np.random.default_rng(0)
    images = np.kron(rng.random((1, 4, 8, 8, 1)) > 0.7, np.ones((4, 4, 1)))
    entries = np.concatenate([images * 0.6 + 0.2, images], -1).astype(np.float32)
    query, support = entries[:, 0, ..., :1], entries[:, 1:]
    weights = weighted(3, batch=1)
    module, variables = made(PixelMatching, query, support, weights)
    guess = np.asarray(apply(module, variables, query, support, weights)).mean(-1)
    inside = entries[:, 0, ..., 1] > 0
    assert guess[inside].mean() > guess[~inside].mean() + 0.05  # random kinds tell already


@given(seed=st.integers(0, 100), size=st.sampled_from([1, 2, 4]))
def test_cells_hold_the_pixels_of_a_square(seed, size):
    x = np.random.default_rng(seed).random((2, 8, 12, 3))
    cells = to_cells(x, size)
    np.testing.assert_array_equal(from_cells(cells, size), x)
    np.testing.assert_array_equal(cells[:, 1, 2], x[:, size : 2 * size, 2 * size : 3 * size].reshape((2, -1)))


@pytest.mark.parametrize(("side", "cell"), [(8, 4), (64, 4), (96, 4), (128, 8), (256, 16)])
def test_cells_grow_with_the_image(side, cell):
    assert cell_size((2, side, side, 1)) == cell


def test_an_image_that_cells_do_not_fit_is_named():
    with pytest.raises(ValueError, match="100x128.*multiples of 8"):
        cell_size((2, 100, 128, 1))
