"""The task table: stable splits by subject, and unusable tasks with their reason."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import memory_dataset
from universeg_jax.data import ROLES
from universeg_jax.data.dataset import DatasetMeta
from universeg_jax.data.tasks import (
    FIRST,
    SECOND,
    TaskError,
    dataset_tasks,
    side_of_role,
    split_subjects,
    task_table,
    usable,
)


@given(count=st.integers(3, 300), role=st.sampled_from(ROLES))
def test_a_dataset_outside_a_group_is_split_exactly(count, role):
    meta = DatasetMeta("some", role, {1: "a"}, 16)
    sides = split_subjects(meta, [f"s{i}" for i in range(count)])
    fraction, least = (0.8, 2) if side_of_role(role) == "training" else (0.6, 1)
    assert (sides == FIRST).sum() == min(max(round(fraction * count), least), count - 1)
    shuffled = np.random.default_rng(count).permutation(count)
    np.testing.assert_array_equal(split_subjects(meta, [f"s{i}" for i in shuffled]), sides[shuffled])


@given(ours=st.sets(st.integers(0, 60), min_size=3), theirs=st.sets(st.integers(0, 60), min_size=3))
def test_in_a_group_a_subject_keeps_its_side_when_others_join(ours, theirs):
    sides = {}
    for name, members in (("one", ours), ("two", theirs)):
        meta = DatasetMeta(name, "train_open", {1: "a"}, 16, source_group="g")
        split = split_subjects(meta, [f"s{i}" for i in sorted(members)])
        for subject, side in zip(sorted(members), split, strict=True):
            assert sides.setdefault(subject, side) == side
    alone = split_subjects(DatasetMeta("one", "train_open", {1: "a"}, 16, source_group="g"), ["s7"])
    assert sides.get(7, alone[0]) == alone[0]


def test_a_group_is_split_near_the_fraction():
    meta = DatasetMeta("one", "train_open", {1: "a"}, 16, source_group="g")
    share = (split_subjects(meta, [f"s{i}" for i in range(2000)]) == FIRST).mean()
    assert abs(share - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 2000)


def test_a_subject_is_on_one_side_in_all_tasks_of_its_dataset():
    subjects = [f"s{i % 10}" for i in range(60)]
    tasks = dataset_tasks(memory_dataset("d", subjects=subjects, labels=[i // 20 + 1 for i in range(60)]))
    assert [task.label for task in tasks] == [1, 2, 3]
    side_of = {}
    for task in tasks:
        assert not task.unusable
        assert np.all(np.diff(task.sides.astype(int)) >= 0)
        assert all(np.all(np.diff(task.side(side).subjects) >= 0) for side in (FIRST, SECOND))
        for subject, side in zip(task.subjects, task.sides, strict=True):
            assert side_of.setdefault(subject, side) == side
        assert len(task.side(FIRST)) + len(task.side(SECOND)) == 20


def test_groups_must_not_have_roles_on_two_sides():
    train = memory_dataset("a", "train_research", ["1", "2", "3"], [1, 1, 1], group="g")
    task_table([train, memory_dataset("b", "train_open", ["1"], [1], group="g")])
    with pytest.raises(TaskError, match=r"a \(training\), b \(val\)"):
        task_table([train, memory_dataset("b", "val", ["1"], [1], group="g")])


def test_small_labels_and_few_subjects_make_a_task_unusable_with_the_reason():
    few = memory_dataset("few", subjects=["a", "a", "b"], labels=[1, 1, 1])
    small = memory_dataset("small", subjects=["a", "b", "c", "d"], labels=[1] * 4, areas=[9, 1, 1, 1])
    tasks = task_table([few, small], min_label_density=2 / 256)
    assert [len(task.rows) for task in tasks] == [3, 1]
    assert tasks[0].unusable == "2 subjects, 3 needed"
    assert tasks[1].unusable == "1 subjects, 3 needed (3 of 4 examples too small)"
    with pytest.raises(TaskError, match=r"few/.*2 subjects.*small/.*too small"):
        usable(tasks)
    assert not task_table([small])[0].unusable  # at evaluation any area counts
