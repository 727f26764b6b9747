"""Trains anew for every task of a dataset, on its labelled images alone: a U-Net, or a fine-tuned checkpoint.

Both are evaluated on the query cases of `universeg evaluate`, so their rows compare with those of any checkpoint.

* U-Net from scratch: the traditional workflow and the upper bound of the paper. A fifth of the subjects is held out,
  and the parameters with the best score on them are kept; with fewer than four subjects, the last parameters are.
* Fine-tuning: the parameters with the best leave-one-out Dice are kept, those of the start included. The queries of
  this score are trained on: it prevents harm, but it is no estimate for new images.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from universeg_jax.adaptation.fitting import (
    MAX_SCORED,
    MIN_SUBJECTS_TO_HOLD_OUT,
    Array,
    Fitted,
    Labelled,
    Loss,
    Recipe,
    Score,
    augmentation,
    fit,
    scored_mean,
)
from universeg_jax.adaptation.leave_one_out import Start, fit_checkpoint
from universeg_jax.data.dataset import Dataset
from universeg_jax.data.tasks import Task, TaskSide, subject_hash
from universeg_jax.episode import Episode, split_query, stack_examples, to_device_floats
from universeg_jax.episodes import augment
from universeg_jax.evaluation import metrics
from universeg_jax.model.unet import UNet
from universeg_jax.training import losses

UNET_HELD_OUT = 0.2  # of the subjects


def read(dataset: Dataset, task: Task, examples: TaskSide, size: int, hold_out: bool) -> Labelled:
    """The examples of a task at `size` pixels. Without `hold_out`, all are both trained on and scored."""
    count = len(examples)
    capacity = 1 << (count - 1).bit_length()
    pixels = dataset.meta.size
    images, labels = np.zeros((2, capacity, pixels, pixels, 1), np.uint8)
    for i, (row, position) in enumerate(zip(examples.rows, examples.positions, strict=True)):
        example = dataset[int(row)]
        images[i, ..., 0], labels[i, ..., 0] = example["image"], example["masks"][position]
    subjects = np.full(capacity, -1, np.int32)
    subjects[:count] = examples.subjects
    out = held_out(dataset, task, examples.subjects) if hold_out else np.zeros(count, bool)
    trained = np.zeros(capacity, bool)
    trained[:count] = ~out
    pool = np.flatnonzero(out) if hold_out else np.arange(count)
    hashes = [subject_hash(task.name, f"scored {row}") for row in examples.rows[pool]]
    chosen = np.sort(pool[np.argsort(hashes)[:MAX_SCORED]])
    scored, counts = np.zeros((2, min(capacity, MAX_SCORED)), np.int32)
    scored[: len(chosen)], counts[: len(chosen)] = chosen, 1
    empty = np.zeros((0, pixels, pixels, 1), np.uint8)
    floats = to_device_floats(Episode(images, labels, empty, empty, np.zeros(0, np.uint8)), size)
    return jax.device_put(
        Labelled(floats.query_image, floats.query_label, subjects, trained, scored, counts.astype(np.float32))
    )


def held_out(dataset: Dataset, task: Task, subjects: np.ndarray) -> np.ndarray:
    """Examples [N] of the held-out fifth of the subjects, chosen by hash; none with fewer than four subjects."""
    distinct = np.unique(subjects)
    if len(distinct) < MIN_SUBJECTS_TO_HOLD_OUT:
        return np.zeros(len(subjects), bool)
    hashes = [subject_hash(f"{task.name} held back", dataset.index.subjects[code]) for code in distinct]
    return np.isin(subjects, distinct[np.argsort(hashes)[: max(round(UNET_HELD_OUT * len(distinct)), 1)]])


def unet_loss(params: Any, key: Array, data: Labelled, model: UNet, batch_size: int) -> Array:
    """Soft Dice and cross-entropy of a batch of augmented training images."""
    keys = random.split(key)
    rows = random.categorical(keys[0], jnp.where(data.trained, 0.0, -jnp.inf), shape=(batch_size,))
    batch = split_query(data.images[rows], data.labels[rows])
    images, labels = stack_examples(augment.augment_episode(keys[1], batch, augmentation())[0])
    logits: Any = model.apply({"params": params}, images)
    truth = jnp.asarray(labels)
    return (losses.soft_dice(logits, truth) + losses.bce(logits, truth)).mean()


def unet_score(params: Any, data: Labelled, model: UNet) -> Array:
    """Mean Dice of the scored images."""
    logits: Any = model.apply({"params": params}, data.images[data.scored])
    return scored_mean(metrics.dice_score(logits[..., 0] >= 0, data.labels[data.scored][..., 0]), data)


def fit_unet(dataset: Dataset, task: Task, examples: TaskSide, features: Sequence[int], recipe: Recipe) -> Fitted:
    """Trains a U-Net from scratch on the labelled examples of a task."""
    data = read(dataset, task, examples, recipe.image_size, hold_out=True)
    model, loss, score = unet_functions(tuple(features), recipe.batch_size)
    return fit(init_unet(model, recipe), data, loss, score, recipe, keep_start=False)


def init_unet(model: UNet, recipe: Recipe) -> Any:
    image = jnp.zeros((1, recipe.image_size, recipe.image_size, 1))
    return jax.jit(model.init)(random.key(recipe.seed, impl="threefry2x32"), image)["params"]


@functools.lru_cache(maxsize=16)
def unet_functions(features: tuple[int, ...], batch_size: int) -> tuple[UNet, Loss, Score]:
    model = UNet(features)
    loss = functools.partial(unet_loss, model=model, batch_size=batch_size)
    return model, loss, functools.partial(unet_score, model=model)


def fit_finetuned(
    dataset: Dataset, task: Task, examples: TaskSide, start: Start, support_size: int, recipe: Recipe
) -> Fitted:
    """Fine-tunes a checkpoint on the labelled examples of a task; a single example leaves it unchanged."""
    if len(examples) < 2:  # no other example could be the support
        return Fitted(start.params, {"seconds": 0.0, "compile_seconds": 0.0, "best_step": 0})
    data = read(dataset, task, examples, recipe.image_size, hold_out=False)
    return fit_checkpoint(start, data, support_size, recipe)
