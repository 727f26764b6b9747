"""Properties of any collection of datasets: 100 random ones here, 10,000 in the slow test."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.fixtures import memory_dataset
from universeg_jax.data import ROLES
from universeg_jax.data.dataset import Dataset
from universeg_jax.data.tasks import FIRST, MIN_SUBJECTS, SECOND, TaskError, side_of_role, task_table
from universeg_jax.episodes.sampler import Batch, EpisodeSampler, batches, make_sampler
from universeg_jax.errors import UserError


class NumberedPixels(Dataset):
    """Pixels that encode the example's number."""

    def gather(self, rows, positions):
        shape = (len(rows), self.meta.size, self.meta.size)
        number = np.asarray(rows)[:, None, None] % 251
        return np.broadcast_to(number.astype(np.uint8), shape), np.broadcast_to((number % 2).astype(np.uint8), shape)


@st.composite
def collections(draw) -> list[Dataset]:
    """Up to six datasets of any role, some in groups, with any subjects, labels, axes and areas."""
    datasets = []
    consistent = draw(st.integers(0, 4)) > 0  # else a group may have roles on two sides, which must be refused
    role_of = {group: draw(st.sampled_from(ROLES)) for group in "gh"}
    for number in range(draw(st.integers(1, 6))):
        count = draw(st.integers(1, 40))
        rng = np.random.default_rng(draw(st.integers(0, 10**6)))
        subjects = [f"s{i}" for i in rng.integers(0, draw(st.integers(1, 12)), count)]
        labels, areas = rng.integers(1, 4, count).tolist(), rng.integers(0, 9, count)
        group, role = draw(st.sampled_from(["", "", "g", "h"])), draw(st.sampled_from(ROLES))
        role = role_of[group] if group and consistent else role
        dataset = memory_dataset(f"d{number}", role, subjects, labels, areas, group, size=8)
        index = replace(dataset.index, axis=rng.integers(0, 3, count).astype(np.int8))
        datasets.append(NumberedPixels(dataset.meta, index, "", ""))
    return datasets


def check_collection(datasets: list[Dataset], seed: int, support_size: int, density: float) -> None:
    groups: dict[str, set[str]] = {}
    for d in datasets:
        if d.meta.source_group:
            groups.setdefault(d.meta.source_group, set()).add(side_of_role(d.meta.role))
    if any(len(sides) > 1 for sides in groups.values()):
        event("a group on two sides")
        with pytest.raises(TaskError, match="source group"):
            task_table(datasets, density)
        return
    tasks = task_table(datasets, density)
    by_name = {d.meta.name: d for d in datasets}
    check_splits(datasets, tasks)
    check_that_no_other_dataset_moves_a_subject(datasets, density)
    training = [t for t in tasks if side_of_role(t.role) == "training"]
    if any(task not in training for task in tasks):
        with pytest.raises(UserError, match="must never be in a training episode"):
            make_sampler(datasets, tasks, seed=seed, support_size=support_size)
    if all(task.unusable for task in training):
        event("nothing to train on")
        return
    event("episodes sampled")
    members = [by_name[name] for name in {task.dataset for task in training}]
    sampler = make_sampler(members, training, seed=seed, support_size=support_size)
    for i in range(8):
        draw = sampler.select(i)
        task = sampler.tasks[draw.task]
        subject = by_name[task.dataset].index.subject
        assert subject[draw.query[0]] not in {subject[row] for row, _ in draw.support}
        assert {row for row, _ in (draw.query, *draw.support)} <= set(task.side(FIRST).rows.tolist())
    assert bytes_of(sampler(5)) == bytes_of(pickle.loads(pickle.dumps(sampler))(5)) == bytes_of(sampler(5))


def check_splits(datasets, tasks) -> None:
    """No identity (group or dataset, subject) is on two sides; usable tasks have what they need on both."""
    side_of: dict[tuple[str, str], int] = {}
    for task in tasks:
        dataset = next(d for d in datasets if d.meta.name == task.dataset)
        for code, side in zip(task.subjects, task.sides, strict=True):
            identity = (dataset.meta.source_group or dataset.meta.name, dataset.index.subjects[code])
            assert side_of.setdefault(identity, side) == side
        first, second = (len(np.unique(task.side(side).subjects)) for side in (FIRST, SECOND))
        if not task.unusable:
            assert first + second >= MIN_SUBJECTS
            assert first >= (2 if side_of_role(task.role) == "training" else 1)
            assert second >= 1 or side_of_role(task.role) == "training"
        assert not set(task.side(FIRST).rows) & set(task.side(SECOND).rows)


def check_that_no_other_dataset_moves_a_subject(datasets, density) -> None:
    alone = {task.name: task for d in datasets for task in task_table([d], density)}
    for task in task_table(datasets[::-1], density):
        np.testing.assert_array_equal(task.sides, alone[task.name].sides)
        np.testing.assert_array_equal(task.rows, alone[task.name].rows)


def bytes_of(batch: Batch) -> bytes:
    return b"".join(np.asarray(leaf).tobytes() for leaf in (batch.index, batch.kind, batch.task, *batch.episode))


many = {
    "datasets": collections(),
    "seed": st.integers(0, 99),
    "support_size": st.integers(1, 6),
    "density": st.sampled_from([0.0, 0.05]),
}


@settings(max_examples=100)
@given(**many)
def test_nothing_leaks_in_any_collection(datasets, seed, support_size, density):
    check_collection(datasets, seed, support_size, density)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(**many)
def test_nothing_leaks_in_many_collections(datasets, seed, support_size, density):
    check_collection(datasets, seed, support_size, density)


def stream_bytes(sampler: EpisodeSampler, threads: int, hosts: int) -> list[bytes]:
    """Episodes in their global order, however many hosts and threads read them."""
    common = {"batch_size": 4, "first_step": 0, "last_step": 3, "threads": threads, "process_count": hosts}
    streams = [list(batches(sampler, process_index=host, **common)) for host in range(hosts)]
    found = {}
    for step in range(3):
        for stream in streams:
            batch = stream[step]
            for k, i in enumerate(batch.index):
                leaves = (batch.index[k], batch.kind[k], batch.task[k], *(leaf[k] for leaf in batch.episode))
                found[int(i)] = b"".join(np.asarray(leaf).tobytes() for leaf in leaves)
    return [found[i] for i in sorted(found)]


@settings(max_examples=10)
@given(datasets=collections(), seed=st.integers(0, 99))
def test_the_same_bytes_with_any_number_of_workers_and_hosts(datasets, seed):
    training = [NumberedPixels(replace(d.meta, role="train_open"), d.index, "", "") for d in datasets]
    tasks = task_table(training)
    if all(task.unusable for task in tasks):
        return
    sampler = make_sampler(training, tasks, seed=seed, support_size=3)
    expected = [bytes_of(sampler(i)) for i in range(12)]
    for threads, hosts in ((1, 1), (2, 1), (4, 1), (2, 2)):
        assert stream_bytes(sampler, threads, hosts) == expected
