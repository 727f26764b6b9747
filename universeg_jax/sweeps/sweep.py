"""Plans and runs a sweep of configs/ablations.py: trains and evaluates every point for every seed.

Each run starts train.py and then eval.py as processes in <workdir>/runs/<changes>_seed<n>/. Finished runs are skipped,
interrupted runs resume, and a failed run is reported at the end without stopping the others. Two processes with the
same command, on two devices for example, share the runs; the last one writes the complete report.
Runs with the same configuration, such as the points of `ensemble` or a point of two sweeps, are trained once.
The folder name does not contain --base and --set: runs that were trained with other values of them do not count.
"""

import ast
import hashlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from universeg_jax.configs import ablations
from universeg_jax.configuration import flatten, load_config, to_dict, without_retired
from universeg_jax.data.dataset import list_datasets, open_dataset
from universeg_jax.data.tasks import subject_hash, task_table
from universeg_jax.errors import UserError
from universeg_jax.reports.files import (
    LockedError,
    lock,
    read_json,
    write_json,
)

ROOT = Path(__file__).parents[2]  # the clone, with train.py and eval.py


@dataclass(frozen=True)
class SweepOptions:
    """Settings that all runs of a sweep share."""

    data_dir: str
    workdir: Path
    base: str = "configs/ablations.py"
    role: str = "test"
    seeds: tuple[int, ...] = (0, 1)
    changes: tuple[str, ...] = ()  # "num_steps=100": fields of the base
    max_cases: int = 0


@dataclass(frozen=True)
class Job:
    """One training and its evaluations."""

    workdir: Path
    train: tuple[str, ...]  # () = no training
    evaluations: tuple[tuple[Path, tuple[str, ...]], ...]  # (results folder, command)
    config: dict[str, Any] = field(default_factory=dict)  # flat config of the evaluated run; {} = not checked
    checkpoint: Path | None = None  # the workdir of the evaluated run, if another job trains it

    @property
    def name(self) -> str:
        return self.workdir.name

    @property
    def run(self) -> Path:
        """The workdir of the run that is evaluated."""
        return self.checkpoint or self.workdir


@dataclass(frozen=True)
class Point:
    """One value of the varied setting, with one results folder per seed."""

    value: str
    results: tuple[Path, ...]


def plan(name: str, options: SweepOptions) -> tuple[list[Point], list[Job]]:
    """The points of a sweep and their jobs. Raises UserError for an unknown sweep or missing data."""
    if not (ROOT / "train.py").is_file():
        raise UserError("ablations need train.py and eval.py of a clone: `pip install -e .` there")
    if name not in ablations.SWEEPS:
        raise UserError(f"--sweep={name}: must be one of {', '.join(ablations.SWEEPS)}")
    if not options.seeds:
        raise UserError("--seeds: at least one number is needed")
    config = base_config(options)
    datasets = [open_dataset(options.data_dir, n) for n in list_datasets(options.data_dir)]
    training = [d for d in datasets if d.meta.role in tuple(config.train_roles)]
    if not training or not any(d.meta.role == options.role for d in datasets):
        available = ", ".join(f"{d.meta.name} ({d.meta.role})" for d in datasets) or "none"
        wanted = f"of a role among {', '.join(config.train_roles)} and one of role {options.role}"
        raise UserError(f"--data_dir={options.data_dir}: a dataset {wanted} is needed; available: {available}")
    tasks = [task for task in task_table(training, config.min_label_density) if not task.unusable]
    names = sorted({task.dataset for task in tasks}, key=lambda n: subject_hash("train_datasets", n))
    points: list[Point] = []
    jobs: dict[Path, Job] = {}

    def add(value: Any, train: dict[str, Any] | None = None, evaluate: dict[str, Any] | None = None) -> None:
        results = []
        # Values of the base are no changes, so one run serves a point that several sweeps share.
        changes = {field: x for field, x in (train or {}).items() if x != ablations.get(config, field)}
        for seed in options.seeds:
            folder = options.workdir / "runs" / f"{slug(changes)}_seed{seed}"
            size = changes.get("support_size", config.support_size)
            flags = {"support_size": size, "ensemble": 1, "pool_size": 0, **(evaluate or {})}
            flags |= {"role": options.role, "max_cases": options.max_cases}
            out = folder / ("results_" + "_".join(f"{k}-{v}" for k, v in flags.items()))
            if folder not in jobs:
                expected = expected_config(config, changes | {"seed": seed})
                jobs[folder] = Job(folder, train_command(folder, seed, changes, options), (), expected)
            evaluations = dict(jobs[folder].evaluations) | {out: eval_command(folder, out, flags, options)}
            jobs[folder] = replace(jobs[folder], evaluations=tuple(evaluations.items()))
            results.append(out)
        points.append(Point(str(value), tuple(results)))

    ablations.sweep(add, name, config, names, len(tasks))
    return points, list(jobs.values())


