"""Print one table of several evaluations.

Shows parameters, time, and Dice by dataset with intervals.
"""

import argparse
from pathlib import Path

EXAMPLE = "universeg table results/ours results/senet results/unet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=Path, help="folders that `universeg evaluate` or `baseline` wrote")
    parser.add_argument(
        "--support_size", type=int, default=0, help="support size to show (default: the largest of each)"
    )
    parser.add_argument("--ensemble", type=int, default=0, help="ensemble size to show (default: the largest of each)")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.errors import UserError
    from universeg_jax.evaluation.cost import cost_table
    from universeg_jax.reports.files import read_json

    missing = [str(path) for path in args.results if not (path / "summary.json").exists()]
    if missing:
        raise UserError(f"no summary.json in {', '.join(missing)}; write one with `universeg evaluate --out`")
    names = [path.name for path in args.results]
    names = names if len(set(names)) == len(names) else [str(path) for path in args.results]
    summaries = {name: read_json(path / "summary.json") for name, path in zip(names, args.results, strict=True)}
    print(cost_table(summaries, args.support_size, args.ensemble))
    return 0
