"""Train a checkpoint further on a support folder, in minutes; kept only where that helps subjects held out of it."""

import argparse
from pathlib import Path

from universeg_jax.commands.predict import AXES

EXAMPLE = "universeg finetune --support my_scans --out my_weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--support", required=True, help="folder with images/ and labels/, of pictures or of volumes")
    parser.add_argument("--out", required=True, help="new folder for the checkpoint, which --checkpoint then takes")
    parser.add_argument(
        "--checkpoint", default="small", help="packaged weights, a workdir or checkpoint (default: %(default)s)"
    )
    parser.add_argument("--label", type=int, help="this id alone; default: all ids, each a task of its own")
    parser.add_argument("--axis", choices=AXES, help="along which volumes are cut (default: as the first was acquired)")
    parser.add_argument("--steps", type=int, default=100, help="of training at most (default: %(default)s)")
    parser.add_argument("--score_every", type=int, default=20, help="steps between choices of the best parameters")
    parser.add_argument("--support_size", type=int, default=16, help="examples an episode (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    from universeg_jax.adaptation.finetune import finetune_to, scores_text
    from universeg_jax.prediction.support import read_support_folder
    from universeg_jax.readers.folder import read_folder
    from universeg_jax.startup import use_compilation_cache

    use_compilation_cache()
    axis = AXES.index(args.axis) if args.axis else None
    support = read_support_folder(args.support, args.label, axis)
    try:
        about = finetune_to(
            args.checkpoint,
            support,
            Path(args.support).resolve().name,
            args.out,
            args.steps,
            args.score_every,
            args.support_size,
            args.seed,
            read_folder(args.support).licence,
            progress=True,
        )
    except KeyboardInterrupt:
        print(f"stopped; nothing was written to {args.out}")
        return 130
    print(scores_text(about, args.out))
    return 0
