r"""The recipe of configs/keys.py for one accelerator: bfloat16, eight times the batch, more support entries.

Expected: not measured yet. `benchmarks.accelerator` goes on from a checkpoint with it, with that checkpoint's model and
as many steps as its minutes allow; at full length:

    python train.py --config=configs/accelerator.py --workdir=runs/accelerator --config.data_dir=data \
        --config.init_from=small
"""

from ml_collections import ConfigDict

from universeg_jax.configs import keys


def get_config(arg: str = "") -> ConfigDict:
    """`arg` is not used."""
    if arg:
        raise ValueError(f"configs/accelerator.py takes no argument, got {arg!r}")
    config = keys.get_config()
    config.init_from = ""  # given with the command
    config.seed = 2  # other episodes than those of the stages on a CPU
    config.read_threads = 16
    config.batch_size = 32
    config.support_size = 16
    config.num_steps = 2_000
    config.model.dtype = "bfloat16"
    config.model.support_chunk = 0  # all entries at once
    config.optimizer.learning_rate = 2e-3  # 1e-3 at a batch of 4; twice that for eight times the batch
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.ema_decay = 0.998
    config.eval.batch_size = 32
    return config
