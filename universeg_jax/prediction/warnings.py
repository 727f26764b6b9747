"""When not to trust a mask: what a query and its prediction show that no example of the support does."""

from dataclasses import dataclass

import numpy as np

from universeg_jax.prediction.support import Support

BINS = 32
UNLIKE = 2.5  # times the largest distance between an example and its nearest fellow
LEAST = 0.04  # distance that is never remarked on, where all examples are nearly equal
LOW_CONFIDENCE = 0.6  # expected Dice
AREA = 4.0  # times larger or smaller than any example


def appearance(images: np.ndarray) -> np.ndarray:
    """[N, 128, 128] in [0, 1] → [N, 2, 32] cumulative histograms of intensities and of the steps between neighbours.

    Their mean absolute difference is the earth mover's distance of two images' grey values, in [0, 1]: what a scanner
    or a stain changes, and anatomy hardly does.
    """
    steps = np.abs(np.diff(images, axis=2)) * 4  # most steps are small
    both = (images.reshape(len(images), -1), steps.reshape(len(images), -1).clip(0, 1))
    counts = [[np.histogram(row, BINS, (0, 1))[0] / row.size for row in rows] for rows in both]
    return np.cumsum(np.array(counts), -1).transpose(1, 0, 2)


@dataclass(frozen=True)
class Reference:
    """What the support looks like."""

    appearances: np.ndarray  # [N, 2, 32]
    usual: float  # the largest distance between an example and its nearest fellow
    areas: np.ndarray  # [L, N] pixels at 128x128


def reference(support: Support) -> Reference:
    """Made once for a support set."""
    looks = appearance(support.images)
    apart = np.abs(looks[:, None] - looks[None]).mean((2, 3)) + np.eye(len(looks)) * 9
    usual = float(apart.min(1).max()) if len(looks) > 1 else 0.0
    return Reference(looks, usual, support.masks.sum((2, 3), dtype=np.int64))


def doubts(known: Reference, slices: np.ndarray, probabilities: np.ndarray, labels: tuple[int, ...]) -> tuple[str, ...]:
    """Remarks on a prediction [Q, L, 128, 128] of preprocessed pictures [Q, 128, 128]; () if there is none."""
    found = []
    middle = slices[len(slices) // 3 : len(slices) - len(slices) // 3]  # the ends of a volume show little
    distance = float(np.median(np.abs(appearance(middle)[:, None] - known.appearances[None]).mean((2, 3)).min(1)))
    limit = max(UNLIKE * known.usual, LEAST)
    if distance > limit:
        found.append(
            f"looks unlike the support: another modality or contrast? (distance of grey values {distance:.3f}, "
            f"above {limit:.3f})"
        )
    for i, label in enumerate(labels):
        p = probabilities[:, i]
        mask = p >= 0.5
        if not mask.any():
            found.append(f"label {label}: nothing found")
            continue
        expected = float(2 * p[mask].sum() / (p.sum() + mask.sum()))
        if expected < LOW_CONFIDENCE:
            found.append(f"label {label}: low confidence ({expected:.2f})")
        areas = known.areas[i][known.areas[i] > 0]
        if len(slices) == 1 and len(areas) and not areas.min() / AREA <= mask.sum() <= areas.max() * AREA:
            size = "larger" if mask.sum() > areas.max() else "smaller"
            found.append(f"label {label}: more than {AREA:g} times {size} than in any example")
    return tuple(found)
