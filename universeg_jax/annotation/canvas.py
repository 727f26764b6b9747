"""Images and masks as a page shows them, and the mask that comes back from its editor.

Images are enlarged to a longer side of VIEW pixels, in which pixels are as wide and high as in the patient.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from universeg_jax.reports.overlay import outline

VIEW = 640  # pixels of the longer side of an image on the page
OPACITY = 0.5
Colours = Mapping[int, tuple[int, int, int]]  # of ids
Scale = tuple[float, float]  # height and width of a pixel, in any unit


def view_shape(shape: tuple[int, ...], scale: Scale = (1.0, 1.0)) -> tuple[int, int]:
    """(height, width) on the page, where the longer side is VIEW pixels."""
    sides = [n * size for n, size in zip(shape, scale, strict=True)]
    height, width = (max(1, round(side * VIEW / max(sides))) for side in sides)
    return height, width


def resize_nearest(ids: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[H, W] → `shape`; each pixel takes the value at its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(ids.shape, shape, strict=True)
    )
    return ids[rows[:, None], columns]


def view(grey: np.ndarray, scale: Scale = (1.0, 1.0)) -> np.ndarray:
    """A grey image, uint8 [H, W], at the size of the page, uint8 [h, w, 3]."""
    height, width = view_shape(grey.shape, scale)
    large = Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(large)[..., None], 3, axis=-1)


def overlay(grey: np.ndarray, mask: np.ndarray, colours: Colours, scale: Scale = (1.0, 1.0)) -> np.ndarray:
    """A grey image, uint8 [H, W], with each id filled and outlined in its colour, uint8 [h, w, 3]."""
    shown = view(grey, scale).astype(np.float32)
    ids = resize_nearest(mask, shown.shape[:2])
    opacity, paint = np.zeros(shown.shape, np.float32), np.zeros_like(shown)
    for label, colour in colours.items():
        opacity[ids == label], paint[ids == label] = OPACITY * 0.7, colour
        opacity[outline(ids == label)] = 1
    return np.round((1 - opacity) * shown + opacity * paint).astype(np.uint8)


def heat_map(uncertainty: np.ndarray, scale: Scale = (1.0, 1.0)) -> np.ndarray:
    """Values in [0, 1] at the size of the page, uint8 [h, w, 3], black to yellow."""
    import matplotlib

    at_view = resize_nearest(uncertainty, view_shape(uncertainty.shape, scale))
    return (255 * matplotlib.colormaps["inferno"](np.clip(at_view, 0, 1))[..., :3]).astype(np.uint8)


def editor_value(
    grey: np.ndarray, mask: np.ndarray, colours: Colours, scale: Scale = (1.0, 1.0)
) -> dict[str, np.ndarray | list[np.ndarray] | None]:
    """The editor's content: the image in a square, and the mask as a layer of colours, both [VIEW, VIEW, ...].

    The square is the editor's canvas, because Gradio shifts layers against images that change in size.
    """
    height, width = view_shape(grey.shape, scale)
    background, ids = np.full((VIEW, VIEW, 3), 255, np.uint8), np.zeros((VIEW, VIEW), mask.dtype)
    background[:height, :width] = view(grey, scale)
    ids[:height, :width] = resize_nearest(mask, (height, width))
    layer = np.zeros((*ids.shape, 4), np.uint8)
    for label, colour in colours.items():
        layer[ids == label] = (*colour, round(255 * OPACITY))
    return {"background": background, "layers": [layer], "composite": None}


def edited_mask(value: Mapping[str, Any], mask: np.ndarray, colours: Colours, scale: Scale = (1.0, 1.0)) -> np.ndarray:
    """The mask [H, W] after drawing and erasing in the editor; exact where nothing was touched.

    `mask` is the one that `editor_value` sent.
    """
    height, width = view_shape(mask.shape, scale)
    sent = resize_nearest(mask, (height, width))
    returned = np.zeros_like(sent)
    for layer in value["layers"]:
        ids = resize_nearest(nearest_colour(np.asarray(layer), colours), (VIEW, VIEW))[:height, :width]
        returned = np.where(ids > 0, ids, returned)
    changed = resize_nearest(sent != returned, mask.shape)
    return np.where(changed, resize_nearest(returned, mask.shape), mask).astype(mask.dtype)


def nearest_colour(layer: np.ndarray, colours: Colours) -> np.ndarray:
    """RGBA [h, w, 4] → ids [h, w] of the nearest colour, 0 where less than half as opaque as a stroke."""
    difference = layer[..., None, :3].astype(np.int32) - np.asarray(list(colours.values()))
    ids = np.asarray(list(colours))[(difference**2).sum(-1).argmin(-1)]
    return np.where(layer[..., 3] >= 255 * OPACITY / 2, ids, 0)


def grey_of(image: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """Intensities between two limits → uint8 [H, W] from black to white."""
    low, high = limits
    return np.round(255 * np.clip((image - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
