"""Writes the table and the figure of a sweep: means with intervals, paired differences, and the noise of seeds."""

import math
import textwrap
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from universeg_jax.errors import UserError
from universeg_jax.evaluation.comparison import read_cases
from universeg_jax.evaluation.intervals import CaseScores, interval, mean_of_means, paired
from universeg_jax.evaluation.summary import case_scores, interval_text
from universeg_jax.reports.figures import figure, save_figure
from universeg_jax.reports.files import write_csv
from universeg_jax.reports.markdown import markdown_table, percent
from universeg_jax.sweeps.sweep import Point, SweepOptions

MISSING = "-"  # the mean of a seed without a result


def write_report(
    name: str, points: Sequence[Point], options: SweepOptions, problems: dict[str, str], finished: Collection[Path]
) -> list[dict[str, Any]]:
    """Writes <workdir>/<sweep>_<role>.csv, .md and .png of all points with a result, and returns their rows.

    `finished` are the folders with valid results; `problems` are the reasons of the others. Seeds are averaged within a
    case before subjects are resampled: the intervals hold for these runs on other subjects. Differences are paired with
    the first point.
    """
    cases = {point.value: by_seed for point in points if (by_seed := cases_by_seed(point, finished))}
    if not cases:
        raise UserError(f"no run of the sweep {name} has a result: {'; '.join(dict.fromkeys(problems.values()))}")
    first = points[0].value
    seeds = range(len(points[0].results))
    rows = [point_row(value, by_seed, cases.get(first, {}), seeds) for value, by_seed in cases.items()]
    out = options.workdir / f"{name}_{options.role}"
    write_csv(out.with_suffix(".csv"), rows)
    datasets = [column.removeprefix("dice_") for column in rows[0] if column.startswith("dice_")]
    head = [name.replace("_", " "), "mean Dice (%)", "95 % interval", "by seed", f"minus {first}", "95 % interval"]
    table = [
        [
            row["value"],
            percent(row["mean_dice"]),
            interval_text(row["ci_low"], row["ci_high"]),
            ", ".join(x if x == MISSING else percent(float(x)) for x in row["by_seed"].split()),
            "" if row["minus_first"] is None else percent(row["minus_first"]),
            interval_text(row["minus_first_low"], row["minus_first_high"]),
            *(percent(row[f"dice_{d}"]) for d in datasets),
        ]
        for row in rows
    ]
    lines = [
        f"# {name.replace('_', ' ')}",
        "",
        f"Base {options.base}{''.join(f', {change}' for change in options.changes)}; datasets of role {options.role}; "
        f"seeds {', '.join(map(str, options.seeds))}. Mean Dice over datasets and seeds; the intervals "
        "resample subjects, with datasets and seeds fixed; differences are paired.",
        "",
        markdown_table([*head, *datasets], table),
        *noise_text(rows),
        "",
        f"![{name}]({out.name}.png)",
        *(f"\n- not finished: {run}: {problem}" for run, problem in problems.items()),
    ]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(name, rows, out.with_suffix(".png"))
    return rows


def cases_by_seed(point: Point, finished: Collection[Path]) -> dict[int, CaseScores]:
    """Position of the seed → its cases, for the seeds with a result."""
    return {i: dice_of_cases(out) for i, out in enumerate(point.results) if out in finished}


def point_row(
    value: str, by_seed: dict[int, CaseScores], first: dict[int, CaseScores], seeds: Sequence[int]
) -> dict[str, Any]:
    """The mean over the seeds with its interval, and its difference to the first point over their common seeds.

    `seeds` are the positions of all planned seeds; "by_seed" has an entry for each.
    """
    result = interval(joined(by_seed, by_seed))
    overall, over_datasets = result.overall, result.over_datasets
    common = by_seed.keys() & first.keys()
    comparable = common and by_seed is not first
    difference = paired(joined(first, common), joined(by_seed, common)).overall if comparable else None
    return {
        "value": value,
        "seeds": len(by_seed),
        "mean_dice": overall.mean,
        "ci_low": none_if_nan(overall.low),
        "ci_high": none_if_nan(overall.high),
        "ci_low_over_datasets": none_if_nan(over_datasets.low),
        "ci_high_over_datasets": none_if_nan(over_datasets.high),
        "by_seed": " ".join(f"{mean_of_means(by_seed[i])[0]:.6f}" if i in by_seed else MISSING for i in seeds),
        "minus_first": difference and difference.mean,
        "minus_first_low": difference and none_if_nan(difference.low),
        "minus_first_high": difference and none_if_nan(difference.high),
        **{f"dice_{name}": estimate.mean for name, estimate in result.by_dataset.items()},
    }


