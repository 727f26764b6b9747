"""Reasons to distrust a mask: unusual intensities, low confidence, an empty mask or an unusual size."""

from dataclasses import dataclass

import numpy as np

from universeg_jax.prediction.result import Prediction
from universeg_jax.prediction.support import Support

BINS = 32
MAX_DISTANCE_RATIO = 2.5  # to the largest distance between an example and its nearest other example
MIN_DISTANCE = 0.06  # never warned about, for support sets whose examples are nearly equal
MIN_DISTANCE_OF_FEW = 0.1  # with fewer than FEW examples, which do not show how much images of the set differ
FEW = 4
MIN_CONFIDENCE = 0.6  # expected Dice
DECIMALS = 3  # of a confidence, in a warning and in predictions.csv
MAX_AREA_RATIO = 4.0  # to the areas in the support set


def appearance(images: np.ndarray) -> np.ndarray:
    """Cumulative histograms [N, 2, 32] of the intensities, and of their steps between columns, of [N, 128, 128].

    The mean absolute difference of two is the earth mover's distance, in [0, 1], of two images' intensities. It is
    sensitive to scanner, stain and contrast, and hardly to anatomy.
    """
    steps = np.abs(np.diff(images, axis=2)) * 4  # most steps are small
    values = (images.reshape(len(images), -1), steps.reshape(len(images), -1).clip(0, 1))
    counts = [[np.histogram(row, BINS, (0, 1))[0] / row.size for row in rows] for rows in values]
    return np.cumsum(np.array(counts), -1).transpose(1, 0, 2)


def appearance_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, M] distances in [0, 1] between appearances [N, 2, 32] and [M, 2, 32]."""
    return np.abs(a[:, None] - b[None]).mean((2, 3))


def nearest_distances(appearances: np.ndarray) -> np.ndarray:
    """[N] distances of each to the nearest other one; infinite for a single one."""
    distances = appearance_distances(appearances, appearances)
    np.fill_diagonal(distances, np.inf)
    return distances.min(1)


@dataclass(frozen=True)
class SupportStatistics:
    """Appearances and label areas of a support set."""

    appearances: np.ndarray  # [N, 2, 32]
    largest_distance: float  # between an example and its nearest other example
    areas: np.ndarray  # [L, N] pixels at 128x128; 0 where a part of the image has no label


def support_statistics(support: Support) -> SupportStatistics:
    appearances = appearance(support.images)
    largest = float(nearest_distances(appearances).max()) if len(support) > 1 else 0.0
    areas = support.masks.sum((2, 3), dtype=np.int64)
    if support.ignored is not None:
        areas = np.where(support.ignored.any((1, 2)), 0, areas)
    return SupportStatistics(appearances, largest, areas)


def find_warnings(
    statistics: SupportStatistics, slices: np.ndarray, probabilities: np.ndarray, prediction: Prediction
) -> tuple[str, ...]:
    """Warnings about one query's prediction; its `slices` [Q, 128, 128] got `probabilities` [Q, L, 128, 128]."""
    warnings = []
    middle = slices[len(slices) // 3 : len(slices) - len(slices) // 3]  # the end slices of a volume show little
    distance = float(np.median(appearance_distances(appearance(middle), statistics.appearances).min(1)))
    least = MIN_DISTANCE if len(statistics.appearances) >= FEW else MIN_DISTANCE_OF_FEW
    limit = max(MAX_DISTANCE_RATIO * statistics.largest_distance, least)
    if distance > limit:
        warnings.append(
            f"looks unlike the support: another modality or contrast? (intensity distance {distance:.3f}, "
            f"above {limit:.3f})"
        )
    for i, label in enumerate(prediction.labels):
        mask = probabilities[:, i] >= 0.5
        confidence = round(prediction.confidence(label), DECIMALS)
        if not confidence:
            warnings.append(f"label {label}: nothing found")
            continue
        if confidence < MIN_CONFIDENCE:
            warnings.append(f"label {label}: low confidence ({confidence:.{DECIMALS}f})")
        areas = statistics.areas[i][statistics.areas[i] > 0]
        if (
            len(slices) == 1
            and len(areas)
            and not areas.min() / MAX_AREA_RATIO <= mask.sum() <= areas.max() * MAX_AREA_RATIO
        ):
            size = "larger" if mask.sum() > areas.max() else "smaller"
            warnings.append(f"label {label}: more than {MAX_AREA_RATIO:g} times {size} than in any example")
    return tuple(warnings)
