r"""The last stages of the weights `small`: pretrained keys and 52 open datasets, then a cosine.

Expected: docs/recipe.md, which lists the seeds and lengths of every stage. The first command starts from the packaged
weights and goes on until SIGTERM stops it.

    python train.py --config=configs/keys.py --workdir=runs/keys --config.data_dir=data
    python train.py --config=configs/keys.py:cosine --workdir=runs/keys_cosine --config.data_dir=data \
        --config.init_from=runs/keys
"""

from ml_collections import ConfigDict

from universeg_jax.configs import small

# Open datasets that teach the wrong thing, for the reasons in docs/recipe.md.
WITHOUT = ("alcapa", "cdd_cesm", "fetal_brain_uterus_mr", "knee_bones_mr", "pd25_subcortical_mr")


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" for the stage at a constant rate, "cosine" for the one that follows it."""
    if arg not in ("", "cosine"):
        raise ValueError(f"configs/keys.py takes no argument or cosine, got {arg!r}")
    config = small.get_config("128")
    config.seed = 11  # other episodes than those that `small` saw
    config.init_from = "small"
    config.model.keys = "lite0"
    config.model.key_columns = True
    config.train_without = WITHOUT
    config.min_label_density = 1e-3  # more tasks: 117 in place of 109
    config.kinds.update({"real": 0.6, "synthetic": 0.25, "superpixel": 0.15})
    config.support_size = 8
    config.num_steps = 40_000
    config.optimizer.schedule = "constant"
    config.ema_decay = 0.998
    config.eval_every = 500
    config.checkpoint_every = 25
    if arg == "cosine":
        config.seed = 12
        config.num_steps = 360
        config.optimizer.schedule = "cosine"
        config.ema_decay = 0.99  # the last hundred steps, whose rate is low
        config.eval_every = 180
    return config
