"""Segment images and volumes from labelled examples.

Each mask has the format, size and geometry of its query. Rerunning a stopped command resumes it.
"""

import argparse
import sys

from universeg_jax.errors import UserError
from universeg_jax.readers.preprocess import WINDOWS, Window

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
    parser.add_argument("--label", type=int, help="use only this label id (default: all ids)")
    parser.add_argument(
        "--window",
        type=window,
        help="of the intensities of volumes: ct, mr, none or LOW,HIGH (default: meta.json, else chosen, and printed)",
    )
    parser.add_argument("--axis", choices=AXES, help="slice volumes along it (default: as the first was acquired)")


def window(text: str) -> Window:
    """Parses --window. Raises ArgumentTypeError."""
    if text in WINDOWS and text != "auto":
        return text
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise argparse.ArgumentTypeError(f"{text!r}: use ct, mr, none or two numbers such as -500,1000")
    return low, high


def axis_number(args: argparse.Namespace) -> int | None:
    return AXES.index(args.axis) if args.axis else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_support_arguments(parser)
    parser.add_argument("--queries", required=True, nargs="+", help="files to segment, or folders of them")
    parser.add_argument("--out", required=True, help="folder for the masks and predictions.csv")
    parser.add_argument("--support_size", type=int, default=64, help="examples per forward pass")
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
        help="add a pass over tiles magnified 2 to 16 times, for small and thin structures in images (default: none)",
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
    from universeg_jax.prediction.files import predict_files
    from universeg_jax.prediction.options import Options
    from universeg_jax.prediction.predictor import Predictor
    from universeg_jax.prediction.support import read_support_folder
    from universeg_jax.prediction.understood import find_shared_mistakes
    from universeg_jax.readers.folder import read_folder

    axis = axis_number(args)
    options = Options(
        args.support_size, args.ensemble, args.choose, args.flips, args.overlap, smooth=args.smooth, tiles=args.tiles
    )
    support = read_support_folder(args.support, args.label, axis, args.tiles, window=args.window)
    for line in (*support.notes, *(f"{args.support}: {message}" for _, message in find_shared_mistakes(support))):
        print(line, file=sys.stderr)
    segmenter = Predictor.from_checkpoint(args.checkpoint).segmenter(support, options)
    if support.overlapping and not args.overlap:
        print(f"{args.support}: its labels overlap, so each label is predicted by itself, into a mask of its own")
    names = read_folder(args.support).labels if args.dicom_seg else None
    try:
        return predict_files(segmenter, args.queries, args.out, axis, args.overlay, args.overwrite, args.jobs, names)
    except KeyboardInterrupt:
        print(f"stopped; finished masks are in {args.out}; rerun the same command to resume")
        return 130
