"""Schedules by their formulas; what an optimizer does to kernels and biases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures import tiny_config
from universeg_jax.configuration import ConfigError
from universeg_jax.optimizer import make_optimizer, make_schedule


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
def test_a_decay_that_does_not_fit_is_refused(decay_steps):
    config = tiny_config(num_steps=100)
    config.optimizer.update({"schedule": "wsd", "decay_steps": decay_steps})
    with pytest.raises(ConfigError, match=f"config.optimizer.decay_steps={decay_steps}"):
        make_schedule(config)


def test_weight_decay_acts_on_kernels_alone():
    config = tiny_config(num_steps=100)
    config.optimizer.update({"learning_rate": 1.0, "name": "adamw", "weight_decay": 0.5})
    optimizer, _ = make_optimizer(config)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5)
    np.testing.assert_allclose(updates["bias"], 0)


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


def test_an_optimizer_that_optax_has_not_is_named():
    config = tiny_config(num_steps=100)
    config.optimizer.name = "addam"
    with pytest.raises(ConfigError, match="config.optimizer.name='addam'"):
        make_optimizer(config)
