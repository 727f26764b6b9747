"""Scores the mask files of any tool against label files, label by label: images in pixels, volumes in millimetres.

A prediction is matched to its label by name without the extension; mask_sets.py says what labels may be. The subject of
an image is its name before the last "_" (the whole name without one), a volume is one subject, unless a meta.json says
otherwise. Scores are computed on the grid of the label's own file: compare them with one another, not with Dice at
128x128.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from universeg_jax.errors import UserError
from universeg_jax.evaluation import report
from universeg_jax.evaluation.mask_sets import MaskSet, Pair, class_ids, read_pair, read_sets
from universeg_jax.evaluation.metrics import METRICS, overlap_on_host
from universeg_jax.evaluation.summary import CaseRow, open_results, summarize
from universeg_jax.evaluation.surfaces import surface_scores
from universeg_jax.readers.cases import ids_of, mask_of
from universeg_jax.readers.file_names import natural_order
from universeg_jax.readers.notes import collect
from universeg_jax.reports.files import write_csv, write_json


def score_masks(
    predictions: Path,
    labels: Path,
    out: Path,
    name: str = "",
    method: str = "",
    surfaces: bool = False,
    tolerance: float = 2.0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes <out>/cases.csv, summary.json, report.md and report.html; returns the summary.

    Raises UserError for labels without a prediction, for two files with different grids, if the predictions and the
    labels share no id, or if `out` holds the results of another run; ImageError for a file that holds no class ids
    (NaN, for example).
    """
    with collect() as said:
        predicted_set, true_set = read_sets(predictions, labels)
        ids = class_ids(true_set)
    resolved = labels.resolve()
    name = name or (resolved.parent.name if resolved.name == "labels" else resolved.name)
    method = method or predictions.resolve().name
    options = {"surfaces": surfaces, "tolerance": tolerance}
    files = digest_of(predicted_set, true_set)
    open_results(out, {"dataset": name, "method": method, "files": files, "options": options}, overwrite)
    rows: list[CaseRow] = []
    predicted: set[int] = set()
    for file_name in tqdm(true_set.files, desc="score", unit="file"):
        with collect() as said_of_pair:
            pair = read_pair(file_name, predicted_set, true_set)
        said.update(said_of_pair)
        predicted |= ids_of(pair.prediction)
        subject = true_set.subject_of(_whole_name if len(pair.shape) == 3 else _before_last_line)(file_name)
        about = {"method": method, "dataset": name, "subject": subject, "slice": file_name}
        rows += [{**about, **scores} for scores in score_pair(pair, ids, tolerance if surfaces else None, name)]
    summary: dict[str, Any] = {"predictions": str(predictions), "labels": str(labels), "method": method}
    summary |= {**summarize(rows, method, 0, 1), "skipped": {}}
    units = {row["distance_unit"] for row in rows}
    if surfaces and len(units) > 1:
        raise UserError(f"{labels} holds images and volumes: pixels and mm have no common mean; score each separately")
    if surfaces:
        summary |= {"distance_unit": units.pop(), "tolerance": tolerance}
    taken = [f"the labels were taken for {true_set.taken}"] if true_set.taken else []
    others = predicted_set.files.keys() - true_set.files.keys()
    summary |= {"notes": [*taken, *said.lines(), *notes(ids, predicted, others, predictions)]}
    summary["measured"] = "Dice on the grid of each label's own file"
    summary["settings"] = [{k: summary[k] for k in summary if k.startswith("mean_")} | {"method": method}]
    write_csv(out / "cases.csv", rows)
    write_json(out / "summary.json", summary)
    report.write(out, summary, rows)
    return summary


def score_pair(pair: Pair, ids: Sequence[int], tolerance: float | None, dataset: str) -> list[CaseRow]:
    """The scores of each id on one image or volume."""
    rows = []
    for i in ids:
        prediction, truth = (mask_of(each, i, pair.shape) for each in (pair.prediction, pair.truth))
        if pair.void is not None:
            prediction, truth = prediction & ~pair.void, truth & ~pair.void
        about = {
            "support_size": 0,
            "ensemble": 1,
            "distance_unit": pair.unit,
            "task": f"{dataset}/label{i}",
            "label": i,
        }
        rows.append({**about, **mask_scores(prediction, truth, pair.spacing, tolerance)})
    return rows


def _whole_name(name: str) -> str:
    return name


def _before_last_line(name: str) -> str:
    return name.rpartition("_")[0] or name


def digest_of(predictions: MaskSet, labels: MaskSet) -> str:
    """SHA-256 of the contents of the files, of a pair after the other, and of what the labels mean."""
    total = hashlib.sha256()
    for name, files in labels.files.items():
        for file in (*files, *predictions.files[name]):
            total.update(Path(file.path).read_bytes())
        meanings = [(file.classes, file.ignored, file.part, file.colours) for file in files]
        total.update(repr((name, meanings, labels.known)).encode())
    return total.hexdigest()


def mask_scores(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float | None
) -> CaseRow:
    """Scores of two boolean masks; None for distances without a tolerance or with an empty truth."""
    counts = overlap_on_host(prediction, truth, range(truth.ndim))
    distances: tuple[float | None, float | None] = (None, None)
    if tolerance is not None and counts.true:
        distances = surface_scores(prediction, truth, spacing, tolerance)
    return {
        "hd95": distances[0],
        "nsd": distances[1],
        **{name: float(metric(counts)) for name, metric in METRICS.items()},
        "empty": not counts.true,
    }


def notes(ids: Sequence[int], predicted: set[int], others: set[str], folder: Path) -> list[str]:
    """Names predictions that are not scored. Raises UserError where no predicted id is among the labels."""
    unknown = sorted(predicted - set(ids))
    if unknown and not predicted & set(ids):
        raise UserError(f"{folder} holds the ids {unknown}, the labels {list(ids)}: use the same ids in both")
    lines = ["subjects are volumes, or the names of images before the last _"]
    if unknown:
        lines.append(f"predicted ids that occur in no label are not scored: {', '.join(map(str, unknown))}")
    if others:
        lines.append(f"{len(others)} masks have no label: {', '.join(natural_order(others)[:10])}")
    return lines
