"""Check a support set before predicting with it: leave-one-out Dice, and examples that look wrong.

Each example is segmented with the others, of other subjects where these are known, and its label is compared with the
prediction. If the two disagree, the label is also compared after inverting it, shifting it, exchanging it with another
id and replacing it by another example's label; the best match suggests the kind of mistake.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from tqdm import tqdm

from universeg_jax.errors import UserError
from universeg_jax.evaluation.intervals import CaseScores, interval
from universeg_jax.evaluation.metrics import dice_on_host
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.prediction.support import Support, case_names
from universeg_jax.prediction.understood import find_shared_mistakes
from universeg_jax.prediction.warnings import appearance, nearest_distances

SAME_IMAGE = 0.004  # mean absolute difference, of images in [0, 1], below which two are duplicates
UNUSUAL_RATIO = 6.0  # to the median distance between an example and its nearest other example
MIN_UNUSUAL_DISTANCE = 0.08
FEW_SUBJECTS = 5
PREDICTED = 0.1  # median Dice of a label below which predictions say nothing about it
MISFIT = 0.75  # share of the label's median Dice; a label is suspicious below this
MISFIT_DEVIATIONS = 3.0  # without an explanation, also this many robust standard deviations below the median,
UNEXPLAINED = 0.6  # and below this share of it, because a slice at the end of an organ is rare, not wrong
SAME_LABEL = 0.98  # Dice of the labels of two images from which one is taken for a copy
MIN_GAIN = 0.15  # in Dice, of an explanation over the label as it is
MIN_SHIFT = 0.06  # share of the image side
HARMFUL = -0.02  # change in the Dice of other examples
INFLUENCE_SAMPLES = 8  # random halves of the other examples
CURVE_SAMPLES = 3
SegmentByRows = Callable[[np.ndarray], np.ndarray]  # rows [N, K, S] → probabilities [N, L, 128, 128] of all examples


@dataclass(frozen=True)
class Finding:
    """A possible mistake."""

    example: str  # name; "" for the whole set
    kind: str  # "empty" | "inverted" | "shifted" | "swapped" | "another's label" | "misfit" | "duplicate" | …
    message: str


def check(
    predictor: Predictor,
    support: Support,
    support_size: int = 64,
    thorough: bool = True,
    progress: bool = False,
    unusable: Mapping[str, str] | None = None,
    named: bool = True,
) -> dict[str, Any]:
    """{"dice", "ci_low", "ci_high", "subjects", "examples": [...], "findings": [...], "curve": [...]}; Dice in [0, 1].

    `thorough` adds the influence of each example and the learning curve, for twenty times the work. `unusable`: cases
    missing from the support set, and why. `named`: False where no names of the ids are known. Raises UserError for
    fewer than two images or volumes.
    """
    others = rows_of_others(support)
    fewest = min(map(len, others))
    size = min(fewest, support_size)
    smaller = [s for s in (1 << k for k in range(10)) if thorough and s < size]  # sizes on the learning curve
    halves = INFLUENCE_SAMPLES if thorough and fewest > 2 else 0
    rng = np.random.default_rng(0)
    total = len(support) * (1 + halves + CURVE_SAMPLES * len(smaller))
    segmenter = predictor.segmenter(support)
    with tqdm(total=total, desc="check", unit="image", leave=False, disable=not progress) as bar:

        def segment(rows: np.ndarray) -> np.ndarray:
            return segmenter.by_rows(support.images, rows, bar.update)

        probabilities = segment(sample_supports(others, size, 1, rng))
        influence = measure_influence(segment, support, others, halves, rng)
        curve = learning_curve(segment, support, others, smaller, rng)
    dice = dice_scores(probabilities, support)
    findings = [
        *(Finding(name, "unusable", why) for name, why in (unusable or {}).items()),
        *(Finding("", kind, message) for kind, message in find_shared_mistakes(support, named)),
        *find_few_subjects(support),
        *find_vanished_labels(support),
        *find_duplicates(support),
        *find_unusual_intensities(support),
        *find_label_mistakes(probabilities, support),
        *find_harmful(influence, support),
    ]
    estimate = interval(to_case_scores(dice, support)).overall
    return {
        "dice": estimate.mean,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
        "subjects": len(set(support.subjects)),
        "examples": [
            {
                "name": name,
                "dice": {str(label): _json_number(dice[j, i]) for j, label in enumerate(support.labels)},
                "influence": _json_number(influence[i]),
            }
            for i, name in enumerate(support.names)
        ],
        "findings": [asdict(finding) for finding in findings],
        "curve": [*curve, {"support_size": size, "dice": float(np.nanmean(dice))}],
    }


def rows_of_others(support: Support) -> list[np.ndarray]:
    """For each example, the rows of other subjects; of other images or volumes if there is only one subject."""
    subjects = np.array(support.subjects)
    if len(set(subjects)) == 1:
        subjects = np.array(case_names(support))
    if len(set(subjects)) == 1:
        raise UserError(f"the support set holds only {subjects[0]}: a check needs at least two images or volumes")
    return [np.flatnonzero(subjects != subject) for subject in subjects]


def sample_supports(others: Sequence[np.ndarray], size: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Rows [N, samples, size] of other examples, without replacement within a sample."""
    return np.stack([[rng.choice(rows, size, replace=False) for _ in range(samples)] for rows in others])


