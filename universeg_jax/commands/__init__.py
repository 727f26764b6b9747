"""Subcommands of `universeg`, one module each: a docstring, EXAMPLE, add_arguments(parser) and run(args) → exit code.

A module imports at its top only what parsing needs; `run` imports the rest, so that `--help` is quick.
"""
