r"""The last stages of the weights `small`: pretrained keys and 52 open datasets, a cosine, and one with painted tasks.

Expected: docs/recipe.md, which lists the seeds and lengths of every stage. The first command starts from the packaged
weights and goes on until SIGTERM stops it. The last command was run twice: the second time, with another seed, from
the mean of the first result and the weights before.

    python train.py --config=configs/keys.py --workdir=runs/keys --config.data_dir=data
    python train.py --config=configs/keys.py:cosine --workdir=runs/keys_cosine --config.data_dir=data \
        --config.init_from=runs/keys
    python train.py --config=configs/keys.py:painted --workdir=runs/keys_painted --config.data_dir=data \
        --config.init_from=runs/keys_cosine
"""

from ml_collections import ConfigDict

from universeg_jax.configs import small

# Open datasets that teach the wrong thing, for the reasons in docs/recipe.md.
WITHOUT = ("alcapa", "cdd_cesm", "fetal_brain_uterus_mr", "knee_bones_mr", "pd25_subcortical_mr")


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" for the stage at a constant rate, "cosine" for the one that follows it, "painted" for the last."""
    if arg not in ("", "cosine", "painted"):
        raise ValueError(f"configs/keys.py takes no argument, cosine or painted, got {arg!r}")
    config = small.get_config("128")
    config.seed = 11  # other episodes than those that `small` saw
    config.init_from = "small"
    config.model.keys = "lite0"
    config.model.key_columns = True
    config.model.key_probe = True
    config.train_without = WITHOUT
    config.min_label_density = 1e-3  # more tasks: 117 in place of 109
    config.kinds.update({"real": 0.6, "synthetic": 0.25, "superpixel": 0.15})
    config.support_size = 8
    config.num_steps = 40_000
    config.optimizer.schedule = "constant"
    config.ema_decay = 0.998
    config.eval_every = 500
    config.checkpoint_every = 25
    if arg:
        config.seed = 12
        config.num_steps = 360
        config.optimizer.schedule = "cosine"
        config.ema_decay = 0.99  # the last hundred steps, whose rate is low
        config.eval_every = 180
    if arg == "painted":
        config.seed = 41
        config.kinds.update({"real": 0.5, "painted": 0.2, "synthetic": 0.15, "superpixel": 0.15})
        config.num_steps = 1_000
        config.eval_every = 1_000
    return config
