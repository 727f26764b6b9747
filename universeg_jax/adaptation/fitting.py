"""Trains parameters on the labelled images of one task and keeps those with the best score.

Arrays are padded to powers of two, so that tasks of similar size share a compiled program.
"""

import functools
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import random
from ml_collections import ConfigDict
from tqdm import tqdm

from universeg_jax.episodes import augment
from universeg_jax.errors import UserError
from universeg_jax.reports.waiting import say_if_compiling, say_if_slow
from universeg_jax.startup import compiler_options

Array = jax.Array | np.ndarray
MIN_SUBJECTS_TO_HOLD_OUT = 4  # with fewer subjects none is held out
MAX_SCORED = 32  # images that the best parameters are chosen by


@dataclass(frozen=True)
class Recipe:
    """Length and speed of the training on a task."""

    steps: int
    batch_size: int
    learning_rate: float  # of Adam; cosine decay to 0
    score_every: int  # steps between the scores that the best parameters are chosen by
    image_size: int  # pixels
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "learning_rate", "score_every", "image_size"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}={getattr(self, name)}: must be above 0")
        if self.steps % self.score_every:
            raise UserError(f"steps={self.steps} is not a multiple of score_every={self.score_every}")


class Labelled(NamedTuple):
    """The labelled images of a task, padded."""

    images: Array  # float32 [N, H, W, 1] in [0, 1]
    labels: Array  # float32 [N, H, W, 1], 0 or 1
    subjects: Array  # int32 [N]; -1 for padding
    trained: Array  # bool [N]
    scored: Array  # int32 [M], indices of the images that the best parameters are chosen by
    counts: Array  # float32 [M], 1, or 0 for padding


class Fitted(NamedTuple):
    params: Any
    about: dict[str, float]  # seconds, compile_seconds, best_step; start_score and best_score if images were scored


Loss = Callable[[Any, Array, Any], Array]  # (params, key, data) → []
Score = Callable[[Any, Any], Array]  # (params, data) → mean Dice []


def scored_mean(dice: Array, data: Any) -> Array:
    """The mean Dice [] over the scored images without padding."""
    return (dice * data.counts).sum() / jnp.maximum(data.counts.sum(), 1)


def augmentation() -> ConfigDict:
    """The published in-task operations with the gentler geometry of a later paper of the group; no task operation."""
    config = augment.get_config()
    for op in config.task.values():
        op.p = 0.0
    config.in_task.affine.update({"degrees": (-25.0, 25.0), "translate": (0.0, 0.1), "scale": (0.9, 1.1)})
    config.in_task.elastic.p = 0.4
    return config


@functools.lru_cache(maxsize=16)
def programs(loss: Loss, score: Score, recipe: Recipe) -> tuple[optax.GradientTransformation, Callable]:
    """(optimizer, compiled): compiled(state, key, data) → (step, score) compiles once per padded size.

    step(state, number, key, data) → state. Steps are dispatched one by one: inside a `lax.scan`, XLA:CPU takes ten
    times as long for the gradient of a convolution.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps))
    cache: dict[Any, tuple[Callable, Callable]] = {}

    def step(state: Any, number: Array, key: Array, data: Any) -> Any:
        params, opt_state = state
        grads = jax.grad(loss)(params, random.fold_in(key, number), data)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def compiled(state: Any, key: Array, data: Any) -> tuple[Callable, Callable]:
        shapes = tuple(x.shape for x in jax.tree.leaves((state, data)))
        if shapes not in cache:
            options = compiler_options()
            cache[shapes] = (
                jax.jit(step).lower(state, np.int32(0), key, data).compile(options),
                jax.jit(score).lower(state[0], data).compile(options),
            )
        return cache[shapes]

    return optimizer, compiled


def fit(
    params: Any,
    data: Any,
    loss: Loss,
    score: Score,
    recipe: Recipe,
    keep_start: bool,
    patience: int = 0,
    progress: bool = False,
    stoppable: bool = False,
) -> Fitted:
    """The parameters with the best score among those at every `score_every` steps, or the last without scored images.

    With `keep_start`, the initial parameters are a candidate too. A `patience` above 0 stops the training after that
    many scores without improvement. If it is `stoppable`, a KeyboardInterrupt does so too, and `about` has
    "stopped_at". Raises FloatingPointError if the parameters become non-finite.
    """
    optimizer, compiled = programs(loss, score, recipe)
    key = random.key(recipe.seed, impl="threefry2x32")
    state = params, optimizer.init(params)
    started = time.perf_counter()
    with say_if_compiling("the training step and the scores", "one to three minutes"):
        step, score = compiled(state, key, data)
    compile_seconds, started = time.perf_counter() - started, time.perf_counter()
    scored, number, stopped = bool(data.counts.sum()), -1, {}
    with say_if_slow(f"scoring {len(data.scored)} masks before the training") if progress else nullcontext():
        start_score = float(score(params, data)) if scored else 0.0
    best, best_score, best_step = (params, start_score, 0) if keep_start else (params, -1.0, 0)
    try:
        for number in tqdm(range(recipe.steps), "train", unit="step", leave=False, disable=not progress):
            state = step(state, np.int32(number), key, data)
            if progress:
                jax.block_until_ready(state)  # dispatch is asynchronous, and the bar would run ahead
            if (number + 1) % recipe.score_every:
                continue
            value = float(score(state[0], data)) if scored else 0.0
            if not scored or value > best_score or (value == best_score and not keep_start):
                best, best_score, best_step = state[0], value, number + 1
            elif patience and number + 1 - best_step >= patience * recipe.score_every:
                break
    except KeyboardInterrupt:
        if not stoppable:
            raise
        stopped = {"stopped_at": number}
    if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(best if stopped else state[0])):
        raise FloatingPointError(f"training on one task gave NaN or inf; lower learning_rate={recipe.learning_rate}")
    about: dict[str, float] = {
        "seconds": time.perf_counter() - started,
        "compile_seconds": compile_seconds,
        "best_step": best_step,
        **stopped,
    }
    return Fitted(best, about | ({"start_score": start_score, "best_score": best_score} if scored else {}))
