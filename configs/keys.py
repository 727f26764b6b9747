"""The weights `small` given pretrained keys: from the packaged ones on, with `config.model.keys`.

Expected: docs/recipe.md. It goes on until it is stopped (SIGTERM).

    python train.py --config=configs/keys.py --workdir=runs/keys --config.data_dir=data
"""

from ml_collections import ConfigDict

from universeg_jax.configs import small

# Open datasets that teach the wrong thing, for the reasons in docs/recipe.md.
WITHOUT = ("alcapa", "cdd_cesm", "fetal_brain_uterus_mr", "knee_bones_mr", "pd25_subcortical_mr")


def get_config(arg: str = "") -> ConfigDict:
    """`arg` is not used."""
    if arg:
        raise ValueError(f"configs/keys.py takes no argument, got {arg!r}")
    config = small.get_config("128")
    config.seed = 11  # other episodes than those that `small` saw
    config.init_from = "small"
    config.model.keys = "lite0"
    config.train_without = WITHOUT
    config.min_label_density = 1e-3  # more tasks: 117 in place of 109
    config.kinds.update({"real": 0.6, "synthetic": 0.25, "superpixel": 0.15})
    config.support_size = 8
    config.num_steps = 40_000
    config.optimizer.schedule = "constant"
    config.ema_decay = 0.998
    config.eval_every = 500
    config.checkpoint_every = 25
    return config
