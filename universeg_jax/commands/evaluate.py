"""Evaluate a checkpoint on datasets, or masks from any tool.

The results name the datasets that the checkpoint was trained or selected on.
"""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = "universeg evaluate --checkpoint runs/mine --data_dir data --role=test --support_size=1,4,16 --out results"

CHECKPOINT = "packaged weights, a run's workdir or a checkpoint; every query contains the structure"
PREDICTIONS = "a folder of masks from any tool; scores also cases in which a structure is absent"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", help=CHECKPOINT)
    what.add_argument("--predictions", type=Path, help=PREDICTIONS)
    parser.add_argument("--overwrite", action="store_true", help="replace the results of another run in --out")
    group = parser.add_argument_group("with --predictions")
    group.add_argument("--labels", type=Path, help="folder of true masks, with the same file names")
    group.add_argument("--name", default="", help="name of the dataset (default: the name of the labels' folder)")
    group.add_argument("--method", default="", help="name of the tool (default: the name of the predictions' folder)")
    add_settings(parser, required=False)


def add_settings(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds the flags that `evaluate` and `baseline` share."""
    parser.add_argument("--out", type=Path, required=True, help="folder for summary.json, cases.csv and reports")
    parser.add_argument("--data_dir", default="data", help="folder of built datasets")
    what = parser.add_mutually_exclusive_group(required=required)
    what.add_argument("--datasets", help="names of datasets, comma-separated")
    what.add_argument("--role", default="", help="evaluate all datasets of this role")
    parser.add_argument(
        "--support_size", type=_numbers, default=(16,), help="support sizes, comma-separated (default: 16)"
    )
    parser.add_argument(
        "--ensemble",
        type=_numbers,
        default=(1,),
        help="numbers of support samples to average, comma-separated (default: 1)",
    )
    parser.add_argument(
        "--pool_size", type=int, default=0, help="number of examples to sample supports from (default: all)"
    )
    parser.add_argument("--max_cases", type=int, default=0, help="largest number of queries per task (default: all)")
    parser.add_argument("--batch_size", type=int, default=8, help="queries per forward pass")
    parser.add_argument("--seed", type=int, default=0, help="seed of the support samples (default: %(default)s)")
    parser.add_argument("--flips", action="store_true", help="average over four flips; takes four times as long")
    parser.add_argument("--surfaces", action="store_true", help="also measure HD95 and surface Dice")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=2.0,
        help="of the surface Dice, in pixels at 128x128; with --predictions in mm for volumes, pixels for images",
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
    """Prints the table, skipped datasets, notes, and the cost of a mask if it was measured."""
    from universeg_jax.evaluation.summary import cost_cells, summary_markdown

    print(summary_markdown(summary))
    for note in (*(f"skipped {name}: {reason}" for name, reason in summary["skipped"].items()), *summary["notes"]):
        print(note)
    if "distance_unit" not in summary:
        print("the columns hd95 and nsd of cases.csv are empty: --surfaces measures them")
    if "cost" in summary:
        parameters, milliseconds, seconds = cost_cells(summary["cost"])
        print(f"{parameters} M parameters, {milliseconds} ms per mask, {seconds} s of preparation per task")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.reports.files import require_writable

    require_writable(args.out)
    print_datasets(_evaluate(args) if args.checkpoint else _score(args))
    return 0


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from universeg_jax.errors import UserError
    from universeg_jax.evaluation.runner import evaluate_checkpoint
    from universeg_jax.startup import use_compilation_cache

    if bool(args.datasets) == bool(args.role) or args.labels:
        raise UserError("--checkpoint needs either --datasets=NAMES or --role=ROLE, and takes no --labels")
    use_compilation_cache()
    names = tuple(args.datasets.split(",")) if args.datasets else ()
    return evaluate_checkpoint(
        args.checkpoint, args.data_dir, names, args.role, settings_of(args), args.out, overwrite=args.overwrite
    )


def _score(args: argparse.Namespace) -> dict[str, Any]:
    from universeg_jax.errors import UserError
    from universeg_jax.evaluation.mask_files import score_masks

    if not args.labels or args.datasets or args.role:
        raise UserError("--predictions needs --labels=FOLDER, and takes no --datasets and no --role")
    return score_masks(
        args.predictions, args.labels, args.out, args.name, args.method, args.surfaces, args.tolerance, args.overwrite
    )
