"""What is trained again for every task, on its labelled images alone: a U-Net, or a checkpoint that is fine-tuned.

Both are evaluated on the query cases of evaluation.py, so that their rows can be compared with those of any checkpoint.

* U-Net, from scratch: the traditional workflow and the paper's upper bound. A fifth of the subjects are held back, and
  the parameters that score best on them are kept; with fewer than four subjects none is, and the last are.
* Fine-tuning: each labelled image is the query in turn, with others as its support. Kept are the parameters with the
  best Dice in leave-one-out, and those of the start unless others are better. It has trained on the queries of
  that leave-one-out, which is therefore a guard against doing harm, and no estimate.

Arrays are padded to powers of two, so that tasks of about the same size share a compiled program.
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random
from ml_collections import ConfigDict
from tqdm import tqdm

from universeg_jax.data.dataset import Dataset
from universeg_jax.data.tasks import Examples, Task, subject_hash
from universeg_jax.episode import Episode, split_query, stack_examples, to_device_floats
from universeg_jax.episodes import augment
from universeg_jax.errors import UserError
from universeg_jax.evaluation import metrics
from universeg_jax.model.factory import build_model
from universeg_jax.model.unet import UNet
from universeg_jax.training import losses

Array = jax.Array
HELD_BACK = 0.2  # of the subjects
FEWEST_TO_HOLD_BACK = 4  # subjects
MOST_SCORED = 32  # images that parameters are chosen by


@dataclass(frozen=True)
class Recipe:
    """How long and how fast a task is trained."""

    steps: int
    batch_size: int
    learning_rate: float  # of Adam; cosine to 0
    score_every: int  # steps between the scores that the best parameters are chosen by
    image_size: int  # pixels
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "learning_rate", "score_every", "image_size"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}={getattr(self, name)}: a number above 0 is needed")
        if self.steps % self.score_every:
            raise UserError(f"steps={self.steps} is not a multiple of score_every={self.score_every}")


class Labelled(NamedTuple):
    """The labelled images of a task, padded."""

    images: Array  # float32 [N, H, W, 1] in [0, 1]
    labels: Array  # float32 [N, H, W, 1], 0 or 1
    subjects: Array  # int32 [N]; -1 for padding
    trained: Array  # bool [N]
    scored: Array  # int32 [M], those that parameters are chosen by
    counts: Array  # float32 [M], 1, or 0 for padding


class Fitted(NamedTuple):
    params: Any
    about: dict[str, float]  # seconds and compile_seconds, best_step; start_score and best_score where some were scored


Loss = Callable[[Any, Array, Labelled], Array]  # (params, key, labelled) → []
Score = Callable[[Any, Labelled], Array]  # (params, labelled) → mean Dice []
SampleEpisode = Callable[[Array, Labelled, Array, int], Episode]  # (key, labelled, query, support_size) → its episode


def read(dataset: Dataset, task: Task, examples: Examples, size: int, hold_back: bool) -> Labelled:
    """The examples of a task at `size` pixels. Without `hold_back` all are trained on, and scored too."""
    count = len(examples)
    capacity = 1 << (count - 1).bit_length()
    pixels = dataset.meta.size
    images, labels = np.zeros((2, capacity, pixels, pixels, 1), np.uint8)
    for i, (row, position) in enumerate(zip(examples.rows, examples.positions, strict=True)):
        example = dataset[int(row)]
        images[i, ..., 0], labels[i, ..., 0] = example["image"], example["masks"][position]
    subjects = np.full(capacity, -1, np.int32)
    subjects[:count] = examples.subjects
    held = held_back(dataset, task, examples.subjects) if hold_back else np.zeros(count, bool)
    trained = np.zeros(capacity, bool)
    trained[:count] = ~held
    pool = np.flatnonzero(held) if hold_back else np.arange(count)
    hashes = [subject_hash(task.name, f"scored {row}") for row in examples.rows[pool]]
    chosen = np.sort(pool[np.argsort(hashes)[:MOST_SCORED]])
    scored, counts = np.zeros((2, min(capacity, MOST_SCORED)), np.int32)
    scored[: len(chosen)], counts[: len(chosen)] = chosen, 1
    empty = np.zeros((0, pixels, pixels, 1), np.uint8)
    floats = to_device_floats(Episode(images, labels, empty, empty, np.zeros(0, np.uint8)), size)
    return jax.device_put(
        Labelled(floats.query_image, floats.query_label, subjects, trained, scored, counts.astype(np.float32))
    )


def held_back(dataset: Dataset, task: Task, subjects: np.ndarray) -> np.ndarray:
    """Which examples are of the fifth of the subjects that is held back, by hash; none where subjects are few."""
    distinct = np.unique(subjects)
    if len(distinct) < FEWEST_TO_HOLD_BACK:
        return np.zeros(len(subjects), bool)
    hashes = [subject_hash(f"{task.name} held back", dataset.index.subjects[code]) for code in distinct]
    return np.isin(subjects, distinct[np.argsort(hashes)[: max(round(HELD_BACK * len(distinct)), 1)]])


def augmentation() -> ConfigDict:
    """The published in-task operations, its geometry as gentle as in a later paper of the group; no task operation."""
    config = augment.get_config()
    for op in config.task.values():
        op.p = 0.0
    config.in_task.affine.update({"degrees": (-25.0, 25.0), "translate": (0.0, 0.1), "scale": (0.9, 1.1)})
    config.in_task.elastic.p = 0.4
    return config


def unet_loss(params: Any, key: Array, data: Labelled, model: UNet, batch_size: int) -> Array:
    """Soft Dice and cross-entropy of a batch of augmented images that are trained on."""
    keys = random.split(key)
    drawn = random.categorical(keys[0], jnp.where(data.trained, 0.0, -jnp.inf), shape=(batch_size,))
    images, labels = data.images[drawn], data.labels[drawn]
    batch, _ = augment.augment_episode(keys[1], split_query(images, labels), augmentation())
    images, labels = stack_examples(batch)
    logits = model.apply({"params": params}, images)
    return (losses.soft_dice(logits, labels) + losses.bce(logits, labels)).mean()


def unet_score(params: Any, data: Labelled, model: UNet) -> Array:
    """Mean Dice of the scored images."""
    logits = model.apply({"params": params}, data.images[data.scored])
    return scored_mean(metrics.dice_score(logits[..., 0] >= 0, data.labels[data.scored][..., 0]), data)


def scored_mean(dice: Array, data: Labelled) -> Array:
    return (dice * data.counts).sum() / jnp.maximum(data.counts.sum(), 1)


def others(data: Labelled, i: Array) -> Array:
    """Which images [N] may support image i: those of other subjects, or where there are none the other images."""
    there = data.subjects >= 0
    other = there & (data.subjects != data.subjects[i])
    return jnp.where(other.any(), other, there & (jnp.arange(len(there)) != i))


def leave_one_out(key: Array, data: Labelled, i: Array, support_size: int) -> Episode:
    """Image i as the query with `support_size` others, drawn without replacement; all where there are fewer.

    At least a quarter of them show the label, where so many do: nothing is learnt from a support that is empty.
    """
    allowed = others(data, i)
    chances = jnp.where(allowed, random.uniform(key, allowed.shape), -1.0)
    shown = jnp.where((data.labels > 0).any((1, 2, 3)), chances, -1.0)
    least = lax.top_k(shown, -(-support_size // 4))[0][-1]
    first = (shown >= jnp.maximum(least, 0)) & (shown >= 0)
    order, drawn = lax.top_k(chances + first, support_size)
    mask = (order >= 0).astype(jnp.float32)
    return Episode(data.images[i], data.labels[i], data.images[drawn], data.labels[drawn], mask)


def loss_weights(config: ConfigDict) -> ConfigDict:
    """config.loss of a checkpoint; the published one of converted weights, whose config has none."""
    return ConfigDict(config.get("loss", {"soft_dice": 1.0, "squared": True}))


def finetune_loss(
    params: Any,
    key: Array,
    data: Labelled,
    model: nn.Module,
    batch_size: int,
    support_size: int,
    weights: Any,
    draw: SampleEpisode = leave_one_out,
) -> Array:
    """Of augmented leave-one-out episodes, with the loss that the checkpoint was trained with."""

    def one(key: Array) -> Episode:
        keys = random.split(key, 3)
        i = random.categorical(keys[0], jnp.where(data.trained, 0.0, -jnp.inf))
        return augment.augment_episode(keys[1], draw(keys[2], data, i, support_size), augmentation())[0]

    episode = lax.map(one, random.split(key, batch_size))
    logits = model.apply({"params": params}, episode.query_image, *episode[2:])
    return losses.total(logits, episode.query_label, weights).mean()


def finetune_score(
    params: Any, data: Labelled, model: nn.Module, support_size: int, draw: SampleEpisode = leave_one_out
) -> Array:
    """Mean Dice of the scored images, each as the query with others as its support, the same ones each time."""

    def one(i: Array) -> Array:
        key = random.fold_in(random.key(0, impl="threefry2x32"), i)
        episode = jax.tree.map(lambda x: x[None], draw(key, data, i, support_size))
        logits = model.apply({"params": params}, episode.query_image, *episode[2:])
        return metrics.dice_score(logits[0, ..., 0] >= 0, episode.query_label[0, ..., 0])

    return scored_mean(lax.map(one, data.scored), data)


class Programs(NamedTuple):
    """What fits one task after another."""

    optimizer: optax.GradientTransformation
    compiled: Callable[..., tuple[Callable, Callable]]  # as `programs` says


@functools.lru_cache(maxsize=16)
def programs(loss: Loss, score: Score, recipe: Recipe) -> Programs:
    """Its compiled(state, key, labelled) gives (step, score), compiled once for all tasks of one padded size.

    step(state, number, key, labelled) → the next state. Steps are dispatched one by one: inside a `lax.scan` XLA:CPU
    takes ten times as long for the gradient of a convolution.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps))
    cache: dict[Any, tuple[Callable, Callable]] = {}

    def step(state: Any, number: Array, key: Array, data: Labelled) -> Any:
        params, opt_state = state
        grads = jax.grad(loss)(params, random.fold_in(key, number), data)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def compiled(state: Any, key: Array, data: Labelled) -> tuple[Callable, Callable]:
        shapes = tuple(x.shape for x in jax.tree.leaves((state, data)))
        if shapes not in cache:
            cache[shapes] = (
                jax.jit(step).lower(state, np.int32(0), key, data).compile(),
                jax.jit(score).lower(state[0], data).compile(),
            )
        return cache[shapes]

    return Programs(optimizer, compiled)


