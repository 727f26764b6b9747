"""The doctor of a support set: leave-one-out Dice, and which examples look wrong, before anything is predicted.

Each example is segmented by the others (of other subjects, where they are known) and its label is compared with what
they find. A label that does not fit is held against its own complement, its shifted self, the other labels and the
labels of the other examples; what fits best says which mistake it is likely to be.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from tqdm import tqdm

from universeg_jax.errors import UserError
from universeg_jax.evaluation.intervals import CaseScores, interval
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.prediction.support import Support, case_names
from universeg_jax.prediction.warnings import appearance

SAME = 0.004  # mean absolute difference of two pictures in [0, 1] below which they are one
ODD = 6.0  # times the usual distance (median of the nearest ones) of grey values
FEW_SUBJECTS = 5
MISFIT = 0.75  # a label fits badly below this share of the median overlap,
SPREADS = 3.0  # and without an explanation only where it is so many robust standard deviations below the median,
UNEXPLAINED = 0.6  # and below this share of it: a slice at an organ's end is rare, not wrong
ALIKE = 0.98  # Dice of two labels of different pictures from which one is taken for a copy
GAIN = 0.15  # in Dice, by which another explanation must be better
SHIFT = 0.06  # of the side: a smaller one is not called a shift
DRAWS = 8  # random halves of the others, by which an example's influence is measured
CURVE_DRAWS = 3
Segment = Callable[[np.ndarray], np.ndarray]  # rows [N, K, S] → probabilities [N, L, 128, 128] of all examples


@dataclass(frozen=True)
class Finding:
    """Something to look at."""

    example: str  # its name; "" for the whole set
    kind: str  # "empty" | "inverted" | "shifted" | "swapped" | "another's label" | "misfit" | "duplicate" | …
    message: str


def check(
    predictor: Predictor,
    support: Support,
    support_size: int = 64,
    thorough: bool = True,
    progress: bool = False,
    unusable: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """{"dice", "ci_low", "ci_high", "examples": [...], "findings": [...], "curve": [...]}; Dice in [0, 1].

    `thorough`: also each example's influence and the learning curve, twenty times the work. `unusable`: cases that
    are not in the support, and why. Raises UserError for fewer than two pictures or volumes.
    """
    others = others_of(support)
    fewest = min(map(len, others))
    size = min(fewest, support_size)
    smaller = [s for s in (1 << k for k in range(10)) if thorough and s < size]  # of the learning curve
    halves = DRAWS if thorough and fewest > 2 else 0
    rng = np.random.default_rng(0)
    total = len(support) * (1 + halves + CURVE_DRAWS * len(smaller))
    segmenter = predictor.segmenter(support)
    with tqdm(total=total, desc="check", unit="image", leave=False, disable=not progress) as bar:

        def segment(rows: np.ndarray) -> np.ndarray:
            return segmenter.by_rows(support.images, rows, bar.update)

        probabilities = segment(draw(others, size, 1, rng))
        influence = influences(segment, support, others, halves, rng)
        curve = learning_curve(segment, support, others, smaller, rng)
    dice = scores(probabilities, support)
    findings = [
        *(Finding(name, "unusable", why) for name, why in (unusable or {}).items()),
        *find_sets(support),
        *find_lost(support),
        *find_duplicates(support),
        *find_odd(support),
        *find_mistakes(probabilities, support),
    ]
    estimate = interval(scored_cases(dice, support))
    return {
        "dice": estimate.overall.mean,
        "ci_low": estimate.overall.low,
        "ci_high": estimate.overall.high,
        "subjects": len(set(support.subjects)),
        "examples": [
            {
                "name": name,
                "dice": {str(label): _number(dice[j, i]) for j, label in enumerate(support.labels)},
                "influence": _number(influence[i]),
            }
            for i, name in enumerate(support.names)
        ],
        "findings": [asdict(f) for f in [*findings, *find_harmful(influence, support)]],
        "curve": [*curve, {"support_size": size, "dice": float(np.nanmean(dice))}],
    }


def others_of(support: Support) -> list[np.ndarray]:
    """For each example the rows of other subjects; of other pictures or volumes where there is one subject alone."""
    subjects = np.array(support.subjects)
    if len(set(subjects)) == 1:
        subjects = np.array(case_names(support))
    if len(set(subjects)) == 1:
        raise UserError(
            f"{subjects[0]} alone: at least two pictures or volumes are needed to hold one against the others"
        )
    return [np.flatnonzero(subjects != subject) for subject in subjects]


def draw(others: Sequence[np.ndarray], size: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Rows [N, draws, size] of others, without replacement within a draw."""
    return np.stack([[rng.choice(rows, size, replace=False) for _ in range(draws)] for rows in others])


