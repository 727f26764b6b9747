"""Measure a checkpoint on datasets that it was not trained on, or the masks of any tool against labels."""

import argparse
from pathlib import Path

EXAMPLE = "universeg evaluate --checkpoint runs/mine --data_dir data --role=test --support_size=1,4,16 --out results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", help="a workdir, a checkpoint, or packaged weights by name")
    what.add_argument("--predictions", type=Path, help="a folder of masks, pictures or volumes, by whatever tool")
    parser.add_argument("--out", type=Path, required=True, help="folder for cases.csv, summary.json and report.html")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of another run there")
    parser.add_argument("--surfaces", action="store_true", help="also measure HD95 and surface Dice")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=2.0,
        help="of the surface Dice: mm of volumes, otherwise pixels (of 128x128 with --checkpoint) (default: 2)",
    )
    group = parser.add_argument_group("with --checkpoint")
    group.add_argument("--data_dir", default="data")
    group.add_argument("--datasets", help="names, comma-separated")
    group.add_argument("--role", default="", help="all datasets of a role")
    group.add_argument("--support_size", type=_numbers, default=(16,), help="one or several, comma-separated")
    group.add_argument("--ensemble", type=_numbers, default=(1,), help="support draws averaged; one or several")
    group.add_argument("--pool_size", type=int, default=0, help="examples that supports are drawn from; 0 = all")
    group.add_argument("--max_cases", type=int, default=0, help="queries a task; 0 = all")
    group.add_argument("--batch_size", type=int, default=8, help="queries at a time")
    group.add_argument("--seed", type=int, default=0, help="of the support draws")
    group.add_argument("--flips", action="store_true", help="average over the four flips: four times the time")
    group = parser.add_argument_group("with --predictions")
    group.add_argument("--labels", type=Path, help="folder of true masks, with the names of the predictions")
    group.add_argument("--name", default="", help="of the dataset (default: that of the labels' folder)")
    group.add_argument("--method", default="", help="name of the tool (default: that of the predictions' folder)")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def run(args: argparse.Namespace) -> int:
    from universeg_jax.summary import as_markdown

    summary = _evaluate(args) if args.checkpoint else _score(args)
    print(as_markdown(summary))
    for note in (*(f"skipped {name}: {reason}" for name, reason in summary["skipped"].items()), *summary["notes"]):
        print(note)
    return 0


def _evaluate(args: argparse.Namespace) -> dict:
    from universeg_jax.errors import UserError
    from universeg_jax.evaluation import Settings, evaluate_checkpoint
    from universeg_jax.startup import use_compilation_cache

    if bool(args.datasets) == bool(args.role) or args.labels:
        raise UserError("--checkpoint goes with --datasets=NAMES or with --role=ROLE, one of them, and no --labels")
    use_compilation_cache()
    settings = Settings(
        args.support_size, args.ensemble, args.pool_size, args.max_cases, args.batch_size, args.seed,
        args.flips, args.surfaces, args.tolerance,
    )  # fmt: skip
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
