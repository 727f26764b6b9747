"""Evaluation as published: support from the support split, masks cut at 0.5, Dice at 128x128, draws averaged.

Scores are averaged over the slices of a subject, the subjects of a task, the tasks of a dataset, and the datasets.
Every case draws its own supports as a pure function of (seed, task, row, draw), so a subset of the cases, another
batch size or another order gives the same numbers.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from universeg_jax import checkpoints, metrics, weights
from universeg_jax.cost import cost
from universeg_jax.data.dataset import Dataset, list_datasets, open_dataset
from universeg_jax.data.tasks import FIRST, SECOND, Examples, Task, dataset_tasks, subject_hash, usable
from universeg_jax.episode import OFFICIAL_SIZE, Episode, resize, to_device_floats
from universeg_jax.errors import UserError
from universeg_jax.predictor import Predictor
from universeg_jax.reporting import write_csv, write_json

SCORES = ("dice", "single_dice", "false_positive_area")  # per case and ensemble
Method = Callable[[Any, Episode], jax.Array]  # (params, episode) → probabilities [B, H, W, 1] at the episode's size


@dataclass(frozen=True)
class Settings:
    """What is evaluated. Several support sizes and ensembles share one pass over the cases each."""

    support_sizes: tuple[int, ...] = (16,)
    ensembles: tuple[int, ...] = (1,)  # support draws whose probabilities are averaged
    pool_size: int = 0  # examples of the support split that may be drawn, chosen by hash; 0 = all
    max_cases: int = 0  # queries a task, chosen by hash; 0 = all
    batch_size: int = 8  # cases at a time
    seed: int = 0

    def __post_init__(self):
        for name, values in (("support_size", self.support_sizes), ("ensemble", self.ensembles)):
            if not values or min(values) < 1:
                raise UserError(f"{name}={values}: numbers of at least 1 are needed")


def model_method(model: Any, image_size: int) -> Method:
    """The model at its own size, its logits resized to the episode's."""

    def method(params: Any, episode: Episode) -> jax.Array:
        size = episode.query_image.shape[1]
        logits = model.apply(
            {"params": params},
            resize(episode.query_image, image_size),
            resize(episode.support_images, image_size),
            (resize(episode.support_labels, image_size) >= 0.5).astype(jnp.float32),
            episode.support_mask,
        )
        return jax.nn.sigmoid(resize(logits, size))

    return method


@dataclass(frozen=True)
class Case:
    """One query of one task."""

    task: Task
    row: int
    position: int
    subject: int


def cases_of(task: Task, max_cases: int = 0) -> list[Case]:
    """The queries of a task; with `max_cases` a subset by hash, the same whatever else is evaluated."""
    query = task.side(SECOND)
    order = np.arange(len(query))
    if max_cases and len(query) > max_cases:
        order = np.sort(np.argsort([subject_hash(task.name, f"query {row}") for row in query.rows])[:max_cases])
    return [Case(task, int(query.rows[i]), int(query.positions[i]), int(query.subjects[i])) for i in order]


def support_pool(task: Task, pool_size: int = 0) -> Examples:
    """The support split of a task, or `pool_size` of it by hash: smaller pools are subsets of larger ones."""
    pool = task.side(FIRST)
    if not pool_size or pool_size >= len(pool):
        return pool
    chosen = np.sort(np.argsort([subject_hash(task.name, f"support {row}") for row in pool.rows])[:pool_size])
    return Examples(pool.rows[chosen], pool.positions[chosen], pool.subjects[chosen])


def draw_support(case: Case, pool: Examples, support_size: int, draw: int, seed: int) -> np.ndarray:
    """Positions in the pool [support_size]: without replacement, or with it where S exceeds the pool."""
    if case.subject in pool.subjects:
        raise ValueError(f"{case.task.name}: subject {case.subject} of the query is in the support pool")
    key = int.from_bytes(hashlib.sha256(f"{case.task.name}\0{case.row}".encode()).digest()[:8], "big")
    rng = np.random.default_rng([seed, key, draw])
    return rng.choice(len(pool), size=support_size, replace=support_size > len(pool))


