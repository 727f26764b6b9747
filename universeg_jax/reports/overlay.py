"""Outlines of masks over images."""

import numpy as np

COLOURS = ((230, 60, 60), (60, 160, 240), (70, 200, 90), (240, 190, 40), (190, 90, 220), (60, 210, 210))


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a boolean mask [H, W] that have a neighbour outside it."""
    padded = np.pad(mask, 1)
    return mask & ~(padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2])
