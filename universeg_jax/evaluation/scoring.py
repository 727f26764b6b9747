"""Device side of an evaluation: from a batch of episodes to scores, or to probabilities for figures.

A `Method` is any function that segments an episode. Compiled functions are cached per method, because training
evaluates many times.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from universeg_jax.episode import FLIPS, OFFICIAL_SIZE, Array, Episode, image_to_floats, resize, to_device_floats
from universeg_jax.evaluation import metrics
from universeg_jax.evaluation.cases import Settings
from universeg_jax.model.recognition import Keys
from universeg_jax.startup import compiler_options

SCORES = (*metrics.METRICS, "single_dice", "oracle_dice")
THRESHOLDS = np.linspace(0.05, 0.95, 19, dtype=np.float32)  # tried by the oracle
Method = Callable[..., jax.Array]  # (params, episode) → probabilities [B, H, W, 1] at the episode's size


@dataclasses.dataclass(frozen=True, eq=False)
class ModelMethod:
    """Runs a model at its own image size and resizes its logits to the size of the episode."""

    model: Any
    image_size: int

    def __call__(self, params: Any, episode: Episode, support_keys: Keys = ()) -> jax.Array:
        """`support_keys` of the support images, where they are known (support_keys.py)."""
        size = episode.query_image.shape[1]
        logits = self.model.apply(
            {"params": params},
            resize(episode.query_image, self.image_size),
            resize(episode.support_images, self.image_size),
            (resize(episode.support_labels, self.image_size) >= 0.5).astype(jnp.float32),
            episode.support_mask,
            **({"support_keys": support_keys} if support_keys else {}),
        )
        return jax.nn.sigmoid(resize(logits, size))

    @property
    def has_keys(self) -> bool:
        return getattr(self.model, "has_keys", False)

    def keys_of(self, params: Any, images: Array) -> tuple[jax.Array | None, ...]:
        """Light keys [N, ...] of support images uint8 [N, H, W, 1]."""
        floats = resize(image_to_floats(images, OFFICIAL_SIZE), self.image_size)[None]
        found = self.model.apply({"params": params}, floats, True, True, method="keys_of")
        return jax.tree.map(lambda k: k[0], found)


def model_method(model: Any, image_size: int) -> Method:
    """The `Method` of a model."""
    return ModelMethod(model, image_size)


def over_flips(method: Method) -> Method:
    """Test-time augmentation: averages the probabilities over the four flips of query and support."""

    def flipped(x: Array, flip: jax.Array) -> jax.Array:
        result = jnp.asarray(x)
        for axis, on in zip((-3, -2), flip, strict=True):
            result = jnp.where(on, jnp.flip(result, axis), result)
        return result

    def averaged(params: Any, episode: Episode) -> jax.Array:
        def one(flip: jax.Array) -> jax.Array:
            images_and_labels = {name: flipped(getattr(episode, name), flip) for name in Episode._fields[:4]}
            return flipped(method(params, episode._replace(**images_and_labels)), flip)

        return jax.lax.map(one, jnp.array(FLIPS)).mean(0)  # one compiled program for all four

    return averaged


def scorer(method: Method, settings: Settings) -> Callable[..., dict[str, jax.Array]]:
    """(params, episode, support keys) → scores [N, ensembles] of N cases with K draws each, of supports [N, K, S, …].

    "draws" is [N, K], "empty" and "finite" are [N]. As packed bits: "masks" [N, ensembles, H, W / 8] and
    "truth" [N, H, W / 8].
    """
    return _compiled(method, settings.ensembles, settings.flips)


@functools.lru_cache(maxsize=16)
def _compiled(method: Method, ensembles: tuple[int, ...], flips: bool) -> Callable[..., dict[str, jax.Array]]:
    def score(params: Any, episode: Episode, support_keys: Keys = ()) -> dict[str, jax.Array]:
        floats = to_device_floats(episode, OFFICIAL_SIZE)
        probabilities = _probabilities(over_flips(method) if flips else method, params, floats, support_keys)
        truth = floats.query_label[..., 0]
        means = jnp.stack([probabilities[:, :k].mean(1) for k in ensembles], 1)  # [N, ensembles, H, W]
        masks, truths = means >= 0.5, truth[:, None]
        single = metrics.dice_score(probabilities >= 0.5, truths)
        at_thresholds = jax.lax.map(lambda t: metrics.dice_score(means >= t, truths), jnp.asarray(THRESHOLDS))
        counts = metrics.overlap(masks, truths)
        return {name: metric(counts) for name, metric in metrics.METRICS.items()} | {
            "draws": single,
            "single_dice": jnp.stack([single[:, :k].mean(1) for k in ensembles], 1),
            "oracle_dice": at_thresholds.max(0),
            "empty": truth.sum((1, 2)) == 0,
            "finite": jnp.isfinite(probabilities).all((1, 2, 3)),
            "masks": jnp.packbits(masks, axis=-1),
            "truth": jnp.packbits(truth > 0, axis=-1),
        }

    return jax.jit(score, compiler_options=compiler_options())


def _probabilities(method: Method, params: Any, floats: Episode, support_keys: Keys = ()) -> jax.Array:
    """Probabilities [N, K, H, W] of N cases with K draws each; keys [N, K, S, ...]."""
    cases, draws = floats.support_mask.shape[:2]
    flat = Episode(
        jnp.repeat(floats.query_image, draws, axis=0),
        jnp.repeat(floats.query_label, draws, axis=0),
        *(x.reshape((cases * draws, *x.shape[2:])) for x in floats[2:]),
    )
    keys = jax.tree.map(lambda k: k.reshape((cases * draws, *k.shape[2:])), support_keys)
    found = method(params, flat, keys) if keys else method(params, flat)
    return found[..., 0].reshape((cases, draws, OFFICIAL_SIZE, OFFICIAL_SIZE))


@functools.lru_cache(maxsize=16)
def mean_probabilities(method: Method, flips: bool) -> Callable[[Any, Episode], tuple[jax.Array, jax.Array, Episode]]:
    """(params, episode) → (mean probabilities over all draws [N, H, W], their Dice [N], the episode as floats)."""

    def function(params: Any, episode: Episode) -> tuple[jax.Array, jax.Array, Episode]:
        floats = to_device_floats(episode, OFFICIAL_SIZE)
        mean = _probabilities(over_flips(method) if flips else method, params, floats).mean(1)
        return mean, metrics.dice_score(mean >= 0.5, floats.query_label[..., 0]), floats

    return jax.jit(function, compiler_options=compiler_options())