def evaluate(
    methods: dict[str, tuple[Method, Any]],
    datasets: Sequence[Dataset],
    tasks: Sequence[Task],
    settings: Settings,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """One row per (case, method, support size, ensemble); `methods` maps a name to (method, its parameters).

    All methods see the same episodes. `tasks` must be usable ones of `datasets`. Raises FloatingPointError naming
    the case where a prediction is not finite.
    """
    by_name = {dataset.meta.name: dataset for dataset in datasets}
    cases = [case for task in tasks for case in cases_of(task, settings.max_cases)]
    rows: list[dict[str, Any]] = []
    bar = tqdm(total=len(cases) * len(settings.support_sizes), desc="evaluate", unit="case", disable=not progress)
    for support_size in settings.support_sizes:
        for batch, episode, effective in _prefetched(cases, by_name, settings, support_size):
            episode = jax.device_put(episode)
            for name, (method, params) in methods.items():
                scores = jax.device_get(_scorer(method, settings.ensembles)(params, episode))
                for i, case in enumerate(batch):
                    if not scores["finite"][i]:
                        raise FloatingPointError(f"{name} predicts NaN or inf: task {case.task.name}, row {case.row}")
                    common = {
                        "method": name,
                        "dataset": case.task.dataset,
                        "task": case.task.name,
                        "label": case.task.label_name,
                        "subject": by_name[case.task.dataset].index.subjects[case.subject],
                        "row": case.row,
                        "support_size": support_size,
                        "effective_support": int(effective[i]),
                        "empty": bool(scores["empty"][i]),
                    }
                    for k, ensemble in enumerate(settings.ensembles):
                        values = {field: float(scores[field][k, i]) for field in SCORES}
                        rows.append({**common, "ensemble": ensemble, **values})
            bar.update(len(batch))
    bar.close()
    return rows


@functools.lru_cache(maxsize=16)  # compiled once, though training evaluates many times
def _scorer(method: Method, ensembles: tuple[int, ...]) -> Callable[[Any, Episode], dict[str, jax.Array]]:
    """Scores of a batch of cases, whose episode has a further axis of support draws: support_* [N, K, S, H, W, 1]."""

    def score(params: Any, episode: Episode) -> dict[str, jax.Array]:
        episode = to_device_floats(episode, OFFICIAL_SIZE)
        cases, draws = episode.support_mask.shape[:2]
        flat = Episode(
            jnp.repeat(episode.query_image, draws, axis=0),
            jnp.repeat(episode.query_label, draws, axis=0),
            *(x.reshape((cases * draws, *x.shape[2:])) for x in episode[2:]),
        )
        probabilities = method(params, flat)[..., 0].reshape((cases, draws, OFFICIAL_SIZE, OFFICIAL_SIZE))
        truth = episode.query_label[..., 0]
        single = metrics.dice_score(probabilities >= 0.5, truth[:, None])
        masks = jnp.stack([probabilities[:, :k].mean(1) >= 0.5 for k in ensembles])
        return {
            "dice": metrics.dice_score(masks, truth[None]),
            "single_dice": jnp.stack([single[:, :k].mean(1) for k in ensembles]),
            "false_positive_area": metrics.false_positive_area(masks, truth[None]),
            "empty": truth.sum((1, 2)) == 0,
            "finite": jnp.isfinite(probabilities).all((1, 2, 3)),
        }

    return jax.jit(score)


def gather(
    cases: Sequence[Case], datasets: dict[str, Dataset], settings: Settings, support_size: int, pad_to: int
) -> tuple[Episode, np.ndarray]:
    """Host episodes uint8 of some cases, padded by repeating the last one; and the number of distinct supports [N]."""
    draws = max(settings.ensembles)
    size = datasets[cases[0].task.dataset].meta.size
    query = np.zeros((2, pad_to, size, size, 1), np.uint8)
    support = np.zeros((2, pad_to, draws, support_size, size, size, 1), np.uint8)
    effective = np.zeros(pad_to, np.int32)
    for n, case in enumerate(cases):
        dataset, pool = datasets[case.task.dataset], support_pool(case.task, settings.pool_size)
        read: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        example = dataset[case.row]
        query[0, n, ..., 0], query[1, n, ..., 0] = example["image"], example["masks"][case.position]
        for k in range(draws):
            chosen = draw_support(case, pool, support_size, k, settings.seed)
            effective[n] = max(effective[n], len(np.unique(chosen)))
            for s, i in enumerate(chosen):
                if i not in read:
                    example = dataset[int(pool.rows[i])]
                    read[i] = example["image"], example["masks"][pool.positions[i]]
                support[0, n, k, s, ..., 0], support[1, n, k, s, ..., 0] = read[i]
    for array in (query, support):
        array[:, len(cases) :] = array[:, len(cases) - 1 : len(cases)]
    return Episode(*query, *support, np.ones((pad_to, draws, support_size), np.uint8)), effective


def _prefetched(
    cases: Sequence[Case], datasets: dict[str, Dataset], settings: Settings, support_size: int
) -> Iterator[tuple[Sequence[Case], Episode, np.ndarray]]:
    """Batches of cases, the next one read while the present one is computed."""
    batches = [cases[i : i + settings.batch_size] for i in range(0, len(cases), settings.batch_size)]
    with ThreadPoolExecutor(1) as pool:
        ahead = None
        for batch in batches:
            future = pool.submit(gather, batch, datasets, settings, support_size, settings.batch_size)
            if ahead is not None:
                yield ahead[0], *ahead[1].result()
            ahead = batch, future
        if ahead is not None:
            yield ahead[0], *ahead[1].result()


def subject_means(rows: Sequence[dict[str, Any]], field: str = "dice") -> tuple[np.ndarray, list[str], list[str]]:
    """[subjects, tasks] means over slices, NaN where a subject has no case of a task; empty truths are left out."""
    rows = [row for row in rows if not row["empty"]]
    subjects = sorted({row["subject"] for row in rows})
    tasks = sorted({row["task"] for row in rows})
    at = {name: i for names in (subjects, tasks) for i, name in enumerate(names)}
    total, count = np.zeros((2, len(subjects), len(tasks)))
    for row in rows:
        total[at[row["subject"]], at[row["task"]]] += row[field]
        count[at[row["subject"]], at[row["task"]]] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan), subjects, tasks


