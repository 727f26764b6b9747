"""A small model in minutes on two CPU cores: 64x64, 32 features, support size 8. Reproduces no published number.

Expected: the table of the README, from

    make quickstart DATA=FOLDER

Training alone:

    python train.py --config=configs/quickstart.py --workdir=runs/mine --config.data_dir=data
"""

from ml_collections import ConfigDict

from universeg_jax.configs import default


def get_config(arg: str = "") -> ConfigDict:
    """`arg` is not used."""
    config = default.get_config(arg)
    config.make_data = True
    config.train_roles = ("train_open",)  # licences that allow weights to be given away
    config.kinds.real = 0.5
    config.kinds.synthetic = 0.5
    config.image_size = 64
    config.support_size = 8
    config.batch_size = 4
    config.num_steps = 600
    config.model.encoder_blocks = (32, 32, 32, 32)
    config.model.norm = "layer"  # as in successors of the paper
    config.model.matching = 4  # docs/recipe.md
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 1.0
    config.ema_decay = 0.99
    config.loss.bce = 0.5  # gives a gradient before masks overlap
    # Gentler than published: minutes are too short to learn from the strongest augmentation.
    config.augment.in_task.affine.update(
        {"p": 0.25, "degrees": (-25.0, 25.0), "translate": (0.0, 0.1), "scale": (0.9, 1.1)}
    )
    config.augment.in_task.elastic.p = 0.4
    config.augment.task.edge.p = 0.1
    config.augment.task.flip_labels.p = 0.1
    config.eval_every = 150
    config.checkpoint_every = 100
    config.eval.support_size = 8
    config.eval.max_cases = 3
    config.eval.batch_size = 8
    return config
