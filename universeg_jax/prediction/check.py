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
from universeg_jax.prediction.check_curve import (
    SegmentByRows,
    compare_sizes,
    dice_scores,
    find_harmful,
    learning_curve,
    measure_influence,
    sizes_to_compare,
)
from universeg_jax.prediction.options import default_support_size
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.prediction.selection import select_examples
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
BORROWED = 0.9  # share of the label's median Dice that another image's prediction must reach to be taken for its own


@dataclass(frozen=True)
class Finding:
    """A possible mistake."""

    example: str  # name; "" for the whole set
    kind: str  # "empty" | "inverted" | "shifted" | "swapped" | "another's label" | "misfit" | "duplicate" | …
    message: str


def check(
    predictor: Predictor,
    support: Support,
    support_size: int = 0,
    thorough: bool = True,
    progress: bool = False,
    unusable: Mapping[str, str] | None = None,
    named: bool = True,
    on_first: Callable[[dict[str, Any]], Any] = lambda result: None,
) -> dict[str, Any]:
    """{"dice", "ci_low", "ci_high", "subjects", "examples": [...], "findings": [...], "curve": [...]}; Dice in [0, 1].

    Each example is segmented with `support_size` of the others (0: as many as `predict` takes), chosen as `predict`
    chooses. `thorough` adds the influence of each example, the learning curve and "support_sizes" (check_curve.py), for
    ten times the work; `on_first` gets the result before that. `unusable`: cases missing from the support set, and why.
    `named`: False where no names of the ids are known. Raises UserError for fewer than two images or volumes.
    """
    others = rows_of_others(support)
    size = min(min(map(len, others)), support_size or default_support_size(support))
    segment = _segmenter(predictor, support, progress)
    probabilities = segment(nearest_others(support, others, size), "leave one out")
    dice = dice_scores(probabilities, support)
    findings = [
        *(Finding(name, "unusable", why) for name, why in (unusable or {}).items()),
        *(Finding("", kind, message) for kind, message in find_shared_mistakes(support, named)),
        *find_few_subjects(support),
        *find_vanished_labels(support),
        *find_duplicates(support),
        *find_unusual_intensities(support),
        *find_label_mistakes(probabilities, support),
    ]
    estimate = interval(to_case_scores(dice, support)).overall
    result = {
        "dice": estimate.mean,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
        "subjects": len(set(support.subjects)),
        "examples": [
            {
                "name": name,
                "dice": {str(label): _json_number(dice[j, i]) for j, label in enumerate(support.labels)},
                "influence": None,
            }
            for i, name in enumerate(support.names)
        ],
        "findings": [asdict(finding) for finding in findings],
        "curve": [{"support_size": size, "dice": float(np.nanmean(dice))}],
    }
    if not thorough:
        return result
    on_first(result)
    return result | look_further(result, support, others, size, dice, segment)


def look_further(
    result: Mapping[str, Any],
    support: Support,
    others: Sequence[np.ndarray],
    size: int,
    dice: np.ndarray,
    segment: SegmentByRows,
) -> dict[str, Any]:
    """What the influence of the examples, the learning curve and the support sizes add to the result."""
    rng = np.random.default_rng(0)
    rows = {n: nearest_others(support, others, n) for n in sizes_to_compare(others, size)}
    sizes = [*compare_sizes(segment, support, rows, dice), {"support_size": size, "dice": float(np.nanmean(dice))}]
    curve = learning_curve(segment, support, others, size, rng)
    influence = measure_influence(segment, support, others, size, rng)
    harmful = [asdict(Finding(support.names[i], "harmful", message)) for i, message in find_harmful(influence)]
    return {
        "examples": [
            {**example, "influence": _json_number(influence[i])} for i, example in enumerate(result["examples"])
        ],
        "findings": [*result["findings"], *harmful],
        "curve": [*curve, *result["curve"]],
        "support_sizes": sorted(sizes, key=lambda each: each["support_size"]),
    }


def _segmenter(predictor: Predictor, support: Support, progress: bool) -> SegmentByRows:
    segmenter = predictor.segmenter(support)

    def segment(rows: np.ndarray, what: str) -> np.ndarray:
        with tqdm(total=len(rows), desc=what, unit="example", leave=False, disable=not progress) as bar:
            return segmenter.by_rows(support.images, rows, bar.update)

    return segment


def is_other_subject(support: Support, i: int) -> np.ndarray:
    """Bool [N]: examples of other subjects than example i; of other images or volumes if there is only one subject."""
    subjects = support.subjects if len(set(support.subjects)) > 1 else case_names(support)
    return np.array([subject != subjects[i] for subject in subjects])


def rows_of_others(support: Support) -> list[np.ndarray]:
    """For each example, the rows of other subjects; of other images or volumes if there is only one subject."""
    cases = case_names(support)
    if len(set(support.subjects)) == len(set(cases)) == 1:
        raise UserError(f"the support set holds only {cases[0]}: a check needs at least two images or volumes")
    return [np.flatnonzero(is_other_subject(support, i)) for i in range(len(support))]


