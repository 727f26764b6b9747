"""`make quickstart`: data → training → evaluation → report, in one command that continues where it stopped."""

import argparse
import importlib
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from universeg_jax.checkpoints.packaged import packaged, params_hash
from universeg_jax.data.build import build_all, read_collection
from universeg_jax.data.dataset import list_datasets, open_dataset
from universeg_jax.episode import OFFICIAL_SIZE
from universeg_jax.episodes.synthetic_datasets import make_datasets
from universeg_jax.errors import UserError
from universeg_jax.evaluation import runner, trivial
from universeg_jax.evaluation.cases import Settings
from universeg_jax.evaluation.scoring import Method, model_method
from universeg_jax.evaluation.summary import interval_text
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.reports.figures import plot_curves, plot_sheet, plot_support_sizes
from universeg_jax.reports.files import read_json, read_json_lines
from universeg_jax.reports.markdown import markdown_table, percent
from universeg_jax.training import loop

ROLES = ("train_open", "val", "test")
SETTINGS = Settings(support_sizes=(1, 4, 16), ensembles=(1,), batch_size=16)
BASELINES = {"mean_mask": (trivial.mean_mask, None), "nearest_label": (trivial.nearest_label, None)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="quickstart", description=__doc__)
    parser.add_argument("--data", default="", help="folder of dataset folders with a splits.json; default: made data")
    parser.add_argument("--workdir", default="runs/quickstart")
    parser.add_argument("--fresh", action="store_true", help="delete the workdir first")
    args = parser.parse_args(argv)
    workdir = Path(args.workdir)
    try:
        if args.fresh:
            shutil.rmtree(workdir, ignore_errors=True)
        quickstart(workdir, args.data)
    except (UserError, OSError) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    return 0


def quickstart(workdir: Path, data: str) -> None:
    """The three parts, each of which leaves alone what is there already."""
    config = default_config()
    config.data_dir = str(workdir / "data")
    print_plan(workdir, config, data)
    started = time.time()
    build_data(config.data_dir, data)
    print(f"[1/3] data: {minutes(started)} min")
    started = time.time()
    loop.train_and_evaluate(config, workdir)
    print(f"[2/3] training: {minutes(started)} min")
    started = time.time()
    evaluate(workdir, config.data_dir)
    print(f"[3/3] evaluation: {minutes(started)} min")
    print(f"read {workdir}/report.md and look at {workdir}/figures/")


def default_config() -> ConfigDict:
    return importlib.import_module("configs.quickstart").get_config()


def print_plan(workdir: Path, config: ConfigDict, data: str) -> None:
    saved = sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*") if p.name.isdigit())
    there = list_datasets(config.data_dir)
    print(f"{workdir}: about 10 minutes on 2 cores in all")
    print(f"  1 data, 1 min: {f'folders of {data}' if data else 'twelve made datasets'}; {len(there)} built so far")
    print(f"  2 training, 5 min: {config.num_steps} steps; {f'step {saved[-1]} reached' if saved else 'not begun'}")
    print(
        "  3 evaluation, 4 min: on the test datasets, support sizes 1, 4 and 16, beside packaged weights and baselines"
    )


def build_data(data_dir: str, data: str) -> None:
    """Real folders where `data` is given, else made ones; never both in one data_dir."""
    made = [name for name in list_datasets(data_dir) if name.startswith("made_")]
    if data:
        if made:
            raise UserError(f"{data_dir} holds made datasets; start over with FRESH=1 or take another workdir")
        build_all(read_collection(Path(data), ROLES), data_dir, OFFICIAL_SIZE)
    else:
        if len(list_datasets(data_dir)) > len(made):
            raise UserError(f"{data_dir} holds real datasets; give DATA=FOLDER again, or start over with FRESH=1")
        make_datasets(data_dir)


def packaged_methods() -> dict[str, tuple[Method, Any]]:
    """The weights that came with the project, beside what was just trained."""
    predictors = {name: Predictor.from_pretrained(name) for name in packaged()}
    return {f"weights {name}": (model_method(p.model, p.config.image_size), p.params) for name, p in predictors.items()}


