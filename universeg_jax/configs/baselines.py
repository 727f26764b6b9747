r"""Few-shot baselines of the paper, trained on the same episodes by the same loop: SENet, PANet, ALPNet.

    python train.py --config=configs/baselines.py:senet --workdir=runs/senet --config.data_dir=data
    python train.py --config=configs/baselines.py:senet:paper --workdir=runs/senet_paper --config.data_dir=data

Sized like our small model (0.93 M parameters, 2.6 GFLOP a query at 64x64 with 8 entries), with its recipe:
senet 0.88 M and 2.1 GFLOP, panet 0.92 M and 3.7, alpnet 0.92 M and 3.6; a fair comparison gives all of them and
configs/small.py equal steps. `:paper` is the published size, 0.87, 14.71 and 43.02 M, with the paper's episodes.
Expected of the published size, held-out Dice: senet 50.1, panet 41.8, alpnet 47.8 (UniverSeg 71.8), with the paper's
53 datasets; these configs have not been trained to the end yet.
"""

from typing import Any

from ml_collections import ConfigDict

from universeg_jax.configs import default, small

PAPER: dict[str, dict[str, Any]] = {
    "senet": {"encoder_blocks": (64, 64, 64, 64)},
    "panet": {"encoder_blocks": ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))},
    "alpnet": {"encoder_blocks": ((64, 3), (128, 4), (256, 23), (512, 3))},
}
SMALL: dict[str, dict[str, Any]] = {
    "senet": {"encoder_blocks": (64, 64, 64, 64), "norm": "layer"},
    "panet": {"encoder_blocks": ((16, 2), (32, 2), (64, 3), (128, 3), (128, 3)), "stride": 4, "norm": "layer"},
    "alpnet": {"encoder_blocks": ((16, 2), (32, 4), (64, 5), (96, 2)), "stride": 4, "embedding": 128},
}


def get_config(arg: str = "senet") -> ConfigDict:
    """`arg`: name, or name:paper for the published size."""
    name, _, size = arg.partition(":")
    if name not in PAPER or size not in ("", "paper"):
        raise ValueError(f"configs/baselines.py:{arg}: the argument is one of {', '.join(PAPER)}, or with :paper")
    config = default.get_config() if size else small.get_config("64")
    model = default.get_config().model
    model.update({"name": name, **(PAPER if size else SMALL)[name]})
    config.model = model
    return config
