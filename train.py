"""Trains a model: python train.py --config=configs/quickstart.py --workdir=runs/mine [--config.batch_size=8]"""

from absl import app, flags, logging
from ml_collections import config_flags

from universeg_jax.training import train_and_evaluate

CONFIG = config_flags.DEFINE_config_file("config", None, "File[:argument] of the configuration.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory for checkpoints and logs; a run there is continued.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # the libraries tell every save and restore at INFO
    train_and_evaluate(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    app.run(main)