def dice_scores(probabilities: np.ndarray, support: Support) -> np.ndarray:
    """Dice [L, N] of predictions [N, L, 128, 128] with the labels; NaN where a label is empty."""
    prediction, truth = probabilities.swapaxes(0, 1) >= 0.5, support.masks > 0
    return np.where(truth.any((2, 3)), dice_on_host(prediction, truth), np.nan)


def find_few_subjects(support: Support) -> list[Finding]:
    count = len(set(support.subjects))
    if count >= FEW_SUBJECTS:
        return []
    message = f"{count} subjects: labels of more subjects would help most"
    if count == 1 and len(set(case_names(support))) > 1:
        message = "one subject, by the name before the last _; meta.json can name several (docs/own-data.md)"
    return [Finding("", "few subjects", message)]


def find_vanished_labels(support: Support) -> list[Finding]:
    """Labels that are empty in every example at the size the network sees."""
    size = support.masks.shape[-1]
    vanished = [label for label, masks in zip(support.labels, support.masks, strict=True) if not masks.any()]
    message = f"too small or thin for {size}x{size} pixels in every example; try predict --tiles"
    return [Finding("", "lost", f"label {label}: {message}") for label in vanished]


def find_duplicates(support: Support) -> list[Finding]:
    """Images that occur twice. Slices of one volume may be alike, and so may slices without content."""
    small = support.images.reshape(len(support), 32, 4, 32, 4).mean((2, 4)).reshape(len(support), -1)
    same = cdist(small, small, "cityblock") < SAME_IMAGE * small.shape[1]
    cases, has_content = np.array(case_names(support)), support.images.std((1, 2)) > SAME_IMAGE
    same &= (cases[:, None] != cases[None]) & has_content[:, None]
    return [
        Finding(support.names[i], "duplicate", f"the same image as {support.names[j]}; remove one")
        for i, j in zip(*np.nonzero(np.tril(same, -1)), strict=True)
    ]


def find_unusual_intensities(support: Support) -> list[Finding]:
    """Intensities unlike those of all others: another scanner, stain or contrast, or an inverted image."""
    if len(support) < 4:
        return []
    nearest = nearest_distances(appearance(support.images))
    limit = max(UNUSUAL_RATIO * float(np.median(nearest)), MIN_UNUSUAL_DISTANCE)
    return [
        Finding(
            support.names[i],
            "odd intensities",
            f"intensities unlike those of all others ({nearest[i]:.3f} from the nearest, above {limit:.3f})",
        )
        for i in np.flatnonzero(nearest > limit)
    ]


def find_label_mistakes(probabilities: np.ndarray, support: Support) -> list[Finding]:
    """Labels that disagree with the prediction [N, L, 128, 128] from other examples; one finding per example."""
    findings = []
    fits = dice_on_host(probabilities.swapaxes(0, 1), support.masks)  # soft Dice [L, N]
    present = np.asarray(support.masks.any((2, 3)))
    medians = [float(np.median(fit[rows])) if rows.any() else 0.0 for fit, rows in zip(fits, present, strict=True)]
    copies = find_copied_labels(support, fits)
    for i, name in enumerate(support.names):
        if i in copies:
            findings.append(Finding(name, "another's label", f"its label is that of {support.names[copies[i]]}"))
            continue
        for j, label in enumerate(support.labels):
            if mistake := _explain_label(i, j, probabilities, support, fits, medians):
                prefix = f"label {label}: " if len(support.labels) > 1 else ""
                findings.append(Finding(name, mistake[0], prefix + mistake[1]))
                break
    return findings


def find_copied_labels(support: Support, fits: np.ndarray) -> dict[int, int]:
    """Pairs of different images with the same label: the row that it fits worse → the other row."""
    flat = support.masks.swapaxes(0, 1).reshape(len(support), -1).astype(np.float32)
    areas = flat.sum(1)
    dice = 2 * (flat @ flat.T) / np.maximum(areas[:, None] + areas[None], 1)
    pairs = [(int(i), int(j)) for i, j in zip(*np.nonzero(np.tril(dice >= SAME_LABEL, -1)), strict=True)]
    cases, fit = case_names(support), fits.mean(0)
    return dict(
        (i, j) if fit[i] < fit[j] else (j, i)
        for i, j in pairs
        if cases[i] != cases[j] and np.abs(support.images[i] - support.images[j]).mean() >= SAME_IMAGE
    )


