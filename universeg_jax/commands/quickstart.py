"""`make quickstart`: data, training, evaluation and report in one command, which resumes when it is run again."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before JAX: no "Very slow compile?" of XLA over a bar

from ml_collections import ConfigDict

from universeg_jax.checkpoints import store
from universeg_jax.checkpoints.packaged import packaged, params_hash
from universeg_jax.configs import quickstart as quickstart_config
from universeg_jax.data.build import BuildOptions, build_folders, read_collection
from universeg_jax.data.dataset import list_datasets, open_dataset
from universeg_jax.episode import OFFICIAL_SIZE
from universeg_jax.episodes.synthetic_datasets import make_datasets
from universeg_jax.errors import UserError
from universeg_jax.evaluation import runner, trivial
from universeg_jax.evaluation.cases import Settings
from universeg_jax.evaluation.scoring import Method, model_method
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.reports.figures import plot_curves, plot_support_sizes
from universeg_jax.reports.files import read_json, read_json_lines
from universeg_jax.startup import use_compilation_cache
from universeg_jax.training import loop

TRAINING_SECONDS = 280.0  # that steps may take, without compiling and validation
LEAST_STEPS = 200  # for slow machines, whose compiled program is kept
ROUND = 50  # steps
ROLES = ["train_open", "val", "test"]
SETTINGS = Settings(support_sizes=(1, 4, 16), ensembles=(1,), batch_size=16)
BASELINES = {"mean_mask": (trivial.mean_mask, None), "nearest_label": (trivial.nearest_label, None)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="quickstart", description=__doc__)
    parser.add_argument(
        "--data", default="", help="folder with dataset folders and splits.json (default: synthetic data)"
    )
    parser.add_argument("--workdir", default="runs/quickstart")
    parser.add_argument(
        "--num_steps", type=int, default=0, help="training steps (default: as many as about 10 minutes allow)"
    )
    parser.add_argument("--fresh", action="store_true", help="delete the workdir first")
    args = parser.parse_args(argv)
    workdir = Path(args.workdir)
    try:
        if args.fresh:
            shutil.rmtree(workdir, ignore_errors=True)
        quickstart(workdir, args.data, args.num_steps)
    except (UserError, OSError) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    return 0


def quickstart(workdir: Path, data: str, num_steps: int = 0) -> None:
    """Builds the data, trains and evaluates; each part keeps what is finished.

    `num_steps`: of the training; 0: those of a run that is resumed, or `fit_steps`.
    """
    config = default_config()
    config.data_dir = str(workdir / "data")
    print_plan(workdir, config, data)
    started = time.time()
    build_data(config.data_dir, data)
    print(f"[1/3] data: {minutes(started)} min")
    started = time.time()
    use_compilation_cache()  # the step that is measured need not be compiled again
    config.num_steps = num_steps or recorded_steps(workdir) or fit_steps(config)
    loop.train_and_evaluate(config, workdir)
    print(f"[2/3] training: {minutes(started)} min")
    started = time.time()
    evaluate_and_report(workdir, config.data_dir)
    print(f"[3/3] evaluation: {minutes(started)} min")
    print(f"the report is {workdir}/report.md, its figures are in {workdir}/figures and {workdir}/eval/figures")


def default_config() -> ConfigDict:
    return quickstart_config.get_config()


def recorded_steps(workdir: Path) -> int:
    """The steps of a run that started here; 0 without one."""
    path = workdir / "config.json"
    return int(read_json(path)["num_steps"]) if path.exists() else 0


def fit_steps(config: ConfigDict) -> int:
    """As many steps as TRAINING_SECONDS allow on this machine, from LEAST_STEPS to config.num_steps.

    Measures the program for the fewest steps. The learning rate's schedule is compiled into it, so only a machine that
    is clearly faster compiles once more. The result depends on the number alone, not on when it was measured.
    """
    most, least = config.num_steps, min(LEAST_STEPS, config.num_steps)
    short = config.copy_and_resolve_references()
    short.num_steps = least
    seconds = loop.seconds_per_step(short)
    fitting = int(TRAINING_SECONDS / seconds) // ROUND * ROUND
    steps = least if fitting < 1.5 * least else min(fitting, most)
    print(f"a step takes {seconds:.2f} s here: {steps} of {most} steps (--num_steps={steps} repeats this run)")
    return steps


def print_plan(workdir: Path, config: ConfigDict, data: str) -> None:
    saved = sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*") if p.name.isdigit())
    built = list_datasets(config.data_dir)
    print(f"{workdir}: about 10 minutes on 2 cores in all")
    print(f"  1 data, 1 min: {f'folders of {data}' if data else '12 synthetic datasets'}; {len(built)} built so far")
    reached = f"step {saved[-1]} reached" if saved else "not started"
    print(f"  2 training, 5 min: up to {config.num_steps} steps, as many as the machine allows; {reached}")
    print("  3 evaluation, 4 min: test datasets, support sizes 1, 4 and 16, with packaged weights and baselines")


def build_data(data_dir: str, data: str) -> None:
    """Builds the folders of `data`, or synthetic datasets without it; never both in one data_dir."""
    made = [name for name in list_datasets(data_dir) if name.startswith("made_")]
    if data:
        if made:
            raise UserError(f"{data_dir} holds synthetic datasets; start over with FRESH=1 or choose another workdir")
        build_folders(read_collection(Path(data), ROLES), BuildOptions(data_dir, OFFICIAL_SIZE))
    else:
        if len(list_datasets(data_dir)) > len(made):
            raise UserError(f"{data_dir} holds real datasets; repeat DATA=FOLDER, or start over with FRESH=1")
        make_datasets(data_dir)


def packaged_methods() -> dict[str, tuple[Method, Any]]:
    """The packaged weights, for comparison with the new checkpoint."""
    predictors = {name: Predictor.from_pretrained(name) for name in packaged()}
    return {f"weights {name}": (model_method(p.model, p.config.image_size), p.params) for name, p in predictors.items()}


def evaluate_and_report(workdir: Path, data_dir: str) -> None:
    """Writes scores on `test`, the report and figures, unless they exist for the same parameters and data."""
    params = store.load(str(workdir))[0]
    summary_path, record = (workdir / "eval" / name for name in ("summary.json", "evaluation.json"))
    if all(path.exists() for path in (summary_path, record, workdir / "report.md")):
        summary, datasets = read_json(summary_path), [open_dataset(data_dir, name) for name in list_datasets(data_dir)]
        tested = {d.meta.name: d.fingerprint for d in datasets if d.meta.role == summary["role"] == "test"}
        if summary.get("params_hash") == params_hash(params) and read_json(record)["datasets"] == tested:
            print(f"{summary_path} exists for these parameters and this data")
            return
    summary = runner.evaluate_checkpoint(
        str(workdir),
        data_dir,
        (),
        "test",
        SETTINGS,
        workdir / "eval",
        baselines=packaged_methods() | BASELINES,
        overwrite=True,  # replaces the summary of the last validation
    )
    plot_curves(workdir, workdir / "figures" / "curves.png")
    by_size: dict[str, dict[int, float]] = {}
    for setting in summary["settings"]:
        by_size.setdefault(setting["method"], {})[setting["support_size"]] = setting["mean_dice"]
    plot_support_sizes(by_size, workdir / "figures" / "support_size.png")
    evaluation = (workdir / "eval" / "report.md").read_text(encoding="utf-8").replace("](figures/", "](eval/figures/")
    text = [
        "# Quickstart report",
        f"{len(read_json_lines(workdir / 'metrics.jsonl'))} steps; checkpoint {Path(summary['checkpoint']).name} "
        "scored best on `val`. The tasks of the test datasets were not trained on.",
        "![curves](figures/curves.png)",
        "![support size](figures/support_size.png)",
        evaluation,
    ]
    (workdir / "report.md").write_text("\n\n".join(text), encoding="utf-8")


def minutes(started: float) -> str:
    return f"{(time.time() - started) / 60:.1f}"


if __name__ == "__main__":
    sys.exit(main())
