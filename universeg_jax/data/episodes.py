"""Episodes for training: episode i of a run is a pure function of (seed, i) and the config.

A task is drawn level by level, uniformly: slicing → dataset → subset → modality → axis → label (Butoi et al., 2023,
section 4). Then a query, then the support from the other subjects of the train side, with replacement as published.
Nothing depends on what was drawn before, on the number of hosts, or on who reads: any episode can be replayed alone,
and resuming a run needs only its step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grain
import numpy as np

from universeg_jax.data.dataset import Dataset
from universeg_jax.data.tasks import FIRST, Examples, Task, side_of_role
from universeg_jax.episode import Episode
from universeg_jax.errors import UserError

KINDS = ("real", "synthetic", "superpixel")
REAL, SYNTHETIC, SUPERPIXEL = range(len(KINDS))
LEVELS = ("slicing", "dataset", "subset", "modality", "axis", "label")


class Batch(NamedTuple):
    """What the host hands to the training step; fields of `episode` are uint8.

    They are zeros for synthetic episodes, and but for the query's image for superpixel episodes.
    """

    index: np.ndarray  # uint32 [B], global episode index: the step's key for all that is drawn on the device
    kind: np.ndarray  # uint8 [B], position in KINDS
    task: np.ndarray  # int32 [B], position in the sampler's tasks, of superpixels the image's; -1 for synthetic
    episode: Episode


class Draw(NamedTuple):
    """Which examples an episode is made of."""

    kind: int
    task: int
    query: tuple[int, int]  # (row of the dataset, position among its masks; -1 for none of them)
    support: list[tuple[int, int]]


@dataclass(frozen=True)
class EpisodeSampler:
    """sampler(i) → Batch of one, without batch axis. Picklable, cheap to call: O(S) whatever the number of tasks."""

    datasets: dict[str, Dataset]
    tasks: Sequence[Task]
    pools: Sequence[Examples]
    tree: dict
    seed: int
    support_size: int
    size: int
    replacement: bool
    synthetic: float  # probability
    superpixel: float  # probability

    def kind(self, index: int) -> int:
        """Position in KINDS of an episode, a pure function of (seed, index) and the probabilities."""
        return self._kind(np.random.default_rng([self.seed, index]))

    def _kind(self, rng: np.random.Generator) -> int:
        draw = rng.random()
        if draw < self.synthetic:
            return SYNTHETIC
        # Rounded, so that two probabilities that make 1 leave nothing to the third kind.
        return SUPERPIXEL if draw < round(self.synthetic + self.superpixel, 9) else REAL

    def draw(self, index: int) -> Draw:
        rng = np.random.default_rng([self.seed, index])
        kind = self._kind(rng)
        if kind == SYNTHETIC:
            return Draw(SYNTHETIC, -1, (0, 0), [])
        node = self.tree
        while isinstance(node, tuple):
            node = node[rng.integers(len(node))]
        pool = self.pools[node]
        query = int(rng.integers(len(pool)))
        if kind == SUPERPIXEL:
            return Draw(SUPERPIXEL, node, (int(pool.rows[query]), -1), [])
        chosen = draw_others(rng, pool.subjects, query, self.support_size, self.replacement)
        pick = [(int(pool.rows[i]), int(pool.positions[i])) for i in (query, *chosen)]
        return Draw(REAL, node, pick[0], pick[1:])

    def __call__(self, index: int) -> Batch:
        draw = self.draw(index)
        if draw.kind == REAL:
            rows, positions = np.array([draw.query, *draw.support]).T
            images, labels = (
                x[..., None] for x in self.datasets[self.tasks[draw.task].dataset].gather(rows, positions)
            )
        else:  # the device makes them, or what is missing beside one picture
            shape = (self.support_size + 1, self.size, self.size, 1)
            images, labels = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
            if draw.kind == SUPERPIXEL:
                dataset = self.datasets[self.tasks[draw.task].dataset]
                images[0, ..., 0] = dataset.gather(np.array([draw.query[0]]), np.zeros(1, np.int64))[0][0]
        episode = Episode(images[0], labels[0], images[1:], labels[1:], np.ones(self.support_size, np.uint8))
        return Batch(np.uint32(index), np.uint8(draw.kind), np.int32(draw.task), episode)


def draw_others(
    rng: np.random.Generator, subjects: np.ndarray, query: int, count: int, replacement: bool
) -> np.ndarray:
    """`count` positions in `subjects` (sorted) whose subject is not the query's; with replacement if too few."""
    start, stop = (np.searchsorted(subjects, subjects[query], side) for side in ("left", "right"))
    others = len(subjects) - (stop - start)
    if replacement or count > others:
        chosen = rng.integers(others, size=count)
    else:
        chosen = rng.choice(others, size=count, replace=False)
    return np.where(chosen < start, chosen, chosen + (stop - start))


