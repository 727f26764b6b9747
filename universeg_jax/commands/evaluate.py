"""Measure a checkpoint on built datasets, or any tool's masks against the true ones."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = "universeg evaluate --checkpoint runs/mine --data_dir data --role test --support_size 1,4,16 --out results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", help="a workdir, a checkpoint, or packaged weights by name")
    what.add_argument("--predictions", type=Path, help="a folder of masks, pictures or volumes, by whatever tool")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of another run there")
    group = parser.add_argument_group("with --checkpoint")
    add_settings(parser, group)
    group.add_argument("--flips", action="store_true", help="average over the four flips: four times the time")
    group = parser.add_argument_group("with --predictions")
    group.add_argument("--labels", type=Path, help="folder of true masks, with the names of the predictions")
    group.add_argument("--name", default="", help="of the dataset (default: that of the labels' folder)")
    group.add_argument("--method", default="", help="name of the tool (default: that of the predictions' folder)")


def add_settings(parser: argparse.ArgumentParser, group: Any) -> None:
    """What is evaluated on, and how: the same for checkpoints and for what is trained for each task."""
    parser.add_argument("--out", type=Path, required=True, help="folder for cases.csv, summary.json and report.html")
    parser.add_argument("--surfaces", action="store_true", help="also measure HD95 and surface Dice")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=2.0,
        help="of the surface Dice: mm of volumes, otherwise pixels (of 128x128 with --checkpoint) (default: 2)",
    )
    group.add_argument("--data_dir", default="data")
    group.add_argument("--datasets", help="names, comma-separated")
    group.add_argument("--role", default="", help="all datasets of a role")
    group.add_argument("--support_size", type=_numbers, default=(16,), help="one or several, comma-separated")
    group.add_argument("--ensemble", type=_numbers, default=(1,), help="support draws averaged; one or several")
    group.add_argument("--pool_size", type=int, default=0, help="examples that supports are drawn from; 0 = all")
    group.add_argument("--max_cases", type=int, default=0, help="queries a task; 0 = all")
    group.add_argument("--batch_size", type=int, default=8, help="queries at a time")
    group.add_argument("--seed", type=int, default=0, help="of the support draws")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def settings_of(args: argparse.Namespace, flips: bool = False) -> Any:
    """The Settings of these arguments. Raises UserError unless datasets are chosen in one of the two ways."""
    from universeg_jax.errors import UserError
    from universeg_jax.evaluation import Settings

    if bool(args.datasets) == bool(args.role):
        raise UserError("datasets are chosen by --datasets=NAMES or by --role=ROLE: give one of them")
    return Settings(
        args.support_size, args.ensemble, args.pool_size, args.max_cases, args.batch_size, args.seed,
        flips, args.surfaces, args.tolerance,
    )  # fmt: skip


def print_summary(summary: dict[str, Any]) -> None:
    from universeg_jax.cost import cost_cells
    from universeg_jax.summary import as_markdown

    print(as_markdown(summary))
    if "cost" in summary:
        parameters, milliseconds, seconds = cost_cells(summary["cost"])
        print(f"{parameters} M parameters, {milliseconds} ms a mask, {seconds} s of preparation a task")
    for note in (*(f"skipped {name}: {reason}" for name, reason in summary["skipped"].items()), *summary["notes"]):
        print(note)


def run(args: argparse.Namespace) -> int:
    print_summary(_evaluate(args) if args.checkpoint else _score(args))
    return 0


def _evaluate(args: argparse.Namespace) -> dict:
    from universeg_jax.errors import UserError
    from universeg_jax.evaluation import evaluate_checkpoint
    from universeg_jax.startup import use_compilation_cache

    if args.labels:
        raise UserError("--labels goes with --predictions")
    use_compilation_cache()
    settings = settings_of(args, args.flips)
    names = tuple(args.datasets.split(",")) if args.datasets else ()
    return evaluate_checkpoint(
        args.checkpoint, args.data_dir, names, args.role, settings, args.out, overwrite=args.overwrite
    )


def _score(args: argparse.Namespace) -> dict:
    from universeg_jax.errors import UserError
    from universeg_jax.mask_scores import score_masks

    if not args.labels or args.datasets or args.role:
        raise UserError("--predictions goes with --labels=FOLDER, and without --datasets and --role")
    return score_masks(
        args.predictions, args.labels, args.out, args.name, args.method, args.surfaces, args.tolerance, args.overwrite
    )
