"""Corrections of a mask: pixels of a query whose label a person gives, which guide the rest of its mask.

The query joins its own support as an example whose label is known at these pixels alone. `matching` and the pretrained
keys then find what is alike in the query itself. The model has no parameters for corrections, and a prediction without
any is what it was before.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from universeg_jax.episode import OFFICIAL_SIZE
from universeg_jax.errors import UserError
from universeg_jax.readers.preprocess import preprocess_strokes

UNSAID = -1  # in an array of ids: nothing is said of a pixel


class Strokes(NamedTuple):
    """Corrections as the network sees them."""

    masks: np.ndarray  # uint8 0/1 [L, 128, 128]
    known: np.ndarray  # bool [128, 128]


def check_corrections(corrections: Any, shape: tuple[int, ...], labels: Sequence[int]) -> np.ndarray:
    """Ids int32 [H, W] of corrections, UNSAID where nothing is said. Raises UserError."""
    ids = np.asarray(corrections)
    if ids.shape != shape or ids.dtype.kind not in "iu":
        raise UserError(f"corrections are {ids.dtype} {ids.shape}: use integers of the shape of the image, {shape}")
    if unknown := sorted(set(np.unique(ids).tolist()) - {UNSAID, 0, *labels}):
        raise UserError(
            f"corrections hold {unknown[0]}: use {UNSAID} where nothing is said, 0 for background, and the labels "
            f"{', '.join(map(str, labels))}"
        )
    return ids.astype(np.int32)


def see_corrections(ids: np.ndarray, labels: Sequence[int]) -> Strokes:
    """Corrections of an image [H, W] as the network sees them."""
    found = [preprocess_strokes(ids == label, ids != UNSAID, OFFICIAL_SIZE) for label in labels]
    return Strokes(np.stack([mask for mask, _ in found]), found[0][1])


def keep_corrections(probabilities: np.ndarray, ids: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Probabilities [L, H, W], with 0 or 1 where something was said."""
    said = np.stack([ids == label for label in labels]).astype(probabilities.dtype)
    return np.where(ids == UNSAID, probabilities, said)
