"""Build datasets from your own folders or from public downloads.

Reads images with labels, nnU-Net and Decathlon folders, the published files of public datasets, and TFDS datasets.
"""

import argparse
import os
import shlex
from dataclasses import replace
from pathlib import Path

from universeg_jax.data import ROLES
from universeg_jax.errors import UserError

EXAMPLE = "universeg build --folder my_scans --name my_scans --data_dir data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--folder", help="a folder with images/, labels/ and optionally meta.json, or an nnU-Net or Decathlon folder"
    )
    what.add_argument("--collection", help="a folder of such folders, with a splits.json that gives each a role")
    what.add_argument("--source", help="a public dataset or a family of them, such as wbc_jtsc or wbc")
    what.add_argument("--tfds", help="a TFDS dataset (array_record): its folder, or its name in DATA_DIR")
    what.add_argument("--list", action="store_true", help="list the supported public datasets")
    parser.add_argument("--path", "--from", help="with --source: the folder with the published files")
    parser.add_argument("--image", help="with --tfds: the image feature; a/b for b within a")
    parser.add_argument("--mask", help="with --tfds: the feature of label ids, 0 is background")
    parser.add_argument(
        "--subject", default="", help="with --tfds: the feature that identifies the subject (default: unknown)"
    )
    parser.add_argument("--modality", default="", help="with --tfds: the modality, such as CT")
    parser.add_argument("--licence", default="", help="with --tfds: the licence of the data")
    parser.add_argument(
        "--name", help="name of the dataset, with --folder, --tfds or one --source (default: their own)"
    )
    parser.add_argument("--data_dir", default="data", help="folder of built datasets")
    parser.add_argument("--role", default="test", choices=ROLES, help="role of the dataset, except with --collection")
    parser.add_argument(
        "--source_group", default="", help="a name for datasets that share patients, except with --collection"
    )
    parser.add_argument("--roles", default=",".join(ROLES), help="with --collection: roles to build, comma-separated")
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes")
    parser.add_argument(
        "--beam",
        nargs="?",
        const="",
        metavar="OPTIONS",
        help="build with Apache Beam: its options in one argument (default: WORKERS local processes)",
    )
    parser.add_argument("--overwrite", action="store_true", help="rebuild existing datasets")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.data.build import BuildOptions, Target, build_folders, build_sources, build_tfds, read_collection
    from universeg_jax.data.builder import BeamOptions
    from universeg_jax.data.source import all_sources, find_sources, source_line
    from universeg_jax.data.tfds_import import TfdsFeatures, read_tfds

    if args.path and not args.source:
        raise UserError(f"--path {args.path} goes with --source; a folder of your own is given by --folder")
    workers = args.workers if args.beam is None else BeamOptions(tuple(shlex.split(args.beam)), args.workers)
    options = BuildOptions(args.data_dir, args.size, workers, args.overwrite)
    if args.list:
        print("\n".join(map(source_line, all_sources().values())))
    elif args.tfds:
        if not (args.image and args.mask and args.name):
            raise UserError(f"--tfds {args.tfds} needs --image, --mask and --name")
        features = TfdsFeatures(args.image, args.mask, args.subject)
        contents = read_tfds(args.tfds, args.data_dir, features, args.size, args.modality, args.licence)
        build_tfds(contents, Target(args.name, args.role, args.source_group), options)
    elif args.source:
        sources = find_sources(args.source)
        if args.name and len(sources) > 1:
            raise UserError(f"--name {args.name}: {args.source} is {', '.join(s.name for s in sources)}; choose one")
        if args.source_group:
            sources = [replace(source, source_group=args.source_group) for source in sources]
        build_sources(sources, args.path, args.name, args.role, options)
    else:
        if args.collection and args.source_group:
            raise UserError(f"--source_group {args.source_group}: the groups of a collection stand in its splits.json")
        if args.folder:
            name = args.name or Path(args.folder).resolve().name
            wanted = [(Path(args.folder), Target(name, args.role, args.source_group))]
        else:
            wanted = read_collection(Path(args.collection), args.roles.split(","))
        build_folders(wanted, options)
    return 0
