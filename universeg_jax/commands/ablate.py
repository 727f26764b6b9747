"""Train and evaluate a sweep of configs/ablations.py, and gather its table and figure."""

import argparse
from pathlib import Path

LAUNCHERS = ("local", "slurm", "none")
EXAMPLE = "universeg ablate --sweep=support_size --workdir runs/ablations --data_dir data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sweep", required=True, help="its name; a wrong one lists them")
    parser.add_argument("--workdir", type=Path, required=True, help="for the runs, tables and figures of all sweeps")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--base", default="configs/ablations.py", help="FILE[:argument] (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of the base; repeatable")
    parser.add_argument("--seeds", type=_numbers, default=(0, 1), help="runs of each point (default: 0,1)")
    parser.add_argument("--role", default="test", help="of the datasets to evaluate on (default: %(default)s)")
    parser.add_argument("--max_cases", type=int, default=0, help="queries a task; 0 = all")
    parser.add_argument("--minutes", type=float, default=0, help="begin no run after so many; 0 = no limit (local)")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--launcher", default="local", choices=LAUNCHERS, help="none: only gather what is there")
    parser.add_argument(
        "--slurm", action="append", default=[], metavar="KEY=VALUE",
        help="of submitit: slurm_partition, timeout_min, gpus_per_node, cpus_per_task, mem_gb, …; repeatable",
    )  # fmt: skip


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def run(args: argparse.Namespace) -> int:
    from universeg_jax.errors import UserError
    from universeg_jax.sweeps.report import write_report
    from universeg_jax.sweeps.sweep import SweepOptions, evaluated, listing, missing, plan, run_local, run_slurm

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
    there = {out for job in jobs for out, _ in job.evaluations if evaluated(job, out)}
    write_report(args.sweep, points, options, problems, there)
    print((args.workdir / f"{args.sweep}_{args.role}.md").read_text(), end="")
    return int(bool(problems))
