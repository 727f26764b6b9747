"""The `universeg` command: one entry point, one function behind each subcommand."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from universeg_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; the exit code is 0 if everything that was asked for was done."""
    parser = argparse.ArgumentParser(prog="universeg", description="In-context segmentation of biomedical images.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (build, tasks, predict, evaluate, checkpoint, convert):
        command(commands)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (UserError, OSError) as error:
        print(f"universeg {args.command}: {error}", file=sys.stderr)
        return 1


def _command(commands, name: str, help: str, example: str, run: Callable) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help, epilog=f"example: {example}")
    parser.set_defaults(run=run)
    return parser


def build(commands) -> None:
    from universeg_jax.data import build

    parser = _command(commands, "build", "Make datasets of folders of images and labels.", build.EXAMPLE, build.run)
    build.add_arguments(parser)


def tasks(commands) -> None:
    def run(args) -> int:
        from universeg_jax.data.builder import list_datasets, open_dataset
        from universeg_jax.data.tasks import FIRST, SECOND, task_table
        from universeg_jax.reporting import markdown_table, write_csv

        table = task_table([open_dataset(args.data_dir, name) for name in list_datasets(args.data_dir)], args.density)
        if not table:
            raise UserError(f"no dataset in {args.data_dir}; `universeg build` makes one")
        rows = [
            {
                "task": task.name,
                "label": task.label_name,
                "role": task.role,
                "train or support": len(task.side(FIRST)),
                "val or query": len(task.side(SECOND)),
                "unusable": task.unusable,
            }
            for task in table
        ]
        print(markdown_table(list(rows[0]), [list(row.values()) for row in rows]))
        print(f"{sum(not t.unusable for t in table)} usable tasks of {len({t.dataset for t in table})} datasets")
        if args.csv:
            write_csv(Path(args.csv), rows)
        return 0

    parser = _command(
        commands, "tasks", "List the tasks of the built datasets.", "universeg tasks --data_dir data", run
    )
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--density", type=float, default=0.0, help="smallest share of an image that a label must cover")
    parser.add_argument("--csv", help="also write the table there")


def predict(commands) -> None:
    def run(args) -> int:
        from universeg_jax.predictor import Predictor, predict_files

        return predict_files(
            Predictor.from_checkpoint(args.checkpoint),
            Path(args.support),
            [Path(q) for q in args.queries],
            Path(args.out),
            label=args.label,
            support_size=args.support_size,
            ensemble=args.ensemble,
        )

    parser = _command(
        commands,
        "predict",
        "Segment images by example: PNG masks of label ids, each in its query's own size.",
        "universeg predict --checkpoint runs/quickstart --support my_scans --queries new_scans --out masks",
        run,
    )
    parser.add_argument("--checkpoint", required=True, help="a workdir of train.py, or one of its checkpoints")
    parser.add_argument("--support", required=True, help="folder with images/ and labels/")
    parser.add_argument("--queries", required=True, nargs="+", help="images, or folders of them")
    parser.add_argument("--out", required=True, help="folder for the masks")
    parser.add_argument("--label", type=int, help="segment this id alone, as 1; default: all ids of the support")
    parser.add_argument("--support_size", type=int, default=64, help="entries used at a time (default: %(default)s)")
    parser.add_argument("--ensemble", type=int, default=1, help="draws averaged where the support holds more")


def evaluate(commands) -> None:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(number) for number in text.split(","))

    def run(args) -> int:
        from universeg_jax.evaluation import Settings, evaluate_checkpoint
        from universeg_jax.reporting import markdown_table, percent

        settings = Settings(
            args.support_size, args.ensemble, args.pool_size, args.max_cases, args.batch_size, args.seed
        )
        names = tuple(args.datasets.split(",")) if args.datasets else ()
        summary = evaluate_checkpoint(args.checkpoint, args.data_dir, names, args.role, settings, Path(args.out))
        rows = [
            [
                name,
                percent(d["dice"]),
                f"{percent(d['ci_low'])} to {percent(d['ci_high'])}",
                d["n_cases"],
                d["n_subjects"],
            ]
            for name, d in summary["datasets"].items()
        ]
        rows.append(["mean", percent(summary["mean_dice"]), "", "", ""])
        print(markdown_table(["dataset", "Dice (%)", "95 % interval", "cases", "subjects"], rows))
        return 0

    parser = _command(
        commands,
        "evaluate",
        "Measure a checkpoint on datasets that it was not trained on.",
        "universeg evaluate --checkpoint runs/mine --data_dir data --role=test --support_size=1,4,16 --out results",
        run,
    )
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data_dir", default="data")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--datasets", help="names, comma-separated")
    what.add_argument("--role", default="", help="all datasets of a role")
    parser.add_argument("--support_size", type=numbers, default=(16,), help="one or several, comma-separated")
    parser.add_argument("--ensemble", type=numbers, default=(1,), help="support draws averaged; one or several")
    parser.add_argument("--pool_size", type=int, default=0, help="examples that supports are drawn from; 0 = all")
    parser.add_argument("--max_cases", type=int, default=0, help="queries a task; 0 = all")
    parser.add_argument("--batch_size", type=int, default=8, help="queries at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the support draws")
    parser.add_argument("--out", required=True, help="folder for summary.json and cases.csv")


def checkpoint(commands) -> None:
    def run(args) -> int:
        import json

        from universeg_jax import checkpoints

        path = checkpoints.resolve(args.path)
        print(json.dumps({"path": str(path), **checkpoints.read_metadata(path)}, indent=2))
        return 0

    parser = _command(
        commands,
        "checkpoint",
        "Show what a checkpoint is and what it was trained on.",
        "universeg checkpoint runs/mine",
        run,
    )
    parser.add_argument("path", help="a workdir or one checkpoint")


def convert(commands) -> None:
    def run(args) -> int:
        from universeg_jax.convert import convert

        print(convert(args.file, args.out))
        return 0

    what = "Read released weights (.pt, .safetensors) as a checkpoint, or write a checkpoint as such a file."
    parser = _command(commands, "convert", what, "universeg convert universeg_v1_nf64_ss64_STA.pt weights/release", run)
    parser.add_argument("file", help="a .pt, .pth or .safetensors file, or a checkpoint")
    parser.add_argument("out", help="a new folder for the checkpoint, or a .pt or .safetensors file")


if __name__ == "__main__":
    sys.exit(main())
