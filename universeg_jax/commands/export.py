"""Write a checkpoint as one file that runs with jax and NumPy alone, on CPU, CUDA and TPU."""

import argparse

EXAMPLE = "universeg export --checkpoint runs/mine --out model.zip"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="small", help="a workdir of train.py, or one of its checkpoints")
    parser.add_argument("--out", required=True, help="a new file")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.export import export_checkpoint

    print(export_checkpoint(args.checkpoint, args.out))
    return 0
