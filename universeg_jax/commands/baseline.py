"""Measure, as `evaluate` does, a U-Net or a fine-tuned checkpoint trained for each task, or what needs no training."""

import argparse
from pathlib import Path

from universeg_jax.commands.evaluate import add_settings, print_datasets, settings_of

EXAMPLE = "universeg baseline --kind unet --data_dir data --role test --support_size=16 --out results/unet"
TRIVIAL = ("mean_mask", "nearest_label", "nearest_features")  # of baselines/trivial.py
STEPS = {"unet": 300, "finetune": 60}
BATCH_SIZES = {"unet": 8, "finetune": 2}
LEARNING_RATES = {"unet": 2e-3, "finetune": 1e-4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=(*STEPS, *TRIVIAL), required=True)
    parser.add_argument("--checkpoint", default="", help="what finetune starts from")
    add_settings(parser)
    parser.add_argument("--steps", type=int, default=0, help=f"of training a task (default: {_shown(STEPS)})")
    parser.add_argument("--train_batch_size", type=int, default=0, help=f"(default: {_shown(BATCH_SIZES)})")
    parser.add_argument("--learning_rate", type=float, default=0.0, help=f"(default: {_shown(LEARNING_RATES)})")
    parser.add_argument("--score_every", type=int, default=20, help="steps between choices of the best parameters")
    parser.add_argument(
        "--image_size", type=int, default=128, help="pixels of the U-Net; finetune has its checkpoint's"
    )
    parser.add_argument("--features", default="16,32,64,128,128", help="of each level of the U-Net")


def _shown(by_kind: dict[str, float]) -> str:
    return ", ".join(f"{value} {kind}" for kind, value in by_kind.items())


def run(args: argparse.Namespace) -> int:
    from universeg_jax import startup
    from universeg_jax.adaptation.fitting import Recipe
    from universeg_jax.adaptation.workflow import evaluate_per_task, evaluate_trivial, finetune_trainer, unet_trainer
    from universeg_jax.errors import UserError

    if bool(args.checkpoint) != (args.kind == "finetune"):
        raise UserError(f"--kind={args.kind} --checkpoint={args.checkpoint!r}: finetune needs one, others take none")
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
            raise UserError(f"--features={args.features}: numbers above 0, comma-separated, as 16,32,64")
        trainer = unet_trainer(tuple(map(int, features)), recipe)
    else:
        trainer = finetune_trainer(args.checkpoint, max(settings.support_sizes), recipe)
    summary = evaluate_per_task(trainer, args.data_dir, names, args.role, settings, Path(args.out))
    print_datasets(summary)
    return 0
