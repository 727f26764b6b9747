"""Subcommands of `universeg`, one module each: a docstring, EXAMPLE, add_arguments(parser) and run(args) → exit code.

Modules import at the top only what parsing needs, so that `--help` is fast; `run` imports the rest.
"""
