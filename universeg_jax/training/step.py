"""The training step: a pure function of the state and a batch of uint8 episodes, pmapped at one place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from universeg_jax.episode import Episode, to_device_floats
from universeg_jax.episodes import augment, superpixel, synthesis, warp
from universeg_jax.episodes.sampler import KINDS, SYNTHETIC, Batch
from universeg_jax.evaluation import metrics
from universeg_jax.model.universeg import UniverSeg
from universeg_jax.training import losses

Array = jax.Array


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Array  # int32 [], steps done
    params: Any
    opt_state: Any
    ema: Any  # like params, or None where config.ema_decay is 0


def init_state(params: Any, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    copy = jax.tree.map(jnp.copy, params) if ema else None  # its own buffers: the state is donated
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), copy)


def evaluated_params(state: TrainState) -> Any:
    """The parameters that are evaluated and used for prediction."""
    return state.params if state.ema is None else state.ema


def device_episode(index: Array, kind: Array, raw: Episode, config: ConfigDict) -> tuple[Episode, Array]:
    """One uint8 episode of the host → float32 at the model's size, or one of another kind in its place; then augmented.

    A pure function of (seed, index). Also returns how many labels augmentation had to repair, int32 [].
    """
    return augmented(index, *plain_episode(index, kind, raw, config), config)


def augmented(index: Array, plain: Episode, repaired: Array, config: ConfigDict) -> tuple[Episode, Array]:
    """The second half of `device_episode`, from what the first one gave."""
    episode, more = augment.augment_episode(episode_keys(index, config)[1], plain, config.augment)
    return episode, repaired + more


def episode_keys(index: Array, config: ConfigDict) -> tuple[Array, Array]:
    """The keys of an episode: of its making, and of its augmentation."""
    make, change = jax.random.split(jax.random.fold_in(jax.random.key(config.seed, impl="threefry2x32"), index))
    return make, change


def plain_episode(index: Array, kind: Array, raw: Episode, config: ConfigDict) -> tuple[Episode, Array]:
    """`device_episode` before its augmentation, and how many labels the views of superpixels had repaired."""
    key, support_size = episode_keys(index, config)[0], raw.support_images.shape[0]

    def real() -> tuple[Episode, Array]:
        return to_device_floats(raw, config.image_size), jnp.int32(0)

    def synthetic() -> tuple[Episode, Array]:
        episode = synthesis.synthetic_episode(key, config.image_size, support_size, config.synthesis)
        return episode._replace(support_mask=raw.support_mask.astype(jnp.float32)), jnp.int32(0)

    def superpixels() -> tuple[Episode, Array]:
        image = to_device_floats(raw, config.image_size).query_image[..., 0]
        episode, repaired = superpixel.superpixel_episode(key, image, support_size, config.superpixel)
        return episode._replace(support_mask=raw.support_mask.astype(jnp.float32)), repaired

    # A kind without weight is not compiled.
    drawn = [name for name in KINDS if config.kinds[name]]
    makers = {"real": real, "synthetic": synthetic, "superpixel": superpixels}
    if len(drawn) == 1:
        return makers[drawn[0]]()
    place = np.array([drawn.index(name) if name in drawn else 0 for name in KINDS], np.int32)
    return jax.lax.switch(jnp.asarray(place)[kind], [makers[name] for name in drawn])


def device_episodes(batch: Batch, config: ConfigDict) -> tuple[Episode, Array, Array]:
    """`device_episode` of each of a batch, and the subjects [B, S + 1] of its images, the query first.

    One by one on a CPU, where a kind that was not drawn then costs nothing; else all at once.
    """

    def one(index: Array, kind: Array, raw: Episode, subjects: Array) -> tuple[Episode, Array, Array]:
        plain, repaired = plain_episode(index, kind, raw, config)
        if config.every_image_as_query and config.kinds.synthetic:
            # Where few subjects of a synthetic task show its label, they are repeated, which only their images tell.
            subjects = jnp.where(kind == SYNTHETIC, first_equal(plain), subjects)
        return *augmented(index, plain, repaired, config), subjects

    return warp.each(one, batch.index, batch.kind, batch.episode, batch.subjects)


def first_equal(episode: Episode) -> Array:
    """int32 [S + 1]: for each image of one episode, the query first, the number of the first that is the same."""
    images = jnp.concatenate([episode.query_image[None], episode.support_images])
    same = jax.lax.map(lambda image: (image[None] == images).all((1, 2, 3)), images)
    return same.argmax(1).astype(jnp.int32)


def every_image_as_query(episode: Episode, subjects: Array) -> tuple[Episode, Array]:
    """[B, ...] → [(S + 1) B, ...]: each image is the query once, all images of other subjects are its support.

    subjects [B, S + 1], the query's first. Also returns whether there are any such images, float32 [B, S + 1]; the
    loss of a query without must not count, and for it alone the support is left as it is, for that of none is NaN.
    """
    images = jnp.concatenate([episode.query_image[:, None], episode.support_images], 1)
    labels = jnp.concatenate([episode.query_label[:, None], episode.support_labels], 1)
    mask = jnp.concatenate([jnp.ones_like(episode.support_mask[:, :1]), episode.support_mask], 1)
    count = images.shape[1]
    others = np.array([[j for j in range(count) if j != i] for i in range(count)])
    strangers = mask[:, others] * (subjects[:, :, None] != subjects[:, others])
    any_left = strangers.any(-1)
    kept = jnp.where(any_left[..., None], strangers, mask[:, others])
    turned = Episode(images, labels, images[:, others], labels[:, others], kept)
    return jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), turned), any_left.astype(jnp.float32)


def loss_and_dice(
    params: Any, episode: Episode, model: UniverSeg, config: ConfigDict, subjects: Array | None = None
) -> tuple[Array, Array]:
    """Loss and hard Dice [B] of each episode.

    With config.every_image_as_query, their means over its S + 1 queries, for which `subjects` [B, S + 1] are needed.
    """
    count = len(episode.query_image)
    weights = jnp.ones((count, 1))
    if config.every_image_as_query:
        weights = jnp.concatenate([weights, episode.support_mask], 1)
        episode, any_left = every_image_as_query(episode, subjects)
        weights *= any_left
    logits = model.apply({"params": params}, episode.query_image, *episode[2:])
    each = losses.total(logits, episode.query_label, config.loss)
    dice = metrics.dice_score(logits[..., 0] >= 0, episode.query_label[..., 0])
    weights /= jnp.maximum(weights.sum(1, keepdims=True), 1)  # none counts where all images are of one subject
    return (each.reshape(count, -1) * weights).sum(1), (dice.reshape(count, -1) * weights).sum(1)


def accumulated_gradient(function: Callable[..., Any], params: Any, episodes: Any, parts: int) -> Any:
    """(gradient of the mean loss, (losses [B], dice [B])), for `parts` parts of the batch one after another.

    `function` of the parameters and a part of `episodes`, whose arrays are [B, ...], gives both.
    """

    def loss_fn(params: Any, part: Any) -> tuple[Array, tuple[Array, Array]]:
        each, dice = function(params, part)
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
    model: UniverSeg,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    axis_name: str | None = "batch",
) -> tuple[TrainState, dict[str, Any]]:
    """One step on this device's share of the batch. Pure.

    Metrics are (sum, count) over all devices, besides "episodes" and "losses" [B]: the global indices and each loss.
    """
    episode, repaired, subjects = device_episodes(batch, config)

    def scores(params: Any, part: tuple[Episode, Array]) -> tuple[Array, Array]:
        return loss_and_dice(params, part[0], model, config, part[1])

    grads, (each, dice) = accumulated_gradient(scores, state.params, (episode, subjects), config.accumulation)
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
    """The one place where devices enter: state replicated, batch [devices, B / devices, ...]."""
    return jax.pmap(step, axis_name="batch", in_axes=(None, 0), out_axes=None, donate_argnums=0)


def local_shardings() -> tuple[NamedSharding, NamedSharding]:
    """(replicated, split over the leading axis) on this host's devices."""
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))


