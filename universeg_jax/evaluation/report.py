"""report.md and report.html of an evaluation: the tables with intervals, and the best, median and worst case drawn."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from universeg_jax.evaluation.summary import CaseRow, cost_cells, interval_text, table
from universeg_jax.reports.figures import png_of, sheet_figure
from universeg_jax.reports.html import image, write_page
from universeg_jax.reports.html import table as html_table
from universeg_jax.reports.markdown import markdown_table, percent

Drawer = Callable[[Sequence[CaseRow]], list[dict[str, Any]]]  # rows → pictures for `sheet_figure`
Table = tuple[Sequence[Any], Sequence[Sequence[Any]]]


def write(out: Path, summary: dict[str, Any], rows: Sequence[CaseRow], draw: Drawer | None = None) -> None:
    """Writes <out>/report.md, which shows <out>/figures/, and <out>/report.html, which holds them.

    Without `draw` no case is drawn.
    """
    tables = [("By dataset", table(summary))]
    if len(summary["settings"]) > 1:
        tables.append(("All settings", settings_table(summary["settings"])))
    tables.append(("By task", task_table(summary)))
    figures = {}
    for name in summary["datasets"] if draw else ():
        shown = best_median_worst(main_rows(summary, rows), name)
        pictures = draw(list(shown.values()))
        labelled = [{**p, "task": f"{which}\n{p['task']}"} for which, p in zip(shown, pictures, strict=True)]
        cases = "; ".join(f"{which}: {row['slice']}" for which, row in shown.items())
        figures[name] = cases, png_of(sheet_figure(labelled, f"{name}: {', '.join(shown)} case"))
    title = summary["method"]
    if summary["support_size"]:  # 0 for masks of other tools
        title += f", support size {summary['support_size']}, draws {summary['ensemble']}"
    lines = about(summary)
    if figures:
        (out / "figures").mkdir(exist_ok=True)
    for name, (_, png) in figures.items():
        (out / "figures" / f"{name}.png").write_bytes(png)
    (out / "report.md").write_text(as_markdown(title, lines, tables, figures))
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(line)}</p>" for line in lines)]
    for head, (columns, cells) in tables:
        parts += [f"<h2>{head}</h2>", html_table(columns, cells)]
    for name, (cases, png) in figures.items():
        parts += [f"<h2>{html.escape(name)}</h2>", f"<p>{html.escape(cases)}</p>", image(png)]
    write_page(out / "report.html", title, parts)


def main_rows(summary: dict[str, Any], rows: Sequence[CaseRow]) -> list[CaseRow]:
    """Those of the method, support size and ensemble that the summary is of, where there is a truth."""
    fields = ("method", "support_size", "ensemble")
    return [row for row in rows if not row["empty"] and all(row[field] == summary[field] for field in fields)]


def best_median_worst(rows: Sequence[CaseRow], dataset: str) -> dict[str, CaseRow]:
    """By Dice, ties by name; fewer than three cases give fewer."""
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
    """What the numbers are, and what to beware of."""
    lines = [
        f"{summary['measured']}, averaged over the slices of a subject, subjects, tasks and datasets; queries with an "
        "empty truth are left out. Intervals resample subjects (95 %, bootstrap); that for other datasets resamples "
        "these too.",
    ]
    if "mean_oracle_dice" in summary:
        lines.append("The oracle cuts each case at the threshold that its own truth prefers: a bound, no result.")
    if "cost" in summary:
        cost = summary["cost"]
        parameters, milliseconds, seconds = cost_cells(cost)
        lines.append(
            f"{parameters} M parameters; {milliseconds} ms a mask with {cost['support_size']} supports "
            f"({cost['device']}); {seconds} s of preparation a task."
        )
    for name, d in summary["datasets"].items():
        if d["effective_support"] is not None and d["effective_support"] < summary["support_size"]:
            lines.append(
                f"{name}: {d['effective_support']:.1f} different examples among {summary['support_size']}: the pool is "
                "smaller, so that they are drawn with replacement."
            )
        if d["n_empty"]:
            lines.append(
                f"{name}: {d['n_empty']} empty truths, of whose pictures "
                f"{percent(d['false_positive_area_on_empty'])} % are marked."
            )
    lines += [f"skipped {name}: {reason}" for name, reason in summary["skipped"].items()]
    return lines + [f"{note}." for note in summary["notes"]]


def settings_table(settings: Sequence[dict[str, Any]]) -> Table:
    rows = [
        [
            s["method"],
            s["support_size"],
            s["ensemble"],
            percent(s["mean_dice"]),
            interval_text(s["mean_ci_low"], s["mean_ci_high"]),
            percent(s["mean_single_dice"]),
        ]
        for s in settings
    ]
    return ["method", "support size", "draws", "mean Dice (%)", "95 % interval", "one draw (%)"], rows


def task_table(summary: dict[str, Any]) -> Table:
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
