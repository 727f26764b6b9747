"""Fine-tune a checkpoint on a support folder, in minutes.

Keeps the result only if subjects held out of training gain.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from universeg_jax.commands.predict import add_support_arguments, axis_number, label_id

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


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def run(args: argparse.Namespace) -> int:
    from universeg_jax.reports.files import require_writable

    print(f"fine-tuning {args.checkpoint} on {args.support}, at most {args.steps} steps; Ctrl-C keeps the best so far")
    sys.stdout.flush()  # before imports that take seconds
    require_writable(Path(args.out).absolute().parent)
    from universeg_jax.adaptation.finetune import finetune_to, scores_text
    from universeg_jax.prediction.support import read_support_folder
    from universeg_jax.readers.folder import read_folder
    from universeg_jax.startup import use_compilation_cache

    use_compilation_cache()
    support = read_support_folder(args.support, label_id(args), axis_number(args), ignore=args.ignore)
    before = signal.signal(signal.SIGTERM, _stop)
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
        print(f"stopped before any step was better; nothing was written to {args.out}")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(scores_text(about, args.out))
    return 0