def fit(
    params: Any,
    data: Labelled,
    loss: Loss,
    score: Score,
    recipe: Recipe,
    keep_start: bool,
    patience: int = 0,
    progress: bool = False,
) -> Fitted:
    """The parameters with the best score among those at every `score_every` steps, and those of the start if
    `keep_start`; the last where nothing is scored. After `patience` scores without a better one it stops, if that is
    not 0. Raises FloatingPointError where parameters are not finite."""
    optimizer, compiled = programs(loss, score, recipe)
    key = random.key(recipe.seed, impl="threefry2x32")
    state = params, optimizer.init(params)
    started = time.perf_counter()
    step, score = compiled(state, key, data)
    compile_seconds, started = time.perf_counter() - started, time.perf_counter()
    scored = bool(data.counts.sum())
    start_score = float(score(params, data)) if scored else 0.0
    best, best_score, best_step = (params, start_score, 0) if keep_start else (params, -1.0, 0)
    for number in tqdm(range(recipe.steps), "train", unit="step", leave=False, disable=not progress):
        state = step(state, np.int32(number), key, data)
        if progress:
            jax.block_until_ready(state)  # steps are dispatched ahead, and the bar would run ahead with them
        if (number + 1) % recipe.score_every:
            continue
        value = float(score(state[0], data)) if scored else 0.0
        if not scored or value > best_score or (value == best_score and not keep_start):
            best, best_score, best_step = state[0], value, number + 1
        elif patience and number + 1 - best_step >= patience * recipe.score_every:
            break
    if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state[0])):
        raise FloatingPointError(f"training on one task gave NaN or inf; lower learning_rate={recipe.learning_rate}")
    about: dict[str, float] = {
        "seconds": time.perf_counter() - started,
        "compile_seconds": compile_seconds,
        "best_step": best_step,
    }
    return Fitted(best, about | ({"start_score": start_score, "best_score": best_score} if scored else {}))


