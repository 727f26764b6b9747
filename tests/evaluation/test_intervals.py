"""Intervals against plain loops, and in simulations whose true mean is known."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
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


def simulated_cases(seed, datasets=3, subjects=12, tasks=3, shift=0.0, spread=0.0):
    """Simulates 1 to 3 slices per subject and task, with a fifth of the tasks missing. The true mean is 0.5 + shift.

    Values are skewed like Dice: a factor of the subject times a factor of the task, plus noise. Each dataset adds a
    random effect of mean 0 and standard deviation `spread`.
    """
    rng = np.random.default_rng(seed)
    present = rng.random((datasets, subjects, tasks)) < 0.8
    present[:, 0] = True  # so that every task exists
    present[:, :, 0] |= ~present.any(2)  # and every subject
    slices = present * rng.integers(1, 4, present.shape)
    indices = np.repeat(np.argwhere(present), slices[present], axis=0)
    d, s, t = indices.T
    skill = rng.beta(4, 2, (datasets, subjects))  # mean 2/3
    ease = 0.75 + 0.2 * np.linspace(-1, 1, tasks)
    cell = 0.1 * rng.standard_normal(present.shape)
    value = skill[d, s] * ease[t] + cell[d, s, t] + 0.05 * rng.standard_normal(len(indices)) + shift
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


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), order=st.integers(0, 10**6))
def test_the_mean_equals_that_of_loops_in_any_order(seed, order):
    cases = simulated_cases(seed)
    result = interval(cases, 50)
    assert result.overall.mean == mean_of_means(cases)[0]
    np.testing.assert_allclose(result.overall.mean, mean_by_loops(cases), rtol=1e-12)
    at = np.random.default_rng(order).permutation(len(cases.value))
    other = interval(CaseScores(*(np.asarray(field)[at] for field in cases)), 50)
    np.testing.assert_allclose(other.overall.low, result.overall.low, rtol=1e-12)
    assert interval(cases, 50) == result
    assert interval(cases, 50, seed=1).overall != result.overall


@given(seed=st.integers(0, 10**6))
def test_a_resample_is_the_mean_of_the_sampled_subjects_with_all_their_tasks(seed):
    cases = simulated_cases(seed, datasets=1, subjects=5)
    sampled = np.random.default_rng(seed).integers(5, size=5)
    copies = [np.flatnonzero(cases.subject == f"s{subject}") for subject in sampled]
    names = np.concatenate([np.full(len(at), f"copy {i}") for i, at in enumerate(copies)])
    at = np.concatenate(copies)
    literally = CaseScores(cases.dataset[at], cases.task[at], names, cases.value[at])
    (table,) = subject_tables(cases).values()
    counts = np.bincount(sampled, minlength=5)[None].astype(float)
    np.testing.assert_allclose(_mean_of_tasks(table, counts)[0], mean_by_loops(literally), rtol=1e-12)


def test_the_width_is_that_of_a_mean_and_copies_of_a_task_do_not_narrow_it():
    value = np.random.default_rng(0).normal(0.7, 0.1, 200)
    names = [f"s{i}" for i in range(200)]
    once = interval(CaseScores(["d"] * 200, ["t"] * 200, names, value)).overall
    np.testing.assert_allclose(once.high - once.low, 2 * 1.96 * value.std() / np.sqrt(200), rtol=0.05)
    tasks = np.repeat([f"t{i}" for i in range(5)], 200)
    copied = interval(CaseScores(["d"] * 1000, tasks, names * 5, np.tile(value, 5))).overall
    np.testing.assert_allclose((copied.low, copied.high), (once.low, once.high), rtol=1e-12)


def test_other_datasets_change_nothing_and_resampling_them_widens_the_interval():
    cases = simulated_cases(1)
    first = np.asarray(cases.dataset) == "d0"
    alone = interval(CaseScores(*(np.asarray(field)[first] for field in cases)))
    result = interval(cases._replace(value=cases.value + 0.2 * (~first)))
    assert alone.by_dataset["d0"] == result.by_dataset["d0"]
    narrow, wide = result.overall, result.over_datasets
    assert wide.low < narrow.low < narrow.high < wide.high
    assert (wide.mean, wide.count) == (narrow.mean, 3)
    assert np.isnan(alone.over_datasets.low)  # no interval from a single dataset


def test_a_dataset_sampled_twice_has_its_subjects_resampled_twice():
    # The mean of D independent columns has variance 1 / D; columns that share a resample would increase it.
    samples = np.random.default_rng(0).standard_normal((20_000, 4))
    np.testing.assert_allclose(_resample_datasets(samples, 0).var(), 1 / 4, rtol=0.05)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_a_difference_changes_sign_with_its_order(seed):
    a, b = simulated_cases(seed), simulated_cases(seed)
    b = b._replace(value=b.value + np.random.default_rng(seed).normal(0.01, 0.1, len(b.value)))
    forth, back = paired(a, b, 200), paired(b, a, 200)
    np.testing.assert_allclose(forth.overall.mean, mean_of_means(b)[0] - mean_of_means(a)[0], atol=1e-12)
    for x, y in zip((forth.overall, forth.over_datasets), (back.overall, back.over_datasets), strict=True):
        np.testing.assert_allclose((x.mean, x.low, x.high, x.p), (-y.mean, -y.high, -y.low, y.p), atol=1e-12)


def test_known_differences():
    a, b = simulated_cases(2), simulated_cases(2, shift=0.01)
    same, shifted = paired(a, a), paired(a, b)
    for estimate in (same.overall, same.over_datasets, *same.by_dataset.values()):
        assert (estimate.mean, estimate.low, estimate.high, estimate.p) == (0, 0, 0, 1)
    for estimate in (shifted.overall, shifted.over_datasets, *shifted.by_dataset.values()):
        np.testing.assert_allclose((estimate.mean, estimate.low, estimate.high), 0.01, rtol=1e-9)
        assert estimate.p == 2 / 10_001
    # Two independent intervals could not separate them.
    assert interval(a).overall.high > interval(b).overall.low


def test_one_subject_has_no_interval():
    result = interval(CaseScores(["d", "d", "e", "e"], ["t"] * 4, ["a", "a", "a", "b"], [0.1, 0.3, 0.5, 0.7]), 100)
    assert (result.by_dataset["d"].mean, result.by_dataset["d"].count) == (pytest.approx(0.2), 1)
    assert np.isnan([result.by_dataset["d"].low, result.by_dataset["d"].high, result.by_dataset["d"].p]).all()
    assert result.overall.count == 3
    assert np.isfinite(result.overall.low)


def test_invalid_cases_are_refused():
    with pytest.raises(UserError, match="task t, subject b is nan"):
        interval(CaseScores(["d"] * 2, ["t"] * 2, ["a", "b"], [1, np.nan]))
    with pytest.raises(UserError, match="1 datasets, 1 tasks, 1 subjects and 2 values"):
        interval(CaseScores(["d"], ["t"], ["a"], [1, 2]))
    with pytest.raises(UserError, match="at least 1"):
        interval(CaseScores([], [], [], []))
    with pytest.raises(UserError, match="subject differs"):
        paired(CaseScores(["d"], ["t"], ["a"], [1]), CaseScores(["d"], ["t"], ["b"], [1]))


@pytest.mark.slow
def test_ten_thousand_resamples_take_seconds():
    cases = simulated_cases(0, datasets=5, subjects=300, tasks=5)
    start = time.monotonic()
    interval(cases)
    assert time.monotonic() - start < 10


@pytest.mark.slow
def test_intervals_have_their_nominal_coverage(capsys):
    """1,000 simulations of 3 datasets. The percentile bootstrap is known to be too narrow with few subjects."""
    for subjects in (8, 15, 30):  # only the last number of subjects is asserted
        hits = []
        for seed in range(1000):
            result = interval(simulated_cases(seed, subjects=subjects, tasks=2), 1000, seed=seed)
            estimates = (result.overall, *result.by_dataset.values())
            hits.append([estimate.low <= 0.5 <= estimate.high for estimate in estimates])
        overall, by_dataset = np.mean(hits, 0)[0], np.mean(np.array(hits)[:, 1:])
        with capsys.disabled():
            print(f"\n{subjects} subjects: coverage {overall:.1%} over all, {by_dataset:.1%} by dataset")
    assert 0.93 <= overall <= 0.97
    assert 0.92 <= by_dataset <= 0.97  # 30 subjects each; the overall mean has three times as many


@pytest.mark.slow
def test_the_coverage_over_datasets_grows_with_their_number(capsys):
    """1,000 simulations whose datasets differ by more than the sampling of 20 subjects explains."""
    coverage = []
    for datasets in (3, 5, 10):
        hits, alone = [], []
        for seed in range(1000):
            cases = simulated_cases(seed, datasets, subjects=20, tasks=2, spread=0.15)
            result = interval(cases, 1000, seed=seed)
            hits.append(result.over_datasets.low <= 0.5 <= result.over_datasets.high)
            alone.append(result.overall.low <= 0.5 <= result.overall.high)
        coverage.append(np.mean(hits))
        with capsys.disabled():
            print(f"\n{datasets} datasets: coverage {coverage[-1]:.1%}, of subjects alone {np.mean(alone):.1%}")
    assert coverage == sorted(coverage)
    assert 0.88 <= coverage[-1] <= 0.96
    assert np.mean(alone) < 0.7  # the reason for the second interval
