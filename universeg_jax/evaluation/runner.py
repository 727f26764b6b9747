"""Evaluates methods as published: support from the support split, Dice at 128x128 of masks cut at 0.5.

Queries are the images that show the structure: datasets store no empty masks, so no query is empty. Scores are averaged
over the slices of a subject, the subjects of a task, the tasks of a dataset, and the datasets (summary.py). The support
of a case is a pure function of (seed, task, row, draw), so a subset of the cases, another batch size or another order
gives the same numbers. Each support size is compiled once. While the device works on one batch, the host reads the next
and measures the distances of the previous one.
"""

import json
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from universeg_jax.checkpoints import packaged, store
from universeg_jax.data.dataset import Dataset, list_datasets, open_dataset
from universeg_jax.data.tasks import Task, check_groups, dataset_tasks, usable
from universeg_jax.episode import OFFICIAL_SIZE, to_device_floats
from universeg_jax.errors import UserError
from universeg_jax.evaluation import report
from universeg_jax.evaluation.cases import (
    CaseBatch,
    QueryCase,
    Settings,
    gather_episodes,
    prefetch_batches,
    query_cases,
)
from universeg_jax.evaluation.cost import cost
from universeg_jax.evaluation.scoring import SCORES, Method, mean_probabilities, model_method, scorer
from universeg_jax.evaluation.summary import open_results, summarize
from universeg_jax.evaluation.support_keys import SupportKeys
from universeg_jax.evaluation.surfaces import surface_scores
from universeg_jax.model.factory import build_model
from universeg_jax.reports.files import write_csv, write_json
from universeg_jax.reports.waiting import say_if_compiling

Masks = dict[tuple[str, int], np.ndarray]  # (task, row) → mask, packed bits [128, 16]
PENDING = 2  # batches whose scores may still be in progress


def evaluate(
    methods: dict[str, tuple[Method, Any]],
    datasets: Sequence[Dataset],
    tasks: Sequence[Task],
    settings: Settings,
    progress: bool = True,
    check: Callable[[], None] = lambda: None,
    keep: Masks | None = None,
) -> list[dict[str, Any]]:
    """One row per (case, method, support size, ensemble); `methods` maps a name to (method, its parameters).

    `check` is called before each batch; it may raise to abort. `keep` receives the masks of the first method at the
    largest support size and ensemble, for figures. All methods see the same episodes. `tasks` must be
    usable tasks of `datasets`. Raises FloatingPointError, naming the case, if a prediction is not finite.
    """
    sizes = {dataset.meta.name: dataset.meta.size for dataset in datasets}
    if len(set(sizes.values())) > 1:
        raise UserError(f"datasets were built at different sizes: {sizes}; rebuild them with one --size")
    by_name = {dataset.meta.name: dataset for dataset in datasets}
    cases = [case for task in tasks for case in query_cases(task, settings.max_cases)]
    keys = {name: SupportKeys(m, params, settings.flips) for name, (m, params) in methods.items()}
    rows: list[dict[str, Any]] = []
    pending: deque[tuple[int, Future]] = deque()
    bar = tqdm(total=len(cases) * len(settings.support_sizes), desc="evaluate", unit="case", disable=not progress)

    def collect() -> None:
        count, future = pending.popleft()
        rows.extend(future.result())
        bar.update(count)

    with bar, ThreadPoolExecutor(PENDING) as pool:
        for support_size in settings.support_sizes:
            for batch in prefetch_batches(cases, by_name, settings, support_size):
                check()
                episode = jax.device_put(batch.episode)
                with say_if_compiling(f"the evaluation with {support_size} examples", "one or two minutes"):
                    scores = {
                        name: scorer(m, settings)(params, episode, keys[name].of(batch.episode.support_images))
                        for name, (m, params) in methods.items()
                    }
                # Dispatch is asynchronous: a thread waits for the scores while this one dispatches the next batch.
                kept = keep if support_size == max(settings.support_sizes) else None
                arguments = (batch, scores, by_name, settings, support_size, kept)
                pending.append((len(batch.cases), pool.submit(_rows, *arguments)))
                if len(pending) > PENDING:
                    collect()
        while pending:
            collect()
    return rows


