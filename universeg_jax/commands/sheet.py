"""Plot synthetic tasks or augmentations as one image."""

import argparse
from pathlib import Path

EXAMPLE = "universeg sheet --kind=synthetic --config=configs/default.py --out synthetic.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kind", required=True, choices=("synthetic", "superpixel", "painted", "augment"), help="what to plot"
    )
    parser.add_argument("--config", default="configs/default.py", help="configuration, FILE[:argument] as for train.py")
    parser.add_argument(
        "--data_dir",
        help="folder of built datasets; augment can do without, synthetic needs none (default: the config's)",
    )
    parser.add_argument("--size", type=int, help="pixels a side (default: the config's image_size)")
    parser.add_argument("--first", type=int, default=0, help="index of the first episode (default: %(default)s)")
    parser.add_argument("--out", required=True, help="image file to write, FILE.png")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.configuration import load_config
    from universeg_jax.episodes.sheet import write_sheet

    config = load_config(args.config)
    config.data_dir = args.data_dir or config.data_dir
    config.image_size = args.size or config.image_size
    write_sheet(args.kind, config, Path(args.out), args.first)
    print(args.out)
    return 0
