"""Trains a model: python train.py --config=configs/quickstart.py --workdir=runs/mine [--config.batch_size=8]"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from universeg_jax.errors import UserError
from universeg_jax.training import train_and_evaluate

CONFIG = config_flags.DEFINE_config_file("config", None, "File[:argument] of the configuration.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory for checkpoints and logs; a run there is continued.")
flags.mark_flags_as_required(["config", "workdir"])


def parse(argv: list[str]) -> list[str]:
    """The flags; a field that the config does not have ends with the names that it has, and no traceback."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"train.py: unknown arguments {' '.join(argv[1:])}; flags begin with --")
    logging.set_verbosity(logging.WARNING)  # the libraries tell every save and restore at INFO
    try:
        train_and_evaluate(CONFIG.value, WORKDIR.value)
    except (UserError, FloatingPointError) as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
