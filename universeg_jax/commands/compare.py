"""Compare two evaluations case by case.

Prints differences with confidence intervals and p-values, by dataset and overall.
"""

import argparse
from pathlib import Path

EXAMPLE = "universeg compare results/short results/long --out results/short_and_long"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", type=Path, help="the --out of one `universeg evaluate`")
    parser.add_argument("b", metavar="B", type=Path, help="the --out of another; differences are B − A")
    parser.add_argument(
        "--method", default="", help="the methods of A and of B, comma-separated (default: the first of each)"
    )
    parser.add_argument("--score", default="dice", help="column of cases.csv to compare")
    parser.add_argument(
        "--support_size", type=int, default=0, help="support size to compare (default: the largest common one)"
    )
    parser.add_argument(
        "--ensemble", type=int, default=0, help="ensemble size to compare (default: the largest common one)"
    )
    parser.add_argument("--resamples", type=int, default=10_000, help="bootstrap resamples, 100 or more")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for compare.md and compare.json")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.errors import UserError
    from universeg_jax.evaluation.comparison import compare, comparison_markdown
    from universeg_jax.reports.files import write_json

    methods = tuple(args.method.split(",")) if args.method else ()
    if len(methods) not in (0, 2):
        raise UserError(f"--method={args.method}: give two names, of A and of B")
    if args.resamples < 100:
        raise UserError(f"--resamples={args.resamples}: use at least 100 for an interval")
    options = (args.score, args.support_size, args.ensemble, args.resamples, args.seed)
    comparison = compare(args.a, args.b, methods, *options)
    text = comparison_markdown(comparison)
    print(text, end="")
    if args.out:
        write_json(args.out / "compare.json", comparison)
        (args.out / "compare.md").write_text(text, encoding="utf-8")
    return 0
