"""Simulated corrections: most strokes lie where the mask is wrong, and a share of the episodes gets them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures import assert_trees_equal, random_params, tiny_config
from universeg_jax.episode import OWN_SHARE, Episode
from universeg_jax.model.factory import build_model, param_shapes
from universeg_jax.training import corrections, losses
from universeg_jax.training.corrections import MOST, RADII, strokes, with_corrections
from universeg_jax.training.step import loss_and_dice

SIZE = 16
draw = jax.jit(jax.vmap(strokes, (0, None, None)))


@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_strokes_are_discs_of_one_label_each(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random((4, 4)).repeat(32, 0).repeat(32, 1) < 0.5
    wrong = rng.random((128, 128)) < 0.02
    drawn = np.asarray(draw(jax.random.key(seed)[None], wrong, truth)[0])
    assert 1 <= drawn.sum() <= MOST * np.pi * (RADII[1] + 1) ** 2


def test_most_strokes_mend_something():
    truth, wrong = np.zeros((2, 128, 128), bool)
    wrong[40:60, 40:60] = True
    many = draw(jax.random.split(jax.random.key(0), 200), wrong, truth)
    mends = (np.asarray(many) & wrong).any((1, 2))
    # The probability that at least one of the strokes was aimed at a wrong pixel
    expected = np.mean([1 - corrections.ANYWHERE**count for count in range(1, MOST + 1)])
    assert abs(mends.mean() - expected) < 0.06
    nothing = draw(jax.random.split(jax.random.key(0), 50), truth, truth)
    assert np.asarray(nothing).any((1, 2)).all()  # a right mask is confirmed


@pytest.fixture
def made():
    """(model, parameters, four episodes, keys)."""
    model = build_model({"encoder_blocks": (4, 4), "matching": 1})
    rng = np.random.default_rng(0)
    query, images = rng.random((4, SIZE, SIZE, 1)), rng.random((4, 5, SIZE, SIZE, 1))
    episodes = Episode(query, query > 0.5, images, images > 0.6, np.ones((4, 5)))
    episodes = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), episodes)
    return model, random_params(param_shapes(model)), episodes, jax.random.split(jax.random.key(1), 4)


def test_a_share_of_the_episodes_is_corrected(made):
    model, params, episodes, keys = made
    found, known = with_corrections(params, episodes, keys, 0.5, model)
    chosen = (np.asarray(known) < 1).any((1, 2, 3, 4))
    assert 0 < chosen.sum() < 4
    assert_trees_equal(*(jax.tree.map(lambda x: x[~chosen], each) for each in (found, episodes)))
    every, known = with_corrections(params, episodes, keys, 1.0, model)
    assert_trees_equal(*(jax.tree.map(lambda x: x[chosen], each) for each in (found, every)))
    assert (known[:, :-1] == 1).all()
    np.testing.assert_array_equal(every.support_images[:, :-1], episodes.support_images[:, :-1])
    np.testing.assert_array_equal(every.support_images[:, -1], episodes.query_image)
    assert (np.asarray(known[:, -1]).sum((1, 2, 3)) > 0).all()
    np.testing.assert_array_equal(every.support_labels[:, -1], episodes.query_label * known[:, -1])
    np.testing.assert_array_equal(every.query_label, episodes.query_label)


def test_an_episode_is_corrected_alike_alone_and_in_any_batch(made):
    model, params, episodes, keys = made
    whole = with_corrections(params, episodes, keys, 0.5, model)
    for part in (slice(0, 1), slice(2, 4)):
        some = jax.tree.map(lambda x, part=part: x[part], episodes)
        alone = with_corrections(params, some, keys[part], 0.5, model)
        assert_trees_equal(alone, jax.tree.map(lambda x, part=part: x[part], whole))


def test_the_query_weighs_a_share_of_the_others(made):
    model, params, episodes, keys = made
    for size in (2, 3, 5):
        some = episodes._replace(**{name: getattr(episodes, name)[:, :size] for name in episodes._fields[2:]})
        found, _ = with_corrections(params, some, keys, 1.0, model)
        np.testing.assert_array_equal(found.support_mask[:, -1], max(1, OWN_SHARE * (size - 1)))
    single = episodes._replace(**{name: getattr(episodes, name)[:, :1] for name in episodes._fields[2:]})
    found, known = with_corrections(params, single, keys, 1.0, model)
    assert_trees_equal(found, single)
    assert (known == 1).all()


def test_padding_stays_padding(made):
    """With fewer entries than slots, the query takes the last slot and what lies in the others still counts nothing."""
    model, params, episodes, keys = made
    padded = episodes._replace(support_mask=episodes.support_mask.at[:, 2:].set(0))
    found, known = with_corrections(params, padded, keys, 1.0, model)
    np.testing.assert_array_equal(found.support_mask, [[1, 1, 0, 0, 1]] * 4)
    other = padded._replace(support_images=padded.support_images.at[:, 2:].set(7.0))
    again, _ = with_corrections(params, other, keys, 1.0, model)
    run = functools.partial(model.apply, {"params": params}, found.query_image)
    np.testing.assert_allclose(run(*found[2:], support_known=known), run(*again[2:], support_known=known), atol=1e-5)


def test_the_loss_is_that_of_the_model_with_what_is_known(made):
    model, params, episodes, keys = made
    found, known = with_corrections(params, episodes, keys, 1.0, model)
    config = tiny_config()
    each, _ = loss_and_dice(params, found, known, model, config)
    logits = model.apply({"params": params}, found.query_image, *found[2:], support_known=known)
    np.testing.assert_allclose(each, losses.total(logits, found.query_label, config.loss), atol=1e-6)
    everything, _ = loss_and_dice(params, episodes, jnp.ones_like(known), model, config)
    nothing_said, _ = loss_and_dice(params, episodes, None, model, config)
    np.testing.assert_allclose(everything, nothing_said, atol=1e-5)