def scores(probabilities: np.ndarray, support: Support) -> np.ndarray:
    """Dice [L, N] of predictions [N, L, 128, 128] against the labels as they are; NaN where a label is empty."""
    found, truth = probabilities.swapaxes(0, 1) >= 0.5, support.masks > 0
    total = found.sum((2, 3)) + truth.sum((2, 3))
    return np.where(truth.any((2, 3)), 2 * (found & truth).sum((2, 3)) / np.maximum(total, 1), np.nan)


def overlap(p: np.ndarray, mask: np.ndarray) -> float:
    """Soft Dice of probabilities with a mask: 2 Σ p m / (Σ p + Σ m)."""
    return float(2 * (p * mask).sum() / max(p.sum() + mask.sum(), 1e-9))


def find_sets(support: Support) -> list[Finding]:
    count = len(set(support.subjects))
    if count >= FEW_SUBJECTS:
        return []
    message = f"{count} subjects: with so few, more help more than anything else"
    if count == 1 and len(set(case_names(support))) > 1:
        message = (
            "one subject, the name before the last _: where they are several, meta.json can say so (docs/own-data.md)"
        )
    return [Finding("", "few subjects", message)]


def find_lost(support: Support) -> list[Finding]:
    """Labels of which nothing is left at the size that the network sees."""
    size = support.masks.shape[-1]
    lost = [label for label, masks in zip(support.labels, support.masks, strict=True) if not masks.any()]
    message = f"nothing of it is left at {size}x{size} in any example, so small or thin it is; see --tiles of predict"
    return [Finding("", "lost", f"label {label}: {message}") for label in lost]


def find_duplicates(support: Support) -> list[Finding]:
    """Pictures that occur twice; two slices of one volume may be alike, and slices where nothing is to be seen are."""
    small = support.images.reshape(len(support), 32, 4, 32, 4).mean((2, 4)).reshape(len(support), -1)
    close = cdist(small, small, "cityblock") < SAME * small.shape[1]
    cases, shows = np.array(case_names(support)), support.images.std((1, 2)) > SAME
    close &= (cases[:, None] != cases[None]) & shows[:, None]
    return [
        Finding(support.names[i], "duplicate", f"the same picture as {support.names[j]}; remove one")
        for i, j in zip(*np.nonzero(np.tril(close, -1)), strict=True)
    ]


def find_odd(support: Support) -> list[Finding]:
    """Grey values unlike those of all others: another scanner, stain or contrast, or an inverted picture."""
    if len(support) < 4:
        return []
    looks = appearance(support.images)
    apart = np.abs(looks[:, None] - looks[None]).mean((2, 3)) + np.eye(len(looks)) * 9
    nearest = apart.min(1)
    limit = max(ODD * float(np.median(nearest)), 0.08)
    return [
        Finding(
            support.names[i], "odd intensities", f"grey values unlike all others ({nearest[i]:.3f} from the nearest)"
        )
        for i in np.flatnonzero(nearest > limit)
    ]


def find_mistakes(probabilities: np.ndarray, support: Support) -> list[Finding]:
    """Labels that do not fit what the other examples find; at most one finding an example."""
    findings = []
    fits = np.array(
        [[overlap(p[j], m) for p, m in zip(probabilities, masks, strict=True)] for j, masks in enumerate(support.masks)]
    )
    present = support.masks.any((2, 3))
    typical = [np.median(fits[j][present[j]]) if present[j].any() else 0.0 for j in range(len(fits))]
    copies = find_copies(support, fits)
    for i, name in enumerate(support.names):
        if i in copies:
            findings.append(Finding(name, "another's label", f"its label is that of {support.names[copies[i]]}"))
            continue
        for j, label in enumerate(support.labels):
            if finding := _mistake(i, j, probabilities, support, fits, typical):
                which = f"label {label}: " if len(support.labels) > 1 else ""
                findings.append(Finding(name, finding[0], which + finding[1]))
                break
    return findings


def find_copies(support: Support, fits: np.ndarray) -> dict[int, int]:
    """Of two different pictures with one and the same label, the one that it fits worse → the other."""
    flat = support.masks.swapaxes(0, 1).reshape(len(support), -1).astype(np.float32)
    areas = flat.sum(1)
    alike = 2 * (flat @ flat.T) / np.maximum(areas[:, None] + areas[None], 1)
    pairs = [(int(i), int(j)) for i, j in zip(*np.nonzero(np.tril(alike >= ALIKE, -1)), strict=True)]
    cases, fit = case_names(support), fits.mean(0)
    return dict(
        (i, j) if fit[i] < fit[j] else (j, i)
        for i, j in pairs
        if cases[i] != cases[j] and np.abs(support.images[i] - support.images[j]).mean() >= SAME
    )


