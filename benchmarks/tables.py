"""The main table on two cores: few-shot models trained with equal episodes, and what is trained for each task.

    python -m benchmarks.tables --data_dir data --workdir runs/tables --steps 700 --max_cases 10

Trains configs/small.py, with and without what we added to UniverSeg, and configs/baselines.py:senet, :panet and
:alpnet with the same seed, episodes and schedule. Evaluates them, the baselines without training, a U-Net for each task
and the first model fine-tuned for each task on the roles asked for. --checkpoints adds others, such as `small`. Nothing
is chosen by it: the last step is taken.

The same command goes on where it was stopped, and twice at once it shares the work. What failed or was not begun within
--minutes is told of, and the tables <workdir>/<role>.md hold what there is: at each support size Dice with intervals,
and the paired differences to ours; <role>.jsonl has the same numbers. What another call left with other settings, such
as --steps, is in neither.
"""

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from universeg_jax.configuration import load_config
from universeg_jax.errors import UserError
from universeg_jax.evaluation.comparison import compare
from universeg_jax.evaluation.cost import cost_table
from universeg_jax.evaluation.trivial import METHODS as TRIVIAL
from universeg_jax.reports.files import read_json
from universeg_jax.reports.markdown import markdown_table, percent
from universeg_jax.sweeps.sweep import ROOT, Job, evaluated, expected_config, run_local

OURS = "universeg"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # (config, what is changed of it)
    OURS: ("configs/small.py:64", {}),
    "as_published": ("configs/small.py:64", {"model.matching": 0}),  # but for its five levels and layer norm
    **{name: (f"configs/baselines.py:{name}", {}) for name in ("senet", "panet", "alpnet")},
}
# A short run in the place of a long one: the rate falls to 0 at its end, and the last step is what is evaluated.
SCHEDULE = {"optimizer.schedule": "cosine", "optimizer.warmup_steps": 50, "ema_decay": 0.99, "checkpoint_every": 100}
SCHEDULE |= {"eval.pictures": 0}


def plan(args: argparse.Namespace) -> list[Job]:
    """What is worth most first: models, then baselines without training, then those trained for each task."""
    workdir, data_dir = args.workdir.resolve(), Path(args.data_dir).resolve()

    def universeg(*arguments: str) -> tuple[str, ...]:
        return sys.executable, "-m", "universeg_jax.cli", *arguments

    def measured(name: str, *command: str, support_size: str = args.support_size) -> Job:
        """The command for every role, as evaluations of a job that trains nothing."""
        settings = [f"--support_size={support_size}", f"--ensemble={args.ensemble}", f"--max_cases={args.max_cases}"]
        settings.append(f"--data_dir={data_dir}")
        todo = [
            (out, universeg(*command, *settings, f"--role={role}", f"--out={out}"))
            for role in args.roles.split(",")
            for out in [workdir / role / name]
        ]
        return Job(workdir / "models" / name, (), tuple(todo))

    def of_checkpoint(name: str, checkpoint: str | Path) -> Job:
        return measured(name, "evaluate", f"--checkpoint={checkpoint}", "--overwrite")

    jobs = []
    shared = {**SCHEDULE, "seed": args.seed, "num_steps": args.steps, "eval_every": args.steps}
    for name, (config, changes) in MODELS.items():
        folder, fields = workdir / "models" / name, {**changes, **shared, "data_dir": str(data_dir)}
        flags = [f"--config.{field}={value}" for field, value in fields.items()]
        train = (sys.executable, "train.py", f"--config={config}", f"--workdir={folder}", *flags)
        asked = expected_config(load_config(f"{ROOT}/{config}"), fields)
        jobs.append(replace(of_checkpoint(name, folder), train=train, config=asked))
    ours = jobs[0]
    jobs += [of_checkpoint(Path(path).name, path) for path in args.checkpoints.split(",") if path]
    # Two cases at a time: 64 supports of five draws at 128x128 are 0.2 GB a case with their features.
    jobs += [measured(name, "baseline", f"--kind={name}", "--batch_size=2") for name in TRIVIAL]
    jobs.append(measured("unet", "baseline", "--kind=unet"))
    smallest = args.support_size.split(",")[0]  # its time is linear in the support
    tuned = measured("finetune", "baseline", "--kind=finetune", f"--checkpoint={ours.workdir}", support_size=smallest)
    return [*jobs, replace(tuned, config=ours.config, checkpoint=ours.workdir)]


def outdated(jobs: Sequence[Job]) -> set[Path]:
    """The folders that the jobs fill and have not: what may lie there is of other settings."""
    return {out for job in jobs for out, _ in job.evaluations if not evaluated(job, out)}


