"""The report of a sweep: means over seeds, paired differences, seed noise."""

import numpy as np
import pytest
import scipy.stats

from universeg_jax.errors import UserError
from universeg_jax.evaluation.intervals import CaseScores, interval
from universeg_jax.reports.files import write_csv
from universeg_jax.reports.markdown import percent
from universeg_jax.sweeps.report import least_difference, noise_text, write_report
from universeg_jax.sweeps.sweep import Point, SweepOptions


def write_point(folder, values):
    shared = {"method": "model", "dataset": "d", "task": "t", "support_size": 4}
    rows = [{**shared, "subject": f"s{i}", "dice": v, "empty": v is None} for i, v in enumerate(values)]
    write_csv(folder / "cases.csv", rows)
    return folder


def test_seeds_are_averaged_within_a_case(tmp_path):
    values = np.random.default_rng(0).uniform(0.3, 0.9, (2, 12))
    results = tuple(write_point(tmp_path / str(seed), [*values[seed].tolist(), None]) for seed in (0, 1))
    absent = Point("2", (tmp_path / "absent",) * 2)
    rows = write_report("x", [Point("1", results), absent], SweepOptions("", tmp_path), {"r": "why"}, results)
    names = [f"s{i}" for i in range(12)]
    expected = interval(CaseScores(["d"] * 12, ["t"] * 12, names, values.mean(0))).overall
    assert len(rows) == 1
    got = [rows[0][k] for k in ("mean_dice", "ci_low", "ci_high", "seeds", "minus_first")]
    assert got[-1] is None
    np.testing.assert_allclose(got[:-1], [expected.mean, expected.low, expected.high, 2])
    assert "- not finished: r: why" in (tmp_path / "x_test.md").read_text()
    with pytest.raises(UserError, match="no run of the sweep x has a result: why"):
        write_report("x", [absent], SweepOptions("", tmp_path), {"r": "why"}, ())
    with pytest.raises(UserError, match="no run of the sweep x has a result"):  # results of other settings do not count
        write_report("x", [Point("1", results)], SweepOptions("", tmp_path), {"r": "why"}, ())


def test_differences_to_the_first_point_are_paired_over_common_seeds(tmp_path):
    values = np.random.default_rng(0).uniform(0.3, 0.6, (2, 12))
    first = [write_point(tmp_path / f"a{seed}", values[seed].tolist()) for seed in (0, 1)]
    second = [write_point(tmp_path / "b0", (values[0] + 0.1).tolist()), tmp_path / "absent"]
    points, finished = [Point("a", tuple(first)), Point("b", tuple(second))], [*first, second[0]]
    rows = write_report("x", points, SweepOptions("", tmp_path), {}, finished)
    # Every subject has the same difference, so its interval is a point although those of the means are wide.
    got = [rows[1][f"minus_first{end}"] for end in ("", "_low", "_high")]
    np.testing.assert_allclose(got, [0.1] * 3)
    assert rows[1]["ci_high"] - rows[1]["ci_low"] > 0.01
    text = (tmp_path / "x_test.md").read_text()
    assert "| 10.0 | 10.0 to 10.0 |" in text
    assert f"| {percent(rows[1]['mean_dice'])}, - |" in text  # a missing seed keeps its position


def test_the_least_difference_is_that_of_a_paired_t_test():
    """Two points give the paired t-test; with more, 5 % of simulated sweeps without a difference exceed it."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6))
    least, freedom = least_difference(np.stack([a, b]))
    expected = scipy.stats.ttest_rel(a, b)
    assert freedom == expected.df
    assert (abs(a.mean() - b.mean()) > least) == (expected.pvalue < 0.05)
    np.testing.assert_allclose(least, (a - b).std(ddof=1) / np.sqrt(6) * scipy.stats.t.ppf(0.975, 5))
    sweeps = rng.normal(size=(2000, 8, 2)) + 3 * rng.normal(size=(2000, 1, 2))  # seeds shift all points
    wrong = np.mean([abs(x[0].mean() - x[1].mean()) > least_difference(x)[0] for x in sweeps])
    assert abs(wrong - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 2000)


def test_seed_noise_needs_two_points_with_two_common_seeds():
    def rows(*by_seed):
        return [{"by_seed": text} for text in by_seed]

    assert (
        noise_text(rows("0.5 0.6")) == noise_text(rows("0.5 -", "0.6 -")) == noise_text(rows("0.5 0.6", "0.5 -")) == []
    )
    assert "below 0.0 are within seed noise" in noise_text(rows("0.5 0.6", "0.7 0.8", "0.7 -"))[1]
    assert "1 degrees of freedom" in noise_text(rows("0.5 0.6", "0.7 0.9", "0.7 -"))[1]
    assert "for one pair" in noise_text(rows("0.5 0.6", "0.7 0.9"))[1]


def test_seed_noise_uses_the_seeds_that_all_points_share():
    def rows(*by_seed):
        return [{"by_seed": text} for text in by_seed]

    assert noise_text(rows("0.5 0.6 -", "0.7 - 0.9")) == []
    three = rows("0.5 0.6 0.9", "0.7 0.8 0.1", "0.4 0.5 -")
    assert noise_text(three) == noise_text(rows("0.5 0.6", "0.7 0.8", "0.4 0.5"))
    assert (
        "below 0.0 are within seed noise" in noise_text(three)[1]
    )  # the third seed, which one point lacks, is ignored
