"""Frozen features against the original network, and that they are frozen.

`python -m tools.convert_lite0 --golden tests/golden/pretrained/lite0.npz` makes the vectors: run it again if the image
or the blocks change.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from tools.convert_lite0 import SHA256, fold, formula_image
from universeg_jax.model import pretrained
from universeg_jax.model.pretrained import FEATURES, TAPS, depthwise, features

GOLDEN = Path(__file__).parents[1] / "golden" / "pretrained" / "lite0.npz"


@pytest.fixture(scope="module")
def seen():
    """Features of the image and of its green as grey."""
    image = formula_image()
    return {
        "colour": jax.jit(features)(image[None]),
        "grey": jax.jit(features)(np.stack([image[..., 1:2], np.zeros_like(image[..., 1:2])])),
    }


@pytest.mark.parametrize("kind", ["colour", "grey"])
@pytest.mark.parametrize("stride", TAPS)
def test_features_are_those_of_the_original_network(seen, kind, stride):
    expected = np.load(GOLDEN)[f"{kind}_{stride}"]
    found = np.asarray(seen[kind][stride])[0, :: 32 // stride, :: 32 // stride]
    assert found.shape == expected.shape == (2, 3, FEATURES[stride])
    error = np.sqrt(np.square(found - expected).mean() / np.square(expected).mean())
    assert error < 0.005  # float16 weights; another block or padding gives more than 0.1


def test_an_image_is_seen_alone(seen):
    alone = jax.jit(features)(formula_image()[None, ..., 1:2])
    for stride, found in alone.items():
        np.testing.assert_allclose(seen["grey"][stride][:1], found, atol=1e-3)


def test_gradients_stop_at_features():
    image = jnp.full((1, 32, 32, 1), 0.3)
    gradient = jax.jit(jax.grad(lambda image: sum(jnp.square(x).sum() for x in features(image).values())))(image)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("shape", [(1, 48, 64, 1), (1, 64, 64, 2)])
def test_images_that_do_not_fit_are_named(shape):
    with pytest.raises(ValueError, match=str(shape[1])):
        features(jnp.zeros(shape))


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_is_a_convolution(size, stride):
    rng = np.random.default_rng(size)
    x, kernel = rng.normal(size=(2, 12, 8, 5)), rng.normal(size=(size, size, 5))
    expected = jax.lax.conv_general_dilated(
        x, kernel[:, :, None], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=5,
    )  # fmt: skip
    np.testing.assert_allclose(depthwise(jnp.asarray(x), jnp.asarray(kernel), stride), expected, atol=1e-5)


def test_the_file_says_where_it_comes_from_and_holds_half_precision():
    with safe_open(str(pretrained.FILE), "numpy") as file:
        assert file.metadata()["sha256"] == SHA256
        assert file.metadata()["licence"] == "Apache-2.0"
    assert {x.dtype for x in pretrained.weights().values()} == {np.dtype(np.float16)}
    assert all(np.isfinite(x).all() for x in pretrained.weights().values())


def test_a_folded_norm_does_what_it_did():
    rng = np.random.default_rng(0)
    state = {f"n.{name}": rng.random(4) + 0.5 for name in ("weight", "bias", "running_mean", "running_var")}
    state["c.weight"] = rng.normal(size=(4, 3, 1, 1))
    x = rng.normal(size=3)
    y = state["c.weight"][:, :, 0, 0] @ x
    y = (y - state["n.running_mean"]) / np.sqrt(state["n.running_var"] + 1e-3) * state["n.weight"] + state["n.bias"]
    kernel, bias = fold(state, "c", "n")
    np.testing.assert_allclose(kernel[:, :, 0, 0] @ x + bias, y)
