"""More about a support set than its leave-one-out Dice: which number of examples is best, what each of them does.

All of it segments the examples again and again, so `check` does it only when asked.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from universeg_jax.evaluation.metrics import dice_on_host
from universeg_jax.prediction.support import Support

HARMFUL = -0.02  # change in the Dice of other examples
INFLUENCE_SAMPLES = 8  # random halves of the other examples
CURVE_SAMPLES = 3
SIZES = (8, 16, 32, 64)  # numbers of examples that are compared
SegmentByRows = Callable[[np.ndarray, str], np.ndarray]  # (rows [N, K, S], what) → [N, L, 128, 128] of all examples


def sample_supports(others: Sequence[np.ndarray], size: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Rows [N, samples, size] of other examples, without replacement within a sample."""
    return np.stack([[rng.choice(rows, size, replace=False) for _ in range(samples)] for rows in others])


def dice_scores(probabilities: np.ndarray, support: Support) -> np.ndarray:
    """Dice [L, N] of predictions [N, L, 128, 128] with the labels, in the pixels that have one; NaN without any."""
    prediction, truth = (probabilities.swapaxes(0, 1) >= 0.5) & support.known, support.masks > 0
    return np.where(truth.any((2, 3)), dice_on_host(prediction, truth), np.nan)


def measure_influence(
    segment: SegmentByRows, support: Support, others: Sequence[np.ndarray], size: int, rng: np.random.Generator
) -> np.ndarray:
    """[N] changes in the Dice of other examples due to the presence of an example in their support set.

    Means over random halves of the others, of at most `size` examples. NaN below twice the standard error, and for
    fewer than three others.
    """
    fewest, samples = min(map(len, others)), INFLUENCE_SAMPLES
    if fewest < 3:
        return np.full(len(support), np.nan)
    rows = sample_supports(others, min(max(1, fewest // 2), size), samples, rng)
    gains = np.full((len(support), samples), np.nan)
    for k in range(samples):
        dice = dice_scores(segment(rows[:, k : k + 1], f"influence {k + 1}/{samples}"), support)
        gains[:, k] = np.nanmean(dice, 0) if dice.shape[0] > 1 else dice[0]
    gains -= np.nanmean(gains, 1, keepdims=True)
    influence = np.full(len(support), np.nan)
    for i in range(len(support)):
        is_included = (rows == i).any(2)
        is_eligible = np.array([i in other_rows for other_rows in others])[:, None] & np.isfinite(gains)
        included, excluded = gains[is_included & is_eligible], gains[~is_included & is_eligible]
        if len(included) > 3 and len(excluded) > 3:
            change = included.mean() - excluded.mean()
            error = np.sqrt(included.var(ddof=1) / len(included) + excluded.var(ddof=1) / len(excluded))
            influence[i] = change if abs(change) > 2 * error else np.nan
    return influence


def find_harmful(influence: np.ndarray) -> list[tuple[int, str]]:
    """(row, message) of examples that lower the Dice of others."""
    return [
        (i, f"lowers the Dice of other examples ({100 * change:+.1f} percentage points)")
        for i, change in enumerate(influence)
        if np.isfinite(change) and change < HARMFUL
    ]


def learning_curve(
    segment: SegmentByRows, support: Support, others: Sequence[np.ndarray], largest: int, rng: np.random.Generator
) -> list[dict[str, float]]:
    """[{"support_size", "dice"}] of powers of two below `largest`: the mean over a few random samples."""
    curve = []
    for size in (1 << k for k in range((largest - 1).bit_length())):
        samples = [sample_supports(others, size, 1, rng) for _ in range(CURVE_SAMPLES)]
        dice = [
            dice_scores(segment(rows, f"{size} examples, {k + 1}/{CURVE_SAMPLES}"), support)
            for k, rows in enumerate(samples)
        ]
        curve.append({"support_size": size, "dice": float(np.nanmean(dice))})
    return curve


def sizes_to_compare(others: Sequence[np.ndarray], size: int) -> list[int]:
    """Numbers of examples to compare with `size`: SIZES, up to all that every example has as others."""
    fewest = min(map(len, others))
    return sorted({min(fewest, each) for each in SIZES} - {size})


def compare_sizes(
    segment: SegmentByRows, support: Support, rows: Mapping[int, np.ndarray], before: np.ndarray
) -> list[dict[str, Any]]:
    """[{"support_size", "dice", "gain", "error"}] of each size → rows [N, 1, size].

    The gain over the Dice `before` [L, N] is a mean over examples and labels, with its standard error.
    """
    found = []
    for size, chosen in rows.items():
        dice = dice_scores(segment(chosen, f"{size} nearest examples"), support)
        gains = (dice - before)[np.isfinite(dice - before)]
        error = float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else float("inf")
        means = {"dice": float(np.nanmean(dice)), "gain": float(gains.mean()), "error": error}
        found.append({"support_size": size, **means})
    return found
