"""Simulated strokes, and the lines of `benchmarks.corrections`."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import corrections
from tests.fixtures import build_discs
from universeg_jax.prediction.predictor import Predictor


@given(seed=st.integers(0, 1000))
def test_a_stroke_mends_something_and_breaks_nothing(seed):
    rng = np.random.default_rng(seed)
    truth, mask = (rng.random((2, 4, 4)) < 0.5).repeat(8, 1).repeat(8, 2)
    drawn = corrections.stroke(mask, truth)
    assert drawn.sum() <= (2 * corrections.RADIUS + 1) ** 2
    assert len(np.unique(truth[drawn])) == (mask != truth).any()  # one label, or nothing to mend
    assert (mask[drawn] != truth[drawn]).any() == (mask != truth).any()


def test_the_first_stroke_is_in_the_middle_of_the_largest_error():
    truth, mask = np.zeros((2, 40, 40), bool)
    truth[10:31, 10:31] = True
    mask[0, 0] = True
    drawn = corrections.stroke(mask, truth)
    assert drawn[20, 20]
    np.testing.assert_array_equal(np.flatnonzero(drawn.any(1)), np.arange(16, 25))


def test_lines(tmp_path, capsys, monkeypatch, predictor):
    monkeypatch.setattr(Predictor, "from_checkpoint", lambda path: predictor)
    build_discs(tmp_path, "discs", "val", count=8, size=128)
    build_discs(tmp_path, "others", "test", count=8, size=128)
    corrections.main([f"--data_dir={tmp_path}", "--support_size=2", "--max_cases=2", "--strokes=2"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["strokes"] for line in lines] == [0, 1, 2]
    assert lines[0]["guided"] == lines[0]["painted"]
    assert all(line["guided_sets"].keys() == {"discs"} for line in lines)
    for line in lines[1:]:
        assert np.isclose(line["gain"][0], line["guided"][0] - line["painted"][0], atol=0.11)
    painted = [line["painted"][0] for line in lines]
    assert painted == sorted(painted)
