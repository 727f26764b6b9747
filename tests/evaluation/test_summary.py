"""Summaries of case rows: the order of averaging, and intervals."""

import numpy as np
import pytest

from universeg_jax.errors import UserError
from universeg_jax.evaluation.intervals import CaseScores, interval
from universeg_jax.evaluation.summary import summarize, summary_markdown


def row(subject, task, dice, empty=False):
    scores = {"dice": dice, "single_dice": dice, "oracle_dice": dice, "sensitivity": 1.0, "precision": 0.5}
    of = {"method": "m", "dataset": "d", "task": task, "subject": subject, "support_size": 1, "ensemble": 1}
    return {**of, **scores, "empty": empty, "effective_support": 1, "false_positive_area": 0.1}


def test_slices_are_averaged_by_subject_then_task_and_empty_truths_left_out():
    rows = [
        row("a", "t", 1.0),
        row("a", "t", 0.0),
        row("b", "t", 0.8),
        row("b", "t", 0.0, empty=True),
        row("b", "u", 0.2),
    ]
    summary = summarize(rows, "m", 1, 1, resamples=200)
    of = summary["datasets"]["d"]
    assert summary["mean_dice"] == of["dice"] == pytest.approx(np.mean([0.65, 0.2]))
    assert of["tasks"] == pytest.approx({"t": 0.65, "u": 0.2})
    assert (of["n_cases"], of["n_empty"], of["n_subjects"]) == (5, 1, 2)
    assert of["false_positive_area_on_empty"] == pytest.approx(0.1)
    assert summary["mean_ci_low"] <= summary["mean_dice"] < summary["mean_ci_high"]
    assert summary["mean_ci_low_over_datasets"] is None  # one dataset tells nothing of others
    assert "mean_hd95" not in summary
    with pytest.raises(UserError, match="no case with a non-empty truth"):
        summarize([row("a", "t", 0.0, empty=True)], "m", 1, 1)


def test_intervals_are_those_of_the_bootstrap_and_other_datasets_widen_them():
    rng = np.random.default_rng(0)
    rows = [
        {**row(f"s{i}", "t", value), "dataset": name}
        for name, centre in (("d", 0.3), ("e", 0.8))
        for i, value in enumerate(rng.normal(centre, 0.1, 20))
    ]
    summary = summarize(rows, "m", 1, 1)
    result = interval(CaseScores(*([r[c] for r in rows] for c in ("dataset", "task", "subject", "dice"))))
    assert (summary["datasets"]["d"]["ci_low"], summary["mean_ci_high"]) == (
        result.by_dataset["d"].low,
        result.overall.high,
    )
    assert summary["mean_ci_low_over_datasets"] == result.over_datasets.low < summary["mean_ci_low"]
    text = summary_markdown(summary)
    assert text.count(" to ") == 4
    assert "mean, for other datasets" in text
