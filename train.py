"""Trains a model: python train.py --config=configs/quickstart.py --workdir=runs/mine [--config.batch_size=8]

For several hosts, start it on each one with --distributed (TPU pods, Slurm, Open MPI, Kubernetes), or with
--coordinator, --process_count and --process_index, and a workdir that all of them share. See docs/training.md.
"""

import itertools
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before JAX: no "Very slow compile?" of XLA over the bar

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from universeg_jax import startup
from universeg_jax.configuration import find_config, load_config, unknown_field
from universeg_jax.errors import UserError, missing_extra

try:
    from universeg_jax.training.loop import train_and_evaluate
except ModuleNotFoundError as error:
    sys.exit(f"train.py: {missing_extra(error)}")

CONFIG = config_flags.DEFINE_config_file("config", None, "Config: FILE.py[:argument].", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints and logs; a run in it is resumed.")
PROFILE = flags.DEFINE_bool("profile", False, "Write a trace of five steps to <workdir>/profile.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several hosts, found from the cluster's environment.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, without such an environment.")
COUNT = flags.DEFINE_integer("process_count", None, "Number of processes, with --coordinator.")
INDEX = flags.DEFINE_integer("process_index", None, "Index of this process, from 0, with --coordinator.")
flags.mark_flags_as_required(["config", "workdir"])


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; a wrong one ends the program with one line and no traceback."""
    try:
        arguments = flags.FLAGS(with_package_configs(argv))
        _ = CONFIG.value.seed  # raises where the file is missing
        return arguments
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        cause: Exception = error
        while cause.args and isinstance(cause.args[0], Exception):  # ml_collections wraps errors
            cause = cause.args[0]
        message = unknown_flag(argv) or " ".join(str(cause).split())
        sys.exit(f"train.py: {message}")


def with_package_configs(argv: list[str]) -> list[str]:
    """The arguments with configs/NAME.py as a path of the package where the working directory has no such file."""
    found = []
    for before, text in zip(["", *argv], argv, strict=False):
        start = next((flag for flag in ("--config=", "-config=") if text.startswith(flag)), "")
        name, colon, argument = text.removeprefix(start).partition(":")
        if (start or before in ("--config", "-config")) and find_config(name) != Path(name):
            text = f"{start}{os.path.relpath(find_config(name))}{colon}{argument}"  # relative: a drive has a colon
        found.append(text)
    return found


def unknown_flag(argv: list[str]) -> str | None:
    """Names a --config.FIELD that the config does not have, since ml_collections gives only its last word."""
    given = [f"--{flag.lstrip('-')}" if flag.startswith("-") else flag for flag in argv]
    specs = [flag.removeprefix("--config=") for flag in given if flag.startswith("--config=")]
    specs += [value for flag, value in itertools.pairwise(given) if flag == "--config"]
    names = [flag.removeprefix("--config.").partition("=")[0] for flag in given if flag.startswith("--config.")]
    if not specs:
        return None
    try:
        config = load_config(specs[0])
    except UserError as error:
        return str(error)
    return next((problem for name in names if (problem := unknown_field(config, name))), None)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"train.py: unknown arguments {' '.join(argv[1:])}; flags begin with --")
    logging.set_verbosity(logging.WARNING)  # libraries log every save and restore at INFO
    startup.use_compilation_cache()
    if CONFIG.value.deterministic:
        startup.make_deterministic()
    if DISTRIBUTED.value or COORDINATOR.value:
        startup.join_hosts(COORDINATOR.value, COUNT.value, INDEX.value)
    try:
        train_and_evaluate(CONFIG.value, str(WORKDIR.value), PROFILE.value)
    except (UserError, FloatingPointError, OSError) as error:
        sys.exit(f"train.py: {error}")
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(f"train.py: another host has failed ({error}); start all hosts again with the same command", flush=True)
        os._exit(1)  # a normal exit would wait for the failed host


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
