"""Compares two evaluations of the same cases: the difference per dataset and overall, with intervals."""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from universeg_jax.errors import UserError
from universeg_jax.evaluation.intervals import CaseScores, Estimate, mean_of_means, paired
from universeg_jax.reports.files import read_json
from universeg_jax.reports.markdown import markdown_table, percent

REQUIRED = ("method", "dataset", "task", "subject", "support_size", "empty")
# A case is identified by those of these columns that both files have. "ensemble" is the number of averaged draws.
CASE_COLUMNS = ("dataset", "task", "subject", "name", "row", "slice", "support_size", "ensemble", "draw")
ON_EMPTY = "false_positive_area"  # the only score of cases with an empty truth
RELIABLE_SUBJECTS = 15  # with fewer, intervals are known to be too narrow, see `intervals`
RELIABLE_DATASETS = 10


def compare(
    a: Path,
    b: Path,
    methods: Sequence[str] = (),
    score: str = "dice",
    support_size: int = 0,
    ensemble: int = 0,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares the cases that <a>/cases.csv and <b>/cases.csv share; the difference is b − a.

    `methods` names the method of `a` and of `b`, by default the first of each file. Support size and ensemble default
    to the largest that both files have.
    """
    files = [read_cases(folder, score) for folder in (a, b)]
    methods = tuple(methods) or tuple(rows[0]["method"] for rows in files)
    sides = [_only(rows, "method", m, f) for rows, m, f in zip(files, methods, (a, b), strict=True)]
    chosen = {}
    for column, wanted in (("support_size", support_size), ("ensemble", ensemble)):
        if all(column in rows[0] for rows in files):
            chosen[column] = wanted or _largest_common(sides[0], sides[1], column)
            sides = [_only(rows, column, str(chosen[column]), f) for rows, f in zip(sides, (a, b), strict=True)]
    columns = [column for column in CASE_COLUMNS if all(column in rows[0] for rows in files)]
    first, second = (_by_key(rows, columns, folder) for rows, folder in zip(sides, (a, b), strict=True))
    both = _common(first, second, columns, (a, b))
    counted = [key for key in both if (first[key]["empty"] == "True") == (score == ON_EMPTY)]
    if not counted:
        raise UserError(f"none of the {len(both)} common cases of {a} and {b} counts for {score}")
    before, after = (_case_scores([side[key] for key in counted], score) for side in (first, second))
    result = paired(before, after, resamples, seed)
    (mean_a, means_a), (mean_b, means_b) = mean_of_means(before), mean_of_means(after)
    return {
        "a": str(a),
        "b": str(b),
        "method_a": methods[0],
        "method_b": methods[1],
        "score": score,
        "unit": _unit(sides, score),
        **chosen,
        "matched": len(both),
        "left_out": len(both) - len(counted),
        "only_a": len(first) - len(both),
        "only_b": len(second) - len(both),
        "datasets": {name: _row(means_a[name], means_b[name], e) for name, e in result.by_dataset.items()},
        "all": _row(mean_a, mean_b, result.overall),
        "all_datasets_resampled": _row(mean_a, mean_b, result.over_datasets),
        "notes": _notes(result.by_dataset, (a, b)),
    }


def comparison_markdown(comparison: dict[str, Any]) -> str:
    """The comparison as a table, followed by the cases that were left out."""
    c = comparison
    unit, shown = c["unit"], percent if c["unit"] == "%" else "{:.2f}".format
    rows = [_cells(name, row, shown, "subjects") for name, row in (*c["datasets"].items(), ("mean", c["all"]))]
    rows.append(_cells("mean, for other datasets", c["all_datasets_resampled"], shown, "datasets"))
    setting = ", ".join(f"{key.replace('_', ' ')} {c[key]}" for key in ("support_size", "ensemble") if key in c)
    left_out = "a truth that is not empty" if c["score"] == ON_EMPTY else "an empty truth"
    lines = [
        f"A: {c['method_a']} of {c['a']}; B: {c['method_b']} of {c['b']}; {c['score']} ({unit}), {setting}.",
        "",
        markdown_table(["dataset", "A", "B", "B − A", "95 % interval", "p", "resampled"], rows),
        "",
        f"- {c['matched']} cases are in both, {c['left_out']} of them left out for {left_out}; "
        f"{c['only_a']} are only in A, {c['only_b']} only in B.",
        *(f"- {note}" for note in c["notes"]),
    ]
    return "\n".join(lines) + "\n"


def read_cases(folder: Path, score: str) -> list[dict[str, str]]:
    """The rows of <folder>/cases.csv, as text."""
    path = folder / "cases.csv"
    if not path.is_file():
        raise UserError(f"no {path}; `universeg evaluate … --out {folder}` writes it")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        columns = reader.fieldnames or []
    missing = [column for column in (*REQUIRED, score) if column not in columns]
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}; it has: {', '.join(columns) or 'none'}")
    if not rows:
        raise UserError(f"{path} holds no cases; evaluate again")
    return rows


def _unit(sides: Sequence[list[dict[str, str]]], score: str) -> str:
    """The unit of a score: % except for distances. Raises UserError for distances in different units."""
    if not score.startswith("hd95"):
        return "%"
    units = sorted({row.get("distance_unit", "mm") for side in sides for row in side})
    if len(units) > 1:
        raise UserError(f"{score} is in {' and in '.join(units)}: compare cases with one unit")
    return units[0]


def _only(rows: list[dict[str, str]], column: str, value: str, folder: Path) -> list[dict[str, str]]:
    values = sorted({row[column] for row in rows}, key=lambda text: (len(text), text))
    if value not in values:
        raise UserError(f"{column} {value} is not in {folder}; available: {', '.join(values)}")
    return [row for row in rows if row[column] == value]


def _largest_common(a: list[dict[str, str]], b: list[dict[str, str]], column: str) -> int:
    in_a, in_b = ({int(row[column]) for row in rows} for rows in (a, b))
    if not in_a & in_b:
        raise UserError(f"no {column} is in both: A has {sorted(in_a)}, B {sorted(in_b)}; evaluate one of them again")
    return max(in_a & in_b)


def _by_key(rows: list[dict[str, str]], columns: list[str], folder: Path) -> dict[tuple[str, ...], dict[str, str]]:
    by_key = {tuple(row[column] for column in columns): row for row in rows}
    if len(by_key) < len(rows):
        raise UserError(f"{folder}: {len(rows) - len(by_key)} cases occur twice in cases.csv; evaluate again")
    return by_key


def _common(
    first: dict[tuple[str, ...], dict[str, str]],
    second: dict[tuple[str, ...], dict[str, str]],
    columns: list[str],
    folders: tuple[Path, Path],
) -> list[tuple[str, ...]]:
    """The keys of the common cases, sorted. Raises UserError without any, or if their truths differ."""
    a, b = folders
    both = sorted(first.keys() & second.keys())
    if not both:
        examples = " and ".join(" ".join(next(iter(side))) for side in (first, second))
        raise UserError(
            f"{a} and {b} have no case in common by {', '.join(columns)}: their first cases are {examples}; "
            "evaluate the same datasets with the same options"
        )
    for key in both:
        if first[key]["empty"] != second[key]["empty"]:
            raise UserError(f"{' '.join(key)} has an empty truth in only one of {a} and {b}: their labels differ")
    return both


def _case_scores(rows: list[dict[str, str]], score: str) -> CaseScores:
    dataset, task, subject = ([row[column] for row in rows] for column in ("dataset", "task", "subject"))
    return CaseScores(dataset, task, subject, [_score_of(row, score) for row in rows])


def _score_of(row: dict[str, str], score: str) -> float:
    try:
        return float(row[score])
    except ValueError:
        raise UserError(f"{score} of {row['task']}, subject {row['subject']} is {row[score]!r}, not a number") from None


def _row(mean_a: float, mean_b: float, difference: Estimate) -> dict[str, float | int | None]:
    values = {"low": difference.low, "high": difference.high, "p": difference.p}
    return {
        "a": mean_a,
        "b": mean_b,
        "difference": difference.mean,
        **{name: None if math.isnan(value) else value for name, value in values.items()},
        "resampled": difference.count,
    }


def _cells(name: str, row: dict[str, Any], shown: Callable[[float], str], unit: str) -> list[Any]:
    means = [shown(row["a"]), shown(row["b"]), _signed(row["difference"], shown)]
    count = f"{row['resampled']} {unit}"
    if row["p"] is None:
        return [name, *means, "", "", count]
    interval = f"{_signed(row['low'], shown)} to {_signed(row['high'], shown)}"
    return [name, *means, interval, f"{row['p']:.3f}" if row["p"] >= 0.001 else "< 0.001", count]


def _signed(value: float, shown: Callable[[float], str]) -> str:
    text = shown(value)
    return text if text.startswith("-") else f"+{text}"


def _notes(by_dataset: dict[str, Estimate], folders: tuple[Path, Path]) -> list[str]:
    few = [name for name, estimate in by_dataset.items() if estimate.count < RELIABLE_SUBJECTS]
    notes = ["p per dataset is not corrected for the number of datasets."] if len(by_dataset) > 1 else []
    if few:
        notes.append(f"Interval too narrow, fewer than {RELIABLE_SUBJECTS} subjects: {', '.join(few)}.")
    if 1 < len(by_dataset) < RELIABLE_DATASETS:
        notes.append(f"The interval for other datasets is too narrow with only {len(by_dataset)} datasets.")
    for folder in folders:
        path = folder / "summary.json"
        notes += [f"{note}." for note in read_json(path).get("notes", [])] if path.is_file() else []
    return list(dict.fromkeys(notes))
