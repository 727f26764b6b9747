"""SENet, PANet and ALPNet: what a support set may and may not change, what they compute, and that they learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures import build_discs, disc, random_params, tiny_config
from universeg_jax.checkpoints import packaged
from universeg_jax.configs import baselines as configs
from universeg_jax.evaluation.cases import Settings
from universeg_jax.evaluation.cost import count_parameters
from universeg_jax.evaluation.runner import evaluate_checkpoint
from universeg_jax.model import alpnet, few_shot, senet
from universeg_jax.model.factory import build_model, init_params, param_shapes
from universeg_jax.model.layers import max_pool
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.reports.files import read_json_lines
from universeg_jax.training import loop
from universeg_jax.training.losses import soft_dice

NAMES = ("senet", "panet", "alpnet")
TINY = {
    "senet": {"encoder_blocks": (6, 6), "conditioner_features": 4, "norm": "layer"},
    "panet": {"encoder_blocks": ((4, 1), (6, 1), (8, 1), (8, 1)), "stride": 4},
    "alpnet": {"encoder_blocks": ((2, 1), (4, 2)), "stride": 4, "embedding": 6, "prototype_grid": 2},
}
SLOTS, SIZE = 5, 16


@functools.cache
def tiny(name):
    model = build_model({"name": name, **TINY[name]}, support_chunk=2)
    params = random_params(param_shapes(model))
    return params, jax.jit(lambda *inputs: model.apply({"params": params}, *inputs))


def random_episode(seed, support=SLOTS):
    rng = np.random.default_rng(seed)
    images = rng.random((2, support + 1, SIZE, SIZE, 1)).astype(np.float32)
    labels = np.zeros_like(images)
    for label in labels.reshape((-1, SIZE, SIZE)):
        label[disc(SIZE, rng.uniform(4, 12, 2), rng.uniform(2, 7))] = 1
    images = (0.5 * images + 0.4 * labels).astype(np.float32)
    return images[:, 0], labels[:, 0], images[:, 1:], labels[:, 1:]


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 1000), support=st.integers(1, SLOTS))
@settings(max_examples=15)
def test_order_and_padding_of_the_support_do_not_matter(name, seed, support):
    query, _, images, labels = random_episode(seed)
    _, apply = tiny(name)
    expected = apply(query, images, labels, np.tile(np.arange(SLOTS) < support, (2, 1)).astype(np.float32))
    assert expected.shape == query.shape
    slots = np.random.default_rng(seed).permutation(SLOTS)[:support]
    placed = [np.full_like(x, np.nan) for x in (images, labels)]  # whatever the padding holds
    for to, x in zip(placed, (images, labels), strict=True):
        to[:, slots] = x[:, :support]
    mask = np.zeros((2, SLOTS), np.float32)
    mask[:, slots] = 1
    np.testing.assert_allclose(apply(query, *placed, mask), expected, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_support_decides_and_chunks_do_not(name):
    query, _, images, labels = random_episode(0)
    params, apply = tiny(name)
    logits = apply(query, images, labels, None)
    assert np.abs(logits - apply(query, images, 1 - labels, None)).max() > 0.1
    whole = build_model({"name": name, **TINY[name]}, support_chunk=0)
    np.testing.assert_allclose(jax.jit(whole.apply)({"params": params}, query, images, labels), logits, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_is_learnt_by_heart(name):
    query, label, images, labels = random_episode(0, support=2)
    model = build_model({"name": name, **TINY[name]})
    params = init_params(model, 0)
    optimizer = optax.adam(1e-2)

    def loss(params):
        return soft_dice(model.apply({"params": params}, query, images, labels), label).mean()

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    _, values = jax.jit(lambda c: jax.lax.scan(step, c, None, length=40))((params, optimizer.init(params)))
    assert np.isfinite(values).all()
    assert values[-5:].mean() < 0.8 * values[0]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in NAMES[:2]] + ["alpnet"])
def test_the_loop_trains_and_evaluation_restores(name, tmp_path):
    build_discs(tmp_path, "train_discs", "train_open", count=6)
    build_discs(tmp_path, "test_discs", "test", count=5, seed=1)
    config = tiny_config(tmp_path, num_steps=2)
    config.model.update({"name": name, **TINY[name]})
    for op in (*config.augment.task.values(), *config.augment.in_task.values()):
        op.p = 0.0  # half a minute of compilation
    loop.train_and_evaluate(config, tmp_path / "run")
    assert [row["step"] for row in read_json_lines(tmp_path / "run" / "metrics.jsonl")] == [0, 1]
    predictor = Predictor.from_checkpoint(tmp_path / "run")
    assert type(predictor.model).__name__.lower() == name
    summary = evaluate_checkpoint(
        str(tmp_path / "run"), str(tmp_path), ("test_discs",), "", Settings((2,)), tmp_path / "out"
    )
    assert summary["params_hash"] == packaged.params_hash(predictor.params)
    assert 0 <= summary["mean_dice"] <= 1


@pytest.mark.parametrize(("name", "parameters"), [("senet", 873_738), ("panet", 14_713_536), ("alpnet", 43_018_176)])
def test_the_published_sizes(name, parameters):
    """PANet and ALPNet as in the paper's table, 14.71 and 43.02 M; SENet as its own code, 0.87 (0.92 in the table)."""
    model = build_model(configs.get_config(f"{name}:paper").model)
    assert count_parameters(param_shapes(model)) == parameters
    small = build_model(configs.get_config(name).model)
    assert 0.8e6 < count_parameters(param_shapes(small)) < 1e6