def fit_unet(dataset: Dataset, task: Task, examples: Examples, features: Sequence[int], recipe: Recipe) -> Fitted:
    """A U-Net from scratch on the labelled examples of a task."""
    data = read(dataset, task, examples, recipe.image_size, hold_back=True)
    model, loss, score = unet_functions(tuple(features), recipe.batch_size)
    params = init_unet(model, recipe)
    return fit(params, data, loss, score, recipe, keep_start=False)


def init_unet(model: UNet, recipe: Recipe) -> Any:
    image = jnp.zeros((1, recipe.image_size, recipe.image_size, 1))
    return jax.jit(model.init)(random.key(recipe.seed, impl="threefry2x32"), image)["params"]


@functools.lru_cache(maxsize=16)
def unet_functions(features: tuple[int, ...], batch_size: int) -> tuple[UNet, Loss, Score]:
    model = UNet(features)
    loss = functools.partial(unet_loss, model=model, batch_size=batch_size)
    return model, loss, functools.partial(unet_score, model=model)


class Start(NamedTuple):
    """A checkpoint to fine-tune."""

    params: Any
    config: ConfigDict


def fit_finetuned(
    dataset: Dataset, task: Task, examples: Examples, start: Start, support_size: int, recipe: Recipe
) -> Fitted:
    """A checkpoint trained further on the labelled examples of a task; itself where there is but one example."""
    if len(examples) < 2:  # nothing to support the one with
        return Fitted(start.params, {"seconds": 0.0, "compile_seconds": 0.0, "best_step": 0})
    data = read(dataset, task, examples, recipe.image_size, hold_back=False)
    size, weights = min(support_size, len(data.images)), loss_weights(start.config)
    loss, score = finetune_functions(start.config.model.to_json(), weights.to_json(), recipe.batch_size, size)
    return fit(start.params, data, loss, score, recipe, keep_start=True)


@functools.lru_cache(maxsize=16)
def finetune_functions(model: str, weights: str, batch_size: int, support_size: int) -> tuple[Loss, Score]:
    """From the checkpoint's config.model and config.loss as JSON, which can be a key."""
    net = build_model(json.loads(model))
    loss = functools.partial(
        finetune_loss,
        model=net,
        batch_size=batch_size,
        support_size=support_size,
        weights=ConfigDict(json.loads(weights)),
    )
    return loss, functools.partial(finetune_score, model=net, support_size=support_size)