def evaluate(workdir: Path, data_dir: str) -> None:
    """Scores on `test`, the report and the figures, unless they are there for the same parameters and data."""
    predictor = Predictor.from_checkpoint(workdir)
    summary_path, record = (workdir / "eval" / name for name in ("summary.json", "evaluation.json"))
    if all(path.exists() for path in (summary_path, record, workdir / "report.md")):
        summary, datasets = read_json(summary_path), [open_dataset(data_dir, name) for name in list_datasets(data_dir)]
        tested = {d.meta.name: d.fingerprint for d in datasets if d.meta.role == summary["role"] == "test"}
        if summary.get("params_hash") == params_hash(predictor.params) and read_json(record)["datasets"] == tested:
            print(f"{summary_path} is there for these parameters and this data")
            return
    summary = runner.evaluate_checkpoint(
        str(workdir),
        data_dir,
        (),
        "test",
        SETTINGS,
        workdir / "eval",
        baselines=packaged_methods() | BASELINES,
        overwrite=True,  # the summary of the training's last validation
        report=False,  # the quickstart writes its own
    )
    method = model_method(predictor.model, predictor.config.image_size)
    figures = workdir / "figures"
    plot_curves(workdir, figures / "curves.png")
    by_size = {
        name: {s["support_size"]: s["mean_dice"] for s in summary["settings"] if s["method"] == name}
        for name in dict.fromkeys(s["method"] for s in summary["settings"])
    }
    plot_support_sizes(by_size, figures / "support_size.png")
    for name in summary["datasets"]:
        cases = runner.example_cases(method, predictor.params, open_dataset(data_dir, name), SETTINGS)
        plot_sheet(cases, f"{name}, support size {max(SETTINGS.support_sizes)}", figures / f"{name}.png")
    (workdir / "report.md").write_text(report(workdir, summary, by_size))


def report(workdir: Path, summary: dict, by_size: dict[str, dict[int, float]]) -> str:
    """The model beside the baselines, from the same cases and supports."""
    size = summary["support_size"]
    by_method = {s["method"]: s["datasets"] for s in summary["settings"] if s["support_size"] == size}
    others = [method for method in by_method if method != "model"]
    rows = [
        [
            name,
            f"{percent(d['dice'])} ({interval_text(d['ci_low'], d['ci_high'])})",
            *(percent(by_method[method][name]["dice"]) for method in others),
            d["n_cases"],
            d["n_subjects"],
        ]
        for name, d in summary["datasets"].items()
    ]
    rows.append(["mean", *(percent(by_size[method][size]) for method in by_size), "", ""])
    lines = read_json_lines(workdir / "metrics.jsonl")
    sizes = list(by_size["model"])
    return "\n".join(
        [
            "# Quickstart report",
            "",
            f"{len(lines)} steps; checkpoint {Path(summary['checkpoint']).name} was the best on `val`. Dice (%) "
            f"at 128x128 on tasks that training never saw, support size {size}; in brackets the 95 % interval over "
            "subjects.",
            "",
            markdown_table(
                ["test dataset", "model", *(m.replace("_", " ") for m in others), "cases", "subjects"], rows
            ),
            "",
            *[f"- {note}" for note in summary["notes"]],
            *[f"- skipped {name}: {reason}" for name, reason in summary["skipped"].items()],
            "",
            "Mean over the datasets by support size:",
            "",
            markdown_table(
                ["method", *map(str, sizes)],
                [[m.replace("_", " "), *(percent(v[s]) for s in sizes)] for m, v in by_size.items()],
            ),
            "",
            "![curves](figures/curves.png)",
            "![support size](figures/support_size.png)",
            *[f"![{name}](figures/{name}.png)" for name in summary["datasets"]],
            "",
        ]
    )


def minutes(started: float) -> str:
    return f"{(time.time() - started) / 60:.1f}"


if __name__ == "__main__":
    sys.exit(main())
