"""Find likely mistakes in a support folder.

Segments each example with the others; reports leave-one-out Dice and labels or images that look wrong.
"""

import argparse
from pathlib import Path

from universeg_jax.commands.predict import add_support_arguments, axis_number

EXAMPLE = "universeg check --support my_scans --html my_scans.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_support_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to a JSON file")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that shows every example")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.prediction.check import check
    from universeg_jax.prediction.check_report import check_text, write_check_page
    from universeg_jax.prediction.predictor import Predictor
    from universeg_jax.prediction.support import read_support_folder
    from universeg_jax.readers.folder import read_folder
    from universeg_jax.reports.files import write_json

    unusable: dict[str, str] = {}
    support = read_support_folder(args.support, args.label, axis_number(args), unusable=unusable)
    result = check(Predictor.from_checkpoint(args.checkpoint), support, progress=True, unusable=unusable)
    folder = read_folder(args.support)
    if folder.taken:
        names = ", ".join(f"{name} ({i})" for i, name in folder.labels.items())
        print(f"labels are taken for {folder.taken}: {names}")
    print(check_text(result))
    if args.json:
        write_json(args.json, result)
    if args.html:
        write_check_page(args.html, result, support)
    return 0
