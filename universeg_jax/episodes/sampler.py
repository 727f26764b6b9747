"""Training episodes: episode i of a run is a pure function of (seed, i) and the config.

A task is sampled uniformly at each level: slicing → dataset → subset → modality → axis → label (Butoi et al., 2023,
section 4), or uniformly among all tasks. The query is sampled next, then the support, from other subjects of the train
side, with replacement as published.

The label of an episode may be the union of its task's label and other labels of the same images. That applies to
mid-slices and images only: a max-slice is chosen for one label and lacks masks of the others.

Nothing depends on earlier episodes, on the number of hosts or on the reader: each episode can be replayed alone, and a
resumed run needs only its step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grain
import numpy as np

from universeg_jax.configuration import WEIGHTS
from universeg_jax.data.dataset import Dataset
from universeg_jax.data.tasks import FIRST, Task, TaskSide, side_of_role
from universeg_jax.episode import Episode, split_query
from universeg_jax.errors import UserError

KINDS = WEIGHTS["kinds"]
REAL, SYNTHETIC, SUPERPIXEL, PAINTED = range(len(KINDS))
LEVELS = ("slicing", "dataset", "subset", "modality", "axis", "label")


class Batch(NamedTuple):
    """Episodes as the host hands them to the training step; the arrays of `episode` are uint8.

    Synthetic episodes are zeros; superpixel episodes are zeros except for the query image. Labels of painted episodes
    are 1 for the label of the task, and from 2 on for the other labels of the images.
    """

    index: np.ndarray  # type: ignore[assignment]  # uint32 [B], global episode index: the key of everything sampled on the device
    kind: np.ndarray  # uint8 [B], position in KINDS
    task: np.ndarray  # int32 [B], position in the sampler's tasks; -1 for synthetic
    episode: Episode


class Selection(NamedTuple):
    """The examples of one episode."""

    kind: int
    task: int
    query: tuple[int, int]  # (row of the dataset, position among its masks; -1 for none of them)
    support: list[tuple[int, int]]
    labels: tuple[int, ...] = ()  # the label is their union; () = the task's label alone


@dataclass(frozen=True)
class EpisodeSampler:
    """sampler(i) → Batch of one episode, without batch axis. Picklable; a call costs O(S) for any number of tasks."""

    datasets: dict[str, Dataset]
    tasks: Sequence[Task]
    pools: Sequence[TaskSide]
    tree: tuple | int  # nested, of task numbers; the branches of a node are equally likely
    companions: dict[tuple, tuple[int, ...]]  # labels of each family of tasks
    seed: int
    support_size: int
    size: int
    replacement: bool
    synthetic: float  # probability
    superpixel: float  # probability
    painted: float  # probability
    label_union: float  # probability
    all_labels: float  # probability

    def kind(self, index: int) -> int:
        """Position in KINDS of an episode, a pure function of (seed, index) and the probabilities."""
        return self._kind(np.random.default_rng([self.seed, index]))

    def _kind(self, rng: np.random.Generator) -> int:
        u = rng.random()
        if u < self.synthetic:
            return SYNTHETIC
        # Rounded, so that probabilities that sum to 1 leave nothing to the last kind.
        if u < round(self.synthetic + self.superpixel, 9):
            return SUPERPIXEL
        return PAINTED if u < round(self.synthetic + self.superpixel + self.painted, 9) else REAL

    def select(self, index: int) -> Selection:
        rng = np.random.default_rng([self.seed, index])
        kind = self._kind(rng)
        if kind == SYNTHETIC:
            return Selection(SYNTHETIC, -1, (0, 0), [])
        task = self._task(rng)
        pool = self.pools[task]
        query = int(rng.integers(len(pool)))
        if kind == SUPERPIXEL:
            return Selection(SUPERPIXEL, task, (int(pool.rows[query]), -1), [])
        support = sample_others(rng, pool.subjects, query, self.support_size, self.replacement)
        examples = [(int(pool.rows[i]), int(pool.positions[i])) for i in (query, *support)]
        return Selection(kind, task, examples[0], examples[1:], self._labels(rng, self.tasks[task]))

    def _task(self, rng: np.random.Generator) -> int:
        node: tuple | int = self.tree
        while isinstance(node, tuple):
            node = node[rng.integers(len(node))]
        return node

    def _labels(self, rng: np.random.Generator, task: Task) -> tuple[int, ...]:
        """Samples the labels to unite. Called last, so that a union changes nothing else of an episode."""
        family = self.companions.get(family_of(task), ())
        if len(family) < 2:
            return ()
        u = rng.random()
        if u < self.all_labels:
            return family
        if u >= round(self.all_labels + self.label_union, 9):
            return ()
        others = [label for label in family if label != task.label]
        chosen = rng.choice(others, size=rng.integers(1, len(family)), replace=False)
        return tuple(sorted({task.label, *chosen.tolist()}))

    def __call__(self, index: int) -> Batch:
        selection = self.select(index)
        shape = (self.support_size + 1, self.size, self.size, 1)
        images, labels = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        if selection.kind != SYNTHETIC:
            dataset = self.datasets[self.tasks[selection.task].dataset]
        if selection.kind in (REAL, PAINTED):
            rows, positions = np.array([selection.query, *selection.support]).T
            union = selection.labels
            pixels = dataset.gather_union(rows, union) if union else dataset.gather(rows, positions)
            images, labels = (x[..., None] for x in pixels)
            if selection.kind == PAINTED:
                others = dataset.gather_maps(rows)[..., None]
                labels = np.where(labels, np.uint8(1), others + (others > 0))
        elif selection.kind == SUPERPIXEL:  # the device makes the labels and the support
            images[0, ..., 0] = dataset.gather(np.array([selection.query[0]]), np.zeros(1, np.int64))[0][0]
        numbers = np.array(index, np.uint32), np.array(selection.kind, np.uint8), np.array(selection.task, np.int32)
        return Batch(*numbers, split_query(images, labels))


def sample_others(
    rng: np.random.Generator, subjects: np.ndarray, query: int, count: int, replacement: bool
) -> np.ndarray:
    """Samples `count` positions in `subjects` (sorted) of other subjects than the query's; repeats if too few."""
    start, stop = (np.searchsorted(subjects, subjects[query], side) for side in ("left", "right"))
    others = len(subjects) - (stop - start)
    if replacement or count > others:
        chosen = rng.integers(others, size=count)
    else:
        chosen = rng.choice(others, size=count, replace=False)
    return np.where(chosen < start, chosen, chosen + (stop - start))


