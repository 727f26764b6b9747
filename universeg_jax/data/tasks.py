"""The task table: the tasks of the datasets and the split of their subjects.

A task is one binary label of one (dataset, subset, modality, axis, slicing). Each example has a subject; a subject's
side is a pure function of its identity, by hash, never of the order of files:

    training datasets     train | val       80 / 20, at least 2 subjects in train
    val and test datasets support | query   60 / 40

A subject's identity is (source group, or the dataset where it has none; subject). Outside a group a dataset ranks its
subjects by hash and splits them exactly; inside a group the side is a fixed threshold on the hash, so that it is the
same in every member and stays when another dataset joins.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from universeg_jax.data.dataset import Dataset, DatasetMeta
from universeg_jax.errors import UserError
from universeg_jax.readers.volumes import AXIS_NAMES

MIN_SUBJECTS = 3
FIRST, SECOND = 0, 1  # train | val, or support | query


class TaskError(UserError):
    """Datasets that give no sound task table."""


@dataclass(frozen=True)
class Task:
    """One binary segmentation task; arrays run over its examples, sorted by side, then by subject."""

    dataset: str
    role: str
    subset: str
    modality: str
    axis: int
    slicing: str
    label: int
    label_name: str
    rows: np.ndarray = field(repr=False)  # int32 [n], rows of the dataset
    positions: np.ndarray = field(repr=False)  # int32 [n], position among the row's masks
    subjects: np.ndarray = field(repr=False)  # int32 [n], codes into the dataset's subjects
    sides: np.ndarray = field(repr=False)  # uint8 [n], FIRST or SECOND
    unusable: str = ""  # the reason, or "" for a usable task

    @property
    def name(self) -> str:
        parts = (self.dataset, self.subset, self.modality, f"axis{self.axis}", self.slicing, f"label{self.label}")
        return "/".join(part for part in parts if part)

    def side(self, side: int) -> "TaskSide":
        rows = slice(*np.searchsorted(self.sides, [side, side + 1]))  # slices are views and take no memory
        return TaskSide(self.rows[rows], self.positions[rows], self.subjects[rows])


@dataclass(frozen=True)
class TaskSide:
    """TaskSide of one side of a task, sorted by subject."""

    rows: np.ndarray
    positions: np.ndarray
    subjects: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def side_of_role(role: str) -> str:
    return "training" if role.startswith("train_") else role


def subject_hash(identity: str, subject: str) -> float:
    """Hashes a subject to a number in [0, 1), uniform over subjects and the same on every machine for ever."""
    digest = hashlib.sha256(f"{identity}\0{subject}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_subjects(meta: DatasetMeta, subjects: Sequence[str]) -> np.ndarray:
    """uint8 [len(subjects)]: FIRST or SECOND for each distinct subject of a dataset."""
    fraction = 0.8 if side_of_role(meta.role) == "training" else 0.6
    hashes = np.array([subject_hash(meta.source_group or meta.name, subject) for subject in subjects])
    if meta.source_group:
        return np.where(hashes < fraction, FIRST, SECOND).astype(np.uint8)
    count = round(fraction * len(subjects))
    count = min(max(count, 2 if side_of_role(meta.role) == "training" else 1), max(len(subjects) - 1, 1))
    sides = np.full(len(subjects), SECOND, np.uint8)
    sides[np.argsort(hashes, kind="stable")[:count]] = FIRST
    return sides


def check_groups(metas: Iterable[DatasetMeta]) -> None:
    """Raises TaskError where members of one source group have roles on two sides (training | val | test)."""
    groups: dict[str, dict[str, str]] = {}
    for meta in metas:
        if meta.source_group:
            groups.setdefault(meta.source_group, {})[meta.name] = side_of_role(meta.role)
    for group, sides in groups.items():
        if len(set(sides.values())) > 1:
            members = ", ".join(f"{name} ({side})" for name, side in sorted(sides.items()))
            raise TaskError(f"source group {group!r} has datasets on several sides: {members}; give them one role")


def dataset_tasks(dataset: Dataset, min_label_density: float = 0.0) -> list[Task]:
    """All tasks of a dataset, with the unusable ones; an example counts if its label covers more than the density."""
    meta, index = dataset.meta, dataset.index
    sides = split_subjects(meta, index.subjects)
    counts = index.mask_area > min_label_density * meta.size**2
    rows = index.mask_row
    # One sort brings the masks of a task together, by side, subject and row: O(M log M) whatever their number.
    tables = (len(index.subsets), len(index.modalities), len(AXIS_NAMES), len(index.slicings))
    fields = (index.subset, index.modality, index.axis, index.slicing)
    kind = np.ravel_multi_index([field.astype(np.int64) for field in fields], tables)
    keys = (kind[rows] << 32) | index.mask_label
    order = np.lexsort(((index.subject[rows].astype(np.int64) << 32) | rows, sides[index.subject[rows]], keys))
    keys = keys[order]
    tasks = []
    for of_task in np.split(order, np.flatnonzero(np.diff(keys)) + 1) if len(order) else ():
        chosen = of_task[counts[of_task]]
        subjects = index.subject[rows[chosen]]
        label = int(index.mask_label[of_task[0]])
        subset, modality, axis, slicing = (int(field[rows[of_task[0]]]) for field in fields)
        tasks.append(
            Task(
                dataset=meta.name,
                role=meta.role,
                subset=index.subsets[subset],
                modality=index.modalities[modality],
                axis=axis,
                slicing=index.slicings[slicing],
                label=label,
                label_name=meta.labels[label],
                rows=rows[chosen],
                positions=index.mask_position[chosen],
                subjects=subjects,
                sides=sides[subjects],
                unusable=_unusable_reason(subjects, sides, side_of_role(meta.role), len(of_task)),
            )
        )
    return tasks


def _unusable_reason(subjects: np.ndarray, sides: np.ndarray, role_side: str, before: int) -> str:
    distinct = np.unique(subjects)
    first = int((sides[distinct] == FIRST).sum())
    if len(distinct) < MIN_SUBJECTS:
        small = f" ({before - len(subjects)} of {before} examples too small)" if before > len(subjects) else ""
        return f"{len(distinct)} subjects, {MIN_SUBJECTS} needed{small}"
    if role_side == "training" and first < 2:
        return f"{first} subjects in train, 2 needed"
    if role_side != "training" and not 0 < first < len(distinct):
        return f"{first} of {len(distinct)} subjects in support: one of support and query is empty"
    return ""


def task_table(datasets: Sequence[Dataset], min_label_density: float = 0.0) -> list[Task]:
    """The tasks of several datasets. Raises TaskError where a source group leaks."""
    check_groups(dataset.meta for dataset in datasets)
    return [task for dataset in datasets for task in dataset_tasks(dataset, min_label_density)]


def usable(tasks: Sequence[Task]) -> list[Task]:
    """The usable tasks; raises TaskError with every reason where there are none."""
    kept = [task for task in tasks if not task.unusable]
    if not kept:
        reasons = "; ".join(f"{task.name}: {task.unusable}" for task in tasks) or "no label occurs in any example"
        raise TaskError(f"no usable task among {len(tasks)}: {reasons}")
    return kept
