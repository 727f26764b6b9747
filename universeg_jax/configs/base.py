"""The recipe of `small` at the paper's width for one accelerator; not run yet.

Expected: better than `small` on `val`, or it is not packaged. It starts at random, or from an earlier run with
`--config.init_from=runs/base`.

    python train.py --config=configs/base.py --workdir=runs/base --config.data_dir=data
"""

from ml_collections import ConfigDict

from universeg_jax.configs import small


def get_config(arg: str = "") -> ConfigDict:
    """`arg` is not used."""
    if arg:
        raise ValueError(f"configs/base.py takes no argument, got {arg!r}")
    config = small.get_config("128")
    config.seed = 0
    config.model.encoder_blocks = (64, 64, 64, 64, 64)
    config.model.dtype = "bfloat16"  # of activations alone
    config.support_size = 64
    config.support_schedule = "log_uniform"  # trains for any number of examples
    config.batch_size = 16
    config.num_steps = 40_000
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    config.ema_decay = 0.999
    config.eval.batch_size = 32
    return config
