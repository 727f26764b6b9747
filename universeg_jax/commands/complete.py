"""Label the rest of a volume of which some slices are labelled.

Labelled slices come back untouched, and the result has the grid, type and ids of the labels that were given.
"""

import argparse
import sys
from pathlib import Path

from universeg_jax.commands.predict import AXES, axis_number, window

EXAMPLE = "universeg complete scan.nii.gz some_slices.nii.gz --out full.nii.gz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", type=Path, help="volume or stack of images")
    parser.add_argument("labels", type=Path, help="label ids on the grid of the volume, in some of its slices")
    parser.add_argument("--out", required=True, type=Path, help="file for all labels, in the format of LABELS")
    parser.add_argument("--axis", choices=AXES, help="whose slices are labelled (default: found, and printed)")
    parser.add_argument(
        "--slices",
        type=slice_numbers,
        metavar="I,J,...",
        help="the labelled slices, numbered from 0 as in the file (default: those with any label)",
    )
    parser.add_argument(
        "--ignore",
        type=int,
        metavar="ID",
        help="id of voxels that are not labelled; slices without it are. In SUPPORT, too",
    )
    parser.add_argument(
        "--support", help="folder of labelled volumes of other cases, used where few slices are labelled"
    )
    parser.add_argument("--checkpoint", default="small", help="packaged weights, a run's workdir or a checkpoint")
    parser.add_argument("--support_size", type=int, default=8, help="labelled slices that the network sees at once")
    parser.add_argument("--fast", action="store_true", help="interpolate along the image's motion, without the network")
    parser.add_argument(
        "--window", type=window, help="of the intensities: ct, mr, none or LOW,HIGH (default: chosen, and printed)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")


def slice_numbers(text: str) -> tuple[int, ...]:
    """Parses --slices. Raises ArgumentTypeError."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: use numbers such as 0,8,16") from error


def run(args: argparse.Namespace) -> int:
    from universeg_jax.prediction.between import CompletionOptions
    from universeg_jax.prediction.complete_files import check_out, check_same_ids, complete_file, read_partial
    from universeg_jax.prediction.predictor import Predictor
    from universeg_jax.prediction.support import read_support_folder
    from universeg_jax.readers.notes import collect

    with collect() as notes:
        partial = read_partial(args.volume, args.labels, axis_number(args), args.slices, args.ignore)
        check_out(args.out, partial, (args.volume, args.labels), args.overwrite)
        others = None
        if args.support:
            axis = partial.labelled[0].axis
            others = read_support_folder(args.support, axis=axis, window=args.window, ignore=args.ignore)
            check_same_ids(others, partial, args.support)
        options = CompletionOptions(args.support_size, network=not args.fast)
        print("\n".join(partial.notes))
        predictor = Predictor.from_checkpoint(args.checkpoint)
        count = complete_file(predictor, partial, args.out, others, args.window or "auto", options)
    for line in notes.lines():
        print(line, file=sys.stderr)
    print(f"{args.out}: {count} slices completed")
    return 0
