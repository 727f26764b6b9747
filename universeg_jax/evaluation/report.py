"""Writes report.md and report.html of an evaluation: tables with intervals and figures of example cases."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from universeg_jax.evaluation.summary import CaseRow, cost_cells, interval_text, summary_table
from universeg_jax.reports.figures import png_of, sheet_figure
from universeg_jax.reports.html import image, write_page
from universeg_jax.reports.html import table as html_table
from universeg_jax.reports.markdown import markdown_table, percent

Segment = Callable[[Sequence[CaseRow]], list[dict[str, Any]]]  # rows → cases for `sheet_figure`
Table = tuple[Sequence[Any], Sequence[Sequence[Any]]]


def write(out: Path, summary: dict[str, Any], rows: Sequence[CaseRow], segment: Segment | None = None) -> None:
    """Writes <out>/report.md with links to <out>/figures/, and <out>/report.html with the figures inside.

    The figures show the best, median and worst case of each dataset; without `segment` there are none.
    """
    tables: list[tuple[str, Table]] = [("By dataset", summary_table(summary))]
    if len({setting["method"] for setting in summary["settings"]}) > 1:
        tables.append(("By method", method_table(summary)))
    if len(summary["settings"]) > 1:
        tables.append(("All settings", settings_table(summary["settings"])))
    tables.append(("By task", dice_by_task(summary)))
    figures = example_figures(summary, rows, segment) if segment else {}
    title = summary["method"]
    if summary["support_size"]:  # 0 for the masks of other tools
        title += f", support size {summary['support_size']}, draws {summary['ensemble']}"
    lines = about(summary)
    if figures:
        (out / "figures").mkdir(exist_ok=True)
    for name, (_, png) in figures.items():
        (out / "figures" / f"{name}.png").write_bytes(png)
    (out / "report.md").write_text(as_markdown(title, lines, tables, figures), encoding="utf-8")
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(line)}</p>" for line in lines)]
    for head, (columns, cells) in tables:
        parts += [f"<h2>{head}</h2>", html_table(columns, cells)]
    for name, (cases, png) in figures.items():
        parts += [f"<h2>{html.escape(name)}</h2>", f"<p>{html.escape(cases)}</p>", image(png)]
    write_page(out / "report.html", title, parts)


def example_figures(summary: dict[str, Any], rows: Sequence[CaseRow], segment: Segment) -> dict[str, tuple[str, bytes]]:
    """Dataset → (names of its best, median and worst case, their figure as PNG)."""
    figures = {}
    for name in summary["datasets"]:
        shown = best_median_worst(main_rows(summary, rows), name)
        segmented = segment(list(shown.values()))
        cases = [{**case, "task": f"{which}\n{case['task']}"} for which, case in zip(shown, segmented, strict=True)]
        names = "; ".join(f"{which}: {row['slice']}" for which, row in shown.items())
        figures[name] = names, png_of(sheet_figure(cases, f"{name}: {', '.join(shown)} case"))
    return figures


def main_rows(summary: dict[str, Any], rows: Sequence[CaseRow]) -> list[CaseRow]:
    """The rows of the summary's method, support size and ensemble whose truth is not empty."""
    fields = ("method", "support_size", "ensemble")
    return [row for row in rows if not row["empty"] and all(row[field] == summary[field] for field in fields)]


def best_median_worst(rows: Sequence[CaseRow], dataset: str) -> dict[str, CaseRow]:
    """The cases of a dataset with the best, median and worst Dice, ties by name; fewer if there are fewer cases."""
    ordered = sorted(
        (row for row in rows if row["dataset"] == dataset), key=lambda r: (-r["dice"], r["task"], r["slice"])
    )
    shown = {"best": 0}
    if len(ordered) > 2:
        shown["median"] = len(ordered) // 2
    if len(ordered) > 1:
        shown["worst"] = len(ordered) - 1
    return {which: ordered[i] for which, i in shown.items()}


def about(summary: dict[str, Any]) -> list[str]:
    """States how the scores are measured, what they cost, and what limits them."""
    lines = [
        f"{summary['measured']}, averaged over the slices of a subject, subjects, tasks and datasets; queries with an "
        "empty truth are left out. Intervals resample subjects (95 %, bootstrap); the one for other datasets resamples "
        "datasets as well.",
    ]
    if "mean_oracle_dice" in summary:
        lines.append("The oracle applies to each case the threshold with the best Dice: an upper bound, not a result.")
    if "cost" in summary:
        cost = summary["cost"]
        parameters, milliseconds, seconds = cost_cells(cost)
        lines.append(
            f"{parameters} M parameters; {milliseconds} ms per mask with {cost['support_size']} support examples "
            f"({cost['device']}); {seconds} s of preparation per task."
        )
    for name, d in summary["datasets"].items():
        if d["effective_support"] is not None and d["effective_support"] < summary["support_size"]:
            lines.append(
                f"{name}: {d['effective_support']:.1f} different examples among {summary['support_size']}: the pool is "
                "smaller, so examples are sampled with replacement."
            )
        if d["n_empty"]:
            lines.append(
                f"{name}: {d['n_empty']} empty truths; on average "
                f"{percent(d['false_positive_area_on_empty'])} % of their images is marked."
            )
    lines += [f"skipped {name}: {reason}" for name, reason in summary["skipped"].items()]
    return lines + [f"{note}." for note in summary["notes"]]


def method_table(summary: dict[str, Any]) -> Table:
    """Dice of every method at the summary's support size and ensemble, per dataset."""
    fields = ("support_size", "ensemble")
    settings = [s for s in summary["settings"] if all(s[field] == summary[field] for field in fields)]
    rows = [[name, *(percent(s["datasets"][name]["dice"]) for s in settings)] for name in summary["datasets"]]
    rows.append(["mean", *(percent(s["mean_dice"]) for s in settings)])
    return ["Dice (%)", *(s["method"] for s in settings)], rows


def settings_table(settings: Sequence[dict[str, Any]]) -> Table:
    rows = [
        [s["method"], s["support_size"], s["ensemble"], percent(s["mean_dice"])]
        + [interval_text(s["mean_ci_low"], s["mean_ci_high"]), percent(s["mean_single_dice"])]
        for s in settings
    ]
    return ["method", "support size", "draws", "mean Dice (%)", "95 % interval", "one draw (%)"], rows


def dice_by_task(summary: dict[str, Any]) -> Table:
    rows = [[task, percent(dice)] for d in summary["datasets"].values() for task, dice in d["tasks"].items()]
    return ["task", "Dice (%)"], rows


def as_markdown(
    title: str, lines: Sequence[str], tables: Sequence[tuple[str, Table]], figures: dict[str, tuple[str, bytes]]
) -> str:
    text = [f"# {title}", "", *(f"{line}\n" for line in lines)]
    for head, (columns, cells) in tables:
        text += [f"## {head}", "", markdown_table(columns, cells), ""]
    for name, (cases, _) in figures.items():
        text += [f"## {name}", "", cases, "", f"![{name}](figures/{name}.png)", ""]
    return "\n".join(text)
