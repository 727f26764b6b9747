r"""The weights `small`: trained on open licences and synthetic tasks alone, in hours on two CPU cores.

Expected: docs/model-card.md. The first stage runs until SIGTERM stops it; the second takes half an hour.

    python train.py --config=configs/small.py --workdir=runs/small64 --config.data_dir=data
    python train.py --config=configs/small.py:128 --workdir=runs/small128 --config.data_dir=data \
        --config.init_from=runs/small64
"""

from ml_collections import ConfigDict

from universeg_jax.configs import quickstart


def get_config(arg: str = "64") -> ConfigDict:
    """`arg`: image size, 64 to learn fast at first or 128 to finish."""
    sizes = ("64", "128")
    if arg not in sizes:
        raise ValueError(f"configs/small.py:{arg}: the argument is the image size, one of {', '.join(sizes)}")
    config = quickstart.get_config()  # its augmentation, loss and optimizer
    config.make_data = False
    config.kinds.update({"real": 0.5, "synthetic": 0.35, "superpixel": 0.15})  # docs/episodes.md
    config.synthesis.weights.update({"shapes": 0.3, "tubes": 0.3})  # vessels have the lowest scores
    config.label_union = 0.1  # more real tasks
    config.image_size = int(arg)
    config.support_size = 4  # twice the episodes a second of 8
    config.batch_size = 8
    config.num_steps = 100_000
    # A fifth level sees the whole image; wide blocks cost little at low resolution.
    config.model.encoder_blocks = (32, 32, 48, 64, 64)
    config.model.residual = "both"
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 100
    config.ema_decay = 0.998
    if arg == "128":  # a short stage at the size of evaluation, after the long one at 64
        config.seed = 1  # other episodes than those seen at 64
        config.kinds.update({"real": 0.55, "synthetic": 0.3})
        config.synthesis.weights.update({"shapes": 0.25, "tubes": 0.35})
        config.support_size = 6
        config.batch_size = 4
        config.num_steps = 1_900
        config.optimizer.learning_rate = 1e-3
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 30
        config.ema_decay = 0.99
    config.eval_every = 2_000
    config.checkpoint_every = 250
    config.eval.support_size = 16
    config.eval.max_cases = 8
    config.eval.batch_size = 8
    return config
