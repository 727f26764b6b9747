"""UniverSeg as published (Butoi et al., ICCV 2023): support size 64 at 128x128, soft Dice, Adam 1e-4.

Expected: the paper reports a mean held-out Dice of 71.8 with its 53 datasets; this config has not been trained to the
end yet.

    python train.py --config=configs/default.py --workdir=runs/paper --config.data_dir=data
"""

from ml_collections import ConfigDict

from universeg_jax.episodes import augment, painting, superpixel, synthesis


def get_config(arg: str = "") -> ConfigDict:
    """`arg` is not used."""
    if arg:
        raise ValueError(f"configs/default.py takes no argument, got {arg!r}")
    config = ConfigDict()
    add_data(config)
    add_model(config)
    add_optimizer_and_loss(config)
    config.augment = augment.get_config()
    config.synthesis = synthesis.get_config()
    config.superpixel = superpixel.get_config()
    config.painting = painting.get_config()
    add_logs_and_evaluation(config)
    return config


def add_data(config: ConfigDict) -> None:
    """Datasets, episodes and batches."""
    config.seed = 0  # decides every episode and the initial parameters
    config.deterministic = False  # bit-identical reruns on a GPU (slower); always so on a CPU

    config.data_dir = "data"  # where `universeg build` put the datasets
    config.make_data = False  # first build twelve small synthetic datasets if data_dir has no others
    config.init_from = ""  # checkpoint whose parameters to start from, with a fresh optimizer; "" = at random
    config.train_roles = ("train_open", "train_research")  # roles of the datasets to train on
    config.train_datasets = ()  # names of those among them; () = all
    config.train_without = ()  # names of those among them to leave out; one that is not in data_dir is left out too
    config.train_tasks = 0  # number of their tasks, chosen by hash, so that fewer are a subset of more; 0 = all
    config.val_role = "val"  # role of the datasets that select the best checkpoint
    config.min_label_density = 3e-3  # smallest share of an image that its label must cover to be trained on
    config.replacement = True  # support sampled with replacement, as published
    config.draw = "datasets"  # tasks are sampled: "datasets" level by level, as published | "tasks" uniformly
    config.label_union = 0.0  # probability that a real label is united with some other labels of the same images
    config.all_labels = 0.0  # probability that it is united with every other one
    config.kinds = ConfigDict()  # weights of the kinds of episode, any scale
    config.kinds.real = 1.0  # from the datasets
    config.kinds.synthetic = 0.0  # from synthesis.py; the paper mixes both but gives no ratio
    config.kinds.superpixel = 0.0  # from superpixel.py: labels made from the training images
    config.kinds.painted = 0.0  # from painting.py: real ones in another contrast
    config.corrections = 0.0  # probability that the query of an episode is corrected, see training/corrections.py
    config.read_threads = 4  # threads that read episodes ahead

    config.image_size = 128  # pixels, model input; datasets larger than it are resized on the device
    config.support_size = 64  # entries of each training episode, or their maximum
    config.support_schedule = "fixed"  # "fixed" | "uniform" | "log_uniform": sizes from 1 to support_size
    config.batch_size = 1  # episodes a step over all devices; about 1 in the paper (a V100 held no more)
    config.accumulation = 1  # parts of a device's share of the batch, whose gradients are added in turn
    config.num_steps = 500_000  # optimizer steps; not published


def add_model(config: ConfigDict) -> None:
    config.model = ConfigDict()
    config.model.name = "universeg"  # or a baseline: "senet" | "panet" | "alpnet"; see configs/baselines.py
    config.model.encoder_blocks = (64, 64, 64, 64)  # features of each level
    config.model.decoder_blocks = ()  # () mirrors the encoder
    config.model.cross_activation = "none"  # "none" as released, "leaky_relu" as in the paper's text
    config.model.norm = "none"  # "none" as released, "layer"
    config.model.residual = "none"  # "none" as released, "support" | "both": a block's input is added to its output
    config.model.matching = 0  # heads that compare query and support pixels first, see matching.py; 0 = as released
    config.model.keys = "none"  # "none" as released | "lite0": a guess from pretrained features, see recognition.py
    config.model.key_heads = 4  # of that guess
    config.model.key_columns = False  # a further guess from these features as they are
    config.model.key_probe = False  # another, from a linear probe of them that is fitted to the support
    config.model.dtype = "float32"  # of activations; "bfloat16" halves memory on accelerators
    config.model.remat = False  # recompute activations in the backward pass: less memory, a third more time
    config.model.form = "fast"  # "fast" | "plain": the same function
    config.model.support_chunk = 0  # support entries at a time: 0 = all (accelerators), 1 is best on a CPU
    config.model.conditioner_features = 16  # of senet
    config.model.stride = 8  # pixels between features of panet and alpnet
    config.model.embedding = 256  # features that alpnet compares
    config.model.prototype_grid = 8  # cells along a side, whose averages are alpnet's local prototypes


def add_optimizer_and_loss(config: ConfigDict) -> None:
    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # any optimizer of optax that takes learning_rate, or "muon"
    config.optimizer.learning_rate = 1e-4  # peak
    config.optimizer.schedule = "constant"  # "constant" | "cosine" (to 0 at num_steps) | "wsd" (linear to 0 at the end)
    config.optimizer.warmup_steps = 0  # linear from 0
    config.optimizer.decay_steps = 0  # of "wsd": its last steps
    config.optimizer.weight_decay = 0.0  # decoupled, on kernels only
    config.optimizer.clip_norm = 0.0  # global gradient norm; 0 = off
    config.ema_decay = 0.0  # exponential moving average of parameters, evaluated in their place; 0 = off

    config.loss = ConfigDict()  # weights of the terms
    config.loss.soft_dice = 1.0  # 1 - overlap, in [0, 1]
    config.loss.squared = True  # Σp² + Σy² in the soft Dice's denominator; False: Σp + Σy
    config.loss.bce = 0.0  # cross-entropy, nats a pixel
    config.loss.focal = 0.0  # cross-entropy weighted towards wrong pixels
    config.loss.focal_gamma = 20.0  # exponent; 20 in a successor of the paper


def add_logs_and_evaluation(config: ConfigDict) -> None:
    config.log_every = 1  # steps between lines of metrics.jsonl
    config.tensorboard = False  # also write <workdir>/tensorboard
    config.eval_every = 5_000  # steps between evaluations on val_role
    config.checkpoint_every = 1_000  # steps between checkpoints
    config.keep_every = 0  # steps between checkpoints kept besides the latest two and the best; 0 = none
    config.eval = ConfigDict()
    config.eval.support_size = 64  # entries, from the support split
    config.eval.ensemble = 1  # random supports averaged
    config.eval.max_cases = 20  # queries a task, chosen by hash; 0 = all
    config.eval.pictures = 6  # datasets with a case plotted in <workdir>/eval/sheet.png; 0 = none
    config.eval.batch_size = 4  # queries evaluated at a time
