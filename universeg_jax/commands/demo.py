"""Open a page on this machine to label and segment images."""

import argparse

EXAMPLE = "universeg demo --checkpoint runs/mine --port 7860"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="small", help="packaged weights, a run's workdir or a checkpoint")
    parser.add_argument("--port", type=int, default=0, help="port of 127.0.0.1 (default: the first free one from 7860)")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.annotation.page import serve
    from universeg_jax.prediction.predictor import Predictor

    serve(Predictor.from_checkpoint(args.checkpoint), args.port)
    return 0
