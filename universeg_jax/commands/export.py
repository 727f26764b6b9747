"""Export a checkpoint to one file, for JAX or ONNX Runtime.

The JAX file runs with only jax and NumPy, on CPU, CUDA and TPU.
"""

import argparse

from universeg_jax.errors import UserError

EXAMPLE = "universeg export --checkpoint runs/mine --out model.zip"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="small", help="packaged weights, a run's workdir or a checkpoint")
    parser.add_argument("--out", required=True, help="a new file; the ending .onnx selects ONNX")
    parser.add_argument(
        "--partly", action="store_true", help="let it take examples that are labelled in part (not with ONNX)"
    )
    parser.add_argument("--support_size", type=int, default=16, help="with ONNX: largest number of examples")


def run(args: argparse.Namespace) -> int:
    if args.out.endswith(".onnx"):
        if args.partly:
            raise UserError("--partly is not for ONNX: leave it out, or give a name that ends with .zip")
        from universeg_jax.export.onnx_export import export_onnx

        print(export_onnx(args.checkpoint, args.out, args.support_size))
    else:
        from universeg_jax.export.jax_export import export_checkpoint

        print(export_checkpoint(args.checkpoint, args.out, args.partly))
    return 0
