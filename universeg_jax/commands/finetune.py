"""Fine-tune a checkpoint on a support folder, in minutes.

Keeps the result only if subjects held out of training gain.
"""

import argparse
from pathlib import Path

from universeg_jax.commands.predict import add_support_arguments, axis_number

EXAMPLE = "universeg finetune --support my_scans --out my_weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_support_arguments(parser)
    parser.add_argument(
        "--out", required=True, help="new folder for the checkpoint, for --checkpoint of other commands"
    )
    parser.add_argument("--steps", type=int, default=100, help="largest number of training steps")
    parser.add_argument("--score_every", type=int, default=20, help="steps between evaluations that select the best")
    parser.add_argument("--support_size", type=int, default=16, help="examples per episode")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.adaptation.finetune import finetune_to, scores_text
    from universeg_jax.prediction.support import read_support_folder
    from universeg_jax.readers.folder import read_folder
    from universeg_jax.startup import use_compilation_cache

    use_compilation_cache()
    support = read_support_folder(args.support, args.label, axis_number(args))
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
