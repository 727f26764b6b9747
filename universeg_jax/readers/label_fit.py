"""Measures how labels lie on their images and finds inverted or turned ones in a whole set. Needs no model.

A mistake that all labels share, such as every mask inverted or mirrored, leaves their agreement with one another high,
so it is looked for in the images and labels themselves.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COVERS = 0.8  # share of the image from which on a class covers nearly all of it
BORDER = 0.9  # share of the image's border that a background holds
TURN_GAIN = 1.25  # of the contrast at the outline, from which on a turned label fits better
TURN_VOTES = 0.75  # share of the examples that must agree on the turn
SIMILAR = 4.0  # largest ratio of two areas of one structure
MIN_EXAMPLES = 3
MAX_UNKNOWN = 0.5  # share of an image, or of its border, without a label, above which nothing is said of its shares
TURNS = {
    "mirrored left to right": lambda mask: mask[:, ::-1],
    "mirrored top to bottom": lambda mask: mask[::-1],
    "turned by 180 degrees": lambda mask: mask[::-1, ::-1],
    "with rows and columns exchanged": lambda mask: mask.T,
    "turned by 90 degrees to the left": lambda mask: np.rot90(mask, 1),
    "turned by 90 degrees to the right": lambda mask: np.rot90(mask, -1),
}


@dataclass(frozen=True)
class Fit:
    """How the mask of one label lies on its image."""

    share: float  # of the image that it covers; 0 where borders say nothing, as those of slices of volumes
    border: float  # of the image's border that it covers
    turn: str  # one of TURNS, after which it lies on edges of the image; "" where it does as it is


def fits_of(
    image: np.ndarray, masks: np.ndarray, shape: Sequence[int], ignored: np.ndarray | None = None
) -> tuple[Fit | None, ...]:
    """The fit of each mask [L, S, S] to its image [S, S]; None for an empty one.

    `shape`: rows and columns of the image before it was padded to a square; () for a slice of a volume. `ignored`, bool
    [S, S]: pixels without a label, which count for nothing.
    """
    rows, columns = np.gradient(image.astype(np.float32))
    steps = np.hypot(rows, columns)
    ignored = np.zeros(image.shape, bool) if ignored is None else ignored
    return tuple(_fit(steps, mask > 0, shape, ignored) if mask.any() else None for mask in masks)


def _fit(steps: np.ndarray, mask: np.ndarray, shape: Sequence[int], ignored: np.ndarray) -> Fit:
    outline = _outline(mask) & ~(ignored | _outline(ignored))
    own = _contrast(outline, steps)
    gains = {name: _contrast(turn(outline), steps) for name, turn in TURNS.items()}
    best = max(gains, key=lambda name: gains[name])
    turn = best if gains[best] > TURN_GAIN * own else ""
    if not shape:
        return Fit(0, 0, turn)
    inner, unknown = (each[content(shape, len(mask))] for each in (mask, ignored))
    edge, edge_unknown = (np.concatenate([x[1], x[-2], x[:, 1], x[:, -2]]) for x in (inner, unknown))
    if max(unknown.mean(), edge_unknown.mean()) > MAX_UNKNOWN:
        return Fit(0, 0, turn)
    return Fit(float(inner[~unknown].mean()), float(edge[~edge_unknown].mean()), turn)


def content(shape: Sequence[int], side: int) -> tuple[slice, slice]:
    """Rows and columns of a square of `side` pixels that an image [H, W] fills; the rest is padding."""
    height, width = (max(2, round(side * n / max(shape))) for n in shape)
    top, left = (side - height) // 2, (side - width) // 2
    return slice(top, top + height), slice(left, left + width)


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels with a neighbour on the other side of the mask's edge."""
    outline = np.zeros(mask.shape, bool)
    for here, ahead in ((outline, mask), (outline.T, mask.T)):
        changes = ahead[1:] != ahead[:-1]
        here[1:] |= changes
        here[:-1] |= changes
    return outline


def _contrast(outline: np.ndarray, steps: np.ndarray) -> float:
    """Mean step of the image on the outline of a mask."""
    return float(steps[outline].mean()) if outline.any() else 0.0


def shared_mistake(fits: Sequence[tuple[str, Fit | None]]) -> tuple[str, str] | None:
    """(kind, message) for what is wrong with one label in all images, or in some unlike the others; else None.

    `fits`: (name of the image, fit) of each.
    """
    present = [(name, fit) for name, fit in fits if fit]
    if message := _background(present):
        return "inverted", message
    if message := _turned([fit for _, fit in present]):
        return "turned", message
    return None


def _background(fits: Sequence[tuple[str, Fit]]) -> str:
    """A class that covers nearly all of every image, or half of it with its border."""
    shares, borders = [fit.share for _, fit in fits], [fit.border for _, fit in fits]
    if not fits or not max(shares):
        return ""
    if min(shares) >= COVERS or (min(shares) >= 0.5 and min(borders) >= BORDER):
        return f"covers {100 * np.median(shares):.0f} % of every image: is it the background, with 0 for the structure?"
    inverted = [name for name, fit in fits if fit.share >= 0.5 and fit.border >= BORDER]
    usual = [fit.share for _, fit in fits if fit.share < 0.5 and fit.border <= 1 - BORDER]
    if not inverted or not usual:
        return ""
    rest = 1 - float(np.median([share for share, border in zip(shares, borders, strict=True) if border >= BORDER]))
    if not np.median(usual) / SIMILAR <= rest <= SIMILAR * np.median(usual):
        return ""
    names = ", ".join(inverted[:5]) + (f" and {len(inverted) - 5} more" if len(inverted) > 5 else "")
    return f"covers the border of {names}, but not of the others: are structure and background exchanged there?"


def _turned(fits: Sequence[Fit]) -> str:
    """A turn after which the outlines lie on edges of the images in nearly all examples."""
    votes = Counter(fit.turn for fit in fits if fit.turn)
    if len(fits) < MIN_EXAMPLES or not votes:
        return ""
    name, count = votes.most_common(1)[0]
    if count < TURN_VOTES * len(fits):
        return ""
    return f"fits {count} of {len(fits)} images better when {name}: save images and labels in one direction"
