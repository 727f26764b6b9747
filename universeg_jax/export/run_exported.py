"""Run a model that `universeg export` wrote; needs only jax, flatbuffers and NumPy, not universeg_jax.

The exported file contains this module, so Python can run it. All arrays are .npy files:

    python model.zip --query query.npy --images images.npy --labels labels.npy --out mask.npy

Or from Python, with this file beside the script:

    from run_exported import load_exported
    model = load_exported("model.zip")
    probabilities = model.segment(query, images, labels)  # of any size; the result has the query's size
"""

import argparse
import hashlib
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

FORMAT = "universeg_jax export 1"
MODEL, META = "model.jaxexport", "meta.json"
MAX_IGNORED = 0.9  # share of a pixel without a label from which on it has none
MAX_BYTES = 4_000_000_000  # of the unpacked model
Array = np.ndarray | jax.Array


class ExportedModel:
    """A model of fixed image size. Compiles once for each number of queries and support entries."""

    def __init__(self, exported: export.Exported, meta: dict[str, Any]):
        self.exported, self.meta = exported, meta
        self._call = jax.jit(exported.call)

    def __call__(
        self,
        query_image: Array,
        support_images: Array,
        support_labels: Array,
        support_mask: Array | None = None,
        support_known: Array | None = None,
    ) -> jax.Array:
        """Logits, float32 [B, H, W, 1], of a preprocessed batch at the image size in `meta`.

        query_image [B, H, W, 1] and support_images [B, S, H, W, 1] in [0, 1]; support_labels 0/1 like support_images;
        support_mask [B, S], 0 for padding (default: no padding); support_known like support_images, 0 for a pixel
        without a label (default: all have one). Raises ValueError where the model cannot take it.
        """
        if support_mask is None:
            support_mask = np.ones(np.shape(support_images)[:2], np.float32)
        arrays = [query_image, support_images, support_labels, support_mask]
        if "support_known" in self.meta["inputs"]:
            arrays.append(np.ones(np.shape(support_labels), np.float32) if support_known is None else support_known)
        elif support_known is not None:
            raise ValueError("this model needs a label for every pixel: export it again with --partly")
        return self._call(*(jnp.asarray(x, jnp.float32) for x in arrays))

    def segment(
        self,
        query: np.ndarray,
        images: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        ignore: int | None = None,
    ) -> np.ndarray:
        """Probabilities, float32 [H, W], of a query [H, W] of any size and intensity range.

        images [H, W] of any sizes; labels of the same sizes, in which every value but 0 is the structure, and `ignore`
        marks pixels without a label. Raises ValueError for unequal numbers or sizes.
        """
        if len(images) == 0 or len(images) != len(labels):
            raise ValueError(f"{len(images)} support images and {len(labels)} labels: give one label for each image")
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            if np.shape(image) != np.shape(label):
                raise ValueError(f"support {i}: the image is {np.shape(image)}, its label {np.shape(label)}")
        size = self.meta["preprocessing"]["size"]
        support = np.stack([preprocess_image(np.asarray(image), size) for image in images])[None, ..., None]
        pairs = [preprocess_partly(np.asarray(label), ignore, size) for label in labels]
        masks, known = (np.stack(parts)[None, ..., None] for parts in zip(*pairs, strict=True))
        at_size = preprocess_image(np.asarray(query), size)[None, ..., None]
        inner = self.meta["image_size"]
        masks, known = (np.asarray(resize(x, inner)) >= 0.5 for x in (masks, known))
        more = {} if ignore is None else {"support_known": known}
        logits = resize(self(resize(at_size, inner), resize(support, inner), masks, **more), size)
        return restore(np.asarray(jax.nn.sigmoid(logits))[0, ..., 0], np.shape(query))