def base_config(options: SweepOptions) -> ConfigDict:
    """The base config with options.changes. Raises UserError for a missing file or an unknown field."""
    config = load_config(options.base)
    for change in options.changes:
        field, equals, text = change.partition("=")
        if not equals or field not in flatten(to_dict(config)):
            raise UserError(f"--set {change}: write FIELD=VALUE of a field of {options.base}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text  # a string without quotation marks
        try:
            config.update_from_flattened_dict({field: value})
        except TypeError as error:
            raise UserError(f"--set {change}: not the field's type ({error})") from None
    return config


def expected_config(config: ConfigDict, fields: dict[str, Any]) -> dict[str, Any]:
    """The flat config that a training with these fields writes into its config.json."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    return flatten(to_dict(config))


def slug(changes: dict[str, Any]) -> str:
    """A readable folder name for the changes to the base, unique by a digest."""
    if not changes:
        return "base"
    digest = hashlib.sha256(repr(sorted(changes.items())).encode()).hexdigest()[:6]
    text = "_".join(f"{field.split('.')[-1]}-{value}" for field, value in changes.items())
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', text)[:40]}_{digest}"


def train_command(folder: Path, seed: int, changes: dict[str, Any], options: SweepOptions) -> tuple[str, ...]:
    given = dict(change.split("=", 1) for change in options.changes if "=" in change)
    fields = {**given, **changes, "seed": seed, "data_dir": str(Path(options.data_dir).resolve())}
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    return sys.executable, "train.py", f"--config={options.base}", f"--workdir={folder.resolve()}", *flags


def eval_command(folder: Path, out: Path, flags: dict[str, Any], options: SweepOptions) -> tuple[str, ...]:
    places = [f"--checkpoint={folder.resolve()}", f"--data_dir={Path(options.data_dir).resolve()}"]
    return (  # --overwrite replaces the results of an interrupted evaluation
        sys.executable, "eval.py", *places, *(f"--{flag}={value}" for flag, value in flags.items()),
        f"--out={out.resolve()}", "--overwrite",
    )  # fmt: skip


def unfinished(job: Job) -> list[tuple[tuple[str, ...], Path, str]]:
    """(command, its folder, its outcome) of the steps that are still to run."""
    train = [(job.train, job.workdir, "trained")] if job.train and not trained(job) else []
    return [*train, *((command, out, "evaluated") for out, command in job.evaluations if not evaluated(job, out))]


def trained(job: Job) -> bool:
    record = job.workdir / "trained.json"
    return record.exists() and read_json(record) == list(job.train[1:]) and not differing(job, run_config(job.run))


def evaluated(job: Job, out: Path) -> bool:
    """True if the folder holds the results of the job's command, from a run that was trained with the job's config."""
    path = out / "evaluated.json"
    record = read_json(path) if path.exists() else {"command": [], "config": {}}
    return record["command"] == list(dict(job.evaluations)[out][1:]) and not differing(job, record["config"])


def run_config(run: Path) -> dict[str, Any]:
    """The flat config.json of a run; {} where there is none."""
    path = run / "config.json"
    return flatten(read_json(path)) if path.exists() else {}


def differing(job: Job, config: dict[str, Any]) -> list[str]:
    """Differences between a run's config and the job's config, in words.

    data_dir is ignored, and so are fields that the run does not have yet, unless a flag sets them.
    """
    if not job.config:
        return []
    config = without_retired(config)
    flags = {part.removeprefix("--config.").split("=")[0] for part in job.train if part.startswith("--config.")}
    return [
        f"{name}={config.get(name, 'absent')} in the run, {job.config.get(name, 'absent')} expected"
        for name in sorted((config.keys() | flags) - {"data_dir"})
        if config.get(name) != job.config.get(name)
    ]


def missing(jobs: Sequence[Job]) -> dict[str, str]:
    """Job name → the reason why it has no result."""
    reasons = {}
    for job in jobs:
        if unfinished(job):
            config = run_config(job.run)
            differences = "; ".join(differing(job, config)) if config else ""
            reasons[job.name] = f"the folder holds another run ({differences})" if differences else "no result yet"
    return reasons


def run_job(job: Job) -> str:
    """Runs the unfinished steps of a job and returns "" or an error. Raises LockedError if another process runs it."""
    with lock(job.workdir, ".job"):  # .lock belongs to the training
        for command, folder, what in unfinished(job):
            folder.mkdir(parents=True, exist_ok=True)
            log = folder / "log.txt"
            with log.open("a", encoding="utf-8") as file:
                code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
            if code:
                said = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip()
                lines = said.splitlines() or ["no output"]
                return f"not {what}, exit code {code}: {lines[-1]} ({log})"
            arguments = list(command[1:])
            record = {"command": arguments, "config": run_config(job.run)} if what == "evaluated" else arguments
            write_json(folder / f"{what}.json", record)
    return ""


def run_local(jobs: Sequence[Job], minutes: float = 0) -> dict[str, str]:
    """Runs the jobs one after another on this machine; returns job name → error.

    After `minutes`, if not 0, no further job starts; rerunning the command resumes. Several processes may share the
    jobs: a job that another process is running is skipped and checked again at the end.
    """
    problems, started = {}, time.monotonic()

    def run(job: Job) -> str:
        if minutes and time.monotonic() - started > 60 * minutes and unfinished(job):
            return f"not started within {minutes:g} minutes"
        try:
            return run_job(job)
        except LockedError as error:
            elsewhere.append(job)
            return str(error)

    elsewhere: list[Job] = []
    for job in tqdm(jobs, desc="ablate", unit="run"):
        if problem := run(job):
            problems[job.name] = problem
            tqdm.write(f"{job.name}: {problem}", file=sys.stderr)
    for job in elsewhere[:]:
        problems[job.name] = run(job)
    return {name: problem for name, problem in problems.items() if problem}


def run_slurm(jobs: Sequence[Job], folder: Path, parameters: dict[str, Any], cluster: str = "slurm") -> dict[str, str]:
    """Submits all jobs through submitit and waits for them; `parameters` go to its AutoExecutor."""
    try:
        import submitit
    except ImportError:
        raise UserError("--launcher=slurm needs another package: pip install 'universeg_jax[slurm]'") from None
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    try:
        executor.update_parameters(**parameters)
    except (NameError, TypeError, ValueError) as error:
        raise UserError(f"--slurm: {error}") from None
    submitted = [(job, executor.submit(run_job, job)) for job in jobs]
    print(f"{len(submitted)} jobs submitted: {', '.join(handle.job_id for _, handle in submitted)}", flush=True)
    problems = {}
    for job, handle in tqdm(submitted, desc="ablate", unit="run"):
        died = handle.exception()  # waits for the job
        if problem := str(died).strip().splitlines()[-1] if died else handle.result():
            problems[job.name] = problem
    return problems


def listing(jobs: Sequence[Job]) -> str:
    """All commands, to be run by hand."""
    return "\n".join(shlex.join(c) for job in jobs for c in (job.train, *(command for _, command in job.evaluations)))
