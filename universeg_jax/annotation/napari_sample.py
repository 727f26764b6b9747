"""Sample data for napari: images of one structure drawn in a moment, for a first try of the annotation widget."""

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

SUBJECTS, SIZE = 6, 192


def make_sample() -> list[tuple[Any, dict[str, Any], str]]:
    """Image layers of SUBJECTS subjects, uint8 [192, 192], as napari takes them."""
    return [(image, {"name": f"subject{i}", "visible": i == 0}, "image") for i, (image, _) in enumerate(subjects())]


def subjects(count: int = SUBJECTS, size: int = SIZE) -> list[tuple[np.ndarray, np.ndarray]]:
    """(image, label of its structure), uint8 [size, size]: a bright ellipse beside a dark one, on mottled ground."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        bright, dark = (_ellipse(rng, size, place) for place in ((0.4, 0.4), (0.65, 0.65)))
        mottled = gaussian_filter(rng.normal(size=(size, size)), size / 24) * size / 24
        edges = gaussian_filter(0.3 * bright - 0.25 * dark.astype(float), 1.5)
        image = 0.45 + 0.12 * mottled + edges + 0.04 * rng.normal(size=(size, size))
        found.append((np.round(255 * image.clip(0, 1)).astype(np.uint8), bright.astype(np.uint8)))
    return found


def _ellipse(rng: np.random.Generator, size: int, place: tuple[float, float]) -> np.ndarray:
    """bool [size, size]: an ellipse near `place`, in shares of the image."""
    centre, half = rng.normal(place, 0.05), rng.uniform(0.1, 0.2, 2)
    angle = rng.uniform(0, np.pi)
    at = (np.moveaxis(np.mgrid[:size, :size], 0, -1) + 0.5) / size - centre
    turned = at @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return ((turned / half) ** 2).sum(-1) < 1
