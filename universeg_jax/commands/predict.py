"""Segment pictures and volumes by example: masks of label ids in each query's own format and geometry."""

import argparse
import shlex

EXAMPLE = "universeg predict --support my_scans --queries new_scans --out masks --overlay"
AXES = ("sagittal", "coronal", "axial")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--support", required=True, help="folder with images/ and labels/, of pictures or of volumes")
    parser.add_argument("--queries", required=True, nargs="+", help="files, or folders of them")
    parser.add_argument("--out", required=True, help="folder for the masks and predictions.csv")
    parser.add_argument(
        "--checkpoint", default="small", help="packaged weights, a workdir or checkpoint (default: %(default)s)"
    )
    parser.add_argument("--label", type=int, help="segment this id alone; default: all ids of the support")
    parser.add_argument("--support_size", type=int, default=64, help="examples used at a time (default: %(default)s)")
    parser.add_argument("--ensemble", type=int, default=1, help="draws averaged where the support holds more")
    parser.add_argument(
        "--choose",
        default="nearest",
        choices=("nearest", "random", "diverse"),
        help="which examples, where the support holds more (default: %(default)s)",
    )
    parser.add_argument("--flips", action="store_true", help="average over flips: four times the time")
    parser.add_argument("--overlap", action="store_true", help="labels may cover one another: a mask file each")
    parser.add_argument(
        "--tiles",
        type=int,
        default=0,
        metavar="TIMES",
        help="look again through tiles, magnified 2 times or more: for small and thin structures",
    )
    parser.add_argument("--axis", choices=AXES, help="along which volumes are cut (default: as the first was acquired)")
    parser.add_argument("--smooth", type=float, default=0.0, metavar="MM", help="blur across the slices of volumes")
    parser.add_argument("--dicom_seg", action="store_true", help="a DICOM series has a DICOM-SEG, not a NIfTI")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: %(default)s)")
    parser.add_argument(
        "--beam",
        nargs="?",
        const="",
        metavar="OPTIONS",
        help="by Apache Beam, with its own options in one argument; without them in JOBS processes here",
    )
    parser.add_argument("--overlay", action="store_true", help="also draw the outlines, <name>_overlay.png")
    parser.add_argument("--overwrite", action="store_true", help="make again what is there")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.prediction.files import predict_files
    from universeg_jax.prediction.predictor import Options, Predictor
    from universeg_jax.prediction.support import read_support_folder
    from universeg_jax.readers.folder import read_folder

    axis = AXES.index(args.axis) if args.axis else None
    options = Options(
        args.support_size, args.ensemble, args.choose, args.flips, args.overlap, smooth=args.smooth, tiles=args.tiles
    )
    support = read_support_folder(args.support, args.label, axis, args.tiles)
    segmenter = Predictor.from_checkpoint(args.checkpoint).segmenter(support, options)
    try:
        names = read_folder(args.support).labels if args.dicom_seg else None
        beam = None if args.beam is None else shlex.split(args.beam)
        return predict_files(
            segmenter, args.queries, args.out, axis, args.overlay, args.overwrite, args.jobs, names, beam
        )
    except KeyboardInterrupt:
        print(f"stopped; finished masks are in {args.out}, and the same command goes on from there")
        return 130