def _explain_label(
    i: int, j: int, probabilities: np.ndarray, support: Support, fits: np.ndarray, medians: Sequence[float]
) -> tuple[str, str] | None:
    """(kind, message) if label j of example i disagrees with its prediction; else None."""
    p, mask, fit = probabilities[i, j], support.masks[j, i], float(fits[j, i])
    if not mask.any():
        is_usual = support.masks[j].any((1, 2)).mean() >= 0.8
        is_predicted = (p >= 0.5).sum() >= 0.25 * np.median(support.masks[j].sum((1, 2)))
        return (
            ("empty", "no pixel is labelled, but the other examples predict some")
            if is_usual and is_predicted
            else None
        )
    if fit >= MISFIT * medians[j] or medians[j] < PREDICTED:
        return None
    kind, best_fit, message = max(_explanations(i, j, probabilities, support), key=lambda explanation: explanation[1])
    numbers = f"(Dice {fit:.2f} with the prediction from the others, median {medians[j]:.2f})"
    if best_fit >= fit + MIN_GAIN:
        return kind, f"{message} {numbers}"
    deviation = 1.4826 * np.median(np.abs(fits[j][support.masks[j].any((1, 2))] - medians[j]))
    limit = min(medians[j] - MISFIT_DEVIATIONS * deviation, UNEXPLAINED * medians[j])
    return ("misfit", f"does not match the prediction from the others {numbers}") if fit < limit else None


def _explanations(i: int, j: int, probabilities: np.ndarray, support: Support) -> list[tuple[str, float, str]]:
    """(kind, soft Dice after correcting such a mistake, message) for each kind of mistake in label j of example i."""
    p, mask = probabilities[i, j], support.masks[j, i]
    explanations = [("inverted", float(dice_on_host(p, 1 - mask)), "structure and background are exchanged")]
    for k, other in enumerate(support.labels):
        if k != j:
            swapped = (dice_on_host(p, support.masks[k, i]) + dice_on_host(probabilities[i, k], mask)) / 2
            explanations.append(("swapped", float(swapped), f"its id is probably exchanged with label {other}"))
    (down, right), shifted = best_shift(p, mask)
    if max(abs(down), abs(right)) >= MIN_SHIFT * len(mask):
        explanations.append(
            ("shifted", shifted, f"shifted by {right:+d} right and {down:+d} down of {len(mask)} pixels")
        )
    borrowed = dice_on_host(probabilities[:, j], mask)
    borrowed[i] = 0
    nearest = int(np.argmax(borrowed))
    explanations.append(("another's label", float(borrowed[nearest]), f"it fits {support.names[nearest]} better"))
    return explanations


def best_shift(p: np.ndarray, mask: np.ndarray) -> tuple[tuple[int, int], float]:
    """((down, right) in pixels of a label [H, H] against its prediction, soft Dice after shifting it back)."""
    size = 2 * len(mask)
    product = np.fft.irfft2(np.fft.rfft2(mask, (size, size)) * np.fft.rfft2(p, (size, size)).conj(), (size, size))
    offsets = map(int, np.unravel_index(int(product.argmax()), product.shape))
    down, right = (n - size if n >= len(mask) else n for n in offsets)
    return (down, right), float(2 * product.max() / max(p.sum() + mask.sum(), 1e-9))


def to_case_scores(dice: np.ndarray, support: Support) -> CaseScores:
    """The finite entries of Dice [L, N], for intervals over subjects; each label is a task."""
    label, example = np.nonzero(np.isfinite(dice))
    tasks, subjects = [str(support.labels[j]) for j in label], [support.subjects[i] for i in example]
    return CaseScores(["support"] * len(label), tasks, subjects, dice[label, example])


def measure_influence(
    segment: SegmentByRows, support: Support, others: Sequence[np.ndarray], samples: int, rng: np.random.Generator
) -> np.ndarray:
    """[N] changes in the Dice of other examples due to the presence of an example in their support set.

    Means over random halves of the others. NaN below twice the standard error, and without samples.
    """
    if not samples:
        return np.full(len(support), np.nan)
    rows = sample_supports(others, max(1, min(map(len, others)) // 2), samples, rng)
    gains = np.full((len(support), samples), np.nan)
    for k in range(samples):
        dice = dice_scores(segment(rows[:, k : k + 1]), support)
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


def find_harmful(influence: np.ndarray, support: Support) -> list[Finding]:
    return [
        Finding(
            support.names[i], "harmful", f"lowers the Dice of other examples ({100 * change:+.1f} percentage points)"
        )
        for i, change in enumerate(influence)
        if np.isfinite(change) and change < HARMFUL
    ]


def learning_curve(
    segment: SegmentByRows,
    support: Support,
    others: Sequence[np.ndarray],
    sizes: Sequence[int],
    rng: np.random.Generator,
) -> list[dict[str, float]]:
    """[{"support_size", "dice"}]: for each size the mean over a few samples."""
    curve = []
    for size in sizes:
        dice = [dice_scores(segment(sample_supports(others, size, 1, rng)), support) for _ in range(CURVE_SAMPLES)]
        curve.append({"support_size": size, "dice": float(np.nanmean(dice))})
    return curve


def _json_number(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
