"""Measure a checkpoint on datasets that it was not trained on, or the masks of any tool against labels."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = "universeg evaluate --checkpoint runs/mine --data_dir data --role=test --support_size=1,4,16 --out results"

# Masks that do not occur are in no built dataset.
CHECKPOINT = "a workdir, a checkpoint, or packaged weights by name; its queries all hold the structure"
PREDICTIONS = "a folder of masks, pictures or volumes, by whatever tool; also measured where a structure is absent"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", help=CHECKPOINT)
    what.add_argument("--predictions", type=Path, help=PREDICTIONS)
    parser.add_argument("--overwrite", action="store_true", help="replace the results of another run in --out")
    group = parser.add_argument_group("with --predictions")
    group.add_argument("--labels", type=Path, help="folder of true masks, with the names of the predictions")
    group.add_argument("--name", default="", help="of the dataset (default: that of the labels' folder)")
    group.add_argument("--method", default="", help="name of the tool (default: that of the predictions' folder)")
    add_settings(parser, required=False)


def add_settings(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """What is evaluated on, and how: the same for checkpoints and for what is trained for each task."""
    parser.add_argument("--out", type=Path, required=True, help="folder for summary.json, cases.csv and reports")
    parser.add_argument("--data_dir", default="data")
    what = parser.add_mutually_exclusive_group(required=required)
    what.add_argument("--datasets", help="names, comma-separated")
    what.add_argument("--role", default="", help="all datasets of a role")
    parser.add_argument("--support_size", type=_numbers, default=(16,), help="one or several, comma-separated")
    parser.add_argument("--ensemble", type=_numbers, default=(1,), help="support draws averaged; one or several")
    parser.add_argument("--pool_size", type=int, default=0, help="examples that supports are drawn from; 0 = all")
    parser.add_argument("--max_cases", type=int, default=0, help="queries a task; 0 = all")
    parser.add_argument("--batch_size", type=int, default=8, help="queries at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the support draws")
    parser.add_argument("--flips", action="store_true", help="average over the four flips: four times the time")
    parser.add_argument("--surfaces", action="store_true", help="also measure HD95 and surface Dice")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=2.0,
        help="of the surface Dice: pixels of 128x128; with --predictions mm of volumes, else pixels (default: 2)",
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def settings_of(args: argparse.Namespace) -> Any:
    from universeg_jax.evaluation.cases import Settings

    return Settings(
        args.support_size, args.ensemble, args.pool_size, args.max_cases, args.batch_size, args.seed,
        args.flips, args.surfaces, args.tolerance,
    )  # fmt: skip


def print_datasets(summary: dict[str, Any]) -> None:
    """The table, what was left out, and what a mask costs where that was measured."""
    from universeg_jax.evaluation.summary import cost_cells, summary_markdown

    print(summary_markdown(summary))
    for note in (*(f"skipped {name}: {reason}" for name, reason in summary["skipped"].items()), *summary["notes"]):
        print(note)
    if "cost" in summary:
        parameters, milliseconds, seconds = cost_cells(summary["cost"])
        print(f"{parameters} M parameters, {milliseconds} ms a mask, {seconds} s of preparation a task")


def run(args: argparse.Namespace) -> int:
    print_datasets(_evaluate(args) if args.checkpoint else _score(args))
    return 0


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from universeg_jax.errors import UserError
    from universeg_jax.evaluation.runner import evaluate_checkpoint
    from universeg_jax.startup import use_compilation_cache

    if bool(args.datasets) == bool(args.role) or args.labels:
        raise UserError("--checkpoint goes with --datasets=NAMES or with --role=ROLE, one of them, and no --labels")
    use_compilation_cache()
    names = tuple(args.datasets.split(",")) if args.datasets else ()
    return evaluate_checkpoint(
        args.checkpoint, args.data_dir, names, args.role, settings_of(args), args.out, overwrite=args.overwrite
    )


def _score(args: argparse.Namespace) -> dict[str, Any]:
    from universeg_jax.errors import UserError
    from universeg_jax.evaluation.mask_files import score_masks

    if not args.labels or args.datasets or args.role:
        raise UserError("--predictions goes with --labels=FOLDER, and without --datasets and --role")
    return score_masks(
        args.predictions, args.labels, args.out, args.name, args.method, args.surfaces, args.tolerance, args.overwrite
    )
