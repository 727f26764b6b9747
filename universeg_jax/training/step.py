"""The training step: a pure function of the state and a batch of uint8 episodes, pmapped in one place."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from universeg_jax.episode import Episode
from universeg_jax.episodes.on_device import device_episodes, episode_keys
from universeg_jax.episodes.sampler import Batch
from universeg_jax.evaluation import metrics
from universeg_jax.startup import compiler_options
from universeg_jax.training import losses
from universeg_jax.training.corrections import with_corrections

Array = jax.Array
CORRECTIONS = 2**31  # folded into the key by which an episode is made; its splits count from 0


class TrainState(NamedTuple):
    """Everything a step changes."""

    step: Array  # int32 [], steps done
    params: Any
    opt_state: Any
    ema: Any  # like params, or None where config.ema_decay is 0


def init_state(params: Any, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    copy = jax.tree.map(jnp.copy, params) if ema else None  # separate buffers, since the state is donated
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), copy)


def evaluated_params(state: TrainState) -> Any:
    """The parameters for evaluation and prediction."""
    return state.params if state.ema is None else state.ema


def loss_and_dice(
    params: Any, episode: Episode, known: Array | None, model: nn.Module, config: ConfigDict
) -> tuple[Array, Array]:
    """Loss and hard Dice [B] of each episode; `known` [B, S, H, W, 1] is 0 where a label is not known."""
    extra: dict[str, Any] = {} if known is None else {"support_known": known}
    logits: Any = model.apply({"params": params}, episode.query_image, *episode[2:], **extra)
    each = losses.total(logits, episode.query_label, config.loss)
    return each, metrics.dice_score(logits[..., 0] >= 0, episode.query_label[..., 0])


def accumulated_gradient(function: Callable[..., Any], params: Any, episodes: Any, parts: int) -> Any:
    """(gradient of the mean loss, (losses [B], dice [B])), computed for `parts` parts of the batch in turn.

    `function` maps the parameters and a part of each of `episodes` (a tuple of arrays [B, ...]) to losses and dice.
    """

    def loss_fn(params: Any, part: Any) -> tuple[Array, tuple[Array, Array]]:
        each, dice = function(params, *part)
        return each.mean(), (each, dice)

    gradient = jax.grad(loss_fn, has_aux=True)
    if parts == 1:
        return gradient(params, episodes)

    def body(total: Any, part: Any) -> tuple[Any, Any]:
        grads, scores = gradient(params, part)
        return jax.tree.map(jnp.add, total, grads), scores

    split = jax.tree.map(lambda x: x.reshape((parts, -1, *x.shape[1:])), episodes)
    total, scores = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), split)
    return jax.tree.map(lambda g: g / parts, total), jax.tree.map(jnp.ravel, scores)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    axis_name: str | None = "batch",
) -> tuple[TrainState, dict[str, Any]]:
    """Takes one step on this device's share of the batch. Pure.

    Metrics are (sum, count) over all devices, except "episodes" and "losses" [B]: the global indices and their losses.
    """
    episodes, repaired = device_episodes(batch, config)
    scores = functools.partial(loss_and_dice, model=model, config=config)
    known = None
    if config.corrections:
        keys = jax.vmap(lambda index: jax.random.fold_in(episode_keys(index, config)[0], CORRECTIONS))(batch.index)
        episodes, known = with_corrections(state.params, episodes, keys, config.corrections, model)
    grads, (each, dice) = accumulated_gradient(scores, state.params, (episodes, known), config.accumulation)
    sums = {name: metrics.masked_sum(x, jnp.ones_like(x, bool)) for name, x in (("loss", each), ("dice", dice))}
    sums["repaired"] = metrics.masked_sum(repaired.astype(jnp.float32), jnp.ones_like(repaired, bool))
    per_episode = {"episodes": batch.index, "losses": each}
    if axis_name:
        grads, sums = jax.lax.pmean(grads, axis_name), jax.lax.psum(sums, axis_name)
        per_episode = jax.lax.all_gather(per_episode, axis_name, tiled=True)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))  # short memory at the start
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)
    now = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
    now["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
    sums |= {name: (value, jnp.float32(1)) for name, value in now.items()}
    return TrainState(state.step + 1, params, opt_state, ema), sums | per_episode


def pmap_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Maps the step over all devices: state replicated, batch [devices, B / devices, ...].

    On a single host compiles it, for each size of the support, with `startup.compiler_options`, which pmap cannot take.
    """
    mapped = jax.pmap(step, axis_name="batch", in_axes=(None, 0), out_axes=None, donate_argnums=0)
    options = compiler_options()
    if options is None or jax.process_count() > 1:  # lowered by hand, pmap takes shapes of all hosts for those of one
        return mapped
    compiled: dict[tuple[int, ...], Callable[..., Any]] = {}

    def run(state: TrainState, batch: Batch) -> Any:
        shape = batch.episode.support_images.shape
        if shape not in compiled:
            compiled[shape] = mapped.lower(state, batch).compile(options)
        return compiled[shape](state, batch)

    return run


def local_shardings() -> tuple[NamedSharding, NamedSharding]:
    """(replicated, split over the leading axis) on this host's devices."""
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))


def shard_batch(batch: Batch, sharding: NamedSharding) -> Batch:
    """[B, ...] on the host → [devices, B / devices, ...] on the devices."""
    count = sharding.mesh.size
    return jax.device_put(jax.tree.map(lambda x: np.asarray(x).reshape((count, -1, *x.shape[1:])), batch), sharding)
