"""Segment images by example: PNG masks of label ids, each in its query's own size."""

import argparse
from pathlib import Path

EXAMPLE = "universeg predict --checkpoint runs/quickstart --support my_scans --queries new_scans --out masks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a workdir of train.py, or one of its checkpoints")
    parser.add_argument("--support", required=True, help="folder with images/ and labels/")
    parser.add_argument("--queries", required=True, nargs="+", help="images, or folders of them")
    parser.add_argument("--out", required=True, help="folder for the masks")
    parser.add_argument("--label", type=int, help="segment this id alone, as 1; default: all ids of the support")
    parser.add_argument("--support_size", type=int, default=64, help="entries used at a time (default: %(default)s)")
    parser.add_argument("--ensemble", type=int, default=1, help="draws averaged where the support holds more")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.predictor import Predictor, predict_files

    return predict_files(
        Predictor.from_checkpoint(args.checkpoint),
        Path(args.support),
        [Path(q) for q in args.queries],
        Path(args.out),
        label=args.label,
        support_size=args.support_size,
        ensemble=args.ensemble,
    )
