"""From a checkpoint and a support set to masks of images of any size.

predictor = Predictor.from_pretrained("small")
segment = predictor.for_support(images, labels)  # prepared once
segment("query.png").mask  # in the query's own geometry
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from universeg_jax.checkpoints import store
from universeg_jax.episode import FLIPS, OFFICIAL_SIZE, resize
from universeg_jax.errors import UserError
from universeg_jax.model.factory import build_model
from universeg_jax.model.recognition import Keys
from universeg_jax.prediction.prepared import PreparedKeys
from universeg_jax.prediction.support import CHOICES, Support, as_grey, choose, make_support
from universeg_jax.prediction.tiles import LOOK, MOST, corners, cut, enlarge, join, shrink, stretch
from universeg_jax.prediction.warnings import Reference, doubts, reference
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.preprocess import preprocess_image, restore
from universeg_jax.readers.slices import from_slices, smooth_slices, volume_slices
from universeg_jax.readers.volumes import Volume
from universeg_jax.startup import use_compilation_cache

Array = jax.Array | np.ndarray


@dataclass(frozen=True)
class Prediction:
    """A query's segmentation in the query's own geometry: [H, W] of a picture, [X, Y, Z] of a volume.

    `mask` holds label ids, 0 is background (uint8, or wider where an id needs it); with overlapping labels it is
    [L, ...] of 0/1. `probabilities` is float32, [L, ...] where the support has L > 1 labels. `uncertainty` is the
    entropy of the averaged probabilities in bits, over one bit where there are several labels. `seen` is what the
    network was shown of the query: the whole picture, or the slices of a volume.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    uncertainty: np.ndarray
    labels: tuple[int, ...]
    warnings: tuple[str, ...] = ()  # why not to trust it, as in quality.py
    seen: np.ndarray | None = None  # float32 [N, 128, 128] in [0, 1], preprocessed

    def of(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        """(boolean mask, probabilities) of one label."""
        i = self.labels.index(label)
        probabilities = self.probabilities if len(self.labels) == 1 else self.probabilities[i]
        return (self.mask[i] > 0 if self.mask.ndim > probabilities.ndim else self.mask == label), probabilities

    def confidence(self, label: int) -> float:
        """The Dice that the model itself expects, 2 Σ p m / (Σ p + Σ m); 0 where the mask is empty."""
        mask, p = self.of(label)
        return float(2 * p[mask].sum() / (p.sum() + mask.sum())) if mask.any() else 0.0


@dataclass(frozen=True)
class Options:
    """How a support set is used."""

    support_size: int = 64  # examples taken at a time
    ensemble: int = 1  # draws averaged where the support holds more than `support_size`
    choose: str = "nearest"  # which examples: "nearest" | "random" | "diverse"
    flips: bool = False  # average over the four flips of query and support
    overlap: bool = False  # labels may cover one another: each is cut at 0.5 by itself
    seed: int = 0
    smooth: float = 0.0  # mm: the Gaussian that blurs probabilities across the slices of a volume; 0 does not
    tiles: int = 0  # times that a second look magnifies, through overlapping tiles of pictures; 0: no second look

    def __post_init__(self):
        if self.tiles and not 2 <= self.tiles <= MOST:
            raise UserError(f"tiles={self.tiles}: 0, or from 2 to {MOST} times, is needed")
        if not 0 <= self.smooth < np.inf:
            raise UserError(f"smooth={self.smooth}: millimetres, from 0 on, are needed")
        if self.support_size < 1 or self.ensemble < 1:
            raise UserError(f"support_size={self.support_size}, ensemble={self.ensemble}: both must be at least 1")
        if self.choose not in CHOICES:
            raise UserError(f"choose={self.choose!r}: one of {', '.join(CHOICES)} is needed")


class Predictor:
    """Parameters with a jitted forward pass. Thread-safe."""

    def __init__(self, params: Any, config: ConfigDict):
        self.config = config
        # Entries are streamed on a CPU and taken at once elsewhere; it changes no result beyond rounding.
        self.model = build_model(config.model, support_chunk=1 if jax.default_backend() == "cpu" else 0)
        self.params = jax.tree.map(jnp.asarray, params)
        self._logits = jax.jit(lambda params, *inputs: self.model.apply({"params": params}, *inputs))
        self._resize = jax.jit(functools.partial(resize, size=config.image_size))
        self.has_keys = getattr(self.model, "keys", "none") != "none"
        self._support_keys = jax.jit(lambda params, images: self._keys_of(params, images[None], True))
        self._probabilities = jax.jit(self._forward, static_argnames=("flips", "overlap"))

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "Predictor":
        """From a workdir (its best checkpoint), one checkpoint, or packaged weights by name. Raises CheckpointError.

        From now on this process keeps what it compiles, for later ones (`use_compilation_cache`).
        """
        use_compilation_cache()
        return cls(*store.load(path))

    from_pretrained = from_checkpoint

    def logits(
        self, query_image: Array, support_images: Array, support_labels: Array, support_mask: Array | None = None
    ) -> jax.Array:
        """[B, H, W, 1] from arrays in [0, 1] that already have the model's size; neither normalises nor resizes."""
        return self._logits(self.params, query_image, support_images, support_labels, support_mask)

    def __call__(
        self, query_image: Array, support_images: Array, support_labels: Array, support_mask: Array | None = None
    ) -> jax.Array:
        """Probabilities [B, H, W, 1]; otherwise as `logits`."""
        return jax.nn.sigmoid(self.logits(query_image, support_images, support_labels, support_mask))

    def segment(
        self, query: object, support_images: Sequence[object], support_labels: Sequence[object], **options: Any
    ) -> Prediction:
        """Segments one picture by example; see `for_support`."""
        return self.for_support(support_images, support_labels, **options)(query)

    def for_support(self, images: Sequence[object], labels: Sequence[object], **options: Any) -> "Segmenter":
        """A function of queries, with the support set prepared once; options are the fields of `Options`.

        images: arrays [H, W] or [H, W, 3] of any size and intensity, PIL images or files; labels: integer maps of
        their sizes, or files, 0 is background.
        """
        chosen = Options(**options)
        return self.segmenter(make_support(images, labels, tiles=chosen.tiles), chosen)

    def segmenter(self, support: Support, options: Options | None = None) -> "Segmenter":
        """The same for a support set that is prepared already, of volumes too."""
        return Segmenter(self, support, options or Options())

    def _keys_of(self, params: Any, images: Array, support: bool) -> Keys:
        """Pretrained keys of query images [1, H, W, 1] or support images [1, N, H, W, 1], without that first axis."""
        return tuple(k[0] for k in self.model.apply({"params": params}, images, support, method="keys_of"))

    def prepared_keys(self, images: Array, flips: bool) -> list[PreparedKeys]:
        """Of support images [N, H, W, 1] at the model's size, for each flip; none where the model has no keys."""
        turned = [flip_axes(flip) for flip in (FLIPS if flips else FLIPS[:1])] if self.has_keys else []
        compute = functools.partial(self._support_keys, self.params)
        return [PreparedKeys(compute, jnp.flip(images, axes) if axes else images) for axes in turned]

    def _forward(
        self,
        params: Any,
        queries: Array,
        images: Array,
        masks: Array,
        keys: Sequence[Keys],
        rows: Array,
        flips: bool,
        overlap: bool,
    ) -> jax.Array:
        """Probabilities [Q, L, 128, 128] of queries [Q, 128, 128, 1], averaged over K draws and flips.

        images [N, H, W, 1] and masks [L, N, H, W, 1] at the model's size; rows int32 [Q, K, S] chooses from them. keys
        [N, ...] of the images, for each flip, where the model has any.
        """
        size, count = self.config.image_size, len(masks)

        def one(query: jax.Array, rows: jax.Array) -> jax.Array:
            draws = len(rows)
            query = jnp.broadcast_to(resize(query, size), (draws * count, size, size, 1))
            support = jnp.tile(images[rows], (count, 1, 1, 1, 1))  # label by label
            labels = masks[:, rows].astype(jnp.float32).reshape(support.shape)
            total = jnp.zeros((count, OFFICIAL_SIZE, OFFICIAL_SIZE))
            for i, flip in enumerate(FLIPS if flips else FLIPS[:1]):
                axes = flip_axes(flip)
                inputs = [jnp.flip(x, axes) if axes else x for x in (query, support, labels)]
                if keys:
                    own = self._keys_of(params, inputs[0][:1], False)
                    inputs += [
                        None,
                        tuple(jnp.broadcast_to(k, (draws * count, *k.shape)) for k in own),
                        tuple(jnp.tile(k[rows], (count, *[1] * k.ndim)) for k in keys[i]),
                    ]
                logits = self.model.apply({"params": params}, *inputs)
                logits = resize(jnp.flip(logits, axes) if axes else logits, OFFICIAL_SIZE)
                logits = logits.reshape((count, draws, OFFICIAL_SIZE, OFFICIAL_SIZE))
                total += (jax.nn.sigmoid(logits) if overlap else among(logits)).mean(1)
            return total / (4 if flips else 1)

        if jax.default_backend() == "cpu":
            return jax.lax.map(lambda x: one(*x), (queries, rows))
        return jax.vmap(one)(queries, rows)


def flip_axes(flip: tuple[bool, bool]) -> tuple[int, ...]:
    """Of [..., H, W, C], those that one of FLIPS turns."""
    return tuple(axis for axis, turned in zip((-3, -2), flip, strict=True) if turned)


def among(logits: jax.Array) -> jax.Array:
    """Probabilities of L labels [L, ...] that exclude one another: softmax with a background of logit 0.

    For one label it is the sigmoid, and the most probable of all is the one whose own logit is the largest above 0.
    """
    return jax.nn.softmax(jnp.concatenate([logits, jnp.zeros_like(logits[:1])]), 0)[:-1]


class Segmenter:
    """A function of queries for one support set. Compiles once for each number of queries at a time."""

    def __init__(self, predictor: Predictor, support: Support, options: Options):
        self.predictor, self.support, self.options = predictor, support, options
        if options.tiles != (support.closer.times if support.closer else 0):
            raise UserError(f"tiles={options.tiles}: make the support with the same tiles")
        self.closer = Segmenter(predictor, support.closer.tiles, replace(options, tiles=0)) if options.tiles else None
        self.images = predictor._resize(support.images[..., None])
        at_size = predictor._resize(support.masks[..., None].astype(np.float32))
        self.masks = (at_size >= 0.5).astype(jnp.uint8)
        self.keys = predictor.prepared_keys(self.images, options.flips)
        if len(support) <= options.support_size:
            self.keys_of(np.arange(len(support)))  # every query will ask for all

    def keys_of(self, rows: np.ndarray) -> list[Keys]:
        """Pretrained keys of the examples `rows`, for each flip, in arrays for all examples."""
        return [keys.of(rows) for keys in self.keys]

    @functools.cached_property
    def known(self) -> Reference:
        return reference(self.support)

    def __call__(self, query: object) -> Prediction:
        """Segments a picture [H, W] or [H, W, 3], PIL image or file, or a `Volume` as `volume` does."""
        if isinstance(query, Volume):
            return self.volume(query)
        grey = as_grey(query)
        slices = preprocess_image(grey, OFFICIAL_SIZE)[None]
        at_size = self.probabilities(slices)
        found = at_size[0]
        if self.closer:
            found = self._look_closer(grey, found)
            at_size = shrink(found, self.options.tiles)[None]
        return self._prediction(slices, at_size, np.stack([restore(p, grey.shape) for p in found]))

    def _look_closer(self, grey: np.ndarray, first: np.ndarray) -> np.ndarray:
        """[L, 128 t, 128 t] of a picture [H, W] and what the first look found, [L, 128, 128]."""
        times, share = self.options.tiles, self.support.closer.share
        tiles = stretch(cut(preprocess_image(grey, OFFICIAL_SIZE * times), times))
        before = enlarge(first, times)
        found = cut(before, times).swapaxes(0, 1)  # [T, L, 128, 128]
        matter = np.flatnonzero(found.max((1, 2, 3)) >= LOOK)
        if len(matter):
            places = (matter + 0.5) / len(corners(times))
            found[matter] = share * found[matter] + (1 - share) * self.closer.probabilities(tiles[matter], places)
        return join(found, times)

    def volume(self, volume: Volume, axis: int | None = None, progress: bool = False) -> Prediction:
        """Segments a volume slice by slice; the mask is on its own grid.

        It is cut along `axis`, or as the support's volumes were, or as `volume_slices` chooses.
        """
        if self.closer:
            raise ImageError(volume.name, "is a volume, and tiles are for pictures", "leave out --tiles")
        axis = self.support.axis if axis is None else axis
        slices, positions, place = volume_slices(volume, OFFICIAL_SIZE, axis, self.support.window)
        at_size = self.probabilities(slices, positions, progress)  # [N, L, 128, 128]
        if self.options.smooth:
            at_size = smooth_slices(at_size, place, self.options.smooth)
        whole = np.stack([from_slices(at_size[:, i], place).data for i in range(at_size.shape[1])])
        return self._prediction(slices, at_size, whole)

    def _prediction(self, slices: np.ndarray, at_size: np.ndarray, restored: np.ndarray) -> Prediction:
        prediction = combine(restored, self.support.labels, self.options.overlap)
        warnings = doubts(self.known, slices, at_size, self.support.labels)
        return replace(prediction, warnings=warnings, seen=slices)

    def probabilities(
        self, queries: np.ndarray, positions: np.ndarray | None = None, progress: bool = False
    ) -> np.ndarray:
        """[Q, L, 128, 128] of preprocessed queries [Q, 128, 128], by the examples that `Options` choose for each."""
        o, at = self.options, [None] * len(queries) if positions is None else positions.tolist()
        rows = [
            choose(self.support, query, position, o.support_size, o.ensemble, o.choose, o.seed)
            for query, position in zip(queries, at, strict=True)
        ]
        with tqdm(total=len(queries), desc="segment", unit="slice", leave=False, disable=not progress) as bar:
            return self.by_rows(queries, np.stack(rows), bar.update)

    def by_rows(
        self, queries: np.ndarray, rows: np.ndarray, told: Callable[[int], Any] = lambda count: None
    ) -> np.ndarray:
        """The same by the examples `rows` [Q, K, S]; eight queries at a time where there are more than one.

        `told` hears how many more are done.
        """
        o, size, parts = self.options, 8 if len(queries) > 1 else 1, []
        keys = self.keys_of(rows)
        for start in range(0, len(queries), size):
            part = np.arange(start, start + size).clip(max=len(queries) - 1)  # the last one is padded
            inputs = (self.predictor.params, queries[part][..., None], self.images, self.masks, keys, rows[part])
            parts.append(jax.device_get(self.predictor._probabilities(*inputs, flips=o.flips, overlap=o.overlap)))
            told(min(size, len(queries) - start))
        return np.concatenate(parts)[: len(queries)]


def combine(probabilities: np.ndarray, labels: tuple[int, ...], overlap: bool = False) -> Prediction:
    """[L, ...] → masks: the most probable of labels and background, labels first; with `overlap` each from 0.5 on."""
    p = np.clip(probabilities, 1e-7, 1 - 1e-7)
    background = np.clip(1 - probabilities.sum(0), 1e-7, 1)
    if overlap or len(labels) == 1:
        entropy = (-p * np.log2(p) - (1 - p) * np.log2(1 - p)).max(0)
    else:
        entropy = -(p * np.log2(p)).sum(0) - background * np.log2(background)
    entropy = np.minimum(entropy, 1).astype(np.float32)
    if len(labels) == 1:
        probabilities = probabilities[0]
    if overlap and len(labels) > 1:
        return Prediction((probabilities >= 0.5).astype(np.uint8), probabilities, entropy, labels)
    ids = np.asarray(labels, np.uint8 if max(labels) < 256 else np.uint16 if max(labels) < 65536 else np.int32)
    best, chance = (probabilities.argmax(0), probabilities.max(0)) if len(labels) > 1 else (0, probabilities)
    return Prediction(np.where(chance >= background, ids[best], ids.dtype.type(0)), probabilities, entropy, labels)
