"""A static HTML page of a finished or running training: progress, curves, scores, masks and config."""

import html
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from universeg_jax.checkpoints import store
from universeg_jax.configuration import flatten
from universeg_jax.errors import UserError
from universeg_jax.reports.figures import curves_figure, png_of
from universeg_jax.reports.files import read_json, read_json_lines
from universeg_jax.reports.html import image, table, write_page
from universeg_jax.reports.markdown import percent


def write_run_report(workdir: Path) -> Path:
    """Writes <workdir>/report.html and returns its path. Raises UserError if there is no run."""
    lines = read_json_lines(workdir / "metrics.jsonl")
    if not (workdir / "config.json").exists() or not lines:
        raise UserError(f"{workdir} holds no run with a step done; give the --workdir of train.py")
    config = read_json(workdir / "config.json")
    evaluations = read_json_lines(workdir / "eval" / "metrics.jsonl")
    sheet = workdir / "eval" / "sheet.png"
    parts = [
        f"<h1>{html.escape(str(workdir))}</h1>",
        table(["", ""], progress(lines, evaluations, config)),
        "<h2>Curves</h2>",
        image(png_of(curves_figure(lines, evaluations))),
        *scores(evaluations),
        *(["<h2>Masks at the last evaluation</h2>", image(sheet.read_bytes())] if sheet.exists() else []),
        "<h2>Data</h2>",
        table(["dataset", "role", "licence"], datasets(workdir)),
        "<details><summary><h2>Config</h2></summary>",
        table(["field", "value"], [[f"config.{name}", value] for name, value in flatten(config).items()]),
        "</details>",
    ]
    return write_page(workdir / "report.html", workdir.name, parts)


def progress(lines: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]], config: dict) -> list[list[Any]]:
    """Rows of progress, speed and expected end."""
    done, total = lines[-1]["step"] + 1, config["num_steps"]
    recent = lines[-200:]
    starts = [i for i, (a, b) in enumerate(itertools.pairwise(recent), 1) if b["time"] < a["time"]]
    recent = recent[starts[-1] if starts else 0 :]  # `time` restarts when a run resumes
    seconds = (recent[-1]["time"] - recent[0]["time"]) / max(1, recent[-1]["step"] - recent[0]["step"])
    waited = sum(row["seconds_waiting"] for row in recent) / max(1e-9, seconds * len(recent))
    rows = [
        ["steps", f"{done:,} of {total:,}"],
        ["seconds a step", f"{seconds:.3g}, {waited:.0%} of them waiting for data"],
        ["episodes a second", f"{config['batch_size'] / max(seconds, 1e-9):.3g}"],
        ["written", time.strftime("%Y-%m-%d %H:%M")],
    ]
    if done < total:
        rows.append(
            ["expected end", time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds * (total - done)))]
        )
    if evaluations:
        best = max(evaluations, key=lambda row: row["mean_dice"])
        rows.append(["best mean Dice on val", f"{percent(best['mean_dice'])} at step {best['step']:,}"])
    return rows


def scores(evaluations: Sequence[dict[str, Any]]) -> list[str]:
    """Dice (%) of the validation datasets at the last and at the best evaluation."""
    if not evaluations:
        return []
    last, best = evaluations[-1], max(evaluations, key=lambda row: row["mean_dice"])
    rows = [[name, percent(last["datasets"][name]), percent(best["datasets"][name])] for name in last["datasets"]]
    rows.append(["mean", percent(last["mean_dice"]), percent(best["mean_dice"])])
    head = ["dataset", f"step {last['step']:,}", f"best, step {best['step']:,}"]
    return ["<h2>Dice (%) on the validation datasets</h2>", table(head, rows)]


def datasets(workdir: Path) -> list[list[Any]]:
    """The datasets that the latest checkpoint was trained and selected on."""
    try:
        record = store.read_metadata(store.resolve(workdir)).get("lineage", {})
    except store.CheckpointError as error:
        return [[str(error), "", ""]]
    rows = [[name, d["role"], d["licence"]] for name, d in record.get("trained_on", {}).items()]
    rows += [["synthetic tasks", "training", ""]] if record.get("synthetic") else []
    return rows + [[name, d["role"], ""] for name, d in record.get("selected_on", {}).items()]
