"""Measure a checkpoint on datasets that it was not trained on."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = "universeg evaluate --checkpoint runs/mine --data_dir data --role=test --support_size=1,4,16 --out results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True)
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """What is evaluated on, and how: the same for checkpoints and for what is trained for each task."""
    parser.add_argument("--data_dir", default="data")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--datasets", help="names, comma-separated")
    what.add_argument("--role", default="", help="all datasets of a role")
    parser.add_argument("--support_size", type=_numbers, default=(16,), help="one or several, comma-separated")
    parser.add_argument("--ensemble", type=_numbers, default=(1,), help="support draws averaged; one or several")
    parser.add_argument("--pool_size", type=int, default=0, help="examples that supports are drawn from; 0 = all")
    parser.add_argument("--max_cases", type=int, default=0, help="queries a task; 0 = all")
    parser.add_argument("--batch_size", type=int, default=8, help="queries at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the support draws")
    parser.add_argument("--out", required=True, help="folder for summary.json and cases.csv")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def settings_of(args: argparse.Namespace) -> Any:
    from universeg_jax.evaluation import Settings

    return Settings(args.support_size, args.ensemble, args.pool_size, args.max_cases, args.batch_size, args.seed)


def print_datasets(summary: dict[str, Any]) -> None:
    from universeg_jax.cost import cost_cells
    from universeg_jax.reporting import markdown_table, percent

    rows = [
        [name, percent(d["dice"]), f"{percent(d['ci_low'])} to {percent(d['ci_high'])}", d["n_cases"], d["n_subjects"]]
        for name, d in summary["datasets"].items()
    ]
    rows.append(["mean", percent(summary["mean_dice"]), "", "", ""])
    print(markdown_table(["dataset", "Dice (%)", "95 % interval", "cases", "subjects"], rows))
    parameters, milliseconds, seconds = cost_cells(summary["cost"])
    print(f"{parameters} M parameters, {milliseconds} ms a mask, {seconds} s of preparation a task")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.evaluation import evaluate_checkpoint

    names = tuple(args.datasets.split(",")) if args.datasets else ()
    out = Path(args.out)
    summary = evaluate_checkpoint(args.checkpoint, args.data_dir, names, args.role, settings_of(args), out)
    print_datasets(summary)
    return 0