def joined(by_seed: dict[int, CaseScores], seeds: Iterable[int]) -> CaseScores:
    """The cases of several seeds together."""
    chosen = [by_seed[seed] for seed in sorted(seeds)]
    return CaseScores(*(np.concatenate(columns) for columns in zip(*chosen, strict=True)))


def noise_text(rows: Sequence[dict[str, Any]]) -> list[str]:
    """States the seed noise, if at least two points share two seeds."""
    by_seed = np.array([[math.nan if x == MISSING else float(x) for x in row["by_seed"].split()] for row in rows])
    used = by_seed[(~np.isnan(by_seed)).sum(1) > 1]
    shared = used[:, ~np.isnan(used).any(0)]  # only seeds that all points have
    if min(shared.shape) < 2:
        return []
    least, freedom = least_difference(shared)
    return [
        "",
        f"Differences between two of these means below {percent(least)} are within seed noise (5 % level, "
        f"{freedom} degrees of freedom; the intervals above do not include it). This holds for one pair that is chosen "
        "in advance; it is not corrected for the number of pairs.",
    ]


def least_difference(by_seed: np.ndarray) -> tuple[float, int]:
    """(smallest significant difference of two means over seeds, two-sided t-test at 5 %; degrees of freedom).

    From means [points, seeds]. The noise is the residual after the effects of points and seeds, pooled over all points.
    """
    points, seeds = by_seed.shape
    residual = by_seed - by_seed.mean(1, keepdims=True) - by_seed.mean(0, keepdims=True) + by_seed.mean()
    freedom = (points - 1) * (seeds - 1)
    variance = float((residual**2).sum()) / freedom
    return float(scipy.stats.t.ppf(0.975, freedom)) * math.sqrt(2 * variance / seeds), freedom


def none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def dice_of_cases(folder: Path) -> CaseScores:
    """The Dice of <folder>/cases.csv, without the cases whose truth is empty."""
    rows: list[dict[str, Any]] = [row for row in read_cases(folder, "dice") if row["empty"] == "False"]
    return case_scores([{**row, "dice": float(row["dice"])} for row in rows], "dice")


def plot(name: str, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Plots the means with their intervals, and a dot for each seed."""
    fig, ((axes,),) = figure(1.5 + 0.9 * len(rows), 3.5)
    for x, row in enumerate(rows):
        mean = 100 * row["mean_dice"]
        if row["ci_low"] is not None:
            below, above = mean - 100 * row["ci_low"], 100 * row["ci_high"] - mean
            axes.errorbar(x, mean, [[max(below, 0)], [max(above, 0)]], fmt="none", color="tab:blue", capsize=4)
        seeds = [100 * float(v) for v in row["by_seed"].split() if v != MISSING]
        axes.plot([x + 0.12] * len(seeds), seeds, ".", color="tab:orange")  # beside the mean, which would cover them
    line = "o-" if rows[0]["value"].isdigit() else "o"  # connect only ordered values
    axes.plot(range(len(rows)), [100 * row["mean_dice"] for row in rows], line, color="tab:blue", lw=0.8)
    axes.set_xticks(range(len(rows)), [textwrap.fill(row["value"], 12) for row in rows])
    axes.set(xlabel=name.replace("_", " "), ylabel="mean Dice (%)")
    save_figure(fig, path)