def make_sampler(
    datasets: Sequence[Dataset],
    tasks: Sequence[Task],
    *,
    seed: int,
    support_size: int,
    synthetic: float = 0.0,
    superpixel: float = 0.0,
    replacement: bool = True,
    size: int | None = None,
) -> EpisodeSampler:
    """Over the usable training tasks among `tasks`, on their train side.

    `synthetic` is the probability of a synthetic episode; with 1 no dataset is needed, only `size` in pixels.
    `superpixel` is that of one whose label is made from an image of those tasks.
    Raises UserError where a task of role val or test is among them, sizes differ, or S < 1.
    """
    if support_size < 1:
        raise UserError(f"config.support_size={support_size}: an episode needs at least 1 support entry")
    shares = {"synthetic": synthetic, "superpixel": superpixel, "synthetic and superpixel": synthetic + superpixel}
    for kind, share in shares.items():
        if not 0 <= round(share, 9) <= 1:
            raise UserError(f"the probability of {kind} episodes is {share}: it must lie in [0, 1]")
    for task in tasks:
        if side_of_role(task.role) != "training":
            raise UserError(f"dataset {task.dataset} has role {task.role}: it must never be in a training episode")
    sizes = {dataset.meta.name: dataset.meta.size for dataset in datasets}
    if len(set(sizes.values())) > 1:
        raise UserError(f"datasets were built at different sizes: {sizes}; build them again with one --size")
    if not sizes and (synthetic < 1 or size is None):
        raise UserError("no training dataset and episodes that are not synthetic: set data_dir, or kinds.real to 0")
    tasks = [task for task in tasks if not task.unusable]
    if not tasks and synthetic < 1:
        raise UserError("no usable training task; `universeg tasks` lists the reasons")
    return EpisodeSampler(
        datasets={dataset.meta.name: dataset for dataset in datasets},
        tasks=tasks,
        pools=[task.side(FIRST) for task in tasks],
        tree=_tree(tasks, range(len(tasks)), LEVELS) if tasks else (),
        seed=seed,
        support_size=support_size,
        size=next(iter(sizes.values())) if sizes else size,
        replacement=replacement,
        synthetic=synthetic,
        superpixel=superpixel,
    )


def _tree(tasks: Sequence[Task], members: Sequence[int], levels: Sequence[str]) -> tuple | int:
    """Nested tuples, one level a field of the task; the leaves are task numbers."""
    if not levels:
        (only,) = members
        return only
    groups: dict = {}
    for i in members:
        groups.setdefault(getattr(tasks[i], levels[0]), []).append(i)
    return tuple(_tree(tasks, groups[key], levels[1:]) for key in sorted(groups))


def batches(
    sampler: EpisodeSampler,
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 4,
) -> Iterator[Batch]:
    """This host's share [batch_size / process_count, ...] of the global batch of each step in [first, last)."""

    def read(step: int) -> Batch:
        start = step * batch_size
        return stack([sampler(i) for i in range(start + process_index, start + batch_size, process_count)])

    steps = grain.MapDataset.range(first_step, last_step).map(read)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)))


def stack(episodes: Sequence[Batch]) -> Batch:
    """Along a new first axis."""
    numbers = (np.stack([each[k] for each in episodes]) for k in range(3))
    return Batch(*numbers, Episode(*map(np.stack, zip(*(each.episode for each in episodes), strict=True))))