def shard_batch(batch: Batch, sharding: NamedSharding) -> Batch:
    """[B, ...] on the host → [devices, B / devices, ...] on the devices."""
    count = sharding.mesh.size
    return jax.device_put(jax.tree.map(lambda x: np.asarray(x).reshape((count, -1, *x.shape[1:])), batch), sharding)


def support_size_of(step: int, config: ConfigDict) -> tuple[int, int]:
    """(entries that count, entries compiled for) at a step: a pure function of (seed, step), the same on every host.

    The second is the next power of two, so that a run compiles few sizes; what is too many is masked.
    """
    largest = config.support_size
    if config.support_schedule == "fixed":
        return largest, largest
    u = np.random.default_rng([config.seed, step, 1]).random()
    size = 1 + int(u * largest) if config.support_schedule == "uniform" else int((largest + 1) ** u)
    return size, min(1 << (size - 1).bit_length(), largest)


def trim_support(batch: Batch, size: int, slots: int) -> Batch:
    """The first `size` support entries in arrays of `slots`."""
    episode = batch.episode
    mask = episode.support_mask[:, :slots] * (np.arange(slots) < size).astype(episode.support_mask.dtype)
    images, labels = episode.support_images[:, :slots], episode.support_labels[:, :slots]
    trimmed = episode._replace(support_images=images, support_labels=labels, support_mask=mask)
    return batch._replace(episode=trimmed, subjects=batch.subjects[:, : slots + 1])
