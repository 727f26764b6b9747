"""Runs a sweep of configs/ablations.py: trains, evaluates, and gathers a table and a figure with intervals.

Every run is train.py and then eval.py as processes of their own, in <workdir>/runs/<what differs>_seed<n>/. A run that
is done is not done again, one that stopped goes on, and one that fails is told of at the end and holds up no other.
The same command twice, say on two devices, shares the runs; the one that ends last gathers all.
Runs that differ in nothing, such as the points of `ensemble`, or one point of two sweeps, are trained once.
A folder's name does not tell --base and --set: what was trained with others of them is not taken for done.
"""

import ast
import hashlib
import importlib
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

from universeg_jax.configuration import flatten, load_config, to_dict
from universeg_jax.data.dataset import list_datasets, open_dataset
from universeg_jax.data.tasks import subject_hash, task_table
from universeg_jax.errors import UserError
from universeg_jax.reports.files import (
    LockedError,
    lock,
    read_json,
    write_json,
)

ROOT = Path(__file__).parents[2]  # of the checkout: train.py, eval.py and configs/ are not in the package


@dataclass(frozen=True)
class SweepOptions:
    """What all runs of a sweep share."""

    data_dir: str
    workdir: Path
    base: str = "configs/ablations.py"
    role: str = "test"
    seeds: tuple[int, ...] = (0, 1)
    changes: tuple[str, ...] = ()  # "num_steps=100": fields of the base
    max_cases: int = 0


@dataclass(frozen=True)
class Job:
    """One training and what is evaluated of it."""

    workdir: Path
    train: tuple[str, ...]  # () = nothing
    evaluations: tuple[tuple[Path, tuple[str, ...]], ...]  # (folder of the results, command)
    config: dict[str, Any] = field(default_factory=dict)  # flat, of the run that is evaluated; {} = not looked at
    checkpoint: Path | None = None  # the workdir of that run, where it is another job's

    @property
    def name(self) -> str:
        return self.workdir.name

    @property
    def run(self) -> Path:
        """The workdir of what is evaluated."""
        return self.checkpoint or self.workdir


@dataclass(frozen=True)
class Point:
    """One value of what is varied, with its results, one folder a seed."""

    value: str
    results: tuple[Path, ...]


def plan(name: str, options: SweepOptions) -> tuple[list[Point], list[Job]]:
    """The points of a sweep and the jobs that they need. Raises UserError for a sweep or data that are not there."""
    if not (ROOT / "configs" / "ablations.py").is_file():
        raise UserError("ablations need train.py, eval.py and configs/ of a clone: `pip install -e .` there")
    if str(ROOT) not in sys.path:  # as where the installed command is typed: configs/ is not in the package
        sys.path.append(str(ROOT))
    ablations = importlib.import_module("configs.ablations")
    if name not in ablations.SWEEPS:
        raise UserError(f"--sweep={name}: one of {', '.join(ablations.SWEEPS)} is needed")
    if not options.seeds:
        raise UserError("--seeds: at least one number is needed")
    config = base_config(options)
    datasets = [open_dataset(options.data_dir, n) for n in list_datasets(options.data_dir)]
    training = [d for d in datasets if d.meta.role in tuple(config.train_roles)]
    if not training or not any(d.meta.role == options.role for d in datasets):
        there = ", ".join(f"{d.meta.name} ({d.meta.role})" for d in datasets) or "none"
        wanted = f"of a role among {', '.join(config.train_roles)} and one of role {options.role}"
        raise UserError(f"--data_dir={options.data_dir}: a dataset {wanted} is needed; there: {there}")
    tasks = [task for task in task_table(training, config.min_label_density) if not task.unusable]
    names = sorted({task.dataset for task in tasks}, key=lambda n: subject_hash("train_datasets", n))
    points: list[Point] = []
    jobs: dict[Path, Job] = {}

    def add(value: Any, train: dict[str, Any] | None = None, evaluate: dict[str, Any] | None = None) -> None:
        results = []
        # What the base has already is no change, so that one run serves the middle of several sweeps.
        changes = {field: x for field, x in (train or {}).items() if x != ablations.get(config, field)}
        for seed in options.seeds:
            folder = options.workdir / "runs" / f"{slug(changes)}_seed{seed}"
            size = changes.get("support_size", config.support_size)
            flags = {"support_size": size, "ensemble": 1, "pool_size": 0, **(evaluate or {})}
            flags |= {"role": options.role, "max_cases": options.max_cases}
            out = folder / ("results_" + "_".join(f"{k}-{v}" for k, v in flags.items()))
            if folder not in jobs:
                asked = expected_config(config, changes | {"seed": seed})
                jobs[folder] = Job(folder, train_command(folder, seed, changes, options), (), asked)
            todo = dict(jobs[folder].evaluations) | {out: eval_command(folder, out, flags, options)}
            jobs[folder] = replace(jobs[folder], evaluations=tuple(todo.items()))
            results.append(out)
        points.append(Point(str(value), tuple(results)))

    ablations.sweep(add, name, config, names, len(tasks))
    return points, list(jobs.values())


