"""Masks over images: display intensities, outlines and their colours."""

from collections.abc import Iterable
from itertools import cycle

import numpy as np

COLOURS = ((230, 60, 60), (60, 160, 240), (70, 200, 90), (240, 190, 40), (190, 90, 220), (60, 210, 210))
PERCENTILES = (0.5, 99.5)  # of the intensities, shown as black and white


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a boolean mask [H, W] that have a neighbour outside it."""
    padded = np.pad(mask, 1)
    return mask & ~(padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2])


def to_display(image: np.ndarray) -> np.ndarray:
    """Intensities of any range → uint8, clipped at PERCENTILES."""
    low, high = np.percentile(image, PERCENTILES)
    if high <= low:
        low, high = image.min(), image.max()
    return np.round(255 * np.clip((image - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def draw_outlines(grey: np.ndarray, masks: Iterable[np.ndarray]) -> np.ndarray:
    """uint8 [H, W, 3]: a grey image, uint8 [H, W], with the outline of each boolean mask in its colour."""
    canvas = np.repeat(grey[..., None], 3, -1)
    for mask, colour in zip(masks, cycle(COLOURS), strict=False):
        canvas[outline(mask)] = colour
    return canvas
