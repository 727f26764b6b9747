"""Find likely mistakes in a support folder.

Segments each example with the others; reports leave-one-out Dice and labels or images that look wrong. Takes one to two
seconds of a quiet core per example and label.
"""

import argparse
from pathlib import Path
from typing import Any

from universeg_jax.commands.predict import add_support_arguments, axis_number, ignored_ids, label_id

EXAMPLE = "universeg check --support my_scans --html my_scans.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_support_arguments(parser)
    parser.add_argument(
        "--curve",
        action="store_true",
        help="also measure the learning curve, the best --support_size and each example's influence; ten times as long",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to a JSON file")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that shows every example")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.reports.files import require_writable

    for file in filter(None, (args.json, args.html)):
        require_writable(file.parent)  # before imports and work that take minutes
    from universeg_jax.prediction.check import check
    from universeg_jax.prediction.check_report import check_text, write_check_page
    from universeg_jax.prediction.predictor import Predictor
    from universeg_jax.prediction.support import read_support_folder
    from universeg_jax.prediction.understood import describe
    from universeg_jax.readers.folder import read_folder
    from universeg_jax.readers.notes import collect
    from universeg_jax.reports.files import write_json

    unusable: dict[str, str] = {}
    support = read_support_folder(
        args.support, label_id(args), axis_number(args), unusable=unusable, window=args.window, ignore=args.ignore
    )
    with collect():  # the notes are those of the support set
        folder = read_folder(args.support, ignore=ignored_ids(args))
    about = {"understood": describe(support, folder.labels, args.support, folder.taken), "notes": list(support.notes)}
    print("\n".join([*about["understood"], *about["notes"]]), flush=True)
    shown: set[str] = set()

    def show(result: dict[str, Any]) -> None:
        lines = check_text(result).splitlines()
        print("\n".join(line for line in lines if line not in shown), flush=True)
        shown.update(lines)

    result = check(
        Predictor.from_checkpoint(args.checkpoint),
        support,
        thorough=args.curve,
        progress=True,
        unusable=unusable,
        named=folder.named,
        on_first=show,
    )
    show(result)
    result = {**about, **result}
    if args.json:
        write_json(args.json, result)
    if args.html:
        write_check_page(args.html, result, support)
    return 0
