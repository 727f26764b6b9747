"""Write an HTML page about a training run.

Shows curves, scores, masks and configuration; works during training too.
"""

import argparse
from pathlib import Path

EXAMPLE = "universeg report runs/mine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", help="the --workdir of train.py")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.training.report import write_run_report

    print(write_run_report(Path(args.workdir)))
    return 0