def bootstrap(means: np.ndarray, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Dataset means [resamples] with subjects resampled and tasks fixed; a subject is drawn once for all its tasks."""
    weights = np.random.default_rng(seed).multinomial(len(means), np.full(len(means), 1 / len(means)), resamples)
    present = ~np.isnan(means)
    count = weights @ present
    task_means = np.divide(
        weights @ np.where(present, means, 0), count, out=np.full(count.shape, np.nan), where=count > 0
    )
    return np.nanmean(task_means, axis=1)


def summarize(rows: Sequence[dict[str, Any]], method: str, support_size: int, ensemble: int) -> dict[str, Any]:
    """{"mean_dice", "mean_single_dice", "datasets": {name: {dice, ci_low, ci_high, n_cases, n_subjects, …}}}."""
    wanted = [
        row for row in rows if (row["method"], row["support_size"], row["ensemble"]) == (method, support_size, ensemble)
    ]
    datasets: dict[str, dict[str, Any]] = {}
    for name in sorted({row["dataset"] for row in wanted}):
        of_dataset = [row for row in wanted if row["dataset"] == name]
        empty = [row["false_positive_area"] for row in of_dataset if row["empty"]]
        means, subjects, _ = subject_means(of_dataset)
        if not len(means):
            continue
        low, high = np.quantile(bootstrap(means), [0.025, 0.975])
        datasets[name] = {
            "dice": float(np.nanmean(np.nanmean(means, 0))),
            "single_dice": float(np.nanmean(np.nanmean(subject_means(of_dataset, "single_dice")[0], 0))),
            "ci_low": float(low),
            "ci_high": float(high),
            "n_cases": len(of_dataset),
            "n_subjects": len(subjects),
            "n_empty": len(empty),
            "false_positive_area_on_empty": float(np.mean(empty)) if empty else None,
            "effective_support": float(np.mean([row["effective_support"] for row in of_dataset])),
            "tasks": {
                task: float(np.nanmean(means_t))
                for task, means_t in zip(subject_means(of_dataset)[2], means.T, strict=True)
            },
        }
    if not datasets:
        raise UserError("no case with a non-empty truth was evaluated")
    return {
        "mean_dice": float(np.mean([d["dice"] for d in datasets.values()])),
        "mean_single_dice": float(np.mean([d["single_dice"] for d in datasets.values()])),
        "support_size": support_size,
        "ensemble": ensemble,
        "datasets": datasets,
    }


def select(datasets: Sequence[Dataset], data_dir: str, names: Sequence[str] = (), role: str = "") -> list[Dataset]:
    """Datasets by name or by role; raises UserError naming those that are there."""
    there = ", ".join(f"{d.meta.name} ({d.meta.role})" for d in datasets) or "none"
    missing = set(names) - {d.meta.name for d in datasets}
    if missing:
        raise UserError(f"not built in {data_dir}: {', '.join(sorted(missing))}; there: {there}")
    chosen = [d for d in datasets if (d.meta.name in names if names else d.meta.role == role)]
    if not chosen:
        raise UserError(f"no dataset with role {role!r} in {data_dir}; there: {there}")
    return chosen


def evaluate_checkpoint(
    checkpoint: str,
    data_dir: str,
    names: Sequence[str],
    role: str,
    settings: Settings,
    out: Path,
    baselines: dict[str, tuple[Method, Any]] | None = None,
) -> dict[str, Any]:
    """A checkpoint, and perhaps baselines, on built datasets by name or role; see `evaluate_to`."""
    predictor = Predictor.from_checkpoint(checkpoint)
    datasets = select([open_dataset(data_dir, name) for name in list_datasets(data_dir)], data_dir, names, role)
    methods = {"model": (model_method(predictor.model, predictor.config.image_size), predictor.params)}
    about = {
        "checkpoint": str(checkpoints.resolve(checkpoint)),
        "params_hash": weights.params_hash(predictor.params),
        "role": role,
        "cost": cost(*methods["model"], max(settings.support_sizes)),
    }
    return evaluate_to(out, {**methods, **(baselines or {})}, datasets, settings, about)


def evaluate_to(
    out: Path,
    methods: dict[str, tuple[Method, Any]],
    datasets: Sequence[Dataset],
    settings: Settings,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Evaluates, and writes <out>/cases.csv and <out>/summary.json; returns the summary.

    The summary is that of the first method at the largest support size and ensemble; all are under "settings".
    Datasets whose tasks are all unusable are listed under "skipped".
    """
    tasks = usable([task for dataset in datasets for task in dataset_tasks(dataset)])
    return write_results(out, evaluate(methods, datasets, tasks, settings), list(methods), datasets, settings, about)


def write_results(
    out: Path,
    rows: Sequence[dict[str, Any]],
    methods: Sequence[str],
    datasets: Sequence[Dataset],
    settings: Settings,
    about: dict[str, Any],
) -> dict[str, Any]:
    """The two files of `evaluate_to` from rows that were evaluated in any way."""
    tasks = {d.meta.name: dataset_tasks(d) for d in datasets}
    skipped = {
        name: "; ".join(f"{t.name}: {t.unusable}" for t in of)
        for name, of in tasks.items()
        if all(t.unusable for t in of)
    }
    summaries = [
        {"method": method, **summarize(rows, method, size, ensemble)}
        for method in methods
        for size in settings.support_sizes
        for ensemble in settings.ensembles
    ]
    main = next(
        s
        for s in summaries
        if (s["support_size"], s["ensemble"]) == (max(settings.support_sizes), max(settings.ensembles))
    )
    image_level = [d.meta.name for d in datasets if not d.meta.subjects_identifiable]
    notes = [f"image-level split, interval optimistic: {', '.join(image_level)}"] if image_level else []
    summary = {**about, **main, "skipped": skipped, "notes": notes, "settings": summaries}
    write_csv(out / "cases.csv", rows)
    write_json(out / "summary.json", summary)
    return summary


def example_cases(
    method: Method, params: Any, dataset: Dataset, settings: Settings, count: int = 4
) -> list[dict[str, Any]]:
    """A few cases of a dataset with their supports and predictions, to draw: spread over its tasks, chosen by hash."""
    tasks = [task for task in dataset_tasks(dataset) if not task.unusable]
    cases = [case for task in tasks for case in cases_of(task, max_cases=-(-count // len(tasks)))][:count]
    size = max(settings.support_sizes)
    one_draw = replace(settings, ensembles=(1,))
    episode, _ = gather(cases, {dataset.meta.name: dataset}, one_draw, size, len(cases))
    floats = to_device_floats(Episode(*episode[:2], *(x[:, 0] for x in episode[2:])), OFFICIAL_SIZE)
    probabilities = jax.jit(method)(params, floats)[..., 0]
    dice = metrics.dice_score(probabilities >= 0.5, floats.query_label[..., 0])
    arrays = jax.device_get((*floats[:4], probabilities, dice))
    return [
        {
            "query_image": arrays[0][i, ..., 0],
            "query_label": arrays[1][i, ..., 0],
            "support_images": arrays[2][i, ..., 0],
            "support_labels": arrays[3][i, ..., 0],
            "probabilities": arrays[4][i],
            "dice": float(arrays[5][i]),
            "task": case.task.label_name,
        }
        for i, case in enumerate(cases)
    ]
