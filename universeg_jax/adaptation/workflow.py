"""Trains and evaluates task by task and writes the same files as `universeg evaluate`.

Finished tasks are skipped, so rerunning the same command resumes.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from universeg_jax.adaptation.fitting import Fitted, Recipe
from universeg_jax.adaptation.leave_one_out import Start
from universeg_jax.adaptation.per_task import fit_finetuned, fit_unet, init_unet, unet_functions
from universeg_jax.checkpoints import packaged, store
from universeg_jax.data.dataset import Dataset, list_datasets, open_dataset
from universeg_jax.data.tasks import Task, TaskSide, dataset_tasks, usable
from universeg_jax.errors import UserError
from universeg_jax.evaluation import report, runner, trivial
from universeg_jax.evaluation.cases import Settings, support_pool
from universeg_jax.evaluation.cost import cost
from universeg_jax.evaluation.scoring import Method, model_method
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.reports.files import lock, read_json, write_json


@dataclass(frozen=True)
class Trainer:
    """Fits parameters to labelled examples, and segments with them."""

    kind: str
    fit: Callable[[Dataset, Task, TaskSide], Fitted]
    method: Method
    start: Any  # parameters with the right shapes
    about: dict[str, Any]  # what determines the result, besides data and settings
    lineage: dict[str, Any] | None = None  # of the initial weights, if any


def unet_trainer(features: Sequence[int], recipe: Recipe) -> Trainer:
    step = 2 ** (len(features) - 1)
    if recipe.image_size % step:
        raise UserError(
            f"image_size={recipe.image_size}: a U-Net of {len(features)} levels of features needs a multiple of {step}"
        )
    model = unet_functions(tuple(features), recipe.batch_size)[0]
    return Trainer(
        "unet",
        functools.partial(fit_unet, features=tuple(features), recipe=recipe),
        unet_method(model, recipe.image_size),
        init_unet(model, recipe),
        {"features": list(features), **asdict(recipe)},
    )


@functools.lru_cache(maxsize=16)  # one method object, so that its evaluation compiles once
def unet_method(model: Any, image_size: int) -> Method:
    return model_method(model, image_size)


def finetune_trainer(checkpoint: str, support_size: int, recipe: Recipe) -> Trainer:
    """Fine-tunes a checkpoint at its own image size, with `support_size` support entries."""
    predictor = Predictor.from_checkpoint(checkpoint)
    recipe = replace(recipe, image_size=predictor.config.image_size)
    start = Start(predictor.params, predictor.config)
    return Trainer(
        "finetune",
        functools.partial(fit_finetuned, start=start, support_size=support_size, recipe=recipe),
        model_method(predictor.model, predictor.config.image_size),
        predictor.params,
        {
            "params_hash": packaged.params_hash(predictor.params),
            "support_size": support_size,
            **asdict(recipe),
        },
        store.read_metadata(store.resolve(checkpoint)).get("lineage", {}),
    )


def run_task(
    trainer: Trainer, dataset: Dataset, task: Task, settings: Settings
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(rows like those of `runner.evaluate`, record of the training) of one task."""
    examples = support_pool(task, settings.pool_size)
    fitted = trainer.fit(dataset, task, examples)
    methods = {trainer.kind: (trainer.method, fitted.params)}
    about = {"labelled": len(examples), **fitted.about}
    if trainer.kind == "finetune":
        return runner.evaluate(methods, [dataset], [task], settings, progress=False), about
    # A U-Net takes no support: one pass serves all settings, and its rows are repeated for each of them.
    once = replace(settings, support_sizes=(1,), ensembles=(1,))
    rows = runner.evaluate(methods, [dataset], [task], once, progress=False)
    return [
        {**row, "support_size": size, "ensemble": ensemble, "effective_support": len(examples)}
        for size in settings.support_sizes
        for ensemble in settings.ensembles
        for row in rows
    ], about


def evaluate_per_task(
    trainer: Trainer,
    data_dir: str,
    names: Sequence[str],
    role: str,
    settings: Settings,
    out: Path,
) -> dict[str, Any]:
    """Trains on the support split (or `settings.pool_size` of it) and evaluates on the query split of every task.

    Writes the files of `runner.evaluate_to`, with a report without figures: the networks are not kept. Each finished
    task has a file in <out>/tasks.
    """
    opened = [open_dataset(data_dir, name) for name in list_datasets(data_dir)]
    datasets = runner.select_datasets(opened, data_dir, names, role)
    by_name = {dataset.meta.name: dataset for dataset in datasets}
    tasks = usable([task for dataset in datasets for task in dataset_tasks(dataset)])
    fingerprints = {name: dataset.fingerprint for name, dataset in by_name.items()}
    plan = {"kind": trainer.kind, **trainer.about, "settings": asdict(settings), "datasets": fingerprints}
    with lock(out):
        claim(out, plan)
        rows, trained = [], {}
        for task in tqdm(tasks, desc=trainer.kind, unit="task"):
            path = out / "tasks" / f"{hashlib.sha256(task.name.encode()).hexdigest()[:16]}.json"
            if not path.exists():
                task_rows, about = run_task(trainer, by_name[task.dataset], task, settings)
                write_json(path, {"task": task.name, "training": about, "rows": task_rows})
            finished = read_json(path)
            rows += finished["rows"]
            trained[task.name] = finished["training"]
        seconds = float(np.mean([about["seconds"] for about in trained.values()]))
        costs = cost(trainer.method, trainer.start, max(settings.support_sizes)) | {"preparation_seconds": seconds}
        about = {"kind": trainer.kind, **trainer.about, "role": role, "cost": costs, "training": trained}
        if trainer.lineage is not None:
            about["notes"] = runner.seen_before(trainer.lineage, datasets, opened)
        summary = runner.write_results(out, rows, [trainer.kind], datasets, settings, about)
        report.write(out, summary, rows)
        return summary


def evaluate_trivial(
    kind: str, data_dir: str, names: Sequence[str], role: str, settings: Settings, out: Path
) -> dict[str, Any]:
    """Evaluates a method of evaluation/trivial.py, which needs no training; see `runner.evaluate_to`."""
    opened = [open_dataset(data_dir, name) for name in list_datasets(data_dir)]
    datasets = runner.select_datasets(opened, data_dir, names, role)
    method = trivial.METHODS[kind]
    about = {"kind": kind, "role": role, "cost": cost(method, None, max(settings.support_sizes))}
    return runner.evaluate_to(out, {kind: (method, None)}, datasets, settings, about)


def claim(out: Path, plan: dict[str, Any]) -> None:
    """Writes <out>/plan.json. Raises UserError if the folder holds the files of another run."""
    path, plan = out / "plan.json", json.loads(json.dumps(plan))
    if path.exists():
        before = read_json(path)
        differing = sorted(name for name in plan.keys() | before.keys() if plan.get(name) != before.get(name))
        if differing:
            differences = "; ".join(f"{n}: {before.get(n)} before, {plan.get(n)} now" for n in differing)
            raise UserError(f"{out} holds the files of another run ({differences}); choose another --out")
    elif any(path.name not in (".lock", "log.txt") for path in out.iterdir()):  # the log of a launcher
        raise UserError(f"{out} holds files of something else; choose another --out")
    else:
        write_json(path, plan)
