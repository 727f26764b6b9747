"""Open a page on this machine to label and segment images."""

import argparse
from pathlib import Path

EXAMPLE = "universeg demo my_project --port 7860"
PROJECT = Path("universeg_project")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "project", nargs="?", type=Path, default=PROJECT, metavar="PROJECT",
        help=f"folder of an annotation project, which the first images make (default: {PROJECT})",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", help="packaged weights, a run's workdir or a checkpoint (default: the project's, or small)"
    )
    parser.add_argument("--port", type=int, default=0, help="port of 127.0.0.1 (default: the first free one from 7860)")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.annotation.page import serve
    from universeg_jax.annotation.project import read_project
    from universeg_jax.annotation.workspace import Workspace
    from universeg_jax.prediction.predictor import Predictor

    known = (args.project / "project.json").is_file()
    checkpoint = args.checkpoint or (read_project(args.project).checkpoint if known else "small")
    workspace = Workspace(args.project, Predictor.from_checkpoint(checkpoint), checkpoint)
    try:
        serve(workspace, args.port)
    finally:
        workspace.close()
    return 0
