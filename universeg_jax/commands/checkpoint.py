"""Show a checkpoint's configuration and training data."""

import argparse
import json

EXAMPLE = "universeg checkpoint runs/mine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="a run's workdir, a checkpoint, or the name of packaged weights")
    parser.add_argument(
        "--package",
        metavar="FILE",
        help="write the weights to one file, if all their training data may be redistributed",
    )
    parser.add_argument(
        "--mean_with",
        metavar="CHECKPOINT",
        default="",
        help="with --package: write the mean of both parameters",
    )


def run(args: argparse.Namespace) -> int:
    from universeg_jax.checkpoints import lineage, store
    from universeg_jax.errors import UserError

    if args.mean_with and not args.package:
        raise UserError("--mean_with needs --package FILE, which gets the mean")

    path = store.resolve(args.path)
    print(json.dumps({"path": str(path), **store.read_metadata(path)}, indent=2))
    if args.package:
        header = lineage.package(path, args.package, args.mean_with)
        print(f"{args.package}: parameters {header['params_hash']}")
    return 0
