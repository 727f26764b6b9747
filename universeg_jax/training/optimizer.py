"""The optimizer and the learning rate schedule of config.optimizer."""

import difflib
import functools
from typing import Any

import jax
import optax
import optax.contrib
from ml_collections import ConfigDict

from universeg_jax.configuration import ConfigError


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Learning rate by step: linear from 0 over warmup_steps, then constant, cosine to 0, or warm-up–stable–decay."""
    c = config.optimizer
    rest = max(config.num_steps - c.warmup_steps, 1)
    if c.schedule == "constant":
        schedule = optax.constant_schedule(c.learning_rate)
    elif c.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(c.learning_rate, rest)
    elif c.schedule == "wsd":
        if not 0 < c.decay_steps <= rest:
            raise ConfigError(
                f"config.optimizer.decay_steps={c.decay_steps}: 1 to {rest} (num_steps - warmup_steps) is needed, the "
                "length of the last part of schedule wsd"
            )
        decay = optax.linear_schedule(c.learning_rate, 0.0, c.decay_steps)
        schedule = optax.join_schedules([optax.constant_schedule(c.learning_rate), decay], [rest - c.decay_steps])
    else:
        raise ConfigError(f"config.optimizer.schedule={c.schedule!r}: one of constant, cosine, wsd is needed")
    if c.warmup_steps:
        warmup = optax.linear_schedule(c.learning_rate / c.warmup_steps, c.learning_rate, c.warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [c.warmup_steps])
    return schedule


def make_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Muon or any optimizer of optax that takes learning_rate, after clipping by the global norm; and its schedule."""
    c, schedule = config.optimizer, make_schedule(config)
    if c.name != "muon" and not hasattr(optax, c.name):
        near = ", ".join(difflib.get_close_matches(c.name, dir(optax))) or "adam, adamw, sgd or muon"
        raise ConfigError(f"config.optimizer.name={c.name!r}: optax has no such optimizer; did you mean {near}?")
    decay = {"weight_decay": c.weight_decay, "mask": _kernels} if c.weight_decay else {}
    try:
        optimizer = (muon if c.name == "muon" else getattr(optax, c.name))(learning_rate=schedule, **decay)
    except TypeError as error:
        raise ConfigError(
            f"config.optimizer.name={c.name!r} does not take {[*decay, 'learning_rate']}: {error}"
        ) from error
    return optax.chain(optax.clip_by_global_norm(c.clip_norm), optimizer) if c.clip_norm else optimizer, schedule


def muon(learning_rate: optax.Schedule, weight_decay: float = 0.0, mask: Any = None) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for kernels, as matrices [k k C, F]; Adam for biases, norms and the output.

    Updates are scaled to the size of Adam's (Liu et al. 2025, arXiv 2502.16982), so that one learning rate serves both.
    """

    def as_matrices(params: Any) -> Any:
        shape = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
        return jax.tree.map(lambda p: shape if p.ndim == 4 and p.shape[3] > 1 else None, params)

    scaled = functools.partial(optax.contrib.muon, muon_weight_dimension_numbers=as_matrices, consistent_rms=0.2)
    if not weight_decay:
        return scaled(learning_rate)
    # optax's own weight_decay applies to the matrices alone. A learning rate of -1 leaves an update unchanged.
    decay = optax.add_decayed_weights(weight_decay, mask)
    return optax.chain(scaled(-1.0), decay, optax.scale_by_learning_rate(learning_rate))


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)
