"""Scores the mask files of any tool against label files, label by label: images in pixels, volumes in millimetres.

A prediction is matched to its label by name without the extension. The subject of an image is its name before the last
"_" (the whole name without one); a volume is one subject. Scores are computed on the grid of the label's own file:
compare them with one another, not with Dice at 128x128.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from universeg_jax.errors import UserError
from universeg_jax.evaluation import report
from universeg_jax.evaluation.metrics import METRICS, overlap_on_host
from universeg_jax.evaluation.summary import CaseRow, open_results, summarize
from universeg_jax.evaluation.surfaces import surface_scores
from universeg_jax.readers.dicom_files import is_seg
from universeg_jax.readers.file_names import TIFF_EXTENSIONS, VOLUME_EXTENSIONS, extension, natural_order, stem
from universeg_jax.readers.folder import list_images
from universeg_jax.readers.images import read_label
from universeg_jax.readers.segments import on_grid_of
from universeg_jax.readers.volume_files import is_volume, read_label_volume
from universeg_jax.readers.volumes import check_same_grid
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
    truth_files, prediction_files = find_masks(labels), find_masks(predictions)
    if missing := [n for n in truth_files if n not in prediction_files]:
        shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise UserError(f"{predictions} lacks masks for {len(missing)} of {len(truth_files)} labels: {shown}")
    resolved = labels.resolve()
    name = name or (resolved.parent.name if resolved.name == "labels" else resolved.name)
    method = method or predictions.resolve().name
    files = digest((*truth_files.values(), *(prediction_files[n] for n in truth_files)))
    options = {"surfaces": surfaces, "tolerance": tolerance}
    open_results(out, {"dataset": name, "method": method, "files": files, "options": options}, overwrite)
    ids = class_ids(truth_files)
    rows, predicted = [], set()
    for file_name in tqdm(truth_files, desc="score", unit="file"):
        prediction, truth, spacing, unit = read_mask_pair(prediction_files[file_name], truth_files[file_name])
        predicted |= set(np.unique(prediction).tolist()) - {0}
        about = {
            "method": method,
            "dataset": name,
            "subject": file_name if truth.ndim == 3 else file_name.rpartition("_")[0] or file_name,
            "slice": file_name,
            "support_size": 0,
            "ensemble": 1,
            "distance_unit": unit,
        }
        for i in ids:
            scores = mask_scores(prediction == i, truth == i, spacing, tolerance if surfaces else None)
            rows.append({**about, "task": f"{name}/label{i}", "label": i, **scores})
    summary: dict[str, Any] = {"predictions": str(predictions), "labels": str(labels), "method": method}
    summary |= {**summarize(rows, method, 0, 1), "skipped": {}}
    units = {row["distance_unit"] for row in rows}
    if surfaces and len(units) > 1:
        raise UserError(f"{labels} holds images and volumes: pixels and mm have no common mean; score each separately")
    if surfaces:
        summary |= {"distance_unit": units.pop(), "tolerance": tolerance}
    summary |= {"notes": notes(ids, predicted, prediction_files.keys() - truth_files.keys(), predictions)}
    summary["measured"] = "Dice on the grid of each label's own file"
    summary["settings"] = [{k: summary[k] for k in summary if k.startswith("mean_")} | {"method": method}]
    write_csv(out / "cases.csv", rows)
    write_json(out / "summary.json", summary)
    report.write(out, summary, rows)
    return summary


def find_masks(folder: Path) -> dict[str, Path]:
    """The images and volumes of a folder by name without the extension, in natural order. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    files = [f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")]
    volumes = [f for f in files if extension(f) in VOLUME_EXTENSIONS or is_seg(f)]
    found: dict[str, Path] = {}
    for file in (*list_images(folder), *volumes):
        name = unicodedata.normalize("NFC", stem(file))  # macOS writes ü as u and ¨
        if name in found:
            raise UserError(f"{found[name]} and {file} have the same name; keep one of them")
        found[name] = file
    if not found:
        raise UserError(f"{folder} holds no masks: neither images nor {', '.join(VOLUME_EXTENSIONS)} nor DICOM-SEG")
    return {name: found[name] for name in natural_order(found)}


def digest(files: Iterable[Path]) -> str:
    """SHA-256 of the contents of the files."""
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()


def class_ids(files: dict[str, Path]) -> list[int]:
    """The class ids that occur in the labels, without the background. Raises UserError where there is none."""
    found: set[int] = set()
    for file in files.values():
        ids = read_label_volume(file).data if is_volume(file) else read_label(file)
        found.update(np.unique(ids).tolist())
    if not found - {0}:
        raise UserError(f"every label in {next(iter(files.values())).parent} is empty; 0 is the background")
    return sorted(found - {0})


def read_mask_pair(prediction: Path, truth: Path) -> tuple[np.ndarray, np.ndarray, Sequence[float], str]:
    """(predicted ids, true ids, spacing, unit of the spacing) on one grid."""
    if is_volume(prediction) != is_volume(truth):
        raise UserError(
            f"{prediction} and {truth}: one is a volume and the other an image; give two images or two volumes"
        )
    if is_volume(truth):
        truth_volume = read_label_volume(truth)
        masks = on_grid_of(read_label_volume(prediction), truth_volume), truth_volume
        check_same_grid(masks[1], masks[0])
        # The pages of a TIFF have no spacing.
        return masks[0].data, masks[1].data, masks[1].spacing, "pixels" if extension(truth) in TIFF_EXTENSIONS else "mm"
    ours, theirs = read_label(prediction), read_label(truth)
    if ours.shape != theirs.shape:
        sizes = [f"{mask.shape[1]}x{mask.shape[0]}" for mask in (ours, theirs)]
        raise UserError(f"{prediction} is {sizes[0]}, its label {truth} {sizes[1]}; resize one of them")
    return ours, theirs, (1.0, 1.0), "pixels"


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
