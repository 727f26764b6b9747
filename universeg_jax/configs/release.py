"""A training of the released architecture: the default with the paper's mixture of real and synthetic tasks.

All that is known of the release's training is its name, universeg_v1_nf64_ss64_STA: 64 features, support size 64,
synthetic tasks and both augmentations. Expected: the paper reports a mean held-out Dice of 71.8 with its 53 datasets;
this config has not been trained to the end yet. Synthetic tasks are the published ones, without the families and
options that synthesis.py adds.

    python train.py --config=configs/release.py --workdir=runs/release --config.data_dir=data
"""

from ml_collections import ConfigDict

from universeg_jax.configs import default


def get_config(arg: str = "") -> ConfigDict:
    """`arg` is not used."""
    config = default.get_config(arg)
    config.kinds.real = 0.5  # the paper mixes both and gives no ratio
    config.kinds.synthetic = 0.5
    config.synthesis.weights.update({"shapes": 1.0, "tubes": 0.0, "blobs": 0.0, "nests": 0.0})
    config.synthesis.update(dict.fromkeys(("union", "texture", "border", "view"), 0.0))
    return config
