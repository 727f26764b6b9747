"""A table and a figure of the runs of a sweep that are there: means, intervals, differences, what a seed does."""

import csv
import math
import textwrap
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from universeg_jax.errors import UserError
from universeg_jax.evaluation.intervals import CaseScores, interval, mean_of_means, paired
from universeg_jax.evaluation.summary import interval_text
from universeg_jax.reports.figures import figure, save_figure
from universeg_jax.reports.files import write_csv
from universeg_jax.reports.markdown import markdown_table, percent
from universeg_jax.sweeps.sweep import Point, SweepOptions

ABSENT = "-"  # the mean of a seed that has no result


def write_report(
    name: str, points: Sequence[Point], options: SweepOptions, problems: dict[str, str], there: Collection[Path]
) -> list[dict[str, Any]]:
    """Writes <workdir>/<sweep>_<role>.csv, .md and .png of all points with a result, and returns their rows.

    `there` are the folders whose results are of what is asked for. Seeds are averaged within a case before subjects are
    resampled: the intervals are of these runs on other subjects. Differences are paired, to the first point.
    """
    cases = {point.value: of_seeds for point in points if (of_seeds := cases_by_seed(point, there))}
    if not cases:
        raise UserError(f"no run of the sweep {name} has a result: {'; '.join(dict.fromkeys(problems.values()))}")
    first = points[0].value
    asked = range(len(points[0].results))
    rows = [point_row(value, of_seeds, cases.get(first, {}), asked) for value, of_seeds in cases.items()]
    out = options.workdir / f"{name}_{options.role}"
    write_csv(out.with_suffix(".csv"), rows)
    datasets = [column.removeprefix("dice_") for column in rows[0] if column.startswith("dice_")]
    head = [name.replace("_", " "), "mean Dice (%)", "95 % interval", "by seed", f"minus {first}", "95 % interval"]
    table = [
        [
            row["value"],
            percent(row["mean_dice"]),
            interval_text(row["ci_low"], row["ci_high"]),
            ", ".join(x if x == ABSENT else percent(float(x)) for x in row["by_seed"].split()),
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
        f"seeds {', '.join(map(str, options.seeds))}. Official Dice, mean over the datasets and seeds; the intervals "
        "resample subjects, with datasets and seeds fixed; differences are paired.",
        "",
        markdown_table([*head, *datasets], table),
        *noise_text(rows),
        "",
        f"![{name}]({out.name}.png)",
        *(f"\n- not done: {run}: {problem}" for run, problem in problems.items()),
    ]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    draw(name, rows, out.with_suffix(".png"))
    return rows


def cases_by_seed(point: Point, there: Collection[Path]) -> dict[int, CaseScores]:
    """By the place of the seed among those asked for, of the seeds that have a result."""
    return {i: read_cases(out / "cases.csv") for i, out in enumerate(point.results) if out in there}


def point_row(
    value: str, of_seeds: dict[int, CaseScores], first: dict[int, CaseScores], asked: Sequence[int]
) -> dict[str, Any]:
    """The mean over the seeds with its interval, and what it is above the first point over the seeds that both have.

    `asked` are the seeds that were asked for: "by_seed" has a place for each.
    """
    result = interval(joined(of_seeds, of_seeds))
    overall, over_datasets = result.overall, result.over_datasets
    both = of_seeds.keys() & first.keys()
    same = of_seeds is first or not both
    difference = None if same else paired(joined(first, both), joined(of_seeds, both)).overall
    return {
        "value": value,
        "seeds": len(of_seeds),
        "mean_dice": overall.mean,
        "ci_low": known(overall.low),
        "ci_high": known(overall.high),
        "ci_low_over_datasets": known(over_datasets.low),
        "ci_high_over_datasets": known(over_datasets.high),
        "by_seed": " ".join(f"{mean_of_means(of_seeds[i])[0]:.6f}" if i in of_seeds else ABSENT for i in asked),
        "minus_first": difference and difference.mean,
        "minus_first_low": difference and known(difference.low),
        "minus_first_high": difference and known(difference.high),
        **{f"dice_{name}": estimate.mean for name, estimate in result.by_dataset.items()},
    }


def joined(of_seeds: dict[int, CaseScores], seeds: Iterable[int]) -> CaseScores:
    chosen = [of_seeds[seed] for seed in sorted(seeds)]
    return CaseScores(*(np.concatenate(columns) for columns in zip(*chosen, strict=True)))


def noise_text(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the seeds tell of the noise of a training, where at least two points have the same two."""
    by_seed = np.array([[math.nan if x == ABSENT else float(x) for x in row["by_seed"].split()] for row in rows])
    used = by_seed[(~np.isnan(by_seed)).sum(1) > 1]
    shared = used[:, ~np.isnan(used).any(0)]  # seeds that one of them lacks would pair runs of two seeds
    if min(shared.shape) < 2:
        return []
    least, freedom = least_difference(shared)
    return [
        "",
        f"By what the seeds differ, two of these means must be {percent(least)} apart to be a finding at 5 % "
        f"({freedom} degrees of freedom; the intervals above know nothing of it). That is for one pair, chosen before "
        f"looking: it is not corrected for how many pairs there are.",
    ]


def least_difference(by_seed: np.ndarray) -> tuple[float, int]:
    """(difference of two means over seeds that t would call one at 5 %, two-sided; degrees of freedom).

    From [points, seeds]: the noise of a training is what neither its point nor its seed explains, one for all points.
    """
    points, seeds = by_seed.shape
    residual = by_seed - by_seed.mean(1, keepdims=True) - by_seed.mean(0, keepdims=True) + by_seed.mean()
    freedom = (points - 1) * (seeds - 1)
    variance = float((residual**2).sum()) / freedom
    return float(scipy.stats.t.ppf(0.975, freedom)) * math.sqrt(2 * variance / seeds), freedom


def known(value: float) -> float | None:
    return None if math.isnan(value) else value


def read_cases(path: Path) -> CaseScores:
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["empty"] == "False"]
    values = [float(row["dice"]) for row in rows]
    return CaseScores(*([row[column] for row in rows] for column in ("dataset", "task", "subject")), values)


def draw(name: str, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Means with their intervals, on an axis that they fill; a dot a seed."""
    fig, ((axes,),) = figure(1.5 + 0.9 * len(rows), 3.5)
    for x, row in enumerate(rows):
        mean = 100 * row["mean_dice"]
        if row["ci_low"] is not None:
            below, above = mean - 100 * row["ci_low"], 100 * row["ci_high"] - mean
            axes.errorbar(x, mean, [[max(below, 0)], [max(above, 0)]], fmt="none", color="tab:blue", capsize=4)
        seeds = [100 * float(v) for v in row["by_seed"].split() if v != ABSENT]
        axes.plot([x + 0.12] * len(seeds), seeds, ".", color="tab:orange")  # beside the mean, which would hide them
    line = "o-" if rows[0]["value"].isdigit() else "o"  # no line between things without an order
    axes.plot(range(len(rows)), [100 * row["mean_dice"] for row in rows], line, color="tab:blue", lw=0.8)
    axes.set_xticks(range(len(rows)), [textwrap.fill(row["value"], 12) for row in rows])
    axes.set(xlabel=name.replace("_", " "), ylabel="mean Dice (%)")
    save_figure(fig, path)