def base_config(options: SweepOptions) -> ConfigDict:
    """The base with its changes. Raises UserError for a file or a field that is not there."""
    file = options.base.partition(":")[0]
    if not Path(file).exists() and not (ROOT / file).is_file():
        raise UserError(f"--base={options.base}: there is no such file")
    config = load_config(options.base if Path(file).exists() else f"{ROOT}/{options.base}")
    for change in options.changes:
        field, equals, text = change.partition("=")
        if not equals or field not in flatten(to_dict(config)):
            raise UserError(f"--set {change}: write FIELD=VALUE of a field of {options.base}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text  # a word without quotation marks
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
    """A folder's name for what differs from the base: readable, and never that of other changes."""
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
    # What a killed evaluation left is replaced.
    return (
        sys.executable, "eval.py", *places, *(f"--{flag}={value}" for flag, value in flags.items()),
        f"--out={out.resolve()}", "--overwrite",
    )  # fmt: skip


def unfinished(job: Job) -> list[tuple[tuple[str, ...], Path, str]]:
    """(command, its folder, what it does) of what is not done yet."""
    train = [(job.train, job.workdir, "trained")] if job.train and not trained(job) else []
    return [*train, *((command, out, "evaluated") for out, command in job.evaluations if not evaluated(job, out))]


def trained(job: Job) -> bool:
    record = job.workdir / "trained.json"
    return record.exists() and read_json(record) == list(job.train[1:]) and not differing(job, run_config(job.run))


def evaluated(job: Job, out: Path) -> bool:
    """Whether a folder holds what the job asks for: by the command, and by the config that its run was trained with."""
    path = out / "evaluated.json"
    record = read_json(path) if path.exists() else {"command": [], "config": {}}
    return record["command"] == list(dict(job.evaluations)[out][1:]) and not differing(job, record["config"])


def run_config(run: Path) -> dict[str, Any]:
    """The flat config.json of a run; {} where there is none."""
    path = run / "config.json"
    return flatten(read_json(path)) if path.exists() else {}


def differing(job: Job, config: dict[str, Any]) -> list[str]:
    """What sets a run's config apart from the one that the job asks for, in words.

    The command of the evaluation has the data_dir. A field that is newer than the run, and that no flag sets, is none.
    """
    if not job.config:
        return []
    flags = {part.removeprefix("--config.").split("=")[0] for part in job.train if part.startswith("--config.")}
    return [
        f"{name}={config.get(name, 'absent')} there, {job.config.get(name, 'absent')} asked for"
        for name in sorted((config.keys() | flags) - {"data_dir"})
        if config.get(name) != job.config.get(name)
    ]


def missing(jobs: Sequence[Job]) -> dict[str, str]:
    """Why there is no result, by the name of each job that is not done."""
    reasons = {}
    for job in jobs:
        if unfinished(job):
            config = run_config(job.run)
            apart = differing(job, config) if config else []
            reasons[job.name] = f"another run is there ({'; '.join(apart)})" if apart else "not there yet"
    return reasons


def run_job(job: Job) -> str:
    """Trains and evaluates what is not done yet; "" or what went wrong. Raises LockedError where another one does."""
    with lock(job.workdir, ".job"):  # the training locks the folder itself
        for command, folder, what in unfinished(job):
            folder.mkdir(parents=True, exist_ok=True)
            log = folder / "log.txt"
            with log.open("a") as file:
                code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
            if code:
                lines = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines() or ["no output"]
                return f"not {what}, exit code {code}: {lines[-1]} ({log})"
            arguments = list(command[1:])
            record = {"command": arguments, "config": run_config(job.run)} if what == "evaluated" else arguments
            write_json(folder / f"{what}.json", record)
    return ""


def run_local(jobs: Sequence[Job], minutes: float = 0) -> dict[str, str]:
    """One after another in this machine; what went wrong by the name of the job.

    After `minutes`, if not 0, none is begun: the same command goes on with them. Several processes may share the jobs:
    one that another process works at is left to it, and looked at again at the end.
    """
    problems, started = {}, time.monotonic()

    def run(job: Job) -> str:
        if minutes and time.monotonic() - started > 60 * minutes and unfinished(job):
            return f"not begun within {minutes:g} minutes"
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
    """All at once through submitit, waiting for the last; `parameters` are those of its AutoExecutor."""
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
        error = handle.exception()  # of a job that died; it waits
        if problem := str(error).strip().splitlines()[-1] if error else handle.result():
            problems[job.name] = problem
    return problems


def listing(jobs: Sequence[Job]) -> str:
    """All commands, to be typed by hand."""
    return "\n".join(shlex.join(c) for job in jobs for c in (job.train, *(command for _, command in job.evaluations)))