def nearest_others(support: Support, others: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Rows [N, 1, size] of the others that `predict` would choose for each example."""
    places = [None] * len(support) if support.positions is None else support.positions.tolist()
    return np.stack(
        [
            select_examples(support, query, place, size, 1, "nearest", 0, rows)
            for query, place, rows in zip(support.images, places, others, strict=True)
        ]
    )


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
    """Labels that disagree with the prediction [N, L, 128, 128] from other examples; one finding per example.

    Only pixels that have a label count.
    """
    findings = []
    fits = dice_on_host(probabilities.swapaxes(0, 1) * support.known, support.masks)  # soft Dice [L, N]
    told = 100 * dice_scores(probabilities, support)  # as everywhere else
    present = np.asarray(support.masks.any((2, 3)))
    medians = [float(np.median(fit[rows])) if rows.any() else 0.0 for fit, rows in zip(fits, present, strict=True)]
    copies = find_copied_labels(support, fits)
    for i, name in enumerate(support.names):
        if i in copies:
            findings.append(Finding(name, "another's label", f"its label is that of {support.names[copies[i]]}"))
            continue
        for j, label in enumerate(support.labels):
            if mistake := _explain_label(i, j, probabilities, support, fits, medians, told[j]):
                prefix = f"label {label}: " if len(support.labels) > 1 else ""
                findings.append(Finding(name, mistake[0], prefix + mistake[1]))
                break
    return findings if support.positions is None else _without_scattered(findings, support)


def _without_scattered(findings: Sequence[Finding], support: Support) -> list[Finding]:
    """Leaves out labels of other volumes that fewer than half of a volume's labelled slices seem to have.

    A label file is exchanged whole. At the ends of a structure its outlines of several heights are alike.
    """
    cases, marked = np.array(case_names(support)), support.masks.any((0, 2, 3))
    suspects = {f.example for f in findings if f.kind == "another's label"}
    is_suspect = np.array([name in suspects for name in support.names])
    exchanged = {c for c in set(cases) if 2 * (is_suspect & (cases == c)).sum() >= (marked & (cases == c)).sum() > 0}
    case_of = dict(zip(support.names, cases, strict=True))
    return [f for f in findings if f.kind != "another's label" or case_of[f.example] in exchanged]


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
    i: int,
    j: int,
    probabilities: np.ndarray,
    support: Support,
    fits: np.ndarray,
    medians: Sequence[float],
    told: np.ndarray,
) -> tuple[str, str] | None:
    """(kind, message) if label j of example i disagrees with its prediction; else None. `told`: Dice (%) [N]."""
    p, mask, fit = probabilities[i, j] * support.known_of(i), support.masks[j, i], float(fits[j, i])
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
    explanations = _explanations(i, j, probabilities, support, medians[j])
    kind, best_fit, message = max(explanations, key=lambda explanation: explanation[1])
    of = "the prediction from the others"
    numbers = f"{told[i]:.0f}", f"median {np.nanmedian(told):.0f}"
    if best_fit >= fit + MIN_GAIN:
        return kind, f"{message} (Dice {numbers[0]} with {of}, {numbers[1]})"
    deviation = 1.4826 * np.median(np.abs(fits[j][support.masks[j].any((1, 2))] - medians[j]))
    limit = min(medians[j] - MISFIT_DEVIATIONS * deviation, UNEXPLAINED * medians[j])
    return ("misfit", f"does not match {of} (Dice {numbers[0]}, {numbers[1]})") if fit < limit else None


def _explanations(
    i: int, j: int, probabilities: np.ndarray, support: Support, median: float
) -> list[tuple[str, float, str]]:
    """(kind, soft Dice after correcting such a mistake, message) for each kind of mistake in label j of example i.

    Neighbouring slices of one patient are alike, so a label is taken for another's only if that is another subject's,
    and fits it nearly as well as labels usually do.
    """
    known = support.known_of(i)
    p, mask = probabilities[i, j] * known, support.masks[j, i]
    explanations = [("inverted", float(dice_on_host(p, (1 - mask) * known)), "structure and background are exchanged")]
    for k, other in enumerate(support.labels):
        if k != j:
            swapped = (dice_on_host(p, support.masks[k, i]) + dice_on_host(probabilities[i, k] * known, mask)) / 2
            explanations.append(("swapped", float(swapped), f"its id is probably exchanged with label {other}"))
    (down, right), shifted = best_shift(p, mask)
    if max(abs(down), abs(right)) >= MIN_SHIFT * len(mask):
        explanations.append(("shifted", shifted, f"by {right:+d} right and {down:+d} down of {len(mask)} pixels"))
    borrowed = dice_on_host(probabilities[:, j] * known, mask)
    borrowed[~is_other_subject(support, i)] = 0
    nearest = int(np.argmax(borrowed))
    if borrowed[nearest] >= BORROWED * median:
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


def _json_number(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
