"""The `universeg` command: one entry point, one module of universeg_jax/commands behind each subcommand."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from universeg_jax.errors import UserError

COMMANDS = (
    "build",
    "tasks",
    "predict",
    "check",
    "finetune",
    "evaluate",
    "baseline",
    "compare",
    "ablate",
    "table",
    "report",
    "sheet",
    "replay",
    "checkpoint",
    "convert",
    "export",
    "demo",
)  # in the order of `universeg --help`


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="universeg", description="In-context segmentation of biomedical images.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"universeg_jax.commands.{name}")
        subparser = subparsers.add_parser(
            name, help=module.__doc__, description=module.__doc__, epilog=f"example: {module.EXAMPLE}"
        )
        subparser.set_defaults(run=module.run)
        module.add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; the exit code is 0 if everything that was asked for was done."""
    args = make_parser().parse_args(argv)
    try:
        return args.run(args)
    except BrokenPipeError:  # as of `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # which the interpreter flushes at its end
        return 1
    except (UserError, FloatingPointError, OSError) as error:
        print(f"universeg {args.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
