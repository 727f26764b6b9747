"""What the page of `universeg demo` does, without the page: examples, images, masks and pictures of them.

A `Session` is what one browser tab has so far; every function returns a new one. Pictures from a browser are read as
files are (images.py) and keep their own intensities, so that a saved support folder loses nothing.
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
from universeg_jax.prediction.predictor import Prediction, Predictor
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.images import read_image, read_label
from universeg_jax.readers.preprocess import min_max

# Colours of ids 1 to 6, on the page and in the editor.
PALETTE = ((230, 60, 60), (40, 170, 90), (60, 110, 230), (235, 170, 30), (170, 70, 200), (30, 190, 200))
VIEW = 640  # pixels of a picture's longer side on the page
OPACITY = 0.5
STEPS = 6  # examples whose effect is shown


@dataclass(frozen=True, eq=False)
class Example:
    name: str
    image: np.ndarray  # float32 [H, W] in the file's own intensities
    label: np.ndarray  # uint8 [H, W], ids 1 to 6


@dataclass(frozen=True, eq=False)
class Session:
    """One tab's examples, images to segment, the place among them, and the masks accepted so far."""

    examples: tuple[Example, ...] = ()
    queries: tuple[tuple[str, np.ndarray], ...] = ()
    current: int = 0
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def query(self) -> tuple[str, np.ndarray] | None:
        return self.queries[self.current] if self.queries else None


def read_uploads(files: Sequence[str], folder: Path, is_label: bool = False) -> dict[str, np.ndarray]:
    """Names and pictures of files that a browser sent to `folder`; no file outside it is opened. Deletes them.

    Raises UserError that names the file as the browser did.
    """
    paths = [Path(file).resolve() for file in files]
    for path in paths:
        if not path.is_relative_to(folder.resolve()):
            raise UserError(f"{path.name} was not uploaded here; choose it again")
    try:
        pictures: dict[str, np.ndarray] = {}
        for path in paths:
            name = path.stem.lstrip(".") or "image"  # a folder's hidden files are passed over
            if name in pictures:
                raise UserError(f"two files are named {name}; rename one of them")
            pictures[name] = read_label(path) if is_label else read_image(path)
        return pictures
    except ImageError as error:
        raise UserError(str(ImageError(Path(error.path).name, error.problem, error.detail))) from error
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def add_examples(session: Session, images: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> Session:
    """With images and masks of the same names added; one whose name is there already is replaced. Raises UserError."""
    if not images:
        raise UserError("no images: choose images and their masks, which have the same file names")
    for name in images.keys() ^ labels.keys():
        missing = "mask" if name in images else "image"
        raise UserError(f"{name} has no {missing}; an image and its mask need the same file name")
    for name, image in images.items():
        if image.shape != labels[name].shape:
            raise UserError(f"{name}: the image is {_size(image)}, its mask {_size(labels[name])}; they must be equal")
    ids = sorted({int(i) for label in labels.values() for i in np.unique(label)} - {0})
    if not ids:
        raise UserError("every mask is empty: mark the structure with a value above 0")
    if len(ids) == 1 and ids[0] > len(PALETTE):  # 0 and 255 is what many programs save
        labels = {name: label != 0 for name, label in labels.items()}
    elif ids[-1] > len(PALETTE):
        raise UserError(f"masks hold ids {ids}; the page shows 1 to {len(PALETTE)}, `universeg predict` takes any")
    for name, image in images.items():
        session = add_example(session, Example(name, image, labels[name].astype(np.uint8)))
    return session


def add_example(session: Session, example: Example) -> Session:
    others = tuple(e for e in session.examples if e.name != example.name)
    return replace(session, examples=(*others, example))


def add_queries(session: Session, images: Mapping[str, np.ndarray]) -> Session:
    """With images to segment added, at the first of them; one whose name is there already is replaced, its mask too."""
    others = tuple((name, image) for name, image in session.queries if name not in images)
    masks = {name: mask for name, mask in session.masks.items() if name not in images}
    return replace(session, queries=(*others, *images.items()), current=len(others), masks=masks)


def step(session: Session, by: int) -> Session:
    """At the next or previous image, without leaving the list."""
    return replace(session, current=int(np.clip(session.current + by, 0, max(len(session.queries) - 1, 0))))


def accept(session: Session, mask: np.ndarray) -> Session:
    """With the current image and its mask among the examples, at the next image. Raises UserError."""
    if session.query is None:
        raise UserError("there is no image to accept; upload one")
    name, image = session.query
    if not mask.any():
        raise UserError(f"the mask of {name} is empty: draw the structure first, or go to the next image")
    mask = mask.astype(np.uint8)
    session = add_example(session, Example(name, image, mask))
    return step(replace(session, masks={**session.masks, name: mask}), 1)


def support_for(session: Session) -> tuple[Example, ...]:
    """The examples that the current image is segmented by: all but itself."""
    return tuple(e for e in session.examples if session.query is None or e.name != session.query[0])


def predict(predictor: Predictor, session: Session) -> Prediction | None:
    """Of the current image; None where there is none, or no example that marks anything."""
    examples = support_for(session)
    if session.query is None or not any(e.label.any() for e in examples):
        return None
    return _segment(predictor, examples, session.query[1])


def effects(predictor: Predictor, session: Session) -> list[tuple[np.ndarray, str]]:
    """(overlay, caption) of the current image with the first 1, 2, … examples; of more than six the last six.

    A caption says how many pixels are marked at first, then how many each further example changes (Δ).
    """
    examples, pictures, before = support_for(session), [], None
    if session.query is None:
        return []
    image = session.query[1]
    for count in range(max(1, len(examples) - STEPS + 1), len(examples) + 1):
        if not any(e.label.any() for e in examples[:count]):
            continue
        mask = _segment(predictor, examples[:count], image).mask
        pixels = f"{np.count_nonzero(mask)}" if before is None else f"Δ {np.count_nonzero(mask != before)}"
        caption = f"{pixels}: {'' if before is None else '+ '}{examples[count - 1].name}"
        pictures.append((overlay(image, mask), caption))
        before = mask
    return pictures


def _segment(predictor: Predictor, examples: Sequence[Example], image: np.ndarray) -> Prediction:
    return predictor.for_support([e.image for e in examples], [e.label for e in examples])(image)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def view_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width on the page: the longer side is VIEW pixels."""
    height, width = (max(1, round(n * VIEW / max(shape))) for n in shape)
    return height, width


def nearest(ids: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[H, W] → `shape`, each pixel the one below its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(ids.shape, shape, strict=True)
    )
    return ids[rows[:, None], columns]


def view(image: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] for the page, from the darkest to the brightest, but for the outermost 0.5 %."""
    window = np.percentile(image, (0.5, 99.5))
    inside = np.clip(image, *window) if window[1] > window[0] else image
    height, width = view_shape(image.shape)
    grey = Image.fromarray(np.round(255 * min_max(inside)).astype(np.uint8)).resize((width, height), Image.BILINEAR)
    return np.repeat(np.asarray(grey)[..., None], 3, axis=-1)


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3]: the picture with each id in its colour, and its outline."""
    picture = view(image).astype(np.float32)
    ids = nearest(mask, picture.shape[:2])
    colours = np.asarray(((0, 0, 0), *PALETTE), np.float32)[np.minimum(ids, len(PALETTE))]
    padded = np.pad(ids, 1, mode="edge")
    edge = ids != padded[2:, 1:-1]
    for other in (padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2]):
        edge |= ids != other
    opacity = np.where(ids > 0, np.where(edge, 1, OPACITY * 0.7), 0)[..., None]
    return np.round((1 - opacity) * picture + opacity * colours).astype(np.uint8)


def heat(uncertainty: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] of values in [0, 1], black to yellow."""
    import matplotlib

    at_view = nearest(uncertainty, view_shape(uncertainty.shape))
    return (255 * matplotlib.colormaps["inferno"](np.clip(at_view, 0, 1))[..., :3]).astype(np.uint8)


