"""Make datasets of folders of images and labels, and of public datasets as their publishers give them."""

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
        "--folder", help="a folder with images/, labels/ and perhaps meta.json; or of nnU-Net or Decathlon"
    )
    what.add_argument("--collection", help="a folder of such folders with a splits.json that gives each a role")
    what.add_argument("--source", help="a public dataset, or a family of them: wbc_jtsc, wbc")
    what.add_argument("--tfds", help="a TFDS dataset (array_record): its folder, or its name where DATA_DIR holds it")
    what.add_argument("--list", action="store_true", help="the public datasets that are known, a line each")
    parser.add_argument("--path", "--from", help="with --source: the folder with its files as they were published")
    parser.add_argument("--image", help="with --tfds: the feature that is the picture, a/b for b within a")
    parser.add_argument("--mask", help="with --tfds: the feature of class ids, 0 = background")
    parser.add_argument("--subject", default="", help="with --tfds: the feature that says who it is; default: nobody")
    parser.add_argument("--modality", default="", help="with --tfds")
    parser.add_argument("--licence", default="", help="with --tfds")
    parser.add_argument("--name", help="the dataset's name (with --folder, --tfds or one --source); default: theirs")
    parser.add_argument("--data_dir", default="data", help="where datasets are built (default: %(default)s)")
    parser.add_argument(
        "--role", default="test", choices=ROLES, help="with all but --collection (default: %(default)s)"
    )
    parser.add_argument(
        "--source_group", default="", help="datasets that share patients share this; with all but --collection"
    )
    parser.add_argument("--roles", default=",".join(ROLES), help="with --collection: which to build, comma-separated")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument(
        "--beam",
        nargs="?",
        const="",
        metavar="OPTIONS",
        help="build by Apache Beam, with its own options in one argument; without them in WORKERS processes here",
    )
    parser.add_argument("--overwrite", action="store_true", help="build again what is there from the same files")


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
