"""The recipe of `small` at the paper's width for one accelerator: nobody has run it yet.

Expected: better than `small` on `val`, or it is not packaged. On an H100 or H200 start from nothing, or with
`--config.init_from=runs/base` from what an earlier run left.

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
    config.support_schedule = "log_uniform"  # any number of examples is then known from training
    config.batch_size = 16
    config.num_steps = 40_000
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    config.ema_decay = 0.999
    config.eval.batch_size = 32
    return config
