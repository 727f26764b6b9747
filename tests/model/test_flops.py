"""The formula against what XLA counts in the program."""

import jax
import jax.numpy as jnp
import pytest

from tests.fixtures import tiny_config
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.model.flops import counted_flops, forward_flops, training_flops
from universeg_jax.model.universeg import UniverSeg


@pytest.mark.parametrize("form", ["plain", "fast"])
@pytest.mark.parametrize("cross_activation", ["none", "leaky_relu"])
def test_convolutions_are_nearly_all_of_the_program(form, cross_activation):
    model = build_model(
        {"encoder_blocks": ((32, 48), (48, 64), 64)}, form=form, cross_activation=cross_activation, support_chunk=0
    )
    params = init_params(model, 0)
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 64, 64, 1), (1, 5, 64, 64, 1), (1, 5, 64, 64, 1))]
    counted = jax.jit(model.apply).lower({"params": params}, *shapes).cost_analysis()["flops"]
    formula, published = forward_flops(model, 64, 5)
    assert formula == pytest.approx(counted, rel=0.06)
    assert formula < published


def test_matching_is_counted():
    model = build_model({"encoder_blocks": ((32, 48), (48, 64), 64), "matching": 3}, support_chunk=0)
    assert forward_flops(model, 64, 5)[0] == pytest.approx(counted_flops(model, 64, 5), rel=0.06)
    extra = forward_flops(model, 128, 5)[0] - forward_flops(model.clone(matching=0), 128, 5)[0]
    counted = counted_flops(model, 128, 5) - counted_flops(model.clone(matching=0), 128, 5)
    assert extra == pytest.approx(counted, rel=0.1)


def test_released_architecture_and_a_training_step():
    fast, published = forward_flops(UniverSeg(), 128, 64)
    assert published / 1e9 == pytest.approx(674, rel=0.02)
    assert 4.2 < published / fast < 4.3
    config = tiny_config(batch_size=4, every_image_as_query=True)
    model = build_model(config.model)
    assert training_flops(model, config) == 3 * 4 * 4 * forward_flops(model, 16, 3)[0]


def test_a_baseline_is_counted():
    config = tiny_config(batch_size=2, support_size=3, image_size=32)
    config.model.update({"name": "senet", "encoder_blocks": (32,), "conditioner_features": 16})
    large, small = ((5 * side - 6) ** 2 for side in (32, 16))  # taps of 5x5 convolutions that meet no padding
    segmenter = large * (32 + 32 * 32) + small * 32 * 32  # one pooling: encoder and decoder, bottleneck
    conditioner = large * (2 * 16 + 16 * 16) + small * 16 * 16
    expected = 3 * 2 * 2 * (segmenter + 3 * conditioner)
    assert training_flops(build_model(config.model), config) == pytest.approx(expected, rel=0.03)
