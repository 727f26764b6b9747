"""The state of an annotation page and what it computes: examples, queries, masks and how they are shown.

A `Session` is the state of one browser tab; functions that change it return a new one. Uploaded images keep their own
intensities, so that a saved support folder loses nothing.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from universeg_jax.errors import UserError
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.prediction.result import Prediction
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.images import read_image, read_label
from universeg_jax.reports.overlay import COLOURS, outline, to_display

MAX_ID = len(COLOURS)  # the page shows ids from 1
VIEW = 640  # pixels of the longer side of an image on the page
OPACITY = 0.5
MAX_EFFECTS = 6  # number of examples with their effect on the page


@dataclass(frozen=True, eq=False)
class LabelledImage:
    name: str
    image: np.ndarray  # float32 [H, W] in the file's own intensities
    label: np.ndarray  # uint8 [H, W], ids 0 to MAX_ID


@dataclass(frozen=True, eq=False)
class Session:
    """Examples, queries and accepted masks of one browser tab."""

    examples: tuple[LabelledImage, ...] = ()
    queries: tuple[tuple[str, np.ndarray], ...] = ()  # (name, image)
    current: int = 0  # index of the query on the page
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)  # accepted ones, by the name of the query

    @property
    def query(self) -> tuple[str, np.ndarray] | None:
        return self.queries[self.current] if self.queries else None


def read_uploads(files: Sequence[str], folder: Path, is_label: bool = False) -> dict[str, np.ndarray]:
    """Reads name → image (or label) from files that a browser uploaded to `folder`, and deletes the files.

    Opens no file outside the folder. Raises UserError with the name that the user gave the file.
    """
    paths = [Path(file).resolve() for file in files]
    for path in paths:
        if not path.is_relative_to(folder.resolve()):
            raise UserError(f"{path.name} was not uploaded here; choose it again")
    try:
        arrays: dict[str, np.ndarray] = {}
        for path in paths:
            name = path.stem.lstrip(".") or "image"  # a hidden file would be skipped in a saved folder
            if name in arrays:
                raise UserError(f"two files are named {name}; rename one of them")
            arrays[name] = read_label(path) if is_label else read_image(path)
        return arrays
    except ImageError as error:
        raise UserError(str(ImageError(Path(error.path).name, error.problem, error.detail))) from error
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def add_examples(session: Session, images: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> Session:
    """Adds images with the labels of the same names; replaces examples of these names. Raises UserError."""
    if not images:
        raise UserError("no images: choose images, and masks with the same file names")
    for name in images.keys() ^ labels.keys():
        missing = "mask" if name in images else "image"
        raise UserError(f"{name} has no {missing}; an image and its mask need the same file name")
    for name, image in images.items():
        if image.shape != labels[name].shape:
            raise UserError(f"{name}: the image is {_size(image)}, its mask {_size(labels[name])}; they must be equal")
    ids = sorted({int(i) for label in labels.values() for i in np.unique(label)} - {0})
    if not ids:
        raise UserError("every mask is empty: mark the structure with a value above 0")
    if len(ids) == 1 and ids[0] > MAX_ID:  # many programs save masks as 0 and 255
        labels = {name: label != 0 for name, label in labels.items()}
    elif ids[-1] > MAX_ID:
        raise UserError(f"masks hold ids {ids}; the page shows 1 to {MAX_ID}; use `universeg predict` for others")
    for name, image in images.items():
        session = add_example(session, LabelledImage(name, image, labels[name].astype(np.uint8)))
    return session


def add_example(session: Session, example: LabelledImage) -> Session:
    others = tuple(e for e in session.examples if e.name != example.name)
    return replace(session, examples=(*others, example))


def add_queries(session: Session, images: Mapping[str, np.ndarray]) -> Session:
    """Adds queries and moves to the first of them; replaces queries of the same names, and drops their masks."""
    others = tuple((name, image) for name, image in session.queries if name not in images)
    masks = {name: mask for name, mask in session.masks.items() if name not in images}
    return replace(session, queries=(*others, *images.items()), current=len(others), masks=masks)


def move(session: Session, by: int) -> Session:
    """Moves to a later or, with a negative number, an earlier query, and stops at either end."""
    return replace(session, current=int(np.clip(session.current + by, 0, max(len(session.queries) - 1, 0))))


def accept(session: Session, mask: np.ndarray) -> Session:
    """Adds the current query with its mask to the examples and moves to the next query. Raises UserError."""
    if session.query is None:
        raise UserError("there is no image to accept: upload one")
    name, image = session.query
    if not mask.any():
        raise UserError(f"the mask of {name} is empty: draw the structure first, or go to the next image")
    mask = mask.astype(np.uint8)
    session = add_example(session, LabelledImage(name, image, mask))
    return move(replace(session, masks={**session.masks, name: mask}), 1)


def support_for(session: Session) -> tuple[LabelledImage, ...]:
    """All examples but the current query itself."""
    return tuple(e for e in session.examples if session.query is None or e.name != session.query[0])


def predict(predictor: Predictor, session: Session) -> Prediction | None:
    """Segments the current query; None without a query or without a label."""
    examples = support_for(session)
    if session.query is None or not any(e.label.any() for e in examples):
        return None
    return _segment(predictor, examples, session.query[1])


def example_effects(predictor: Predictor, session: Session) -> list[tuple[np.ndarray, str]]:
    """(overlay, caption) of the current query with the first 1, 2, … examples; the last MAX_EFFECTS of them.

    The first caption counts marked pixels, the others the pixels (Δ) that one more example changes.
    """
    examples, overlays, before = support_for(session), [], None
    if session.query is None:
        return []
    image = session.query[1]
    for count in range(max(1, len(examples) - MAX_EFFECTS + 1), len(examples) + 1):
        if not any(e.label.any() for e in examples[:count]):
            continue
        mask = _segment(predictor, examples[:count], image).mask
        pixels = f"{np.count_nonzero(mask)}" if before is None else f"Δ {np.count_nonzero(mask != before)}"
        caption = f"{pixels}: {'' if before is None else '+ '}{examples[count - 1].name}"
        overlays.append((overlay(image, mask), caption))
        before = mask
    return overlays


def _segment(predictor: Predictor, examples: Sequence[LabelledImage], image: np.ndarray) -> Prediction:
    return predictor.for_support([e.image for e in examples], [e.label for e in examples])(image)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def view_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) on the page, where the longer side is VIEW pixels."""
    height, width = (max(1, round(n * VIEW / max(shape))) for n in shape)
    return height, width


