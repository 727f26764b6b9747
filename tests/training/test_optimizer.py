"""Schedules by their formulas; what an optimizer does to kernels and biases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures import assert_trees_equal, tiny_config
from universeg_jax.configuration import ConfigError
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.training.optimizer import make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"schedule": "constant", "warmup_steps": 10}, {0: 0.1, 5: 0.55, 10: 1, 100: 1}),
        ({"schedule": "cosine", "warmup_steps": 10}, {0: 0.1, 5: 0.55, 10: 1, 55: 0.5, 100: 0}),
        ({"schedule": "wsd", "warmup_steps": 10, "decay_steps": 20}, {0: 0.1, 10: 1, 80: 1, 90: 0.5, 100: 0}),
        ({"schedule": "wsd", "decay_steps": 100}, {0: 1, 25: 0.75, 100: 0}),
    ],
)
def test_schedules(fields, values):
    config = tiny_config(num_steps=100)
    config.optimizer.update({"learning_rate": 1.0, **fields})
    schedule = make_schedule(config)
    np.testing.assert_allclose([schedule(step) for step in values], list(values.values()), atol=1e-6)


@pytest.mark.parametrize("decay_steps", [0, 101])
def test_a_decay_longer_than_the_run_is_refused(decay_steps):
    config = tiny_config(num_steps=100)
    config.optimizer.update({"schedule": "wsd", "decay_steps": decay_steps})
    with pytest.raises(ConfigError, match=f"config.optimizer.decay_steps={decay_steps}"):
        make_schedule(config)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_acts_on_kernels_alone(name):
    config = tiny_config(num_steps=100)
    config.optimizer.update({"learning_rate": 1.0, "name": name, "weight_decay": 0.5})
    optimizer, _ = make_optimizer(config)
    params = jax.tree.map(jnp.ones_like, init_params(build_model(config.model), 0))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        np.testing.assert_allclose(update, -0.5 if path[-1].key == "kernel" else 0, err_msg=str(path))


def test_decay_does_not_change_the_steps_of_muon():
    config = tiny_config(num_steps=100)
    config.optimizer.update({"learning_rate": 0.1, "name": "muon", "schedule": "cosine", "warmup_steps": 2})
    params = init_params(build_model(config.model), 0)
    grads = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)
    plain, schedule = make_optimizer(config)
    config.optimizer.weight_decay = 0.5
    decayed, _ = make_optimizer(config)
    states = [optimizer.init(params) for optimizer in (plain, decayed)]
    for step in range(3):
        (without, states[0]), (with_decay, states[1]) = (
            jax.jit(optimizer.update)(grads, state, params)
            for optimizer, state in zip((plain, decayed), states, strict=True)
        )
        rate = schedule(step)
        expected = jax.tree.map(lambda u, p, rate=rate: u - (rate * 0.5 * p if p.ndim > 1 else 0), without, params)
        assert_trees_equal(with_decay, expected, atol=1e-6)


def test_muon_makes_steps_of_kernels_orthogonal_and_leaves_the_rest_to_adam():
    config = tiny_config(num_steps=100)
    config.optimizer.update({"learning_rate": 1.0, "name": "muon"})
    optimizer, _ = make_optimizer(config)
    shapes = {"kernel": (3, 3, 2, 8), "out": (1, 1, 8, 1), "bias": (8,)}
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    first = 1 + 0.9 * 0.1 / (1 - 0.9**2)  # Adam's first step with Nesterov momentum
    for name in ("bias", "out"):
        np.testing.assert_allclose(updates[name], -first * np.sign(params[name]), rtol=1e-4)
    step = np.asarray(updates["kernel"]).reshape(18, 8)
    sizes = np.linalg.svd(step, compute_uv=False) / (0.2 * np.sqrt(18))  # rms 0.2 of an orthogonal [18, 8]
    assert 0.6 < sizes.min() < sizes.max() < 1.3  # five Newton-Schulz iterations are this exact
    assert np.sum(step * np.asarray(params["kernel"]).reshape(18, 8)) < 0


def test_an_unknown_optimizer_is_named():
    config = tiny_config(num_steps=100)
    config.optimizer.name = "addam"
    with pytest.raises(ConfigError, match="config.optimizer.name='addam'"):
        make_optimizer(config)