def _mistake(
    i: int, j: int, probabilities: np.ndarray, support: Support, fits: np.ndarray, typical: Sequence[float]
) -> tuple[str, str] | None:
    p, mask, fit = probabilities[i, j], support.masks[j, i], fits[j, i]
    if not mask.any():
        usual = support.masks[j].any((1, 2)).mean() >= 0.8
        found = (p >= 0.5).sum() >= 0.25 * np.median(support.masks[j].sum((1, 2)))
        return ("empty", "nothing is marked, but the others find it here") if usual and found else None
    if fit >= MISFIT * typical[j]:
        return None
    expected = f"(overlap {fit:.2f} with what the others find, usually {typical[j]:.2f})"
    explanations = [("inverted", overlap(p, 1 - mask), "object and background are exchanged")]
    for k, other in enumerate(support.labels):
        if k != j:
            swapped = (overlap(p, support.masks[k, i]) + overlap(probabilities[i, k], mask)) / 2
            explanations.append(("swapped", swapped, f"its ids look exchanged with label {other}"))
    shift, moved = best_shift(p, mask)
    if np.abs(shift).max() >= SHIFT * len(mask):
        explanations.append(
            ("shifted", moved, f"moved by {shift[1]:+d} across and {shift[0]:+d} down of {len(mask)} pixels")
        )
    borrowed = [overlap(probabilities[k, j], mask) if k != i else 0 for k in range(len(support))]
    best = int(np.argmax(borrowed))
    explanations.append(("another's label", borrowed[best], f"it fits {support.names[best]} better"))
    kind, value, message = max(explanations, key=lambda e: e[1])
    if value >= fit + GAIN:
        return kind, f"{message} {expected}"
    spread = 1.4826 * np.median(np.abs(fits[j][support.masks[j].any((1, 2))] - typical[j]))
    limit = min(typical[j] - SPREADS * spread, UNEXPLAINED * typical[j])
    return ("misfit", f"does not fit what the others find {expected}") if fit < limit else None


def best_shift(p: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, float]:
    """((down, across) by which the label lies off from the prediction, its overlap once moved back)."""
    size = 2 * len(mask)
    product = np.fft.irfft2(np.fft.rfft2(mask, (size, size)) * np.fft.rfft2(p, (size, size)).conj(), (size, size))
    shift = np.array(np.unravel_index(int(product.argmax()), product.shape))
    shift = np.where(shift >= len(mask), shift - size, shift)
    return shift, float(2 * product.max() / max(p.sum() + mask.sum(), 1e-9))


def scored_cases(dice: np.ndarray, support: Support) -> CaseScores:
    """Of Dice [labels, examples] those that are numbers: a label is a task."""
    label, example = np.nonzero(np.isfinite(dice))
    tasks, subjects = ([names[i] for i in of] for names, of in ((support.labels, label), (support.subjects, example)))
    return CaseScores(["support"] * len(label), tasks, subjects, dice[label, example])


def influences(
    segment: Segment, support: Support, others: Sequence[np.ndarray], draws: int, rng: np.random.Generator
) -> np.ndarray:
    """[N] change in the Dice of the others where an example is among their support: mean over random halves.

    NaN where it is not clear of chance (twice the standard error), and without draws.
    """
    if not draws:
        return np.full(len(support), np.nan)
    rows = draw(others, max(1, min(map(len, others)) // 2), draws, rng)
    gains = np.full((len(support), draws), np.nan)
    for d in range(draws):
        found = scores(segment(rows[:, d : d + 1]), support)
        gains[:, d] = np.nanmean(found, 0) if found.shape[0] > 1 else found[0]
    gains -= np.nanmean(gains, 1, keepdims=True)
    result = np.full(len(support), np.nan)
    for i in range(len(support)):
        inside = (rows == i).any(2)
        able = np.array([i in o for o in others])[:, None] & np.isfinite(gains)
        with_it, without = gains[inside & able], gains[~inside & able]
        if len(with_it) > 3 and len(without) > 3:
            change = with_it.mean() - without.mean()
            error = np.sqrt(with_it.var(ddof=1) / len(with_it) + without.var(ddof=1) / len(without))
            result[i] = change if abs(change) > 2 * error else np.nan
    return result


def find_harmful(influence: np.ndarray, support: Support) -> list[Finding]:
    return [
        Finding(
            support.names[i],
            "harmful",
            f"others are found worse where it is in their support ({100 * change:+.1f} Dice)",
        )
        for i, change in enumerate(influence)
        if np.isfinite(change) and change < -0.02
    ]


def learning_curve(
    segment: Segment, support: Support, others: Sequence[np.ndarray], sizes: Sequence[int], rng: np.random.Generator
) -> list[dict[str, float]]:
    """[{"support_size", "dice"}], the mean of a few draws for each size."""
    return [
        {
            "support_size": size,
            "dice": float(
                np.nanmean([scores(segment(draw(others, size, 1, rng)), support) for _ in range(CURVE_DRAWS)])
            ),
        }
        for size in sizes
    ]


def _number(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
