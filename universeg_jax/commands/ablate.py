"""Train and evaluate a sweep of configs/ablations.py.

Writes a table and a figure of the sweep.
"""

import argparse
from inspect import getdoc
from pathlib import Path

LAUNCHERS = ("local", "slurm", "none")
EXAMPLE = "universeg ablate --sweep=support_size --workdir runs/ablations --data_dir data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sweep", default="", help="name of the sweep; --list alone lists them all")
    parser.add_argument(
        "--workdir",
        type=Path,
        default=Path("runs/ablations"),
        help="folder for the runs, tables and figures of all sweeps (default: runs/ablations)",
    )
    parser.add_argument("--data_dir", default="data", help="folder of built datasets")
    parser.add_argument("--base", default="configs/ablations.py", help="configuration, FILE[:argument]")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override a field of the configuration; repeatable",
    )
    parser.add_argument(
        "--seeds", type=_numbers, default=(0, 1), help="seeds of the runs of each point, comma-separated (default: 0,1)"
    )
    parser.add_argument("--role", default="test", help="role of the datasets to evaluate on")
    parser.add_argument("--max_cases", type=int, default=0, help="largest number of queries per task (default: all)")
    parser.add_argument(
        "--minutes", type=float, default=0, help="start no run after so many minutes, with local (default: no limit)"
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="print the commands of the sweep, or without --sweep all sweeps, and run nothing",
    )
    parser.add_argument(
        "--launcher", default="local", choices=LAUNCHERS, help="where to run; none only collects finished runs"
    )
    parser.add_argument(
        "--slurm", action="append", default=[], metavar="KEY=VALUE",
        help="parameter of submitit, such as slurm_partition, timeout_min, "
        "gpus_per_node, cpus_per_task or mem_gb; repeatable",
    )  # fmt: skip


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def run(args: argparse.Namespace) -> int:
    from universeg_jax.configs.ablations import SWEEPS
    from universeg_jax.errors import UserError
    from universeg_jax.sweeps.report import write_report
    from universeg_jax.sweeps.sweep import SweepOptions, evaluated, listing, missing, plan, run_local, run_slurm

    if not args.sweep:
        if not args.list:
            raise UserError(f"--sweep is missing: name one of {', '.join(SWEEPS)} (--list says what each compares)")
        for name, function in SWEEPS.items():
            print(f"{name:18}{str(getdoc(function)).splitlines()[0]}")
        return 0
    changes = tuple(args.set)
    options = SweepOptions(args.data_dir, args.workdir, args.base, args.role, args.seeds, changes, args.max_cases)
    points, jobs = plan(args.sweep, options)
    if args.list:
        print(listing(jobs))
        return 0
    if wrong := [pair for pair in args.slurm if "=" not in pair]:
        raise UserError(f"--slurm {wrong[0]}: write KEY=VALUE")
    pairs = (pair.split("=", 1) for pair in args.slurm)
    parameters = {key: int(value) if value.isdigit() else value for key, value in pairs}
    if args.launcher == "slurm":
        problems = run_slurm(jobs, args.workdir / "slurm", parameters)
    elif args.launcher == "local":
        problems = run_local(jobs, args.minutes)
    else:
        problems = missing(jobs)
    finished = {out for job in jobs for out, _ in job.evaluations if evaluated(job, out)}
    write_report(args.sweep, points, options, problems, finished)
    print((args.workdir / f"{args.sweep}_{args.role}.md").read_text(encoding="utf-8"), end="")
    return int(bool(problems))