def load_exported(path: str | Path) -> ExportedModel:
    """Reads a model. Raises ValueError for another kind of file or a damaged one.

    A model is a program that XLA compiles and runs: open only files that you trust.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(MODEL).file_size > MAX_BYTES:
                raise ValueError(f"{path}: {MODEL} is larger than {MAX_BYTES:,} bytes")
            meta, model = json.loads(archive.read(META)), archive.read(MODEL)
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} was not written by `universeg export`: {error}") from error
    if meta.get("format") != FORMAT:
        raise ValueError(f"{path} has format {meta.get('format')!r}; this runner reads {FORMAT!r}")
    if hashlib.sha256(model).hexdigest() != meta["sha256"]:
        raise ValueError(f"{path} is damaged: {MODEL} has another checksum; export it again")
    return ExportedModel(export.deserialize(bytearray(model)), meta)


def resize(x: Array, size: int) -> jax.Array:
    """[..., H, W, 1] → [..., size, size, 1], linear."""
    return jax.image.resize(jnp.asarray(x), (*x.shape[:-3], size, size, 1), "linear")


def preprocess_image(image: np.ndarray, size: int) -> np.ndarray:
    """[H, W] → float32 [size, size] in [0, 1]: min-max, zero-pad to a centred square, blur, resize."""
    image = image.astype(np.float32)
    low, high = image.min(), image.max()
    image = (image - low) / (high - low) if high > low else np.zeros_like(image)
    return np.clip(to_size(image, size), 0, 1)


def preprocess_partly(label: np.ndarray, ignore: int | None, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A label [H, W] → (its mask, pixels that have a label), both float32 0/1 [size, size]."""
    ignored = np.zeros(label.shape, bool) if ignore is None else label == ignore
    share = np.clip(to_size(ignored.astype(np.float32), size), 0, 1)
    mask = to_size(((label != 0) & ~ignored).astype(np.float32), size) >= 0.5 * (1 - share) - 1e-6
    known = share <= MAX_IGNORED
    return (mask & known).astype(np.float32), known.astype(np.float32)


def to_size(image: np.ndarray, size: int) -> np.ndarray:
    if image.ndim != 2:
        raise ValueError(f"an image has shape {image.shape}; use grey [H, W]")
    side = max(image.shape)
    rows, columns = (resizer(side, size)[:, (side - n) // 2 :][:, :n] for n in image.shape)
    return rows @ image @ columns.T


def restore(probabilities: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[size, size] → [H, W]: inverts `to_size`, linear."""
    size, side = len(probabilities), max(shape)
    rows, columns = (resizer(size, side)[(side - n) // 2 :][:n] for n in shape)
    return rows @ probabilities @ columns.T


def resizer(old: int, new: int) -> np.ndarray:
    """float32 [new, old]: linear interpolation at half-pixel centres, after a Gaussian blur for downsampling."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(centres).astype(np.int64)
    high = np.minimum(low + 1, old - 1)
    sigma = old / new / 4 if new < old else 0

    def blurred(tap: np.ndarray) -> np.ndarray:
        distance = np.arange(old) - tap[:, None]
        if not sigma:
            return (distance == 0).astype(np.float64)
        weights = np.where(np.abs(distance) <= np.ceil(4 * sigma), np.exp(-0.5 * (distance / sigma) ** 2), 0)
        return weights / weights.sum(1, keepdims=True)

    share = (centres - low)[:, None]
    return ((1 - share) * blurred(low) + share * blurred(high)).astype(np.float32)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Segment one image from labelled examples; all files are .npy.")
    parser.add_argument("--model", default=sys.argv[0], help="the exported file (default: the running one)")
    parser.add_argument("--query", required=True, help="[H, W]")
    parser.add_argument("--images", required=True, help="support images [N, H, W]")
    parser.add_argument("--labels", required=True, help="their masks [N, H, W], 0 is background")
    parser.add_argument("--ignore", type=int, help="value of pixels without a label, of a model that takes such")
    parser.add_argument("--out", required=True, help="mask of the query to write, uint8 0/1 [H, W]")
    args = parser.parse_args(argv)
    query, images, labels = (np.load(name, allow_pickle=False) for name in (args.query, args.images, args.labels))
    probabilities = load_exported(args.model).segment(query, images, labels, args.ignore)
    np.save(args.out, (probabilities >= 0.5).astype(np.uint8))
    print(f"{args.out}: {int((probabilities >= 0.5).sum())} of {probabilities.size} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
