"""Aggregates per-case rows into means with intervals, and opens the folder that holds them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from universeg_jax.errors import UserError
from universeg_jax.evaluation.intervals import CaseScores, Estimate, interval, mean_of_means, subject_tables
from universeg_jax.evaluation.metrics import METRICS
from universeg_jax.reports.files import read_json, write_json
from universeg_jax.reports.markdown import markdown_table, percent

RESAMPLES = 10_000
# Scores besides Dice, averaged over the same cases: those whose truth is not empty. Distances are optional.
OTHERS = (
    "single_dice",
    "oracle_dice",
    *(x for x in METRICS if x not in ("dice", "false_positive_area")),
    "nsd",
    "hd95",
)
RESULTS = ("cases.csv", "summary.json", "report.md", "report.html")
CaseRow = dict[str, Any]


def summarize(
    rows: Sequence[CaseRow], method: str, support_size: int, ensemble: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """{"mean_dice", "mean_ci_low", …, "datasets": {name: {dice, ci_low, ci_high, n_cases, n_subjects, …}}}.

    Cases with an empty truth enter only `false_positive_area_on_empty`. ci_* resample subjects, mean_*_over_datasets
    the datasets too; None where there is a single subject or dataset. `oracle_dice` applies to each case the threshold
    that maximizes its Dice: an upper bound of what tuning the threshold could gain.
    """
    selected = [
        row for row in rows if (row["method"], row["support_size"], row["ensemble"]) == (method, support_size, ensemble)
    ]
    counted = [row for row in selected if not row["empty"]]
    if not counted:
        raise UserError("no case with a non-empty truth was evaluated")
    cases = case_scores(counted, "dice")
    result, tables = interval(cases, resamples), subject_tables(cases)
    others = {field: mean_of_means(case_scores(counted, field)) for field in OTHERS if _measured(counted, field)}
    datasets = {}
    for name, estimate in result.by_dataset.items():
        dataset_rows = [row for row in selected if row["dataset"] == name]
        empty = [row["false_positive_area"] for row in dataset_rows if row["empty"]]
        tasks = sorted({row["task"] for row in dataset_rows if not row["empty"]})
        support = [row["effective_support"] for row in dataset_rows if row.get("effective_support") is not None]
        datasets[name] = {
            "dice": estimate.mean,
            **_ends(estimate, "ci"),
            "n_cases": len(dataset_rows),
            "n_subjects": estimate.count,
            "n_empty": len(empty),
            "false_positive_area_on_empty": float(np.mean(empty)) if empty else None,
            "effective_support": float(np.mean(support)) if support else None,
            **{field: by_dataset[name] for field, (_, by_dataset) in others.items()},
            "tasks": dict(zip(tasks, np.nanmean(tables[name], 0).tolist(), strict=True)),
        }
    return {
        "mean_dice": result.overall.mean,
        **_ends(result.overall, "mean_ci"),
        **_ends(result.over_datasets, "mean_ci", "_over_datasets"),
        **{f"mean_{field}": mean for field, (mean, _) in others.items()},
        "support_size": support_size,
        "ensemble": ensemble,
        "datasets": datasets,
    }


def case_scores(rows: Sequence[CaseRow], field: str) -> CaseScores:
    return CaseScores(*([row[column] for row in rows] for column in ("dataset", "task", "subject", field)))


def _measured(rows: Sequence[CaseRow], field: str) -> bool:
    return all(row.get(field) is not None for row in rows)


def _ends(estimate: Estimate, name: str, after: str = "") -> dict[str, float | None]:
    ends = {"low": estimate.low, "high": estimate.high}
    return {f"{name}_{end}{after}": None if math.isnan(value) else value for end, value in ends.items()}


def open_results(out: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Creates the folder with evaluation.json, the record of its run. Raises UserError for results of another run."""
    record_path = out / "evaluation.json"
    existing = [name for name in RESULTS if (out / name).exists()]
    same = record_path.is_file() and read_json(record_path) == record
    if existing and not same and not overwrite:
        raise UserError(f"{out} holds {', '.join(existing)} of another run; choose another --out, or add --overwrite")
    if not same:
        for name in existing:  # if this run dies, no old results remain beside its record
            (out / name).unlink()
    write_json(record_path, record)


def interval_text(low: float | None, high: float | None) -> str:
    """Formats an interval as "35.4 to 54.5" (%), or as "" if there is none."""
    return "" if low is None or high is None else f"{percent(low)} to {percent(high)}"


def cost_cells(cost: dict[str, Any] | None) -> Sequence[str]:
    """Cells for millions of parameters, milliseconds and seconds of preparation per task; "-" if not measured."""
    if cost is None:
        return "-", "-", "-"
    preparation = cost.get("preparation_seconds", 0.0)
    return f"{cost['parameters'] / 1e6:.2f}", f"{cost['milliseconds']:.0f}", f"{preparation:.0f}"


def summary_table(summary: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """(head, rows): Dice per dataset with its interval, the other measured scores, and the means."""
    unit = summary.get("distance_unit", "")
    titles = {
        "single_dice": "one draw (%)",
        "oracle_dice": "oracle (%)",
        "nsd": f"NSD within {summary.get('tolerance', 0):g} {unit} (%)",
        "hd95": f"HD95 ({unit})",
    }
    columns = [field for field in OTHERS if f"mean_{field}" in summary]
    columns = [field for field in columns if field != "single_dice" or summary["ensemble"] > 1]

    def cells(name: str, scores: dict[str, Any], prefix: str, low: str, high: str, counts: list[Any]) -> list[Any]:
        others = [f"{scores[prefix + f]:.2f}" if f == "hd95" else percent(scores[prefix + f]) for f in columns]
        return [name, percent(scores[f"{prefix}dice"]), interval_text(scores[low], scores[high]), *others, *counts]

    rows = [
        cells(name, d, "", "ci_low", "ci_high", [d["n_cases"], d["n_subjects"]])
        for name, d in summary["datasets"].items()
    ]
    rows.append(cells("mean", summary, "mean_", "mean_ci_low", "mean_ci_high", ["", ""]))
    ends = (summary["mean_ci_low_over_datasets"], summary["mean_ci_high_over_datasets"])
    if None not in ends:
        rows.append(["mean, for other datasets", "", interval_text(*ends), *[""] * len(columns), "", ""])
    return [
        "dataset",
        "Dice (%)",
        "95 % interval",
        *(titles.get(f, f"{f} (%)") for f in columns),
        "cases",
        "subjects",
    ], rows


def summary_markdown(summary: dict[str, Any]) -> str:
    return markdown_table(*summary_table(summary))