def family_of(task: Task) -> tuple:
    """Key of the tasks that differ in their label alone: their labels lie on the same images."""
    return task.dataset, task.subset, task.modality, task.axis, task.slicing


def task_name(sampler: EpisodeSampler, index: int) -> str:
    """Names the task of an episode, such as "acdc/MR/axis2/mid/label1+3"."""
    selection = sampler.select(index)
    if selection.kind == SYNTHETIC:
        return "synthetic"
    task = sampler.tasks[selection.task]
    if selection.kind == SUPERPIXEL:
        return f"superpixels of {task.name}"
    name = task.name + "".join(f"+{label}" for label in selection.labels if label != task.label)
    return f"painted {name}" if selection.kind == PAINTED else name


def make_sampler(
    datasets: Sequence[Dataset],
    tasks: Sequence[Task],
    *,
    seed: int,
    support_size: int,
    synthetic: float = 0.0,
    superpixel: float = 0.0,
    painted: float = 0.0,
    replacement: bool = True,
    size: int | None = None,
    draw: str = "datasets",
    label_union: float = 0.0,
    all_labels: float = 0.0,
) -> EpisodeSampler:
    """Makes a sampler of the usable training tasks among `tasks`, on their train side.

    `synthetic`, `superpixel` and `painted` are probabilities of an episode's kind; superpixel labels are made from
    images of those tasks, painted ones keep their labels. If all episodes are synthetic, no dataset is needed, only
    `size` in pixels. `draw="datasets"` samples a task level by level, "tasks" each task alike. `label_union` and
    `all_labels` are the probabilities that the label is united with some other labels of the same images, or with all
    of them; labels of unusable tasks count too. Call `configuration.check_fields` first. Raises UserError for a task of
    role val or test, for datasets of different sizes, and where no task is usable.
    """
    for task in tasks:
        if side_of_role(task.role) != "training":
            raise UserError(f"dataset {task.dataset} has role {task.role}: it must never be in a training episode")
    sizes = {dataset.meta.name: dataset.meta.size for dataset in datasets}
    if len(set(sizes.values())) > 1:
        raise UserError(f"datasets were built at different sizes: {sizes}; build them again with one --size")
    size = next(iter(sizes.values()), size)
    if size is None or (not sizes and synthetic < 1):
        raise UserError(
            "no training dataset and episodes that are not synthetic: set data_dir, or all weights of config.kinds but "
            "that of synthetic to 0"
        )
    companions = _companions(tasks) if label_union or all_labels else {}
    tasks = [task for task in tasks if not task.unusable]
    if not tasks and synthetic < 1:
        raise UserError("no usable training task; `universeg tasks` lists the reasons")
    pools = [task.side(FIRST) for task in tasks]
    return EpisodeSampler(
        datasets={dataset.meta.name: dataset for dataset in datasets},
        tasks=tasks,
        pools=pools,
        tree=_tree(tasks, range(len(tasks)), LEVELS) if tasks and draw == "datasets" else tuple(range(len(tasks))),
        companions=companions,
        seed=seed,
        support_size=support_size,
        size=size,
        replacement=replacement,
        synthetic=synthetic,
        superpixel=superpixel,
        painted=painted,
        label_union=label_union,
        all_labels=all_labels,
    )


def _companions(tasks: Sequence[Task]) -> dict[tuple, tuple[int, ...]]:
    """family → labels of its tasks, for families of several."""
    families: dict[tuple, list[int]] = {}
    for task in tasks:
        if task.slicing != "max":
            families.setdefault(family_of(task), []).append(task.label)
    return {family: tuple(sorted(labels)) for family, labels in families.items() if len(labels) > 1}


def _tree(tasks: Sequence[Task], members: Sequence[int], levels: Sequence[str]) -> tuple | int:
    """Nested tuples, one level per field of the task; the leaves are task numbers."""
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
    """Stacks episodes along a new first axis."""
    index, kind, task = (np.stack([batch[k] for batch in episodes]) for k in range(3))
    return Batch(index, kind, task, Episode(*map(np.stack, zip(*(batch.episode for batch in episodes), strict=True))))
