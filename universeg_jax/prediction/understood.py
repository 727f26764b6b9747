"""What a support set was taken for, and labels that probably mean something else; no model is needed.

A mistake that all examples share, such as every mask inverted or mirrored, leaves the agreement between examples high,
so it is looked for in the images and labels themselves.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from universeg_jax.prediction.support import Support, case_names

COVERS = 0.8  # share of the image from which on a class covers nearly all of it
BORDER = 0.9  # share of the image's border that a background holds
TURN_GAIN = 1.25  # of the contrast at the outline, from which on a turned label fits better
TURN_VOTES = 0.75  # share of the examples that must agree on the turn
MANY_IDS = 20
SIMILAR = 4.0  # largest ratio of two areas of one structure
MIN_EXAMPLES = 3
TURNS = {
    "mirrored left to right": lambda mask: mask[:, ::-1],
    "mirrored top to bottom": lambda mask: mask[::-1],
    "turned by 180 degrees": lambda mask: mask[::-1, ::-1],
    "with rows and columns exchanged": lambda mask: mask.T,
    "turned by 90 degrees to the left": lambda mask: np.rot90(mask, 1),
    "turned by 90 degrees to the right": lambda mask: np.rot90(mask, -1),
}


def describe(support: Support, names: Mapping[int, str], path: str | Path, taken: str = "") -> list[str]:
    """One line per aspect: images, what labels were `taken` for, ids with names and pixels, size, window, subjects."""
    volumes = support.positions is not None
    count, kind = len(set(case_names(support))), "volumes" if volumes else "images"
    sizes = Counter("x".join(map(str, size if volumes else size[::-1])) for size in support.sizes)
    most = ", ".join(size for size, _ in sizes.most_common(3)) + (
        f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
    )
    lines = [
        f"{path}: {count} {kind} with a label each" + (f", {len(support)} slices of them" if volumes else ""),
        f"size: {most} " + ("voxels" if volumes else "pixels (width x height)"),
    ]
    if taken:
        lines.append(f"labels: taken for {taken}")
    if support.overlapping:
        lines.append("classes overlap, so each is predicted by itself, with a mask of its own")
    unit, share = ("voxels", "slices") if volumes else ("pixels", "images")
    for i, pixels, masks in zip(support.labels, support.pixels, support.masks, strict=True):
        occurs = f"in {int(masks.any((1, 2)).sum())} of {len(support)} {share}"
        lines.append(f"id {i} ({names.get(i, 'no name')}): {pixels:,} {unit}, {occurs}")
    if volumes:
        lines.append(f"window: {support.window if isinstance(support.window, str) else tuple(support.window)}")
    subjects = sorted(set(support.subjects))
    shown = ", ".join(subjects[:5]) + (f" and {len(subjects) - 5} more" if len(subjects) > 5 else "")
    return [*lines, f"subjects: {len(subjects)}: {shown}"]


def find_shared_mistakes(support: Support, named: bool = True) -> list[tuple[str, str]]:
    """(kind, message) for what is wrong with the labels of the whole set."""
    found = []
    if not named and len(support.labels) >= MANY_IDS:
        message = f'{len(support.labels)} ids without names: if they number objects, write "instances": true'
        found.append(("instances", f"{message} into meta.json, and they become one class"))
    for i, masks in zip(support.labels, support.masks, strict=True):
        prefix = f"label {i}: " if len(support.labels) > 1 else ""
        present = [k for k in range(len(support)) if masks[k].any()]
        if message := _background(masks, support, present):
            found.append(("inverted", prefix + message))
        elif message := _turned(masks, support, present):
            found.append(("turned", prefix + message))
    return found


def content(size: Sequence[int], side: int) -> tuple[slice, slice]:
    """Rows and columns of a square of `side` pixels that an image [H, W] fills; the rest is padding."""
    lengths = [max(2, round(side * n / max(size))) for n in size]
    return tuple(slice((side - n) // 2, (side - n) // 2 + n) for n in lengths)  # type: ignore[return-value]


def _background(masks: np.ndarray, support: Support, present: Sequence[int]) -> str:
    """A class that covers nearly all of every image, or half of it with its border."""
    if support.positions is not None or not support.sizes or not present:
        return ""
    shares, borders = [], []
    for k in present:
        mask = masks[k][content(support.sizes[k], masks.shape[-1])] > 0
        edge = np.concatenate([mask[1], mask[-2], mask[:, 1], mask[:, -2]])
        shares.append(float(mask.mean()))
        borders.append(float(edge.mean()))
    if min(shares) >= COVERS or (min(shares) >= 0.5 and min(borders) >= BORDER):
        return f"covers {100 * np.median(shares):.0f} % of every image: is it the background, with 0 for the structure?"
    inverted = [
        k for k, share, border in zip(present, shares, borders, strict=True) if share >= 0.5 and border >= BORDER
    ]
    usual = [share for share, border in zip(shares, borders, strict=True) if share < 0.5 and border <= 1 - BORDER]
    if not inverted or not usual:
        return ""
    rest = 1 - float(np.median([share for share, border in zip(shares, borders, strict=True) if border >= BORDER]))
    if not np.median(usual) / SIMILAR <= rest <= SIMILAR * np.median(usual):
        return ""
    names = ", ".join(support.names[k] for k in inverted[:5]) + (
        f" and {len(inverted) - 5} more" if len(inverted) > 5 else ""
    )
    return f"covers the border of {names}, but not of the others: are structure and background exchanged there?"


def _turned(masks: np.ndarray, support: Support, present: Sequence[int]) -> str:
    """A turn after which the outlines lie on edges of the images in nearly all examples."""
    if len(present) < MIN_EXAMPLES:
        return ""
    votes: Counter[str] = Counter()
    for k in present:
        rows, columns = np.gradient(support.images[k])
        steps = np.hypot(rows, columns)
        own = _contrast(masks[k], steps)
        gains = {name: _contrast(turn(masks[k]), steps) for name, turn in TURNS.items()}
        best = max(gains, key=lambda name: gains[name])
        if gains[best] > TURN_GAIN * own:
            votes[best] += 1
    if votes and votes.most_common(1)[0][1] >= TURN_VOTES * len(present):
        name, count = votes.most_common(1)[0]
        return f"fits {count} of {len(present)} images better when {name}: save images and labels in one direction"
    return ""


def _contrast(mask: np.ndarray, steps: np.ndarray) -> float:
    """Mean step of the image on the outline of a mask."""
    rows, columns = np.gradient(mask.astype(np.float32))
    outline = (rows != 0) | (columns != 0)
    return float(steps[outline].mean()) if outline.any() else 0.0
