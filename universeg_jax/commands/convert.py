"""Convert released weights to a checkpoint, or back."""

import argparse

EXAMPLE = "universeg convert universeg_v1_nf64_ss64_STA.pt weights/release"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a .pt, .pth or .safetensors file, or a checkpoint")
    parser.add_argument("out", help="a new folder for a checkpoint, or a new .pt or .safetensors file")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.checkpoints.convert import convert

    print(convert(args.file, args.out))
    return 0