def _rows(
    batch: CaseBatch,
    scores: dict[str, dict[str, jax.Array]],
    datasets: dict[str, Dataset],
    settings: Settings,
    support_size: int,
    keep: Masks | None,
) -> list[dict[str, Any]]:
    rows = []
    for number, (name, device_scores) in enumerate(scores.items()):
        arrays = jax.device_get(device_scores)
        if keep is not None and not number:
            shown = arrays["masks"][:, settings.ensembles.index(max(settings.ensembles))]
            keep.update(
                {(c.task.name, c.row): mask for c, mask in zip(batch.cases, shown, strict=False)}
            )  # padded batches
        for i, case in enumerate(batch.cases):
            if not arrays["finite"][i]:
                raise FloatingPointError(
                    f"{name} predicts NaN or inf: task {case.task.name}, row {case.row} ({batch.about[i]['slice']})"
                )
            for k, ensemble in enumerate(settings.ensembles):
                empty = bool(arrays["empty"][i])
                distances: tuple[float | None, float | None] = (None, None)
                if settings.surfaces and not empty:
                    pair = (np.unpackbits(arrays[x][i], axis=-1) for x in ("masks", "truth"))
                    mask, truth = (x[k] if x.ndim == 3 else x for x in pair)
                    distances = surface_scores(mask, truth, (1, 1), settings.tolerance)
                values = {field: float(arrays[field][i, k]) for field in SCORES}
                rows.append(
                    {
                        "method": name,
                        "dataset": case.task.dataset,
                        "task": case.task.name,
                        "label": case.task.label_name,
                        "subject": datasets[case.task.dataset].index.subjects[case.subject],
                        "row": case.row,
                        "slice": batch.about[i]["slice"],
                        "support_size": support_size,
                        "ensemble": ensemble,
                        **dict(zip(("hd95", "nsd"), distances, strict=True)),
                        **values,
                        "dice_by_draw": " ".join(f"{dice:.6f}" for dice in arrays["draws"][i, :ensemble]),
                        "empty": empty,
                        "effective_support": batch.about[i]["effective_support"],
                        "distance_unit": "pixels",
                    }
                )
    return rows


def select_datasets(
    datasets: Sequence[Dataset], data_dir: str, names: Sequence[str] = (), role: str = ""
) -> list[Dataset]:
    """Datasets by name or by role. Raises UserError if there are none, or if a source group has two roles."""
    check_groups(d.meta for d in datasets)
    available = ", ".join(f"{d.meta.name} ({d.meta.role})" for d in datasets) or "none"
    missing = set(names) - {d.meta.name for d in datasets}
    if missing:
        raise UserError(f"not built in {data_dir}: {', '.join(sorted(missing))}; available: {available}")
    chosen = [d for d in datasets if (d.meta.name in names if names else d.meta.role == role)]
    if not chosen:
        raise UserError(f"no dataset with role {role!r} in {data_dir}; available: {available}")
    return chosen


def seen_before(lineage: dict[str, Any], datasets: Sequence[Dataset], built: Sequence[Dataset]) -> list[str]:
    """Names the datasets that a checkpoint of this lineage has seen: the same name, content or source group.

    `built` are all datasets of the data_dir: they give the source groups, which a lineage does not record.
    """
    unknown = "trained_on" not in lineage or "unknown_origin" in lineage  # of the weights, or of their parents
    notes = ["the training data of the weights is not fully recorded"] if unknown else []
    for what, words in (("trained_on", "seen in training"), ("selected_on", "chose the checkpoint")):
        record = lineage.get(what, {})
        contents = {entry["fingerprint"]: name for name, entry in record.items() if entry.get("fingerprint")}
        groups = {d.meta.source_group: d.meta.name for d in built if d.meta.source_group and d.meta.name in record}
        seen = []
        for name, dataset in sorted({d.meta.name: d for d in datasets}.items()):
            if name in record:
                seen.append(name)
            elif dataset.fingerprint in contents:
                seen.append(f"{name} (as {contents[dataset.fingerprint]})")
            elif dataset.meta.source_group in groups:
                seen.append(f"{name} (same source as {groups[dataset.meta.source_group]})")
        notes += [f"{words}: {', '.join(seen)}"] if seen else []
    return notes


