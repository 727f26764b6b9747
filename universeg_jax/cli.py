"""The `universeg` command: one entry point, and a module of universeg_jax/commands for each subcommand."""

import argparse
import difflib
import importlib
import io
import os
import sys
from collections.abc import Iterable, Sequence

from universeg_jax.errors import UserError, missing_extra

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no "Very slow compile?" of XLA over a bar: waiting.py says it
COMMANDS = (
    "build",
    "tasks",
    "predict",
    "complete",
    "annotate",
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
    "serve",
)  # in the order of `universeg --help`


class _HelpFormatter(argparse.HelpFormatter):
    """Adds the default to the help of a flag that has one and does not describe it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_described = "default" in (action.help or "") or action.default in (None, False, "", 0, [], argparse.SUPPRESS)
        return action.help if is_described else f"{action.help} (default: %(default)s)"


def make_parser() -> argparse.ArgumentParser:
    return _make_parsers()[0]


def _make_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(prog="universeg", description="Segment biomedical images from labelled examples.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"universeg_jax.commands.{name}")
        subparser = subparsers.add_parser(
            name,
            help=(module.__doc__ or "").partition("\n")[0],
            description=module.__doc__,
            epilog=f"example: {module.EXAMPLE}",
            formatter_class=_HelpFormatter,
        )
        subparser.set_defaults(run=module.run)
        module.add_arguments(subparser)
    return parser, dict(subparsers.choices)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; exits with code 2 and a suggestion for an unknown command or flag."""
    parser, subparsers = _make_parsers()
    if argv and not argv[0].startswith("-") and argv[0] not in subparsers:
        parser.error(f"unknown command {argv[0]}{_suggestion(argv[0], subparsers)}; `universeg --help` lists all")
    if argv and argv[0] in subparsers:
        subparser = subparsers[argv[0]]
        flags = [flag for action in subparser._actions for flag in action.option_strings]
        for flag in (word.partition("=")[0] for word in argv[1:] if word.startswith("--") and " " not in word):
            if not any(known.startswith(flag) for known in flags):
                subparser.error(f"unknown flag {flag}{_suggestion(flag, flags)}")
    return parser.parse_args(argv)


def _suggestion(word: str, known: Iterable[str]) -> str:
    similar = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {similar[0]}?" if similar else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns 0 if all that was asked for is done, else 1."""
    for stream in (sys.stdout, sys.stderr):  # a pipe on Windows has an old code page, without "→" or a user's letters
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        return args.run(args)
    except BrokenPipeError:  # the reader, such as `| head`, has stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes stdout at exit
        return 1
    except ModuleNotFoundError as error:
        print(f"universeg {args.command}: {missing_extra(error)}", file=sys.stderr)
        return 1
    except (UserError, FloatingPointError, OSError) as error:
        print(f"universeg {args.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
