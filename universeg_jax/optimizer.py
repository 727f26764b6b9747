"""The optimizer and its learning rate, by name from config.optimizer."""

import difflib
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from universeg_jax.configuration import ConfigError

SCHEDULES = ("constant", "cosine", "wsd")


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
                f"config.optimizer.decay_steps={c.decay_steps}: the last steps of schedule wsd, 1 to {rest} "
                "(num_steps - warmup_steps), are needed"
            )
        decay = optax.linear_schedule(c.learning_rate, 0.0, c.decay_steps)
        schedule = optax.join_schedules([optax.constant_schedule(c.learning_rate), decay], [rest - c.decay_steps])
    else:
        raise ConfigError(f"config.optimizer.schedule={c.schedule!r}: choose one of {', '.join(SCHEDULES)}")
    if c.warmup_steps:
        warmup = optax.linear_schedule(c.learning_rate / c.warmup_steps, c.learning_rate, c.warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [c.warmup_steps])
    return schedule


def make_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Any optimizer of optax that takes learning_rate, after clipping by the global norm; and its schedule."""
    c, schedule = config.optimizer, make_schedule(config)
    if not hasattr(optax, c.name):
        near = ", ".join(difflib.get_close_matches(c.name, dir(optax))) or "adam, adamw, sgd or lion"
        raise ConfigError(f"config.optimizer.name={c.name!r}: optax has no such optimizer; is it {near}?")
    decay = {"weight_decay": c.weight_decay, "mask": _kernels} if c.weight_decay else {}
    try:
        optimizer = getattr(optax, c.name)(learning_rate=schedule, **decay)
    except TypeError as error:
        raise ConfigError(
            f"config.optimizer.name={c.name!r} does not take {[*decay, 'learning_rate']}: {error}"
        ) from error
    return optax.chain(optax.clip_by_global_norm(c.clip_norm), optimizer) if c.clip_norm else optimizer, schedule


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)
