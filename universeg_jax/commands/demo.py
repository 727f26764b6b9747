"""Serve a page on this machine: upload or draw examples, see and correct masks, save them."""

import argparse

EXAMPLE = "universeg demo --checkpoint runs/mine --port 7860"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="small", help="a workdir of train.py, or one of its checkpoints")
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1 (default: the first free one from 7860 on)")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.annotation.page import serve
    from universeg_jax.prediction.predictor import Predictor

    serve(Predictor.from_checkpoint(args.checkpoint), args.port)
    return 0
