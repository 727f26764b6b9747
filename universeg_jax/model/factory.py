"""Builds the network that config.model describes, and its initial parameters."""

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from universeg_jax.model.alpnet import ALPNet
from universeg_jax.model.layers import Array
from universeg_jax.model.panet import PANet
from universeg_jax.model.senet import SENet
from universeg_jax.model.universeg import UniverSeg

# Parts of a model whose initial parameters change nothing of what it computes, and the fields that ask for them.
NEUTRAL = {"recognition": ("keys", "key_heads"), "columns": ("key_columns",), "probe": ("key_probe",)}
MODELS = {"universeg": UniverSeg, "senet": SENet, "panet": PANet, "alpnet": ALPNet}


def fields_of(model: type[nn.Module]) -> dict[str, Any]:
    """Fields of a network and their defaults."""
    return {f.name: f.default for f in dataclasses.fields(model) if f.name not in ("parent", "name")}


def build_model(config: Any, **overrides: Any) -> nn.Module:
    """The network named by config.model.name, UniverSeg by default, with the fields of `config` (a mapping).

    `overrides` are for fields that change no parameter. A config holds the fields of all networks; raises ValueError
    for a field that no network has, or that was set although this network lacks it.
    """
    fields = {**config, **overrides}
    name = fields.pop("name", "universeg")
    if name not in MODELS:
        raise ValueError(f"config.model.name={name!r}: choose one of {', '.join(MODELS)}")
    own, every = fields_of(MODELS[name]), [fields_of(model) for model in MODELS.values()]
    for field, value in fields.items():  # JSON and ConfigDict give lists; flax needs hashable fields
        if field in ("encoder_blocks", "decoder_blocks"):
            value = fields[field] = tuple(b if isinstance(b, int) else tuple(b) for b in value)
        if not any(field in fields for fields in every):
            raise ValueError(f"config.model.{field}: no model has this field; {name} has {', '.join(own)}")
        if field not in own and value not in [fields[field] for fields in every if field in fields]:
            raise ValueError(f"config.model.{field}={value!r}: {name} has no such field; it has {', '.join(own)}")
    return MODELS[name](**{field: value for field, value in fields.items() if field in own})


def muted(part: Any) -> Any:
    """Parameters of one of NEUTRAL with which it adds nothing, and otherwise those of `part`."""
    return {name: jax.tree.map(jnp.zeros_like, x) if name.startswith("enter_") else x for name, x in part.items()}


def logits_of(model: nn.Module, params: Any, *inputs: Any) -> Array:
    """Logits from a query, support images, labels and mask and, as a fifth input if any, which labels are known."""
    known: dict[str, Any] = {"support_known": inputs[4]} if len(inputs) > 4 else {}
    return cast(Array, model.apply({"params": params}, *inputs[:4], **known))


def init_params(model: nn.Module, seed: int) -> Any:
    """Kaiming-normal kernels and zero biases, a pure function of the seed."""
    # XLA:CPU spends most of its time compiling many small random-bit programs; less effort gives the same bits sooner.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(model.init, compiler_options=options)(*_init_arguments(model, seed))["params"]


def param_shapes(model: nn.Module) -> Any:
    """Shapes and dtypes of `init_params`, without computing it."""
    return jax.eval_shape(model.init, *_init_arguments(model, 0))["params"]


def _init_arguments(model: nn.Module, seed: int) -> tuple[Array, ...]:
    side = max(2 ** len(model.encoder_blocks), 16)
    image = jnp.zeros((1, side, side, 1))
    return jax.random.key(seed, impl="threefry2x32"), image, image[None], image[None]
