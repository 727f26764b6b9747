"""Runs a model that `universeg export` wrote, without universeg_jax: this file needs jax, flatbuffers and NumPy alone.

It lies inside the exported file too, which Python runs as it is. All pictures are .npy files, images [N, H, W]:

    python model.zip --query query.npy --images images.npy --labels labels.npy --out mask.npy

Or from Python, with this file beside the script:

    from run_exported import load_exported
    model = load_exported("model.zip")
    probabilities = model.segment(query, images, labels)  # any size, in the query's own geometry
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
MAX_BYTES = 4_000_000_000  # of the model, unpacked


class ExportedModel:
    """A model of fixed image size for any numbers of queries and support entries; compiles once for each pair."""

    def __init__(self, exported: export.Exported, meta: dict[str, Any]):
        self.exported, self.meta = exported, meta
        self._call = jax.jit(exported.call)

    def __call__(
        self,
        query_image: np.ndarray,
        support_images: np.ndarray,
        support_labels: np.ndarray,
        support_mask: np.ndarray | None = None,
    ) -> jax.Array:
        """Logits [B, H, W, 1] of queries [B, H, W, 1] and supports [B, S, H, W, 1] in [0, 1], of meta's image_size.

        support_mask [B, S]: 1 for an entry, 0 for padding; all ones where it is None.
        """
        if support_mask is None:
            support_mask = np.ones(np.shape(support_images)[:2], np.float32)
        arrays = (query_image, support_images, support_labels, support_mask)
        return self._call(*(jnp.asarray(x, jnp.float32) for x in arrays))

    def segment(self, query: np.ndarray, images: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities float32 [H, W] of a query [H, W] of any size and intensity, by example.

        images [H, W] of any sizes; labels of the same sizes, everything that is not 0 is the structure.
        """
        if len(images) == 0 or len(images) != len(labels):
            raise ValueError(f"{len(images)} support images and {len(labels)} labels: one label for each is needed")
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            if np.shape(image) != np.shape(label):
                raise ValueError(f"support {i}: the image is {np.shape(image)}, its label {np.shape(label)}")
        size = self.meta["preprocessing"]["size"]
        support = np.stack([preprocess_image(np.asarray(image), size) for image in images])[None, ..., None]
        masks = np.stack([preprocess_mask(np.asarray(label) != 0, size) for label in labels])[None, ..., None]
        at_size = preprocess_image(np.asarray(query), size)[None, ..., None]
        inner = self.meta["image_size"]
        masks = np.asarray(resize(masks, inner)) >= 0.5
        logits = resize(self(resize(at_size, inner), resize(support, inner), masks), size)
        return restore(np.asarray(jax.nn.sigmoid(logits))[0, ..., 0], np.shape(query))


def load_exported(path: str | Path) -> ExportedModel:
    """The model of a file. Raises ValueError where it is another file or damaged.

    It is a program that XLA compiles and runs: open only files whose origin you trust.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(MODEL).file_size > MAX_BYTES:
                raise ValueError(f"{path}: {MODEL} is larger than {MAX_BYTES:,} bytes, which no such model is")
            meta, model = json.loads(archive.read(META)), archive.read(MODEL)
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} was not written by `universeg export`: {error}") from error
    if meta.get("format") != FORMAT:
        raise ValueError(f"{path} has format {meta.get('format')!r}; {FORMAT!r} is read here")
    if hashlib.sha256(model).hexdigest() != meta["sha256"]:
        raise ValueError(f"{path} is damaged: {MODEL} is not what was written; export it again")
    return ExportedModel(export.deserialize(bytearray(model)), meta)


def resize(x: np.ndarray | jax.Array, size: int) -> jax.Array:
    """[..., H, W, 1] → [..., size, size, 1], linear."""
    return jax.image.resize(jnp.asarray(x), (*x.shape[:-3], size, size, 1), "linear")


def preprocess_image(image: np.ndarray, size: int) -> np.ndarray:
    """[H, W] → float32 [size, size] in [0, 1]: min-max, zero-pad to a centred square, blur, resize."""
    image = image.astype(np.float32)
    low, high = image.min(), image.max()
    image = (image - low) / (high - low) if high > low else np.zeros_like(image)
    return np.clip(to_size(image, size), 0, 1)


def preprocess_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """[H, W] → float32 0/1 [size, size]."""
    return (to_size(mask.astype(np.float32), size) >= 0.5 - 1e-6).astype(np.float32)


def to_size(image: np.ndarray, size: int) -> np.ndarray:
    if image.ndim != 2:
        raise ValueError(f"a picture has shape {image.shape}; grey [H, W] is needed")
    side = max(image.shape)
    rows, columns = (resizer(side, size)[:, (side - n) // 2 :][:, :n] for n in image.shape)
    return rows @ image @ columns.T


def restore(probabilities: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[size, size] → [H, W]: the inverse of `to_size`, linear."""
    size, side = len(probabilities), max(shape)
    rows, columns = (resizer(size, side)[(side - n) // 2 :][:n] for n in shape)
    return rows @ probabilities @ columns.T


def resizer(old: int, new: int) -> np.ndarray:
    """float32 [new, old]: linear interpolation at half-pixel centres, after a Gaussian blur where it shrinks."""
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
    parser = argparse.ArgumentParser(description="Segment one picture by example; all files are .npy.")
    parser.add_argument("--model", default=sys.argv[0], help="the exported file (default: the one that is run)")
    parser.add_argument("--query", required=True, help="[H, W]")
    parser.add_argument("--images", required=True, help="support images [N, H, W]")
    parser.add_argument("--labels", required=True, help="their masks [N, H, W], 0 is background")
    parser.add_argument("--out", required=True, help="mask of the query, uint8 [H, W], 1 where p >= 0.5")
    args = parser.parse_args(argv)
    query, images, labels = (np.load(name, allow_pickle=False) for name in (args.query, args.images, args.labels))
    probabilities = load_exported(args.model).segment(query, images, labels)
    np.save(args.out, (probabilities >= 0.5).astype(np.uint8))
    print(f"{args.out}: {int((probabilities >= 0.5).sum())} of {probabilities.size} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