def evaluate_checkpoint(
    checkpoint: str,
    data_dir: str,
    names: Sequence[str],
    role: str,
    settings: Settings,
    out: Path,
    baselines: dict[str, tuple[Method, Any]] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluates a checkpoint, and `baselines` beside it, on built datasets by name or by role; see `evaluate_to`.

    The notes of the summary name the datasets that the checkpoint was trained or selected on.
    """
    params, config = store.load(checkpoint)
    built = [open_dataset(data_dir, name) for name in list_datasets(data_dir)]
    datasets = select_datasets(built, data_dir, names, role)
    path = store.resolve(checkpoint)
    methods = {"model": (model_method(build_model(config.model), config.image_size), params)}
    about = {
        "checkpoint": str(path),
        "params_hash": packaged.params_hash(params),
        "role": role,
        "cost": cost(*methods["model"], max(settings.support_sizes)),
        "notes": seen_before(store.read_metadata(path).get("lineage", {}), datasets, built),
    }
    return evaluate_to(out, {**methods, **(baselines or {})}, datasets, settings, about, overwrite)


def evaluate_to(
    out: Path,
    methods: dict[str, tuple[Method, Any]],
    datasets: Sequence[Dataset],
    settings: Settings,
    about: dict[str, Any],
    overwrite: bool = False,
    with_report: bool = True,
) -> dict[str, Any]:
    """Evaluates and writes <out>/cases.csv, summary.json and, with `with_report`, report.md and report.html.

    Returns the summary: that of the first method at the largest support size and ensemble, with all summaries under
    "settings" and datasets without a usable task under "skipped". Raises UserError if `out` holds the results of
    another run.
    """
    tasks = usable([task for dataset in datasets for task in dataset_tasks(dataset)])
    options = {name: value for name, value in asdict(settings).items() if name != "batch_size"}  # changes no result
    fingerprints = {d.meta.name: d.fingerprint for d in datasets}
    # Costs differ between two measurements, and notes follow from the rest.
    identity = {name: value for name, value in about.items() if name not in ("cost", "notes")}
    record = {**identity, "methods": list(methods), "datasets": fingerprints, "options": options}
    open_results(out, json_value(record), overwrite)
    masks: Masks = {}
    rows = evaluate(methods, datasets, tasks, settings, keep=masks)
    summary = write_results(out, rows, list(methods), datasets, settings, about)
    if with_report:
        by_name, by_task = {d.meta.name: d for d in datasets}, {task.name: task for task in tasks}

        def segment(shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
            return [
                show_case(by_name[row["dataset"]], case, settings, masks[case.task.name, case.row], row["dice"])
                for row in shown
                for case in query_cases(by_task[row["task"]])
                if case.row == row["row"]
            ]

        report.write(out, summary, rows, segment)
    return summary


def write_results(
    out: Path,
    rows: Sequence[dict[str, Any]],
    methods: Sequence[str],
    datasets: Sequence[Dataset],
    settings: Settings,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Writes cases.csv and summary.json of `evaluate_to` from the rows of any evaluation, with about["notes"]."""
    tasks = {d.meta.name: dataset_tasks(d) for d in datasets}
    skipped = {
        name: "; ".join(f"{task.name}: {task.unusable}" for task in all_tasks)
        for name, all_tasks in tasks.items()
        if all(task.unusable for task in all_tasks)
    }
    summaries = [
        {"method": method, **summarize(rows, method, size, ensemble)}
        for method in methods
        for size in settings.support_sizes
        for ensemble in settings.ensembles
    ]
    largest = max(settings.support_sizes), max(settings.ensembles)
    main = next(s for s in summaries if (s["support_size"], s["ensemble"]) == largest)
    image_level = [d.meta.name for d in datasets if not d.meta.subjects_identifiable]
    notes = list(about.get("notes", ()))
    notes += [f"image-level split, interval optimistic: {', '.join(image_level)}"] if image_level else []
    measured = {"distance_unit": "pixels", "tolerance": settings.tolerance} if settings.surfaces else {}
    summary = {**about, **main, **measured, "flips": settings.flips, "skipped": skipped, "notes": notes}
    summary |= {"measured": "Dice at 128x128 on masks cut at 0.5", "settings": summaries}
    write_csv(out / "cases.csv", rows)
    write_json(out / "summary.json", summary)
    return summary


def json_value(value: Any) -> Any:
    """The value as JSON returns it: tuples become lists."""
    return json.loads(json.dumps(value))


def segment_case(method: Method, params: Any, dataset: Dataset, case: QueryCase, settings: Settings) -> dict[str, Any]:
    """Segments a case at the largest support size and ensemble, for `plot_sheet`."""
    episode, _ = gather_episodes([case], {dataset.meta.name: dataset}, settings, max(settings.support_sizes), 1)
    mean, dice, _ = jax.device_get(mean_probabilities(method, settings.flips)(params, episode))
    mask = np.packbits(mean[0] >= 0.5, axis=-1)
    return show_case(dataset, case, settings, mask, float(dice[0]))


def show_case(dataset: Dataset, case: QueryCase, settings: Settings, mask: np.ndarray, dice: float) -> dict[str, Any]:
    """A case with its predicted mask, packed bits, and its first support draw, for `plot_sheet`."""
    episode, _ = gather_episodes([case], {dataset.meta.name: dataset}, settings, max(settings.support_sizes), 1)
    floats = jax.device_get(to_device_floats(episode, OFFICIAL_SIZE))
    return {
        "query_image": floats.query_image[0, ..., 0],
        "query_label": floats.query_label[0, ..., 0],
        "support_images": floats.support_images[0, 0, ..., 0],
        "support_labels": floats.support_labels[0, 0, ..., 0],
        "probabilities": np.unpackbits(mask, axis=-1).astype(np.float32),
        "dice": dice,
        "task": case.task.label_name,
    }


def example_cases(
    method: Method, params: Any, dataset: Dataset, settings: Settings, count: int = 4
) -> list[dict[str, Any]]:
    """Segments `count` cases of a dataset for `plot_sheet`: spread over its tasks, chosen by hash."""
    tasks = [task for task in dataset_tasks(dataset) if not task.unusable]
    cases = [case for task in tasks for case in query_cases(task, max_cases=-(-count // len(tasks)))][:count]
    one_draw = replace(settings, ensembles=(1,))
    return [segment_case(method, params, dataset, case, one_draw) for case in cases]
