"""The main table: few-shot models trained with equal episodes, and models trained per task.

    python -m benchmarks.tables --data_dir data --workdir runs/tables --steps 700 --max_cases 10

Trains configs/small.py, with and without our additions to UniverSeg, and configs/baselines.py:senet, :panet and :alpnet
with the same seed, episodes and schedule. Evaluates them, the baselines without training, a U-Net per task and the
first model fine-tuned per task on --roles. --checkpoints adds others, such as `small`. No step is selected: the last
one is evaluated.

Rerunning the same command resumes; two processes share the work. The tables <workdir>/<role>.md hold all finished
results: at each support size Dice with intervals and the paired differences to ours; <role>.jsonl has the same numbers.
Results of other settings, such as another --steps, are left out.
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
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # (config, changed fields)
    OURS: ("configs/small.py:64", {}),
    "as_published": ("configs/small.py:64", {"model.matching": 0}),  # except for five levels and layer norm
    **{name: (f"configs/baselines.py:{name}", {}) for name in ("senet", "panet", "alpnet")},
}
# Schedule of a short run: the learning rate decays to 0, and the last step is evaluated.
SCHEDULE = {"optimizer.schedule": "cosine", "optimizer.warmup_steps": 50, "ema_decay": 0.99, "checkpoint_every": 100}
SCHEDULE |= {"eval.pictures": 0}


def plan(args: argparse.Namespace) -> list[Job]:
    """The jobs in order of importance: models, baselines without training, models trained per task."""
    workdir, data_dir = args.workdir.resolve(), Path(args.data_dir).resolve()

    def universeg(*arguments: str) -> tuple[str, ...]:
        return sys.executable, "-m", "universeg_jax.cli", *arguments

    def measured(name: str, *command: str, support_size: str = args.support_size) -> Job:
        """A job without training that runs the command for every role."""
        settings = [f"--support_size={support_size}", f"--ensemble={args.ensemble}", f"--max_cases={args.max_cases}"]
        settings.append(f"--data_dir={data_dir}")
        evaluations = [
            (out, universeg(*command, *settings, f"--role={role}", f"--out={out}"))
            for role in args.roles.split(",")
            for out in [workdir / role / name]
        ]
        return Job(workdir / "models" / name, (), tuple(evaluations))

    def of_checkpoint(name: str, checkpoint: str | Path) -> Job:
        return measured(name, "evaluate", f"--checkpoint={checkpoint}", "--overwrite")

    jobs = []
    shared = {**SCHEDULE, "seed": args.seed, "num_steps": args.steps, "eval_every": args.steps}
    for name, (config, changes) in MODELS.items():
        folder, fields = workdir / "models" / name, {**changes, **shared, "data_dir": str(data_dir)}
        flags = [f"--config.{field}={value}" for field, value in fields.items()]
        train = (sys.executable, "train.py", f"--config={config}", f"--workdir={folder}", *flags)
        expected = expected_config(load_config(f"{ROOT}/{config}"), fields)
        jobs.append(replace(of_checkpoint(name, folder), train=train, config=expected))
    ours = jobs[0]
    jobs += [of_checkpoint(Path(path).name, path) for path in args.checkpoints.split(",") if path]
    # Two cases at a time: a case with 64 supports and five draws takes 0.2 GB at 128x128.
    jobs += [measured(name, "baseline", f"--kind={name}", "--batch_size=2") for name in TRIVIAL]
    jobs.append(measured("unet", "baseline", "--kind=unet"))
    smallest = args.support_size.split(",")[0]  # fine-tuning time is linear in the support size
    tuned = measured("finetune", "baseline", "--kind=finetune", f"--checkpoint={ours.workdir}", support_size=smallest)
    return [*jobs, replace(tuned, config=ours.config, checkpoint=ours.workdir)]


def outdated(jobs: Sequence[Job]) -> set[Path]:
    """The results folders of unfinished evaluations, which may hold results of other settings."""
    return {out for job in jobs for out, _ in job.evaluations if not evaluated(job, out)}


def table(workdir: Path, role: str, support_sizes: Sequence[int], ensemble: int, without: Collection[Path] = ()) -> str:
    """Markdown tables of the finished results, without some folders."""
    parts = [f"# Role {role}, {ensemble} draws averaged", ""]
    for size in support_sizes:
        results = summaries(workdir / role, size, ensemble, without)
        if not results:
            continue
        ordered = {name: results[name] for name in sorted(results, key=lambda n: results[n]["mean_dice"])}
        parts += [f"## Support size {size}", "", cost_table(ordered, size, ensemble), ""]
        if OURS in results and len(results) > 1:
            parts += [differences(workdir / role, [n for n in ordered if n != OURS], size, ensemble), ""]
    return "\n".join(parts)


def summaries(folder: Path, support_size: int, ensemble: int, without: Collection[Path] = ()) -> dict[str, Any]:
    """Method → summary, for the methods with a result at this setting."""
    paths = [path for path in sorted(folder.glob("*/summary.json")) if path.parent.resolve() not in without]
    results = {path.parent.name: read_json(path) for path in paths}
    return {name: summary for name, summary in results.items() if setting(summary, support_size, ensemble)}


def setting(summary: dict[str, Any], support_size: int, ensemble: int) -> dict[str, Any] | None:
    settings = [s for s in summary["settings"] if (s["support_size"], s["ensemble"]) == (support_size, ensemble)]
    return settings[0] if settings else None


def lines(
    workdir: Path, role: str, support_sizes: Sequence[int], ensemble: int, without: Collection[Path] = ()
) -> list[str]:
    """The same numbers: one JSON object per support size and method, with their recorded settings."""
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
    """Steps and seed of a training from this table, and the queries per task of an evaluation."""
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
    parser.add_argument("--steps", type=int, required=True, help="training steps of each few-shot model")
    parser.add_argument("--minutes", type=float, default=0, help="start no job after this time; 0 = no limit")
    parser.add_argument("--roles", default="val,test")
    parser.add_argument("--support_size", default="16,64")
    parser.add_argument("--ensemble", type=int, default=5)
    parser.add_argument("--max_cases", type=int, default=0, help="queries per task; 0 = all")
    parser.add_argument("--checkpoints", default="", help="further checkpoints, comma-separated")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        jobs = plan(args)
        problems = run_local(jobs, args.minutes)
        sizes, without = [int(size) for size in args.support_size.split(",")], outdated(jobs)
        for role in args.roles.split(","):
            text = table(args.workdir, role, sizes, args.ensemble, without)
            (args.workdir / f"{role}.md").write_text(text)
            rows = lines(args.workdir, role, sizes, args.ensemble, without)
            (args.workdir / f"{role}.jsonl").write_text("".join(f"{line}\n" for line in rows))
            print(text)
    except (UserError, OSError) as error:
        print(f"tables: {error}", file=sys.stderr)
        return 1
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
