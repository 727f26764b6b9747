"""List the tasks of the built datasets."""

import argparse
from pathlib import Path

from universeg_jax.errors import UserError

EXAMPLE = "universeg tasks --data_dir data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data_dir", default="data", help="folder of built datasets")
    parser.add_argument(
        "--density",
        type=float,
        default=0.0,
        help="smallest share of an image that a label must cover, from 0 to 1 (default: 0)",
    )
    parser.add_argument("--csv", metavar="FILE", help="also write the table as CSV")
    parser.add_argument("--html", metavar="FILE", help="also write a page with three examples of every task")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.data.dataset import list_datasets, open_dataset
    from universeg_jax.data.task_gallery import write_gallery
    from universeg_jax.data.tasks import FIRST, SECOND, task_table
    from universeg_jax.reports.files import write_csv
    from universeg_jax.reports.markdown import markdown_table

    datasets = [open_dataset(args.data_dir, name) for name in list_datasets(args.data_dir)]
    table = task_table(datasets, args.density)
    if not table:
        raise UserError(f"no dataset in {args.data_dir}; build one with `universeg build`")
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
    if args.html:
        write_gallery(Path(args.html), datasets, table)
    return 0
