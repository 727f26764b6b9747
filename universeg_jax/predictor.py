"""From a checkpoint and a support set to masks of images of any size.

predictor = Predictor.from_checkpoint("runs/quickstart")
prediction = predictor.segment("query.png", support_images, support_labels)
prediction.mask  # in the query's own geometry
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from universeg_jax import checkpoints
from universeg_jax.data.folder import list_images, read_support
from universeg_jax.data.images import ImageError, preprocess_image, preprocess_mask, read_image, restore, to_grey
from universeg_jax.episode import OFFICIAL_SIZE, resize
from universeg_jax.errors import UserError
from universeg_jax.model import build_model, init_params

Array = jax.Array | np.ndarray


@dataclass(frozen=True)
class Prediction:
    """A query's segmentation in the query's own geometry [H, W]."""

    mask: np.ndarray  # label ids, 0 is background; uint8, or uint16 where an id needs it
    probabilities: np.ndarray  # float32 [H, W]; [L, H, W] where the support has L > 1 labels, in order of `labels`
    uncertainty: np.ndarray  # float32 [H, W] in [0, 1]: entropy in bits of the (averaged) probabilities
    labels: tuple[int, ...]


class Predictor:
    """Parameters with a jitted forward pass."""

    def __init__(self, params: Any, config: ConfigDict):
        self.config = config
        # Entries are streamed on a CPU and taken at once elsewhere; it changes no result beyond rounding.
        self.model = build_model(config.model, support_chunk=1 if jax.default_backend() == "cpu" else 0)
        self.params = jax.tree.map(jnp.asarray, params)
        self._logits = jax.jit(lambda params, *inputs: self.model.apply({"params": params}, *inputs))
        self._probabilities = jax.jit(self._forward)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "Predictor":
        """From a workdir (its best checkpoint) or one checkpoint directory. Raises CheckpointError."""
        path = checkpoints.resolve(path)
        config = checkpoints.config_of(checkpoints.read_metadata(path))
        return cls(checkpoints.load_params(path, abstract_params(config)), config)

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
        self,
        query: str | Path | Array,
        support_images: Sequence[str | Path | Array],
        support_labels: Sequence[Array],
        **options: Any,
    ) -> Prediction:
        """Segments one image [H, W] or [H, W, 3], or a file of one, by example; options as `for_support`."""
        return self.for_support(support_images, support_labels, **options)(query)

    def for_support(
        self,
        images: Sequence[str | Path | Array],
        labels: Sequence[Array],
        support_size: int = 64,
        ensemble: int = 1,
        seed: int = 0,
    ) -> Callable[[str | Path | Array], Prediction]:
        """A function of queries, with the support set prepared once.

        images [H, W] or [H, W, 3] of any size and intensity, or files; labels [H, W] integer maps, 0 is background.
        Each id is segmented on its own and the most probable one above 0.5 wins. A support set larger than
        `support_size` is drawn from, `ensemble` times, and the probabilities are averaged.
        """
        if len(images) == 0 or len(images) != len(labels):
            raise UserError(
                f"{len(images)} support images and {len(labels)} labels: one label for each image is needed"
            )
        if support_size < 1 or ensemble < 1:
            raise UserError(f"support_size={support_size}, ensemble={ensemble}: both must be at least 1")
        images = [as_grey(image) for image in images]
        labels = [np.asarray(label) for label in labels]
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            if image.shape != label.shape:
                raise UserError(f"support {i}: the image is {image.shape}, its label {label.shape}; they must be equal")
        ids = sorted({int(value) for label in labels for value in np.unique(label)} - {0})
        if not ids:
            raise UserError("every support label is empty: at least one must mark something (ids above 0)")
        stack = np.stack([preprocess_image(image, OFFICIAL_SIZE) for image in images])[..., None]
        masks = np.stack([[preprocess_mask(label == i, OFFICIAL_SIZE) for label in labels] for i in ids])[..., None]
        draws = support_draws(len(images), support_size, ensemble, seed)
        support_images, support_labels = jnp.asarray(stack[draws]), jnp.asarray(masks[:, draws], jnp.float32)

        def segment(query: str | Path | Array) -> Prediction:
            grey = as_grey(query)
            at_size = jnp.asarray(preprocess_image(grey, OFFICIAL_SIZE))[None, ..., None]
            averaged = jax.device_get(
                jnp.stack(
                    [self._probabilities(self.params, at_size, support_images, masks) for masks in support_labels]
                )
            )
            return combine(np.stack([restore(p, grey.shape) for p in averaged]), tuple(ids))

        return segment

    def _forward(self, params: Any, query: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
        """query [1, 128, 128, 1], support [K, S, 128, 128, 1] → probabilities [128, 128] averaged over K draws."""
        size = self.config.image_size
        logits = self.model.apply(
            {"params": params},
            resize(jnp.repeat(query, len(images), 0), size),
            resize(images, size),
            (resize(labels, size) >= 0.5).astype(jnp.float32),
        )
        return jax.nn.sigmoid(resize(logits, OFFICIAL_SIZE)).mean(0)[..., 0]


def abstract_params(config: ConfigDict) -> Any:
    """Shapes, dtypes and a single-device sharding of the parameters of a config."""
    shapes = jax.eval_shape(lambda: init_params(build_model(config.model), 0))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def as_grey(image: str | Path | Array) -> np.ndarray:
    """float32 [H, W] from a file, [H, W] or [H, W, 3]."""
    if isinstance(image, str | Path):
        return read_image(image)
    return to_grey(np.asarray(image))


def support_draws(available: int, support_size: int, ensemble: int, seed: int) -> np.ndarray:
    """Indices [K, S]: everything once where it fits into S, else K draws without replacement."""
    if available <= support_size:
        return np.arange(available)[None]
    rng = np.random.default_rng(seed)
    return np.stack([np.sort(rng.choice(available, support_size, replace=False)) for _ in range(ensemble)])


def combine(probabilities: np.ndarray, labels: tuple[int, ...]) -> Prediction:
    """[L, H, W] → one map: the most probable label where it reaches 0.5, else background."""
    best = probabilities.argmax(0)
    ids = np.asarray(labels, np.uint8 if max(labels) < 256 else np.uint16)
    mask = np.where(probabilities.max(0) >= 0.5, ids[best], ids.dtype.type(0))
    p = np.clip(probabilities.max(0), 1e-7, 1 - 1e-7)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return Prediction(mask, probabilities[0] if len(labels) == 1 else probabilities, entropy.astype(np.float32), labels)


def predict_files(
    predictor: Predictor,
    support: Path,
    queries: Sequence[Path],
    out: Path,
    label: int | None = None,
    support_size: int = 64,
    ensemble: int = 1,
) -> int:
    """Writes <out>/<name>.png for every query file, or file of a query folder; the exit code says if all were read.

    A mask appears whole or not at all. Raises UserError where a mask would overwrite an input.
    """
    images, labels, _ = read_support(support, label)
    segment = predictor.for_support(images, labels, support_size, ensemble)
    files = [file for path in queries for file in (list_images(path) if path.is_dir() else [path])]
    if not files:
        raise UserError(f"no pictures in {', '.join(map(str, queries))}")
    targets = {file: out / f"{file.stem}.png" for file in files}
    if len(set(targets.values())) < len(files):
        raise UserError(f"two of the queries have one name, so that their masks in {out} would too; rename one")
    for file, target in targets.items():
        if target.exists() and target.resolve() in {file.resolve() for file in files}:
            raise UserError(f"the mask {target} would overwrite a query; take another --out")
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for file in tqdm(files, desc="predict", unit="image", disable=len(files) < 4):
        try:
            prediction = segment(file)
        except ImageError as error:
            print(f"skipped: {error}", file=sys.stderr)
            failed += 1
            continue
        temporary = targets[file].with_suffix(".tmp")
        Image.fromarray(prediction.mask).save(temporary, format="PNG")
        temporary.replace(targets[file])
    print(f"{len(files) - failed} masks in {out}" + (f", {failed} files could not be read" if failed else ""))
    return int(failed > 0)