def editor_value(image: np.ndarray, mask: np.ndarray | None) -> dict[str, Any]:
    """What the editor is given: the picture in a square, and the mask as a layer of colours [VIEW, VIEW, 4].

    The editor's canvas is that square: where a picture changes its size, Gradio moves the layer against the picture.
    """
    height, width = view_shape(image.shape)
    picture, ids = np.full((VIEW, VIEW, 3), 255, np.uint8), np.zeros((VIEW, VIEW), np.uint8)
    picture[:height, :width] = view(image)
    if mask is not None:
        ids[:height, :width] = nearest(mask, (height, width))
    layer = np.zeros((*ids.shape, 4), np.uint8)
    layer[ids > 0, :3] = np.asarray(PALETTE, np.uint8)[np.minimum(ids[ids > 0], len(PALETTE)) - 1]
    layer[ids > 0, 3] = round(255 * OPACITY)
    return {"background": picture, "layers": [layer], "composite": None}


def edited_mask(value: Mapping[str, Any], image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """uint8 [H, W]: `mask` with what was drawn or erased; where nothing was, it stays as exact as it is."""
    mask = np.zeros(image.shape, np.uint8) if mask is None else mask
    height, width = view_shape(image.shape)
    sent = nearest(mask, (height, width))
    returned = np.zeros_like(sent)
    for layer in value["layers"]:
        ids = nearest(nearest_colour(np.asarray(layer)), (VIEW, VIEW))[:height, :width]
        returned = np.where(ids > 0, ids, returned)
    changed = nearest(sent != returned, image.shape)
    return np.where(changed, nearest(returned, image.shape), mask).astype(np.uint8)


def nearest_colour(layer: np.ndarray) -> np.ndarray:
    """RGBA [h, w, 4] → ids [h, w]: the palette's nearest colour where a stroke is at least half as opaque as drawn."""
    difference = layer[..., None, :3].astype(np.int32) - np.asarray(PALETTE)
    ids = 1 + (difference**2).sum(-1).argmin(-1)
    return np.where(layer[..., 3] >= 255 * OPACITY / 2, ids, 0).astype(np.uint8)


def support_zip(examples: Sequence[Example]) -> bytes:
    """A support folder: images/ in their own intensities and labels/ as PNG."""
    if not examples:
        raise UserError("there are no examples to save; upload or draw some")
    files = {}
    for e in examples:
        suffix, content = encode(e.image)
        files[f"images/{e.name}{suffix}"] = content
        files[f"labels/{e.name}.png"] = encode(e.label)[1]
    return _zip(files)


def masks_zip(masks: Mapping[str, np.ndarray]) -> bytes:
    """Masks of label ids as PNG, each in its image's own size."""
    if not masks:
        raise UserError("there are no masks to save; upload images and segment them")
    return _zip({f"{name}.png": encode(mask)[1] for name, mask in masks.items()})


def encode(image: np.ndarray) -> tuple[str, bytes]:
    """(suffix, file) without loss: PNG of 8 or 16 bits where the values are whole, else TIFF of float32."""
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
