"""Segment images and volumes of any size with a checkpoint and a support set.

```python
predictor = Predictor.from_pretrained("small")
segment = predictor.for_support(images, labels)  # preprocesses the support set once
prediction = segment("query.png")
prediction.mask  # label ids, at the query's own size
```
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from universeg_jax.checkpoints import store
from universeg_jax.episode import FLIPS, OFFICIAL_SIZE, OWN_SHARE, resize
from universeg_jax.errors import UserError
from universeg_jax.model.factory import build_model, logits_of
from universeg_jax.prediction.corrections import (
    UNSAID,
    Strokes,
    check_corrections,
    keep_corrections,
    see_corrections,
)
from universeg_jax.prediction.examples import ImageLike, as_grey
from universeg_jax.prediction.forward import Forward, flip_axes
from universeg_jax.prediction.options import Options, default_support_size
from universeg_jax.prediction.prepared import PreparedKeys
from universeg_jax.prediction.programs import Program
from universeg_jax.prediction.result import Prediction
from universeg_jax.prediction.selection import select_examples
from universeg_jax.prediction.support import Support, make_support
from universeg_jax.prediction.tiles import (
    MIN_PROBABILITY,
    cut_tiles,
    downsample,
    join_tiles,
    min_max_tiles,
    tile_positions,
    upsample,
)
from universeg_jax.prediction.warnings import SupportStatistics, find_warnings, support_statistics
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.notes import warn
from universeg_jax.readers.preprocess import preprocess_image, restore
from universeg_jax.readers.slices import from_slices, smooth_slices, volume_slices
from universeg_jax.readers.volumes import Volume
from universeg_jax.startup import use_compilation_cache

if TYPE_CHECKING:
    from universeg_jax.prediction.complete import Completion, VolumeLike

Array = jax.Array | np.ndarray


class Predictor:
    """A model's parameters with a compiled forward pass. Thread-safe."""

    def __init__(self, params: Any, config: ConfigDict) -> None:
        self.config = config
        # On a CPU the model reads one support entry at a time, which saves memory and changes only rounding.
        self.model = build_model(config.model, support_chunk=1 if jax.default_backend() == "cpu" else 0)
        self.params = jax.device_put(params)  # jnp.asarray would compile a program for each shape
        self.forward = Forward(self.model, config.image_size)
        self.has_keys = self.forward.has_keys
        self._logits = Program(self._apply, f"logits {self.model!r}")

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "Predictor":
        """Loads a run's workdir (its best checkpoint), one checkpoint folder, or packaged weights by name.

        Raises UserError if the path holds no checkpoint. Also turns on this process's compilation cache
        (`startup.use_compilation_cache`), so that later processes start faster.
        """
        use_compilation_cache()
        return cls(*store.load(path))

    from_pretrained = from_checkpoint

    def logits(
        self,
        query_image: Array,
        support_images: Array,
        support_labels: Array,
        support_mask: Array | None = None,
        support_known: Array | None = None,
    ) -> jax.Array:
        """Logits, float32 [B, H, W, 1], of a preprocessed batch at the model's image size.

        query_image [B, H, W, 1] and support_images [B, S, H, W, 1] in [0, 1]; support_labels 0/1 like support_images;
        support_mask [B, S], 0 for padding (default: no padding); support_known like support_images, 0 for a pixel
        without a label (default: all have one). Nothing is normalised or resized.
        """
        inputs: tuple[Array | None, ...] = (query_image, support_images, support_labels, support_mask)
        if support_known is not None:
            self.forward.check_weighs_labels()
            inputs = (*inputs, support_known)
        return cast(jax.Array, self._logits(self.params, *inputs))

    def __call__(
        self, query_image: Array, support_images: Array, support_labels: Array, support_mask: Array | None = None
    ) -> jax.Array:
        """Probabilities, float32 [B, H, W, 1] in [0, 1]; inputs as for `logits`."""
        return jax.nn.sigmoid(self.logits(query_image, support_images, support_labels, support_mask))

    def segment(
        self,
        query: ImageLike | Volume,
        support_images: Sequence[ImageLike] | np.ndarray,
        support_labels: Sequence[ImageLike] | np.ndarray,
        **options: Any,
    ) -> Prediction:
        """Segments one query; inputs, options and errors as for `for_support`, which serves many queries faster."""
        return self.for_support(support_images, support_labels, **options)(query)

    def for_support(
        self,
        images: Sequence[ImageLike] | np.ndarray,
        labels: Sequence[ImageLike] | np.ndarray,
        ignore: int | Sequence[int] = (),
        **options: Any,
    ) -> "Segmenter":
        """Prepares a support set once and returns a function that segments queries.

            segment = predictor.for_support(images, labels, support_size=16, ensemble=5)
            predictions = [segment(query) for query in queries]

        `images`: arrays [H, W] or [H, W, 3], PIL images or files, of any size and intensity range. `labels`: an array
        [H, W] of ids, or file, per image; 0 is background. `ignore`: the id or ids of pixels without a label, which are
        neither a structure nor background. Options are fields of `Options`. Raises UserError.
        """
        parsed = Options(**options)
        support = make_support(images, labels, tiles=parsed.tiles, ignore=ignore)
        warn(support.notes)
        return self.segmenter(support, parsed)

    def segmenter(self, support: Support, options: Options | None = None) -> "Segmenter":
        """Like `for_support`, for a `Support` of images or volumes (`prediction.support.read_support_folder`)."""
        return Segmenter(self, support, options or Options())

    def complete(
        self,
        volume: "VolumeLike",
        partial: "VolumeLike",
        labelled: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "Completion":
        """Labels the rest of a volume of which some slices are labelled.

        `volume`, `partial`: arrays [X, Y, Z], files or `Volume`s. `labelled`: arguments of `find_labelled_slices` that
        say what is labelled, such as {"axis": 2}. Options are fields of `CompletionOptions`. Raises UserError.
        """
        from universeg_jax.prediction.complete import complete_any  # which needs this module

        return complete_any(self, volume, partial, labelled or {}, options)

    def _apply(self, params: Any, *inputs: Array | None) -> jax.Array:
        return logits_of(self.model, params, *inputs)

    def prepared_keys(self, images: Array, flips: bool) -> list[PreparedKeys]:
        """Keys of support images [N, H, W, 1] at the model's size, one entry per flip; [] if the model has no keys."""
        turned = [flip_axes(flip) for flip in (FLIPS if flips else FLIPS[:1])] if self.has_keys else []
        compute = functools.partial(self.forward.support_keys, self.params)
        return [PreparedKeys(compute, np.flip(images, axes)) for axes in turned]


class Segmenter:
    """Segments queries with one support set; made by `Predictor.for_support`. Thread-safe.

    On a CPU all support sets share a compiled program (forward.py).
    """

    def __init__(self, predictor: Predictor, support: Support, options: Options) -> None:
        size = options.support_size or default_support_size(support)
        options = replace(options, support_size=size, overlap=options.overlap or support.overlapping)
        self.predictor, self.support, self.options = predictor, support, options
        tile_support = support.tile_support
        if options.tiles != (tile_support.magnification if tile_support else 0):
            raise UserError(f"tiles={options.tiles}: make the support set with the same tiles")
        self.tile_segmenter = (
            Segmenter(predictor, tile_support.support, replace(options, tiles=0)) if tile_support else None
        )
        self.images = resize(support.images[..., None], predictor.config.image_size)
        self.keys = predictor.prepared_keys(self.images, options.flips)
        self.masks = self._at_size(support.masks)
        self.known = None if support.ignored is None else self._at_size(~support.ignored)
        if self.known is not None:
            predictor.forward.check_weighs_labels()
        if len(support) <= size:
            self.keys_of(np.arange(len(support)))  # every query will ask for all

    def keys_of(self, rows: np.ndarray) -> list[tuple[Array, ...]]:
        """Keys of the examples `rows`, for each flip, in arrays for all examples."""
        return [keys.of(rows[rows >= 0]) for keys in self.keys]

    @functools.cached_property
    def statistics(self) -> SupportStatistics:
        return support_statistics(self.support)

    def __call__(self, query: ImageLike | Volume, corrections: np.ndarray | None = None) -> Prediction:
        """Segments an image: an array [H, W] or [H, W, 3], PIL image or file. A `Volume` goes to `volume`.

        `corrections`, int [H, W]: the id of each pixel whose label you know, 0 for background, and -1 where you say
        nothing. They stay as they are and guide the rest of the mask. Raises UserError, and ImageError for a file that
        cannot be read.
        """
        if isinstance(query, Volume):
            if corrections is not None:
                raise UserError("corrections of a volume: segment its slices as images, or use `universeg annotate`")
            return self.volume(query)
        grey = as_grey(query)
        if corrections is not None:
            ids = check_corrections(corrections, grey.shape, self.support.labels)
            if (ids != UNSAID).any():
                return self._corrected(grey, ids)
        slices = preprocess_image(grey, OFFICIAL_SIZE)[None]
        at_size = self.probabilities(slices)
        probabilities = at_size[0]
        if self.tile_segmenter:
            probabilities = self._second_pass(self.tile_segmenter, grey, probabilities)
            at_size = downsample(probabilities, self.options.tiles)[None]
        return self._prediction(slices, at_size, np.stack([restore(p, grey.shape) for p in probabilities]))

    def _corrected(self, grey: np.ndarray, ids: np.ndarray) -> Prediction:
        """Segments an image [H, W] of which `ids` [H, W] are known."""
        labels = self.support.labels
        if self.options.tiles or (self.options.overlap and len(labels) > 1):
            what = "the option tiles" if self.options.tiles else "labels that overlap"
            raise UserError(f"corrections do not work with {what}: predict without corrections, or without that")
        image = preprocess_image(grey, OFFICIAL_SIZE)
        at_size = self.guided(image, see_corrections(ids, labels), self._rows(image[None], None)[0])
        restored = np.stack([restore(p, grey.shape) for p in at_size])
        return self._prediction(image[None], at_size[None], keep_corrections(restored, ids, labels))

    def _second_pass(self, tile_segmenter: "Segmenter", grey: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Probabilities [L, 128 t, 128 t] of an image [H, W] from its tiles and the first pass [L, 128, 128]."""
        times = self.options.tiles
        weight = self.support.tile_support.first_weight if self.support.tile_support else 0.0
        images = min_max_tiles(cut_tiles(preprocess_image(grey, OFFICIAL_SIZE * times), times))
        tiles = cut_tiles(upsample(first, times), times).swapaxes(0, 1)  # [T, L, 128, 128]
        rows = np.flatnonzero(tiles.max((1, 2, 3)) >= MIN_PROBABILITY)
        if len(rows):
            second = tile_segmenter.probabilities(images[rows], tile_positions(rows, times))
            tiles[rows] = weight * tiles[rows] + (1 - weight) * second
        return join_tiles(tiles, times)

    def volume(self, volume: Volume, axis: int | None = None, progress: bool = False) -> Prediction:
        """Segments a volume slice by slice; the mask [X, Y, Z] is on the volume's own grid, in canonical axes.

        `axis`: slice along 0 (sagittal), 1 (coronal) or 2 (axial); default: like the support's volumes, else along
        the axis of the thickest slices. `progress` shows a bar. Raises ImageError with the option `tiles`.
        """
        if self.tile_segmenter:
            raise ImageError(volume.name, "is a volume, and tiles are for images", "leave out --tiles")
        axis = self.support.axis if axis is None else axis
        slices, positions, origin = volume_slices(volume, OFFICIAL_SIZE, axis, self.support.window)
        at_size = self.probabilities(slices, positions, progress)  # [N, L, 128, 128]
        if self.options.smooth:
            at_size = smooth_slices(at_size, origin, self.options.smooth)
        restored = np.stack([from_slices(at_size[:, i], origin).data for i in range(at_size.shape[1])])
        return self._prediction(slices, at_size, restored)

    def _prediction(self, slices: np.ndarray, at_size: np.ndarray, restored: np.ndarray) -> Prediction:
        prediction = make_prediction(restored, self.support.labels, self.options.overlap)
        warnings = find_warnings(self.statistics, slices, at_size, prediction)
        return replace(prediction, warnings=warnings, seen=slices)

    def probabilities(
        self, queries: np.ndarray, positions: np.ndarray | None = None, progress: bool = False
    ) -> np.ndarray:
        """Probabilities, float32 [Q, L, 128, 128], of preprocessed queries [Q, 128, 128] in [0, 1].

        `positions` [Q] in [0, 1]: where each query lies along its volume. `options` decide which examples each gets.
        """
        rows = self._rows(queries, positions)
        with tqdm(total=len(queries), desc="segment", unit="slice", leave=False, disable=not progress) as bar:
            return self.by_rows(queries, rows, bar.update)

    def _rows(self, queries: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
        """Rows of the examples of each query, int [Q, K, S]."""
        o, places = self.options, [None] * len(queries) if positions is None else positions.tolist()
        rows = [
            select_examples(self.support, query, place, o.support_size or 1, o.ensemble, o.choose, o.seed)
            for query, place in zip(queries, places, strict=True)
        ]
        return np.stack(rows)

    def by_rows(
        self, queries: np.ndarray, rows: np.ndarray, on_done: Callable[[int], Any] = lambda count: None
    ) -> np.ndarray:
        """Like `probabilities`, with the examples `rows`, int [Q, K, S]: K samples of S examples for each query.

        A row of -1 is no example. Calls `on_done` with the number of queries that are finished since the last call.
        """
        options, parts = self.options, (self.images, self.masks, self.keys_of(rows), rows)
        inputs = (self.predictor.params, queries[..., None], *parts)
        return self.predictor.forward(*inputs, options.flips, options.overlap, on_done, self.known)

    def guided(self, query: np.ndarray, strokes: Strokes, rows: np.ndarray) -> np.ndarray:
        """Probabilities, float32 [L, 128, 128], of a query [128, 128] in [0, 1] that is an example itself.

        `rows`, int [K, S], of the other examples; `strokes`: where its label is known.
        """
        self.predictor.forward.check_weighs_labels()
        used = np.unique(rows[rows >= 0])
        others = np.where(rows >= 0, np.searchsorted(used, rows), -1)
        weight = max(1.0, OWN_SHARE * (rows >= 0).sum(1).max())
        used = np.resize(used, 1 << (len(used) - 1).bit_length())  # an accelerator compiles for each shape
        image = resize(query[None, ..., None], self.predictor.config.image_size)
        own_keys = [keys.of(np.zeros(1, int)) for keys in self.predictor.prepared_keys(image, self.options.flips)]
        known = np.ones((len(used), *image.shape[1:]), np.uint8) if self.known is None else np.asarray(self.known)[used]
        masks, own_known = self._at_size(strokes.masks[:, None]), self._at_size(strokes.known[None])
        pairs = zip(self.keys_of(used), own_keys, strict=True)
        found = self.predictor.forward(
            self.predictor.params,
            query[None, ..., None],
            np.concatenate([np.asarray(self.images)[used], image]),
            np.concatenate([np.asarray(self.masks)[:, used], masks], 1),
            [jax.tree.map(lambda k, own: np.concatenate([np.asarray(k)[used], own]), *pair) for pair in pairs],
            np.concatenate([others, np.full((len(rows), 1), len(used))], 1)[None],  # the query after all others
            self.options.flips,
            self.options.overlap,
            known=np.concatenate([known, own_known]),
            weights=np.append(np.ones(len(used)), weight).astype(np.float32),
        )
        return cast(np.ndarray, found[0])

    def _at_size(self, masks: np.ndarray) -> jax.Array:
        """Masks [..., 128, 128] → uint8 0/1 [..., H, W, 1] at the model's size."""
        at_size = np.asarray(resize(masks[..., None].astype(np.float32), self.predictor.config.image_size))
        return cast(jax.Array, jax.device_put((at_size >= 0.5).astype(np.uint8)))


def make_prediction(probabilities: np.ndarray, labels: tuple[int, ...], overlap: bool = False) -> Prediction:
    """The most probable label or background of probabilities [L, ...]; labels win ties.

    With `overlap`, each label is thresholded at 0.5 by itself.
    """
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
    best, highest = (probabilities.argmax(0), probabilities.max(0)) if len(labels) > 1 else (0, probabilities)
    return Prediction(np.where(highest >= background, ids[best], ids.dtype.type(0)), probabilities, entropy, labels)