def resize_nearest(ids: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[H, W] → `shape`; each pixel takes the value at its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(ids.shape, shape, strict=True)
    )
    return ids[rows[:, None], columns]


def view(image: np.ndarray) -> np.ndarray:
    """An image at the size of the page, uint8 [h, w, 3]."""
    height, width = view_shape(image.shape)
    grey = Image.fromarray(to_display(image)).resize((width, height), Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(grey)[..., None], 3, axis=-1)


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image at the size of the page with each id filled and outlined in its colour, uint8 [h, w, 3]."""
    grey = view(image).astype(np.float32)
    ids = resize_nearest(mask, grey.shape[:2])
    opacity, colours = np.zeros(grey.shape, np.float32), np.zeros_like(grey)
    for label, colour in enumerate(COLOURS, 1):
        opacity[ids == label], colours[ids == label] = OPACITY * 0.7, colour
        opacity[outline(ids == label)] = 1
    return np.round((1 - opacity) * grey + opacity * colours).astype(np.uint8)


def heat_map(uncertainty: np.ndarray) -> np.ndarray:
    """Values in [0, 1] at the size of the page, uint8 [h, w, 3], black to yellow."""
    import matplotlib

    at_view = resize_nearest(uncertainty, view_shape(uncertainty.shape))
    return (255 * matplotlib.colormaps["inferno"](np.clip(at_view, 0, 1))[..., :3]).astype(np.uint8)


def editor_value(image: np.ndarray, mask: np.ndarray | None) -> dict[str, Any]:
    """The editor's content: the image in a square, and the mask as a layer of colours, both [VIEW, VIEW, ...].

    The square is the editor's canvas, because Gradio shifts layers against images that change in size.
    """
    height, width = view_shape(image.shape)
    background, ids = np.full((VIEW, VIEW, 3), 255, np.uint8), np.zeros((VIEW, VIEW), np.uint8)
    background[:height, :width] = view(image)
    if mask is not None:
        ids[:height, :width] = resize_nearest(mask, (height, width))
    layer = np.zeros((*ids.shape, 4), np.uint8)
    layer[ids > 0, :3] = np.asarray(COLOURS, np.uint8)[np.minimum(ids[ids > 0], MAX_ID) - 1]
    layer[ids > 0, 3] = round(255 * OPACITY)
    return {"background": background, "layers": [layer], "composite": None}


def edited_mask(value: Mapping[str, Any], image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The mask, uint8 [H, W], after drawing and erasing in the editor; exact where nothing was touched."""
    mask = np.zeros(image.shape, np.uint8) if mask is None else mask
    height, width = view_shape(image.shape)
    sent = resize_nearest(mask, (height, width))
    returned = np.zeros_like(sent)
    for layer in value["layers"]:
        ids = resize_nearest(nearest_colour(np.asarray(layer)), (VIEW, VIEW))[:height, :width]
        returned = np.where(ids > 0, ids, returned)
    changed = resize_nearest(sent != returned, image.shape)
    return np.where(changed, resize_nearest(returned, image.shape), mask).astype(np.uint8)


def nearest_colour(layer: np.ndarray) -> np.ndarray:
    """RGBA [h, w, 4] → ids [h, w] of the nearest colour, 0 where less than half as opaque as a stroke."""
    difference = layer[..., None, :3].astype(np.int32) - np.asarray(COLOURS)
    ids = 1 + (difference**2).sum(-1).argmin(-1)
    return np.where(layer[..., 3] >= 255 * OPACITY / 2, ids, 0).astype(np.uint8)


def support_zip(examples: Sequence[LabelledImage]) -> bytes:
    """A zip of a support folder: images/ with their own intensities, and labels/ as PNG."""
    if not examples:
        raise UserError("there are no examples to save: upload or draw some")
    files = {}
    for e in examples:
        suffix, content = encode(e.image)
        files[f"images/{e.name}{suffix}"] = content
        files[f"labels/{e.name}.png"] = encode(e.label)[1]
    return _zip(files)


def masks_zip(masks: Mapping[str, np.ndarray]) -> bytes:
    """A zip of masks of label ids as PNG, each of its image's size."""
    if not masks:
        raise UserError("there are no masks to save: upload images and segment them")
    return _zip({f"{name}.png": encode(mask)[1] for name, mask in masks.items()})


def encode(image: np.ndarray) -> tuple[str, bytes]:
    """(suffix, content) of a lossless file: PNG of 8 or 16 bits for whole numbers, else float32 TIFF."""
    whole = image.min() >= 0 and image.max() < 65536 and (image == np.floor(image)).all()
    suffix = ".png" if whole else ".tif"
    dtype = np.float32 if not whole else np.uint8 if image.max() < 256 else np.uint16
    buffer = io.BytesIO()
    Image.fromarray(image.astype(dtype)).save(buffer, format="PNG" if whole else "TIFF")
    return suffix, buffer.getvalue()


def _zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()
