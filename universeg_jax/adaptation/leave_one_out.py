"""Fine-tunes a checkpoint on labelled images: each image is the query in turn, with other images as its support."""

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax, random
from ml_collections import ConfigDict

from universeg_jax.adaptation.fitting import (
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
from universeg_jax.episode import Episode
from universeg_jax.episodes import augment
from universeg_jax.evaluation import metrics
from universeg_jax.model.factory import build_model
from universeg_jax.training import losses


class Start(NamedTuple):
    """A checkpoint to fine-tune."""

    params: Any
    config: ConfigDict


SampleEpisode = Callable[[Array, Any, Array, int], Episode]  # (key, data, query, support_size) → its episode


def others(data: Labelled, i: Array) -> Array:
    """Images [N] that may support image i: those of other subjects, or all other images if there is one subject."""
    real = data.subjects >= 0
    other = real & (data.subjects != data.subjects[i])
    return jnp.where(other.any(), other, real & (jnp.arange(len(real)) != i))


def leave_one_out(key: Array, data: Labelled, i: Array, support_size: int) -> Episode:
    """Image i as the query, with `support_size` others sampled without replacement, or all if there are fewer.

    At least a quarter of the support shows the label, if enough images do: an empty support teaches nothing.
    """
    allowed = others(data, i)
    chances = jnp.where(allowed, random.uniform(key, allowed.shape), -1.0)
    shown = jnp.where((data.labels > 0).any((1, 2, 3)), chances, -1.0)
    least = lax.top_k(shown, -(-support_size // 4))[0][-1]
    first = (shown >= jnp.maximum(least, 0)) & (shown >= 0)
    order, rows = lax.top_k(chances + first, support_size)
    mask = (order >= 0).astype(jnp.float32)
    return Episode(data.images[i], data.labels[i], data.images[rows], data.labels[rows], mask)


def loss_weights(config: ConfigDict) -> ConfigDict:
    """config.loss of a checkpoint; the published loss for converted weights, whose config has none."""
    return ConfigDict(config.get("loss", {"soft_dice": 1.0, "squared": True}))


def finetune_loss(
    params: Any,
    key: Array,
    data: Any,
    model: nn.Module,
    batch_size: int,
    support_size: int,
    weights: Any,
    sample: SampleEpisode,
) -> Array:
    """The loss that the checkpoint was trained with, on augmented leave-one-out episodes."""

    def one(key: Array) -> Episode:
        keys = random.split(key, 3)
        i = random.categorical(keys[0], jnp.where(data.trained, 0.0, -jnp.inf))
        return augment.augment_episode(keys[1], sample(keys[2], data, i, support_size), augmentation())[0]

    episode = lax.map(one, random.split(key, batch_size))
    logits: Any = model.apply({"params": params}, episode.query_image, *episode[2:])
    return losses.total(logits, episode.query_label, weights).mean()


def finetune_score(params: Any, data: Any, model: nn.Module, support_size: int, sample: SampleEpisode) -> Array:
    """Mean Dice of the scored images, each as the query with the same support every time."""

    def one(i: Array) -> Array:
        key = random.fold_in(random.key(0, impl="threefry2x32"), i)
        episode = jax.tree.map(lambda x: x[None], sample(key, data, i, support_size))
        logits: Any = model.apply({"params": params}, episode.query_image, *episode[2:])
        return metrics.dice_score(logits[0, ..., 0] >= 0, episode.query_label[0, ..., 0])

    return scored_mean(lax.map(one, data.scored), data)


@functools.lru_cache(maxsize=16)
def finetune_functions(
    model: str, weights: str, batch_size: int, support_size: int, training: SampleEpisode, scoring: SampleEpisode
) -> tuple[Loss, Score]:
    """(loss, score) from the checkpoint's config.model and config.loss as JSON, which the cache can hash."""
    net = build_model(json.loads(model))
    loss = functools.partial(
        finetune_loss,
        model=net,
        batch_size=batch_size,
        support_size=support_size,
        weights=ConfigDict(json.loads(weights)),
        sample=training,
    )
    return loss, functools.partial(finetune_score, model=net, support_size=support_size, sample=scoring)


def fit_checkpoint(
    start: Start,
    data: Any,
    support_size: int,
    recipe: Recipe,
    training: SampleEpisode = leave_one_out,
    scoring: SampleEpisode = leave_one_out,
    patience: int = 0,
    progress: bool = False,
    stoppable: bool = False,
) -> Fitted:
    """The checkpoint trained further on `data`, or unchanged where no step scores better; see `fit`.

    `training` and `scoring` sample the episodes of the loss and of the score.
    """
    size, weights = min(support_size, len(data.images)), loss_weights(start.config)
    model = start.config.model.to_json()
    functions = finetune_functions(model, weights.to_json(), recipe.batch_size, size, training, scoring)
    return fit(start.params, data, *functions, recipe, True, patience, progress, stoppable)
