"""Segment images and volumes from labelled examples.

Each mask has the format, size and geometry of its query. Rerunning a stopped command resumes it.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from universeg_jax.errors import UserError

if TYPE_CHECKING:  # numpy and scipy take seconds to import, and a mistyped flag is answered before that
    from universeg_jax.readers.preprocess import Window

EXAMPLE = "universeg predict --support my_scans --queries new_scans --out masks --overlay"
AXES = ("sagittal", "coronal", "axial")


def add_support_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that commands with a support folder share."""
    parser.add_argument("--support", required=True, help="folder with images/ and labels/, of images or of volumes")
    parser.add_argument(
        "--checkpoint",
        default="small",
        help="packaged weights, a run's workdir, a checkpoint, or an https:// or hf:// address",
    )
    parser.add_argument("--label", help="use only this label: its id, or its name in meta.json (default: all)")
    parser.add_argument(
        "--window",
        type=window,
        help="of the intensities of volumes: ct, mr, none or LOW,HIGH (default: meta.json, else chosen, and printed)",
    )
    parser.add_argument(
        "--ignore",
        type=int,
        metavar="ID",
        help="the id of pixels that have no label (default: those that the folder names)",
    )
    parser.add_argument("--axis", choices=AXES, help="slice volumes along it (default: as the first was acquired)")


def window(text: str) -> "Window":
    """Parses --window. Raises ArgumentTypeError."""
    from universeg_jax.readers.preprocess import WINDOWS

    if text in WINDOWS and text != "auto":
        return text
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise argparse.ArgumentTypeError(f"{text!r}: use ct, mr, none or two numbers such as -500,1000")
    return low, high


def label_names(args: argparse.Namespace) -> dict[int, str]:
    """Id → name in the support folder."""
    from universeg_jax.readers.folder import read_folder
    from universeg_jax.readers.notes import collect

    with collect():  # the notes come with the support set
        return read_folder(args.support, ignore=ignored_ids(args)).labels


def ignored_ids(args: argparse.Namespace) -> tuple[int, ...]:
    return () if args.ignore is None else (args.ignore,)


def label_id(args: argparse.Namespace) -> int | None:
    """The id of --label, which may also be a name that the support folder knows. Raises UserError."""
    if args.label is None or args.label.lstrip("-").isdigit():
        return None if args.label is None else int(args.label)
    names = label_names(args)
    found = [i for i, name in names.items() if name.casefold() == args.label.casefold()]
    if len(found) != 1:
        known = ", ".join(f"{i} {name}" for i, name in names.items())
        raise UserError(f"--label {args.label}: {args.support} has {known}; give one of these ids or names")
    return found[0]


def axis_number(args: argparse.Namespace) -> int | None:
    return AXES.index(args.axis) if args.axis else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_support_arguments(parser)
    parser.add_argument("--queries", required=True, nargs="+", help="files to segment, or folders of them")
    parser.add_argument("--out", required=True, help="folder for the masks and predictions.csv")
    parser.add_argument("--support_size", type=int, help="examples per forward pass (default: 16, or 8 slices)")
    parser.add_argument(
        "--ensemble",
        type=int,
        default=1,
        help="support samples to average, if there are more than SUPPORT_SIZE examples",
    )
    parser.add_argument(
        "--choose",
        default="nearest",
        choices=("nearest", "random", "diverse"),
        help="how to select examples, if there are more than SUPPORT_SIZE",
    )
    parser.add_argument("--flips", action="store_true", help="average over four flips; takes four times as long")
    parser.add_argument("--overlap", action="store_true", help="let labels overlap; writes one mask file per label")
    parser.add_argument(
        "--tiles",
        type=int,
        default=0,
        metavar="TIMES",
        help="add a pass over tiles magnified TIMES, any whole number from 2 to 16, for small and thin structures in "
        "images (default: none)",
    )
    parser.add_argument(
        "--smooth", type=float, default=0.0, metavar="MM", help="blur across the slices of a volume, in mm (default: 0)"
    )
    parser.add_argument("--dicom_seg", action="store_true", help="write a DICOM-SEG, not NIfTI, for a DICOM series")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--beam", nargs="?", const="", help=argparse.SUPPRESS)  # removed; `run` names the remedy
    parser.add_argument("--overlay", action="store_true", help="also write <name>_overlay.png with outlines")
    parser.add_argument("--overwrite", action="store_true", help="replace existing masks")


def run(args: argparse.Namespace) -> int:
    if args.beam is not None:
        raise UserError(
            "--beam was removed: use --jobs N on one machine; on a cluster run one predict per share of the queries, "
            "each with its own --out"
        )
    from universeg_jax.reports.files import require_writable

    require_writable(Path(args.out))  # before imports that take seconds
    from universeg_jax.prediction.files import predict_files
    from universeg_jax.prediction.options import Options
    from universeg_jax.prediction.predictor import Predictor
    from universeg_jax.prediction.support import case_names, read_support_folder
    from universeg_jax.prediction.understood import find_shared_mistakes

    axis = axis_number(args)
    options = Options(
        args.support_size, args.ensemble, args.choose, args.flips, args.overlap, smooth=args.smooth, tiles=args.tiles
    )
    support = read_support_folder(
        args.support, label_id(args), axis, args.tiles, window=args.window, ignore=args.ignore
    )
    for line in (*support.notes, *(f"{args.support}: {message}" for _, message in find_shared_mistakes(support))):
        print(line, file=sys.stderr)
    if len(set(case_names(support))) == 1:
        print(f"{args.support}: only one labelled example; each of the first few more improves masks", file=sys.stderr)
    segmenter = Predictor.from_checkpoint(args.checkpoint).segmenter(support, options)
    if support.overlapping and not args.overlap:
        print(f"{args.support}: its labels overlap, so each label is predicted by itself, into a mask of its own")
    names = label_names(args) if args.dicom_seg or args.overlay else {}
    seg = names if args.dicom_seg else None
    output = (args.overlay, args.overwrite, args.jobs, seg, names)
    try:
        return predict_files(segmenter, args.queries, args.out, axis, *output)
    except KeyboardInterrupt:
        print(f"stopped; finished masks are in {args.out}; rerun the same command to resume")
        return 130
