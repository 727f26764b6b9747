r"""A checkpoint trained further on one dataset of your own, built with --role train_open or train_research.

Expected: minutes on two CPU cores. With a dataset of role `val`, `eval/metrics.jsonl` shows whether it helps; without
one, the last checkpoint is kept.

    universeg build --folder my_scans --name my_scans --data_dir data --role train_research
    python train.py --config=configs/finetune.py:my_scans --workdir=runs/finetuned --config.data_dir=data \
        --config.init_from=runs/small128
"""

from ml_collections import ConfigDict

from universeg_jax.configs import small


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: name of the dataset; "" means all of the training roles. The model must be that of config.init_from."""
    config = small.get_config("128")
    config.train_roles = ("train_open", "train_research")
    config.train_datasets = (arg,) if arg else ()
    config.kinds.real = 1.0
    config.kinds.synthetic = 0.0
    config.min_label_density = 0.0  # fine-tuning is often for small structures
    config.num_steps = 300
    config.optimizer.learning_rate = 1e-4  # a tenth of the first training's
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 20
    config.ema_decay = 0.98  # over about 50 steps
    config.eval_every = 50
    config.checkpoint_every = 50
    return config
