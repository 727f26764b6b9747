"""Write a checkpoint as one file that runs with jax and NumPy alone, on CPU, CUDA and TPU; or as ONNX."""

import argparse

EXAMPLE = "universeg export --checkpoint runs/mine --out model.zip"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="small", help="a workdir of train.py, or one of its checkpoints")
    parser.add_argument("--out", required=True, help="a new file; one that ends with .onnx is ONNX")
    parser.add_argument("--support_size", type=int, default=16, help="of ONNX, most examples (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    if args.out.endswith(".onnx"):
        from universeg_jax.export.onnx_export import export_onnx

        print(export_onnx(args.checkpoint, args.out, args.support_size))
    else:
        from universeg_jax.export.jax_export import export_checkpoint

        print(export_checkpoint(args.checkpoint, args.out))
    return 0
