"""`universeg compare`: which cases are compared, and what it reports."""

import json

import numpy as np
import pytest

from tests.fixtures import build_discs
from universeg_jax.cli import main
from universeg_jax.errors import UserError
from universeg_jax.evaluation import trivial
from universeg_jax.evaluation.cases import Settings
from universeg_jax.evaluation.comparison import compare, comparison_markdown
from universeg_jax.evaluation.runner import evaluate_to
from universeg_jax.reports.files import write_csv, write_json


def rows(gain=0.0, subjects=20, datasets=("d", "e"), sizes=(1, 4), method="model", seed=0):
    """Cases of two slices a subject; the second one of s0 has an empty truth."""
    rng = np.random.default_rng(seed)
    return [
        {
            "method": method, "dataset": dataset, "task": f"{dataset}/t", "subject": f"s{i // 2}", "row": i,
            "support_size": size, "empty": i == 1, "ensemble": 1,
            "dice": rng.uniform(0.2, 0.8) + gain * size, "false_positive_area": 0.01,
        }
        for size in sizes for dataset in datasets for i in range(2 * subjects)
    ]  # fmt: skip


def write(path, cases, notes=()):
    write_csv(path / "cases.csv", cases)
    write_json(path / "summary.json", {"notes": list(notes)})
    return path


def test_a_known_gain_at_the_largest_common_support_size(tmp_path):
    a, b = write(tmp_path / "a", rows(sizes=(1, 4, 16))), write(tmp_path / "b", rows(0.01, sizes=(1, 4))[::-1])
    result = compare(a, b, resamples=200)
    assert (result["support_size"], result["ensemble"], result["matched"], result["left_out"]) == (4, 1, 80, 2)
    assert (result["only_a"], result["only_b"]) == (0, 0)
    for row in (*result["datasets"].values(), result["all"], result["all_datasets_resampled"]):
        np.testing.assert_allclose([row["difference"], row["low"], row["high"], row["b"] - row["a"]], 0.04)
        assert row["p"] == 2 / 201
    assert (result["datasets"]["d"]["resampled"], result["all"]["resampled"]) == (20, 40)
    assert compare(a, b, support_size=1, resamples=200)["all"]["difference"] == pytest.approx(0.01)


def test_means_are_those_of_the_evaluation(tmp_path):
    dataset = build_discs(tmp_path / "data", "discs", "test", count=20)
    methods = {"mean": (trivial.mean_mask, None), "nearest": (trivial.nearest_label, None)}
    summary = evaluate_to(tmp_path / "out", methods, [dataset], Settings((1, 3)), {}, with_report=False)
    result = compare(tmp_path / "out", tmp_path / "out", ("mean", "nearest"), resamples=200)
    of_nearest = next(s for s in summary["settings"] if (s["method"], s["support_size"]) == ("nearest", 3))
    np.testing.assert_allclose([result["all"][x] for x in "ab"], [summary["mean_dice"], of_nearest["mean_dice"]])
    assert result["datasets"]["discs"]["resampled"] == summary["datasets"]["discs"]["n_subjects"]
    assert result["all_datasets_resampled"]["p"] is None  # no interval from a single dataset


def test_cases_without_a_partner_are_counted_and_left_out(tmp_path):
    a, b = write(tmp_path / "a", rows(sizes=(4,))[5:]), write(tmp_path / "b", rows(sizes=(4,), datasets=("d",))[:30])
    result = compare(a, b, resamples=200)
    assert (result["matched"], result["only_a"], result["only_b"]) == (25, 50, 5)
    assert result["all"]["difference"] == 0
    text = comparison_markdown(result)
    assert "25 cases are in both, 0 of them left out for an empty truth; 50 are only in A, 5 only in B." in text
    assert "Interval too narrow, fewer than 15 subjects: d." in text


def test_the_score_of_empty_truths_uses_only_those_cases(tmp_path):
    a = write(tmp_path / "a", rows(sizes=(4,)))
    result = compare(a, a, score="false_positive_area", resamples=200)
    assert (result["matched"], result["left_out"], result["datasets"]["d"]["resampled"]) == (80, 78, 1)
    assert result["datasets"]["d"]["p"] is None
    assert "| d | 1.0 | 1.0 | +0.0 |  |  | 1 subjects |" in comparison_markdown(result)


def test_distances_in_different_units_are_refused(tmp_path):
    far = [{**r, "hd95": 3.5, "distance_unit": "pixels"} for r in rows(sizes=(4,))]
    a = write(tmp_path / "a", far)
    assert "; hd95 (pixels), " in comparison_markdown(compare(a, a, score="hd95", resamples=100))
    b = write(tmp_path / "b", [{**r, "distance_unit": "mm"} for r in far])
    with pytest.raises(UserError, match="hd95 is in mm and in pixels"):
        compare(a, b, score="hd95", resamples=100)


def test_the_command_prints_and_writes_the_same_table(tmp_path, capsys):
    a = write(tmp_path / "a", rows(), ["image-level split, interval optimistic: d"])
    b = write(tmp_path / "b", rows(-0.01), ["image-level split, interval optimistic: d"])
    assert main(["compare", str(a), str(b), "--resamples=5000", "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert text == (tmp_path / "out" / "compare.md").read_text()
    assert "| -4.0 | -4.0 to -4.0 | < 0.001 | 20 subjects |" in text
    assert text.count("image-level split, interval optimistic: d.") == 1
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == compare(a, b, resamples=5000)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"task": "other"}, {}, "have no case in common by dataset, task, subject, row"),
        ({"empty": True}, {}, "an empty truth in only one"),
        ({"row": 0}, {}, "40 cases occur twice in cases.csv"),
        ({"support_size": 2}, {}, r"no support_size is in both: A has \[4\], B \[2\]"),
        ({"dice": ""}, {}, "dice of d/t, subject s0 is '', not a number"),
        ({"dice": "nan"}, {}, "task d/t, subject s0 is nan"),
        ({}, {"methods": ("model", "other")}, "method other is not in .*; available: model"),
        ({}, {"support_size": 3}, "support_size 3 is not in .*; available: 4"),
        ({}, {"score": "hd95"}, "lacks the columns hd95; it has: method, dataset"),
    ],
)
def test_evaluations_that_cannot_be_compared_are_refused(tmp_path, change, options, message):
    a = write(tmp_path / "a", rows(sizes=(4,)))
    b = write(tmp_path / "b", [{**row, **change} for row in rows(sizes=(4,))])
    with pytest.raises(UserError, match=message):
        compare(a, b, resamples=100, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "cases.csv; `universeg evaluate"),
        (["--method=model"], "--method=model: give two names"),
        (["--resamples=5"], "--resamples=5: use at least 100"),
    ],
)
def test_errors_of_the_command_take_one_line(tmp_path, capsys, arguments, message):
    assert main(["compare", str(tmp_path), str(tmp_path), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
