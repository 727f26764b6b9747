"""Intervals against plain loops, and against worlds whose true mean is known."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from universeg_jax.errors import UserError
from universeg_jax.evaluation.intervals import (
    CaseScores,
    _mean_of_tasks,
    _resample_datasets,
    interval,
    mean_of_means,
    paired,
    subject_tables,
)


def made_cases(seed, datasets=3, subjects=12, tasks=3, shift=0.0, spread=0.0):
    """A world of 1 to 3 slices a subject and task; one in five subjects lacks a task. The true mean is 0.5 + shift.

    Values are skewed as Dice is: the skill of a subject, times the ease of a task, and noise. Datasets are drawn too:
    each has an effect of its own, of mean 0 and deviation `spread`.
    """
    rng = np.random.default_rng(seed)
    there = rng.random((datasets, subjects, tasks)) < 0.8
    there[:, 0] = True  # so that every task exists
    there[:, :, 0] |= ~there.any(2)  # and every subject
    slices = there * rng.integers(1, 4, there.shape)
    where = np.repeat(np.argwhere(there), slices[there], axis=0)
    d, s, t = where.T
    skill = rng.beta(4, 2, (datasets, subjects))  # of mean 2/3
    ease = 0.75 + 0.2 * np.linspace(-1, 1, tasks)
    cell = 0.1 * rng.standard_normal(there.shape)
    value = skill[d, s] * ease[t] + cell[d, s, t] + 0.05 * rng.standard_normal(len(where)) + shift
    value += spread * rng.standard_normal(datasets)[d]
    names = [np.char.add(letter, column.astype(str)) for letter, column in zip("dts", (d, t, s), strict=True)]
    return CaseScores(*names, value)


def mean_by_loops(cases):
    of_datasets = []
    for dataset in sorted(set(cases.dataset)):
        of_tasks = []
        for task in sorted(set(cases.task[cases.dataset == dataset])):
            here = (cases.dataset == dataset) & (cases.task == task)
            of_tasks.append(
                np.mean([cases.value[here & (cases.subject == s)].mean() for s in set(cases.subject[here])])
            )
        of_datasets.append(np.mean(of_tasks))
    return np.mean(of_datasets)


@given(seed=st.integers(0, 10**6), order=st.integers(0, 10**6))
def test_the_mean_is_that_of_loops_and_order_changes_nothing(seed, order):
    cases = made_cases(seed)
    result = interval(cases, 50)
    assert result.overall.mean == mean_of_means(cases)[0]
    np.testing.assert_allclose(result.overall.mean, mean_by_loops(cases), rtol=1e-12)
    at = np.random.default_rng(order).permutation(len(cases.value))
    other = interval(CaseScores(*(np.asarray(field)[at] for field in cases)), 50)
    np.testing.assert_allclose(other.overall.low, result.overall.low, rtol=1e-12)
    assert interval(cases, 50) == result
    assert interval(cases, 50, seed=1).overall != result.overall


@given(seed=st.integers(0, 10**6))
def test_a_resample_is_the_mean_of_the_drawn_subjects_with_all_their_tasks(seed):
    cases = made_cases(seed, datasets=1, subjects=5)
    drawn = np.random.default_rng(seed).integers(5, size=5)
    copies = [np.flatnonzero(cases.subject == f"s{subject}") for subject in drawn]
    names = np.concatenate([np.full(len(at), f"copy {i}") for i, at in enumerate(copies)])
    at = np.concatenate(copies)
    literally = CaseScores(cases.dataset[at], cases.task[at], names, cases.value[at])
    (table,) = subject_tables(cases).values()
    counts = np.bincount(drawn, minlength=5)[None].astype(float)
    np.testing.assert_allclose(_mean_of_tasks(table, counts)[0], mean_by_loops(literally), rtol=1e-12)


def test_the_spread_is_that_of_a_mean_and_copies_of_a_task_add_no_certainty():
    value = np.random.default_rng(0).normal(0.7, 0.1, 200)
    names = [f"s{i}" for i in range(200)]
    once = interval(CaseScores(["d"] * 200, ["t"] * 200, names, value)).overall
    np.testing.assert_allclose(once.high - once.low, 2 * 1.96 * value.std() / np.sqrt(200), rtol=0.05)
    tasks = np.repeat([f"t{i}" for i in range(5)], 200)
    copied = interval(CaseScores(["d"] * 1000, tasks, names * 5, np.tile(value, 5))).overall
    np.testing.assert_allclose((copied.low, copied.high), (once.low, once.high), rtol=1e-12)


def test_other_datasets_change_nothing_and_resampling_them_widens():
    cases = made_cases(1)
    first = np.asarray(cases.dataset) == "d0"
    alone = interval(CaseScores(*(np.asarray(field)[first] for field in cases)))
    result = interval(cases._replace(value=cases.value + 0.2 * (~first)))
    assert alone.by_dataset["d0"] == result.by_dataset["d0"]
    narrow, wide = result.overall, result.over_datasets
    assert wide.low < narrow.low < narrow.high < wide.high
    assert (wide.mean, wide.count) == (narrow.mean, 3)
    assert np.isnan(alone.over_datasets.low)  # one dataset tells nothing of others


def test_a_dataset_drawn_twice_has_its_subjects_drawn_twice():
    # Of independent noise in every place the mean has the variance 1 / D; places that shared a draw would add to it.
    samples = np.random.default_rng(0).standard_normal((20_000, 4))
    np.testing.assert_allclose(_resample_datasets(samples, 0).var(), 1 / 4, rtol=0.05)


@given(seed=st.integers(0, 10**6))
def test_a_difference_turns_with_its_order(seed):
    a, b = made_cases(seed), made_cases(seed)
    b = b._replace(value=b.value + np.random.default_rng(seed).normal(0.01, 0.1, len(b.value)))
    forth, back = paired(a, b, 200), paired(b, a, 200)
    np.testing.assert_allclose(forth.overall.mean, mean_of_means(b)[0] - mean_of_means(a)[0], atol=1e-12)
    for x, y in zip((forth.overall, forth.over_datasets), (back.overall, back.over_datasets), strict=True):
        np.testing.assert_allclose((x.mean, x.low, x.high, x.p), (-y.mean, -y.high, -y.low, y.p), atol=1e-12)


def test_differences_that_are_known():
    a, b = made_cases(2), made_cases(2, shift=0.01)
    same, shifted = paired(a, a), paired(a, b)
    for estimate in (same.overall, same.over_datasets, *same.by_dataset.values()):
        assert (estimate.mean, estimate.low, estimate.high, estimate.p) == (0, 0, 0, 1)
    for estimate in (shifted.overall, shifted.over_datasets, *shifted.by_dataset.values()):
        np.testing.assert_allclose((estimate.mean, estimate.low, estimate.high), 0.01, rtol=1e-9)
        assert estimate.p == 2 / 10_001
    # What two independent intervals could not tell apart.
    assert interval(a).overall.high > interval(b).overall.low


def test_one_subject_has_no_interval():
    result = interval(CaseScores(["d", "d", "e", "e"], ["t"] * 4, ["a", "a", "a", "b"], [0.1, 0.3, 0.5, 0.7]), 100)
    assert (result.by_dataset["d"].mean, result.by_dataset["d"].count) == (pytest.approx(0.2), 1)
    assert np.isnan([result.by_dataset["d"].low, result.by_dataset["d"].high, result.by_dataset["d"].p]).all()
    assert result.overall.count == 3
    assert np.isfinite(result.overall.low)


def test_what_cannot_be_averaged_is_named():
    with pytest.raises(UserError, match="task t, subject b is nan"):
        interval(CaseScores(["d"] * 2, ["t"] * 2, ["a", "b"], [1, np.nan]))
    with pytest.raises(UserError, match="1 datasets, 1 tasks, 1 subjects and 2 values"):
        interval(CaseScores(["d"], ["t"], ["a"], [1, 2]))
    with pytest.raises(UserError, match="at least one"):
        interval(CaseScores([], [], [], []))
    with pytest.raises(UserError, match="subject differs"):
        paired(CaseScores(["d"], ["t"], ["a"], [1]), CaseScores(["d"], ["t"], ["b"], [1]))


@pytest.mark.slow
def test_ten_thousand_resamples_take_seconds():
    cases = made_cases(0, datasets=5, subjects=300, tasks=5)
    start = time.monotonic()
    interval(cases)
    assert time.monotonic() - start < 10


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say(capsys):
    """1,000 worlds of 3 datasets. With few subjects too seldom: that is the known flaw of the percentile bootstrap."""
    for subjects in (8, 15, 30):  # the last of which is held to the figure
        hits = []
        for world in range(1000):
            result = interval(made_cases(world, subjects=subjects, tasks=2), 1000, seed=world)
            estimates = (result.overall, *result.by_dataset.values())
            hits.append([estimate.low <= 0.5 <= estimate.high for estimate in estimates])
        overall, by_dataset = np.mean(hits, 0)[0], np.mean(np.array(hits)[:, 1:])
        with capsys.disabled():
            print(f"\n{subjects} subjects: coverage {overall:.1%} over all, {by_dataset:.1%} by dataset")
    assert 0.93 <= overall <= 0.97
    assert 0.92 <= by_dataset <= 0.97  # 30 subjects here, three times as many in the overall mean


@pytest.mark.slow
def test_intervals_over_datasets_hold_the_truth_more_often_the_more_there_are(capsys):
    """1,000 worlds whose datasets differ by more than 20 subjects explain."""
    coverage = []
    for datasets in (3, 5, 10):
        hits, alone = [], []
        for world in range(1000):
            cases = made_cases(world, datasets, subjects=20, tasks=2, spread=0.15)
            result = interval(cases, 1000, seed=world)
            hits.append(result.over_datasets.low <= 0.5 <= result.over_datasets.high)
            alone.append(result.overall.low <= 0.5 <= result.overall.high)
        coverage.append(np.mean(hits))
        with capsys.disabled():
            print(f"\n{datasets} datasets: coverage {coverage[-1]:.1%}, of subjects alone {np.mean(alone):.1%}")
    assert coverage == sorted(coverage)
    assert 0.88 <= coverage[-1] <= 0.96
    assert np.mean(alone) < 0.7  # which is why there is a second interval
