"""Make datasets of folders of images and labels."""

import argparse
import os
from pathlib import Path

from universeg_jax.data import ROLES

EXAMPLE = "universeg build --folder my_scans --name my_scans --data_dir data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--folder", help="a folder with images/, labels/ and perhaps meta.json")
    what.add_argument("--collection", help="a folder of such folders with a splits.json that gives each a role")
    parser.add_argument("--name", help="the dataset's name (with --folder); default: the folder's")
    parser.add_argument("--data_dir", default="data", help="where datasets are built (default: %(default)s)")
    parser.add_argument("--role", default="test", choices=ROLES, help="with --folder (default: %(default)s)")
    parser.add_argument("--source_group", default="", help="with --folder: datasets that share patients share this")
    parser.add_argument("--roles", default=",".join(ROLES), help="with --collection: which to build, comma-separated")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="build again what is there from the same files")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.data.build import build_all, read_collection

    if args.folder:
        name = args.name or Path(args.folder).resolve().name
        wanted = [(Path(args.folder), name, args.role, args.source_group)]
    else:
        wanted = read_collection(Path(args.collection), args.roles.split(","))
    build_all(wanted, args.data_dir, args.size, args.workers, args.overwrite)
    return 0
