"""The compiled forward pass of a prediction: one query, label and support sample at a time on a CPU, batches elsewhere.

On a CPU the program's shapes depend on the model alone, so that every support set, number of labels and number of
examples up to ROOM shares one compiled program, which later processes load from the compilation cache.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from universeg_jax.episode import FLIPS, OFFICIAL_SIZE, resize
from universeg_jax.errors import UserError
from universeg_jax.model.layers import sum_of_first
from universeg_jax.model.recognition import Keys
from universeg_jax.model.universeg import UniverSeg
from universeg_jax.prediction.programs import Program
from universeg_jax.startup import compiler_options

Array = jax.Array | np.ndarray
BATCH_SIZE = 8  # queries per forward pass of an accelerator
ROOM = 16  # entries that the smallest program has room for; larger ones double it


class Forward:
    """Probabilities of queries from rows of a prepared support set. Thread-safe."""

    def __init__(self, model: nn.Module, size: int) -> None:
        self.model, self.size = model, size
        self.has_keys = getattr(model, "has_keys", False)
        self.weighs_labels = isinstance(model, UniverSeg)
        self.streams = self.weighs_labels  # reads one entry at a time, so that unused room costs nothing
        about = f"{size} {model!r}"
        self._one = Program(self._logits_of_one, f"one {about}", ("the model", "half a minute"))
        self._query_keys = Program(self._keys_of_query, f"query keys {about}")
        self._support_keys = Program(self._keys_of_support, f"support keys {about}")
        self._batch = jax.jit(
            self._probabilities_of_batch, static_argnames=("flips", "overlap"), compiler_options=compiler_options()
        )

    def check_weighs_labels(self) -> None:
        """Raises UserError for a model that needs a label for every pixel of the support."""
        if not self.weighs_labels:
            name = type(self.model).__name__
            raise UserError(f"{name} needs a label for every pixel of the support: use weights of UniverSeg")

    def support_keys(self, params: Any, images: Array) -> Keys:
        """Keys [N, ...] of support images [N, H, W, 1] at the model's size."""
        return cast(Keys, self._support_keys(params, images))

    def __call__(
        self,
        params: Any,
        queries: np.ndarray,
        images: Array,
        masks: Array,
        keys: Sequence[tuple[Array, ...]],
        rows: np.ndarray,
        flips: bool,
        overlap: bool,
        on_done: Callable[[int], Any] = lambda count: None,
        known: Array | None = None,
        weights: np.ndarray | None = None,
    ) -> np.ndarray:
        """Probabilities, float32 [Q, L, 128, 128], averaged over K support samples and flips.

        queries [Q, 128, 128, 1]; images [N, H, W, 1] and masks [L, N, H, W, 1] at the model's size; rows int32
        [Q, K, S] selects from them, and -1 is padding. keys [N, ...] of the images, for each flip, where the model has
        any. `on_done` is called with a number of finished queries. known [N, H, W, 1]: 0 for a pixel without a label,
        where there are such. weights float32 [N]: how much each example counts; all alike where it is None.
        """
        if jax.default_backend() == "cpu":
            support = (np.asarray(images), np.asarray(masks), [tuple(map(np.asarray, each)) for each in keys])
            held, found = None if known is None else np.asarray(known), []
            for query, samples in zip(queries, rows, strict=True):
                found.append(self._of_one(params, query, *support, samples, flips, overlap, held, weights))
                on_done(1)
            return np.stack(found)
        size, batches = BATCH_SIZE if len(queries) > 1 else 1, []
        for start in range(0, len(queries), size):
            batch = np.arange(start, start + size).clip(max=len(queries) - 1)  # repeats the last query as padding
            inputs = (params, queries[batch], images, masks, keys, rows[batch])
            batches.append(
                jax.device_get(self._batch(*inputs, flips=flips, overlap=overlap, known=known, weights=weights))
            )
            on_done(min(size, len(queries) - start))
        return np.concatenate(batches)[: len(queries)]

    def _of_one(
        self,
        params: Any,
        query: np.ndarray,
        images: np.ndarray,
        masks: np.ndarray,
        keys: Sequence[Any],
        rows: np.ndarray,
        flips: bool,
        overlap: bool,
        known: np.ndarray | None,
        weights: np.ndarray | None,
    ) -> np.ndarray:
        """Probabilities [L, 128, 128] of a query [128, 128, 1]; rows [K, S]."""
        total = np.zeros((len(masks), OFFICIAL_SIZE, OFFICIAL_SIZE), np.float32)
        counts, padded = (rows >= 0).sum(1), np.sort(rows, 1)[:, ::-1]
        padded = np.pad(padded, ((0, 0), (0, self.room(rows.shape[1]) - rows.shape[1])), constant_values=-1)
        for i, flip in enumerate(FLIPS if flips else FLIPS[:1]):
            axes = flip_axes(flip)
            turned = np.flip(query, axes)[None]
            query_keys = self._query_keys(params, turned) if keys else None
            logits = np.empty((len(masks), len(rows), OFFICIAL_SIZE, OFFICIAL_SIZE), np.float32)
            for k, (chosen, count) in enumerate(zip(padded, counts, strict=True)):
                entries = np.flip(images[chosen], axes)[None]
                entry_known = None if known is None else np.flip(known[chosen], axes)[None]
                entry_weights = None if weights is None else weights[chosen]
                entry_keys = tuple(each[chosen][None] for each in keys[i]) if keys else None
                for j, mask in enumerate(masks):
                    labels = np.flip(mask[chosen], axes)[None]
                    about = query_keys, entry_keys, entry_known, entry_weights
                    inputs = (turned, entries, labels, np.int32(count), *about)
                    logits[j, k] = np.flip(np.asarray(self._one(params, *inputs))[0], axes)[..., 0]
            total += (sigmoid(logits) if overlap else exclusive_probabilities(logits)).mean(1)
        return total / (4 if flips else 1)

    def room(self, count: int) -> int:
        """Entries of the program for `count` entries: a power of two where those beyond `count` cost no time."""
        return max(ROOM, 1 << (count - 1).bit_length()) if self.streams else count

    def _logits_of_one(
        self,
        params: Any,
        query: Array,
        images: Array,
        labels: Array,
        count: jax.Array,
        query_keys: Keys | None,
        support_keys: Keys | None,
        known: Array | None,
        weights: Array | None,
    ) -> jax.Array:
        """Logits [1, 128, 128, 1] of a query [1, 128, 128, 1] from the first `count` entries [1, R, H, W, 1]."""
        mask = (jnp.arange(images.shape[1]) < count).astype(jnp.float32)[None]
        mask = mask if weights is None else mask * weights[None]
        extra: dict[str, Any] = {"over": sum_of_first(count)} if self.streams else {}
        if query_keys is not None:
            extra |= {"query_keys": tuple(k[None] for k in query_keys), "support_keys": support_keys}
        if known is not None:
            extra["support_known"] = known.astype(jnp.float32)
        inputs = (resize(query, self.size), images, labels.astype(jnp.float32), mask)
        return resize(self._apply(params, *inputs, **extra), OFFICIAL_SIZE)

    def _probabilities_of_batch(
        self,
        params: Any,
        queries: jax.Array,
        images: jax.Array,
        masks: jax.Array,
        keys: Sequence[tuple[Array, ...]],
        rows: jax.Array,
        flips: bool,
        overlap: bool,
        known: jax.Array | None = None,
        weights: jax.Array | None = None,
    ) -> jax.Array:
        """As `__call__`, for one batch."""
        num_labels = len(masks)

        def segment_query(query: jax.Array, rows: jax.Array) -> jax.Array:
            samples = len(rows)
            query = jnp.broadcast_to(resize(query, self.size), (samples * num_labels, self.size, self.size, 1))
            support = jnp.tile(images[rows], (num_labels, 1, 1, 1, 1))  # label by label
            labels = masks[:, rows].astype(jnp.float32).reshape(support.shape)
            labelled = None if known is None else jnp.tile(known[rows].astype(jnp.float32), (num_labels, 1, 1, 1, 1))
            counts = (rows >= 0) * (jnp.ones(rows.shape) if weights is None else weights[rows])
            counts = jnp.tile(counts, (num_labels, 1)).astype(jnp.float32)
            total = jnp.zeros((num_labels, OFFICIAL_SIZE, OFFICIAL_SIZE))
            for i, flip in enumerate(FLIPS if flips else FLIPS[:1]):
                axes = flip_axes(flip)
                inputs = [jnp.flip(x, axes) if axes else x for x in (query, support, labels)]
                extra: dict[str, Any] = {}
                if labelled is not None:
                    extra["support_known"] = jnp.flip(labelled, axes) if axes else labelled
                if keys:
                    query_keys = self._keys_of(params, inputs[0][:1], False)
                    copies = samples * num_labels
                    extra["query_keys"] = tuple(jnp.broadcast_to(k, (copies, *k.shape)) for k in query_keys)
                    tiled = jax.tree.map(lambda k: jnp.tile(k[rows], (num_labels, *[1] * k.ndim)), keys[i])
                    extra["support_keys"] = tiled
                logits = self._apply(params, *inputs, counts, **extra)
                logits = resize(jnp.flip(logits, axes) if axes else logits, OFFICIAL_SIZE)
                logits = logits.reshape((num_labels, samples, OFFICIAL_SIZE, OFFICIAL_SIZE))
                total += (jax.nn.sigmoid(logits) if overlap else exclusive_probabilities(logits)).mean(1)
            return total / (4 if flips else 1)

        return jax.vmap(segment_query)(queries, rows)

    def _apply(self, params: Any, *inputs: Any, **extra: Any) -> jax.Array:
        return cast(jax.Array, self.model.apply({"params": params}, *inputs, **extra))

    def _keys_of_query(self, params: Any, image: Array) -> Keys:
        return self._keys_of(params, resize(image, self.size), False)

    def _keys_of_support(self, params: Any, images: Array) -> Keys:
        return self._keys_of(params, images[None], True)

    def _keys_of(self, params: Any, images: Array, support: bool) -> Keys:
        """Keys of query images [1, H, W, 1] or support images [1, N, H, W, 1], without the first axis.

        Light ones of a support for an accelerator, whose batches repeat them.
        """
        light = support and jax.default_backend() != "cpu"
        keys = self.model.apply({"params": params}, images, support, light, method="keys_of")
        return cast(Keys, jax.tree.map(lambda k: k[0], keys))


def flip_axes(flip: tuple[bool, bool]) -> tuple[int, ...]:
    """The axes of [..., H, W, C] that one of FLIPS reverses."""
    return tuple(axis for axis, flipped in zip((-3, -2), flip, strict=True) if flipped)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits))


def exclusive_probabilities(logits: Any) -> Any:
    """Probabilities [L, ...] of mutually exclusive labels: a softmax over L logits and a background logit of 0.

    For one label this is the sigmoid; of several, the most probable is the one with the largest logit above 0. NumPy
    arrays give NumPy arrays.
    """
    xp: Any = np if isinstance(logits, np.ndarray) else jnp
    logits = xp.concatenate([logits, xp.zeros_like(logits[:1])])
    shares = xp.exp(logits - logits.max(0, keepdims=True))
    return (shares / shares.sum(0, keepdims=True))[:-1]