def test_masked_mean_is_that_of_upsampled_features():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 3, 4, 4, 5)).astype(np.float32)
    mask = (rng.random((2, 3, 16, 16, 1)) > 0.7).astype(np.float32)
    fine = jax.image.resize(features, (2, 3, 16, 16, 5), "linear")
    expected = (fine * mask).sum((2, 3)) / mask.sum((2, 3))
    np.testing.assert_allclose(few_shot.masked_mean(features, mask), expected, atol=1e-5)
    np.testing.assert_array_equal(few_shot.masked_mean(features, 0 * mask), 0)


def test_unpooling_puts_each_value_at_its_maximum():
    before = jnp.asarray([[1.0, 2, 0, 0], [3, 0, 0, 5], [7, 0, 1, 1], [0, 0, 1, 1]])[..., None]
    up = senet.unpool(max_pool(before), before)[..., 0]
    np.testing.assert_array_equal(up, [[0, 0, 0, 0], [3, 0, 0, 5], [7, 0, 1, 0], [0, 0, 0, 0]])


def test_a_local_prototype_scores_its_own_pixels_and_the_mean_serves_where_there_is_none():
    directions = np.eye(3, dtype=np.float32)
    features = directions[None, None]  # one row of three pixels, [1, 1, 3, 3]
    local, own, mean = directions[None, None, :2], directions[None, :1], directions[2][None]
    none, both = np.array([[[False, False]]]), np.array([[[True, True]]])
    with_local = alpnet.class_score(features, local, both, own, np.array([[False]]), mean)[0, 0]
    np.testing.assert_allclose(with_local, [20, 20, 0], atol=1e-3)
    alone = alpnet.class_score(features, local, none, own, np.array([[True]]), mean)[0, 0]
    np.testing.assert_allclose(alone, [0, 0, 20], atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "unet"}, "config.model.name='unet': choose one of universeg, senet"),
        ({"name": "senet", "residual": "both"}, "config.model.residual='both': senet has no such field"),
        ({"name": "senet", "widht": 3}, "config.model.widht: no model has this field"),
        ({"name": "senet", "encoder_blocks": (4, 8)}, "all its blocks need one width"),
        ({"name": "panet", "stride": 3}, "config.model.stride=3: a power of two from 1 to 16"),
        ({"name": "panet", "encoder_blocks": (4, 4), "stride": 8}, "config.model.stride=8: a power of two from 1 to 2"),
        ({"name": "alpnet", "stride": 2}, "from 4 to 32"),
    ],
)
def test_a_wrong_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        param_shapes(build_model(fields))
