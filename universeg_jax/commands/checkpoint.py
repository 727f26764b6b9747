"""Show what a checkpoint is and what it was trained on."""

import argparse
import json

EXAMPLE = "universeg checkpoint runs/mine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="a workdir or one checkpoint")


def run(args: argparse.Namespace) -> int:
    from universeg_jax import checkpoints

    path = checkpoints.resolve(args.path)
    print(json.dumps({"path": str(path), **checkpoints.read_metadata(path)}, indent=2))
    return 0