def table(workdir: Path, role: str, support_sizes: Sequence[int], ensemble: int, without: Collection[Path] = ()) -> str:
    """Of what is there, but for some folders."""
    parts = [f"# Role {role}, {ensemble} draws averaged", ""]
    for size in support_sizes:
        there = summaries(workdir / role, size, ensemble, without)
        if not there:
            continue
        ordered = {name: there[name] for name in sorted(there, key=lambda n: there[n]["mean_dice"])}
        parts += [f"## Support size {size}", "", cost_table(ordered, size, ensemble), ""]
        if OURS in there and len(there) > 1:
            parts += [differences(workdir / role, [n for n in ordered if n != OURS], size, ensemble), ""]
    return "\n".join(parts)


def summaries(folder: Path, support_size: int, ensemble: int, without: Collection[Path] = ()) -> dict[str, Any]:
    """Of the methods that have a result of this setting."""
    paths = [path for path in sorted(folder.glob("*/summary.json")) if path.parent.resolve() not in without]
    found = {path.parent.name: read_json(path) for path in paths}
    return {name: summary for name, summary in found.items() if setting(summary, support_size, ensemble)}


def setting(summary: dict[str, Any], support_size: int, ensemble: int) -> dict[str, Any] | None:
    found = [s for s in summary["settings"] if (s["support_size"], s["ensemble"]) == (support_size, ensemble)]
    return found[0] if found else None


def lines(
    workdir: Path, role: str, support_sizes: Sequence[int], ensemble: int, without: Collection[Path] = ()
) -> list[str]:
    """The same numbers, a JSON object for each support size and method, with what made them by their own records."""
    rows = []
    for size in support_sizes:
        for name, summary in summaries(workdir / role, size, ensemble, without).items():
            of = setting(summary, size, ensemble)
            means = {key: of[f"mean_{key}"] for key in ("dice", "ci_low", "ci_high")}
            datasets = {n: {key: d[key] for key in ("dice", "ci_low", "ci_high")} for n, d in of["datasets"].items()}
            row = {"role": role, "support_size": size, "ensemble": ensemble, "method": name, **means}
            row |= made_by(workdir / role / name, workdir / "models" / name)
            rows.append(json.dumps({**row, "cost": summary.get("cost"), "datasets": datasets}))
    return rows


def made_by(out: Path, run: Path) -> dict[str, Any]:
    """Steps and seed of a training, where it was one of these, and the queries a task of an evaluation."""
    about = {}
    if (run / "config.json").exists() and (out / "evaluated.json").exists():
        config = read_json(out / "evaluated.json")["config"]
        about = {"steps": config["num_steps"], "seed": config["seed"]}
    for name, options in (("evaluation.json", "options"), ("plan.json", "settings")):
        if (out / name).exists():
            about["max_cases"] = read_json(out / name)[options]["max_cases"]
    return about


def differences(folder: Path, names: Sequence[str], support_size: int, ensemble: int) -> str:
    rows = []
    for name in names:
        row = compare(folder / name, folder / OURS, support_size=support_size, ensemble=ensemble)["all"]
        ends = "" if row["low"] is None else f"{percent(row['low'])} to {percent(row['high'])}"
        rows.append([name, percent(row["difference"]), ends, "" if row["p"] is None else f"{row['p']:.4f}"])
    return markdown_table([f"{OURS} minus", "mean Dice (%)", "95 % interval", "p"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True, help="of training each few-shot model")
    parser.add_argument("--minutes", type=float, default=0, help="begin no part after so many; 0 = no limit")
    parser.add_argument("--roles", default="val,test")
    parser.add_argument("--support_size", default="16,64")
    parser.add_argument("--ensemble", type=int, default=5)
    parser.add_argument("--max_cases", type=int, default=0, help="queries a task; 0 = all")
    parser.add_argument("--checkpoints", default="", help="further ones, comma-separated")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        jobs = plan(args)
        problems = run_local(jobs, args.minutes)
        sizes, without = [int(size) for size in args.support_size.split(",")], outdated(jobs)
        for role in args.roles.split(","):
            text = table(args.workdir, role, sizes, args.ensemble, without)
            (args.workdir / f"{role}.md").write_text(text)
            told = lines(args.workdir, role, sizes, args.ensemble, without)
            (args.workdir / f"{role}.jsonl").write_text("".join(f"{line}\n" for line in told))
            print(text)
    except (UserError, OSError) as error:
        print(f"tables: {error}", file=sys.stderr)
        return 1
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
