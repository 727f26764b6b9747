"""Support sets sharded over devices and streamed from the host against the model on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from tests.model.test_universeg import EVERY_KNOWN, partly_known, random_episode, tiny
from universeg_jax.model.large_support import sharded_logits, streamed_logits


@pytest.mark.parametrize("cross_activation", ["none", "leaky_relu"])
@pytest.mark.parametrize("form", ["plain", "fast"])
def test_sharded_over_devices_equals_one_device(form, cross_activation):
    model, params = tiny(cross_activation=cross_activation, form=form)
    query, images, labels = random_episode(4, support=8)
    mask = np.ones((2, 8), np.float32)
    mask[0, 5:] = 0  # unequal counts on the devices
    expected = jax.jit(model.apply)({"params": params}, query, images, labels, mask)
    run = sharded_logits(model, Mesh(np.array(jax.devices()), ("support",)), "support")
    np.testing.assert_allclose(run(params, query, images, labels, mask), expected, atol=1e-5)


def test_labels_that_are_known_in_part_are_sharded_too():
    model, params = tiny(**EVERY_KNOWN)
    inputs = partly_known(4, support=8)
    expected = jax.jit(lambda *x: model.apply({"params": params}, *x[:-1], support_known=x[-1]))(*inputs)
    run = sharded_logits(model, Mesh(np.array(jax.devices()), ("support",)), "support")
    np.testing.assert_allclose(run(params, *inputs), expected, atol=1e-5)


@pytest.mark.parametrize(
    "variant", [{}, {"cross_activation": "leaky_relu"}, {"norm": "layer", "residual": "both", "matching": 2}], ids=str
)
def test_streamed_from_the_host_equals_all_at_once(variant):
    model, params = tiny(**variant)
    query, images, labels = random_episode(7, support=6)
    images, labels = np.uint8(images[:1] * 255), np.uint8(labels[:1])
    expected = jax.jit(model.apply)({"params": params}, query, *(np.repeat(x, 2, 0) for x in (images / 255.0, labels)))
    chunks = [(images[0, i : i + 2], labels[0, i : i + 2]) for i in (0, 2, 4)]
    exact = streamed_logits(model, params, query, chunks, store=jnp.float32, progress=False)
    np.testing.assert_allclose(exact, expected, atol=1e-5)
    half = streamed_logits(model, params, query, chunks, progress=False)
    assert 0 < np.abs(half - exact).max() < 0.02 * np.abs(exact).max()


def test_labels_that_are_known_in_part_are_streamed_too():
    model, params = tiny(**EVERY_KNOWN)
    query, images, labels, _, known = partly_known(4, support=6)
    images, labels, known = np.uint8(images[:1] * 255), np.uint8(labels[:1]), np.uint8(known[:1])
    inputs = [np.repeat(x, 2, 0) for x in (images / np.float32(255), labels, known)]
    expected = jax.jit(lambda *x: model.apply({"params": params}, *x[:-1], support_known=x[-1]))(query, *inputs)
    chunks = [tuple(x[0, i : i + 2] for x in (images, np.where(known, labels, 1), known)) for i in (0, 2, 4)]
    found = streamed_logits(model, params, query, chunks, store=jnp.float32, progress=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)
