"""The filter gradient against XLA's own, at every way it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from universeg_jax.model import convolution
from universeg_jax.model.convolution import convolve, filter_gradient


def reference(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize(("channels", "features"), [(2, 5), (32, 3), (64, 4), (96, 2)])
@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 40, 25)])  # less than a block, and several with a rest
def test_filter_gradient_is_that_of_the_convolution(shape, channels, features, size):
    with jax.enable_x64():
        x, dy = random(*shape, channels), random(*shape, features, seed=1)
        kernel = jnp.zeros((size, size, channels, features))
        expected = jax.vjp(lambda k: reference(x, k), kernel)[1](dy)[0]
        np.testing.assert_allclose(filter_gradient(x, dy, size), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pixels", [1, 10**9])  # the fewest from which on blocks are used
@pytest.mark.parametrize("batched", [False, True])
def test_gradients_of_convolve(monkeypatch, pixels, batched):
    monkeypatch.setattr(convolution, "FEWEST", pixels)
    with jax.enable_x64():
        x, kernel, dy = random(3, 2, 8, 8, 4), random(3, 3, 4, 5, seed=1), random(3, 2, 8, 8, 5, seed=2)

        def run(function):
            def loss(x, kernel):
                return (jax.vmap(function, (0, None))(x, kernel) * dy).sum()

            def loop(x, kernel):
                return sum((function(x[i], kernel) * dy[i]).sum() for i in range(3))

            return jax.jit(jax.value_and_grad(loss if batched else loop, (0, 1)))(x, kernel)

        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), run(convolve), run(reference))


def test_bfloat16_and_other_platforms_keep_the_convolution_of_xla():
    x, kernel = jnp.ones((2, 128, 128, 4), jnp.bfloat16), jnp.ones((3, 3, 4, 4))
    gradient = jax.jit(jax.grad(lambda k: convolve(x, k).astype(jnp.float32).sum()))
    assert "while" not in gradient.lower(kernel).as_text()
    single = jax.jit(jax.grad(lambda k: convolve(x.astype(jnp.float32), k).sum()))
    assert "while" in single.lower(kernel).as_text()
    for platform in ("tpu", "cuda"):
        exported = jax.export.export(single, platforms=[platform])(kernel)
        assert "while" not in exported.mlir_module()
