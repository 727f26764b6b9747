"""Query cases of an evaluation and their sampled supports, read from datasets in batches."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from universeg_jax.data.dataset import Dataset
from universeg_jax.data.tasks import FIRST, SECOND, Task, TaskSide, subject_hash
from universeg_jax.episode import Episode
from universeg_jax.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Options of an evaluation. All ensembles share one pass over the cases; each support size takes another pass."""

    support_sizes: tuple[int, ...] = (16,)
    ensembles: tuple[int, ...] = (1,)  # number of sampled supports whose probabilities are averaged
    pool_size: int = 0  # examples of the support split to sample from, chosen by hash; 0 = all
    max_cases: int = 0  # queries per task, chosen by hash; 0 = all
    batch_size: int = 8  # cases per call of the model
    seed: int = 0
    flips: bool = False  # average probabilities over the four flips of query and support
    surfaces: bool = False  # measure HD95 and surface Dice, in pixels of 128x128
    tolerance: float = 2.0  # of the surface Dice, in pixels

    def __post_init__(self):
        for name, values in (("support_size", self.support_sizes), ("ensemble", self.ensembles)):
            if not values or min(values) < 1:
                raise UserError(f"{name}={values}: every number must be at least 1")
        for name, least in (("pool_size", 0), ("max_cases", 0), ("batch_size", 1), ("tolerance", 0)):
            if not getattr(self, name) >= least:
                raise UserError(f"{name}={getattr(self, name)}: must be at least {least}")


@dataclass(frozen=True)
class QueryCase:
    """One query of one task."""

    task: Task
    row: int
    position: int
    subject: int


def query_cases(task: Task, max_cases: int = 0) -> list[QueryCase]:
    """The queries of a task, or `max_cases` of them chosen by hash, independently of other settings."""
    query = task.side(SECOND)
    order = np.arange(len(query))
    if max_cases and len(query) > max_cases:
        order = np.sort(np.argsort([subject_hash(task.name, f"query {row}") for row in query.rows])[:max_cases])
    return [QueryCase(task, int(query.rows[i]), int(query.positions[i]), int(query.subjects[i])) for i in order]


def support_pool(task: Task, pool_size: int = 0) -> TaskSide:
    """The support split of a task, or `pool_size` examples of it by hash: smaller pools are subsets of larger ones."""
    pool = task.side(FIRST)
    if not pool_size or pool_size >= len(pool):
        return pool
    chosen = np.sort(np.argsort([subject_hash(task.name, f"support {row}") for row in pool.rows])[:pool_size])
    return TaskSide(pool.rows[chosen], pool.positions[chosen], pool.subjects[chosen])


def sample_support(case: QueryCase, pool: TaskSide, support_size: int, draw: int, seed: int) -> np.ndarray:
    """Positions in the pool [support_size], with replacement only if support_size exceeds the pool.

    A pure function of (seed, task, row, draw). Raises ValueError if the subject of the query is in the pool.
    """
    if case.subject in pool.subjects:
        raise ValueError(f"{case.task.name}: subject {case.subject} of the query is in the support pool")
    key = int.from_bytes(hashlib.sha256(f"{case.task.name}\0{case.row}".encode()).digest()[:8], "big")
    rng = np.random.default_rng([seed, key, draw])
    return rng.choice(len(pool), size=support_size, replace=support_size > len(pool))


class CaseBatch(NamedTuple):
    """Cases with their episodes."""

    cases: Sequence[QueryCase]
    episode: Episode
    about: list[dict[str, Any]]  # {"slice": name, "effective_support": number of distinct supports} per case


def gather_episodes(
    cases: Sequence[QueryCase], datasets: dict[str, Dataset], settings: Settings, support_size: int, pad_to: int
) -> tuple[Episode, list[dict[str, Any]]]:
    """(episodes, about) of cases, as in CaseBatch: uint8 on the host, padded to `pad_to` by repeating the last case.

    The support arrays have an axis of draws: [pad_to, draws, support_size, H, W, 1].
    """
    draws = max(settings.ensembles)
    size = datasets[cases[0].task.dataset].meta.size
    query = np.zeros((2, pad_to, size, size, 1), np.uint8)
    support = np.zeros((2, pad_to, draws, support_size, size, size, 1), np.uint8)
    pools = {case.task.name: support_pool(case.task, settings.pool_size) for case in cases}
    about = []
    for n, case in enumerate(cases):
        dataset, pool = datasets[case.task.dataset], pools[case.task.name]
        loaded: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        example = dataset[case.row]
        query[0, n, ..., 0], query[1, n, ..., 0] = example["image"], example["masks"][case.position]
        effective = 0
        for k in range(draws):
            chosen = sample_support(case, pool, support_size, k, settings.seed)
            effective = max(effective, len(np.unique(chosen)))
            for s, i in enumerate(chosen):
                if i not in loaded:
                    entry = dataset[int(pool.rows[i])]
                    loaded[i] = entry["image"], entry["masks"][pool.positions[i]]
                support[0, n, k, s, ..., 0], support[1, n, k, s, ..., 0] = loaded[i]
        about.append({"slice": example["name"].decode(), "effective_support": effective})
    for array in (query, support):
        array[:, len(cases) :] = array[:, len(cases) - 1 : len(cases)]
    support_mask = np.ones((pad_to, draws, support_size), np.uint8)
    return Episode(query[0], query[1], support[0], support[1], support_mask), about


def prefetch_batches(
    cases: Sequence[QueryCase], datasets: dict[str, Dataset], settings: Settings, support_size: int
) -> Iterator[CaseBatch]:
    """Yields batches of cases and reads the next batch while the caller computes on the current one."""
    batches = [cases[i : i + settings.batch_size] for i in range(0, len(cases), settings.batch_size)]
    with ThreadPoolExecutor(1) as pool:
        ahead = None
        for batch in batches:
            future = pool.submit(gather_episodes, batch, datasets, settings, support_size, settings.batch_size)
            if ahead is not None:
                yield CaseBatch(ahead[0], *ahead[1].result())
            ahead = batch, future
        if ahead is not None:
            yield CaseBatch(ahead[0], *ahead[1].result())
