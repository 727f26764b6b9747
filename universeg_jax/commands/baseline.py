"""Evaluate a baseline: a U-Net, fine-tuning, or no training.

A U-Net or a fine-tuned checkpoint is trained for each task. Settings and results are those of `evaluate`.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from universeg_jax.commands.evaluate import add_settings, print_datasets, settings_of

EXAMPLE = "universeg baseline --kind unet --data_dir data --role test --support_size=16 --out results/unet"
TRIVIAL = ("mean_mask", "nearest_label", "nearest_features")  # in evaluation/trivial.py
STEPS = {"unet": 300, "finetune": 60}
BATCH_SIZES = {"unet": 8, "finetune": 2}
LEARNING_RATES = {"unet": 2e-3, "finetune": 1e-4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=(*STEPS, *TRIVIAL), required=True, help="baseline to evaluate")
    parser.add_argument("--checkpoint", default="", help="checkpoint to fine-tune, with --kind=finetune")
    add_settings(parser)
    parser.add_argument("--steps", type=int, default=0, help=f"training steps per task (default: {_shown(STEPS)})")
    parser.add_argument(
        "--train_batch_size", type=int, default=0, help=f"images or episodes per step (default: {_shown(BATCH_SIZES)})"
    )
    parser.add_argument(
        "--learning_rate", type=float, default=0.0, help=f"peak learning rate (default: {_shown(LEARNING_RATES)})"
    )
    parser.add_argument("--score_every", type=int, default=20, help="steps between evaluations that select the best")
    parser.add_argument("--image_size", type=int, default=128, help="pixels a side, with --kind=unet")
    parser.add_argument("--features", default="16,32,64,128,128", help="channels of each level of the U-Net")


def _shown(by_kind: Mapping[str, float]) -> str:
    return ", ".join(f"{value} {kind}" for kind, value in by_kind.items())


def run(args: argparse.Namespace) -> int:
    from universeg_jax import startup
    from universeg_jax.adaptation.fitting import Recipe
    from universeg_jax.adaptation.workflow import evaluate_per_task, evaluate_trivial, finetune_trainer, unet_trainer
    from universeg_jax.errors import UserError

    if bool(args.checkpoint) != (args.kind == "finetune"):
        raise UserError(
            f"--kind={args.kind} --checkpoint={args.checkpoint!r}: finetune needs a checkpoint, others take none"
        )
    startup.use_compilation_cache()
    settings = settings_of(args)
    names = tuple(args.datasets.split(",")) if args.datasets else ()
    if args.kind in TRIVIAL:
        print_datasets(evaluate_trivial(args.kind, args.data_dir, names, args.role, settings, args.out))
        return 0
    recipe = Recipe(
        args.steps or STEPS[args.kind],
        args.train_batch_size or BATCH_SIZES[args.kind],
        args.learning_rate or LEARNING_RATES[args.kind],
        args.score_every,
        args.image_size,
        args.seed,
    )
    if args.kind == "unet":
        features = args.features.split(",")
        if not all(number.isdecimal() and int(number) for number in features):
            raise UserError(f"--features={args.features}: use numbers above 0, comma-separated, such as 16,32,64")
        trainer = unet_trainer(tuple(map(int, features)), recipe)
    else:
        trainer = finetune_trainer(args.checkpoint, max(settings.support_sizes), recipe)
    summary = evaluate_per_task(trainer, args.data_dir, names, args.role, settings, Path(args.out))
    print_datasets(summary)
    return 0
