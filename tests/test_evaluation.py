"""The evaluation protocol: who supports whom, what is averaged over what, and how sure it is."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import build_discs, memory_dataset
from universeg_jax import evaluation
from universeg_jax.baselines import trivial
from universeg_jax.data.tasks import FIRST, SECOND, dataset_tasks
from universeg_jax.errors import UserError
from universeg_jax.evaluation import (
    Settings,
    bootstrap,
    cases_of,
    draw_support,
    evaluate,
    evaluate_to,
    select,
    subject_means,
    summarize,
    support_pool,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return build_discs(tmp_path_factory.mktemp("data"), "discs", "test", count=20)


def truth(params, episode):
    return episode.query_label


def nan(params, episode):
    return episode.query_label * jnp.nan


def half(params, episode):
    """Every other line of the truth: half of its pixels, none too many."""
    return episode.query_label * (jnp.arange(episode.query_label.shape[1]) % 2 == 0)[None, :, None, None]


@given(seed=st.integers(0, 50), size=st.integers(1, 30), draw=st.integers(0, 5))
def test_supports_come_from_the_support_split_and_repeat_only_above_the_pool(seed, size, draw):
    dataset = memory_dataset("d", "test", [f"s{i % 15}" for i in range(30)], [1] * 30)
    (task,) = dataset_tasks(dataset)
    pool = support_pool(task)
    for case in cases_of(task):
        chosen = draw_support(case, pool, size, draw, seed)
        assert case.subject not in pool.subjects[chosen]
        assert len(np.unique(chosen)) == min(size, len(pool)) or size > len(pool)
        np.testing.assert_array_equal(chosen, draw_support(case, pool, size, draw, seed))


def test_a_query_subject_in_the_pool_is_refused():
    dataset = memory_dataset("d", "test", [f"s{i}" for i in range(5)], [1] * 5)
    (task,) = dataset_tasks(dataset)
    with pytest.raises(ValueError, match="is in the support pool"):
        draw_support(cases_of(task)[0], task.side(SECOND), 1, 0, 0)


def test_smaller_pools_and_fewer_cases_are_subsets():
    dataset = memory_dataset("d", "test", [f"s{i}" for i in range(50)], [1] * 50)
    (task,) = dataset_tasks(dataset)
    pools = [set(support_pool(task, n).rows.tolist()) for n in (1, 4, 16, 0)]
    assert [len(p) for p in pools] == [1, 4, 16, 30]
    assert pools[0] < pools[1] < pools[2] < pools[3] == set(task.side(FIRST).rows.tolist())
    assert {c.row for c in cases_of(task, 3)} < {c.row for c in cases_of(task, 7)} < {c.row for c in cases_of(task)}


def test_a_perfect_method_scores_1_and_half_of_the_truth_two_thirds(dataset):
    tasks = dataset_tasks(dataset)
    rows = evaluate({"truth": (truth, None), "half": (half, None)}, [dataset], tasks, Settings((2,)), progress=False)
    assert len(rows) == 2 * len(cases_of(tasks[0]))
    assert summarize(rows, "truth", 2, 1)["mean_dice"] == 1
    assert abs(summarize(rows, "half", 2, 1)["mean_dice"] - 2 / 3) < 0.02
    assert {row["effective_support"] for row in rows} == {2}


def test_batch_size_and_order_change_nothing(dataset):
    tasks = dataset_tasks(dataset)
    method = {"mean": (trivial.mean_mask, None)}
    rows = [evaluate(method, [dataset], tasks, Settings((3,), (1, 2), batch_size=b), progress=False) for b in (1, 3, 8)]
    assert rows[0] == rows[1] == rows[2]


def test_an_ensemble_averages_probabilities_of_its_draws(dataset):
    tasks = dataset_tasks(dataset)
    rows = evaluate({"m": (trivial.mean_mask, None)}, [dataset], tasks, Settings((1,), (1, 3)), progress=False)
    one, three = ([r for r in rows if r["ensemble"] == k] for k in (1, 3))
    assert all(r["dice"] == r["single_dice"] for r in one)
    assert any(r["dice"] != r["single_dice"] for r in three)
    # A vote of three single supports, computed by hand for the first case.
    case, pool = cases_of(tasks[0])[0], support_pool(tasks[0])
    settings = Settings((1,), (3,))
    episode, _ = evaluation.gather([case], {"discs": dataset}, settings, 1, 1)
    for k in range(3):
        row = int(pool.rows[draw_support(case, pool, 1, k, 0)[0]])
        np.testing.assert_array_equal(episode.support_labels[0, k, 0, ..., 0], dataset[row]["masks"][0])
    floats = evaluation.to_device_floats(episode, 128)
    vote = (np.asarray(floats.support_labels)[0, :, 0].mean(0) >= 0.5)[..., 0]
    target = np.asarray(floats.query_label)[0, ..., 0] > 0
    expected = 2 * (vote & target).sum() / (vote.sum() + target.sum())
    np.testing.assert_allclose(three[0]["dice"], expected, rtol=1e-6)


def test_a_prediction_that_is_not_finite_is_named(dataset):
    with pytest.raises(FloatingPointError, match="m predicts NaN or inf: task discs/"):
        evaluate(
            {"m": (nan, None)},
            [dataset],
            dataset_tasks(dataset),
            Settings((1,)),
            False,
        )


def row(subject, task, dice, empty=False):
    return {"subject": subject, "task": task, "dice": dice, "single_dice": dice, "empty": empty}


def test_slices_are_averaged_by_subject_then_task_and_empty_truths_left_out():
    rows = [
        row("a", "t", 1.0),
        row("a", "t", 0.0),
        row("b", "t", 0.8),
        row("b", "t", 0.0, empty=True),
        row("b", "u", 0.2),
    ]
    means, subjects, tasks = subject_means(rows)
    assert (subjects, tasks) == (["a", "b"], ["t", "u"])
    np.testing.assert_array_equal(means, [[0.5, np.nan], [0.8, 0.2]])
    extra = {"method": "m", "dataset": "d", "support_size": 1, "ensemble": 1, "effective_support": 1}
    summary = summarize([{**r, **extra, "false_positive_area": 0.1} for r in rows], "m", 1, 1)
    assert summary["mean_dice"] == pytest.approx(np.mean([0.65, 0.2]))
    assert summary["datasets"]["d"]["n_empty"] == 1
    assert summary["datasets"]["d"]["false_positive_area_on_empty"] == pytest.approx(0.1)
    assert summary["datasets"]["d"]["n_subjects"] == 2


def test_the_bootstrap_has_the_spread_of_a_mean():
    means = np.random.default_rng(0).normal(0.7, 0.1, (200, 1))
    spread = bootstrap(means, 5000)
    np.testing.assert_allclose(spread.mean(), means.mean(), atol=0.002)
    np.testing.assert_allclose(spread.std(), means.std() / np.sqrt(200), rtol=0.1)
    # A subject is drawn once for all its tasks: copies of one task add no certainty.
    np.testing.assert_allclose(bootstrap(np.repeat(means, 5, 1), 5000).std(), spread.std(), rtol=0.1)


def test_files_and_what_is_skipped(dataset, tmp_path):
    lone = memory_dataset("lone", "test", ["a", "a"], [1, 1])
    settings = Settings((1, 3), (1, 2))
    summary = evaluate_to(tmp_path, {"m": (truth, None)}, [dataset, lone], settings, {"role": "test"})
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (summary["support_size"], summary["ensemble"], summary["mean_dice"]) == (3, 2, 1.0)
    assert len(summary["settings"]) == 4
    assert set(summary["datasets"]) == {"discs"}
    assert set(summary["datasets"]["discs"]) >= {"dice", "ci_low", "ci_high", "n_cases", "n_subjects"}
    assert "1 subjects, 3 needed" in summary["skipped"]["lone"]
    lines = (tmp_path / "cases.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * summary["datasets"]["discs"]["n_cases"]


def test_what_is_not_built_is_named_with_what_is(dataset):
    with pytest.raises(UserError, match=r"not built in D: other; there: discs \(test\)"):
        select([dataset], "D", ("other",))
    with pytest.raises(UserError, match="no dataset with role 'val'"):
        select([dataset], "D", role="val")
    with pytest.raises(UserError, match="support_size"):
        Settings((0,))
