"""The benchmark of what to label next scores what it says, and takes no other data than `val`."""

import json

import numpy as np
import pytest

from benchmarks import annotation
from tests.fixtures import disc
from universeg_jax.errors import UserError


def test_work_saved_is_a_share_of_drawing_from_nothing():
    truth = disc(32, (16, 16), 8)
    off = np.roll(truth, 1, 1)
    pixels, points = annotation.work(np.stack([truth, off, 0 * truth]).astype(float), np.stack([truth] * 3))
    np.testing.assert_allclose(pixels, [1, 1 - (truth != off).sum() / truth.sum(), 0])
    np.testing.assert_allclose(points, [1, 1, 0])  # an outline one pixel beside it need not be drawn again
    assert annotation.expected_dice(np.stack([truth, 0.5 * truth]).astype(float)).tolist() == [1, pytest.approx(2 / 3)]


def test_only_val_is_taken(data_dir):
    assert len(annotation.read_set(data_dir, "val_discs", 5)) == 5
    with pytest.raises(UserError, match="has the role test"):
        annotation.read_set(data_dir, "test_discs", 5)


def test_every_policy_gets_a_line_and_a_rerun_resumes(data_dir, tmp_path, predictor, monkeypatch, capsys):
    monkeypatch.setattr(annotation.Predictor, "from_checkpoint", lambda path: predictor)
    monkeypatch.setattr(annotation, "COUNTS", (1, 2))
    pool = annotation.read_set(data_dir, "val_discs", 5)
    big = np.kron(pool.images, np.ones((8, 8), np.float32)), np.kron(pool.masks, np.ones((8, 8), np.uint8))
    large = type(pool)(*big, pool.labels, pool.names, pool.subjects)
    monkeypatch.setattr(annotation, "read_set", lambda *_: large)
    arguments = ["annotation", "--data_dir", str(data_dir), "--sets", "val_discs", "--rows", str(tmp_path / "rows")]
    monkeypatch.setattr("sys.argv", arguments)
    annotation.main()
    first = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    rows = [json.loads(line) for line in first]
    assert [(row["policy"], row["labels"]) for row in rows] == [(p, n) for p in annotation.POLICIES for n in (1, 2)]
    assert [row["images_left"] for row in rows] == [4, 3] * 4
    monkeypatch.setattr(annotation, "simulate", None)  # nothing is computed again
    annotation.main()
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")] == first
