"""Look for mistakes in a support folder, and say how well it segments itself."""

import argparse
import json
from pathlib import Path

from universeg_jax.commands.predict import AXES

EXAMPLE = "universeg check --support my_scans --html my_scans.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--support", required=True, help="folder with images/ and labels/, of pictures or of volumes")
    parser.add_argument(
        "--checkpoint", default="small", help="packaged weights, a workdir or checkpoint (default: %(default)s)"
    )
    parser.add_argument("--label", type=int, help="this id alone; default: all ids")
    parser.add_argument("--axis", choices=AXES, help="along which volumes are cut (default: as the first was acquired)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    parser.add_argument("--html", metavar="FILE", help="write a page with every example there")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.prediction.check import check
    from universeg_jax.prediction.check_report import as_page, as_text
    from universeg_jax.prediction.predictor import Predictor
    from universeg_jax.prediction.support import read_support_folder

    axis = AXES.index(args.axis) if args.axis else None
    unusable: dict[str, str] = {}
    support = read_support_folder(args.support, args.label, axis, unusable=unusable)
    result = check(Predictor.from_checkpoint(args.checkpoint), support, progress=True, unusable=unusable)
    print(as_text(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")
    if args.html:
        Path(args.html).write_text(as_page(result, support))
    return 0
