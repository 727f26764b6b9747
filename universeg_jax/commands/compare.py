"""Compare two evaluations case by case: the difference, its interval and p by dataset and over all."""

import argparse
from pathlib import Path

EXAMPLE = "universeg compare results/short results/long --out results/short_and_long"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", type=Path, help="the --out of `universeg evaluate`")
    parser.add_argument("b", metavar="B", type=Path, help="another one; differences are B − A")
    parser.add_argument(
        "--method", default="", help="of A and of B, comma-separated; the first of each file if not given"
    )
    parser.add_argument("--score", default="dice", help="a column of cases.csv")
    parser.add_argument("--support_size", type=int, default=0, help="0 = the largest that both have")
    parser.add_argument("--ensemble", type=int, default=0, help="0 = the largest that both have")
    parser.add_argument("--resamples", type=int, default=10_000, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--out", type=Path, help="folder for compare.md and compare.json")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.errors import UserError
    from universeg_jax.evaluation.comparison import compare, comparison_markdown
    from universeg_jax.reports.files import write_json

    methods = tuple(args.method.split(",")) if args.method else ()
    if len(methods) not in (0, 2):
        raise UserError(f"--method={args.method}: two names are needed, that of A and that of B")
    if args.resamples < 100:
        raise UserError(f"--resamples={args.resamples}: at least 100 are needed for the ends of an interval")
    options = (args.score, args.support_size, args.ensemble, args.resamples, args.seed)
    comparison = compare(args.a, args.b, methods, *options)
    text = comparison_markdown(comparison)
    print(text, end="")
    if args.out:
        write_json(args.out / "compare.json", comparison)
        (args.out / "compare.md").write_text(text)
    return 0
