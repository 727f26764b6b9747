"""benchmarks/predict.py at a tiny size."""

import pytest

from benchmarks import predict
from universeg_jax.reports.files import read_json_lines

pytestmark = pytest.mark.slow

TINY = ["--features=4,4", "--image_size=16", "--support=3", "--repeats=1", "--volume=9,8,5", "--queries=3"]


def test_a_second_query_is_timed(tmp_path):
    predict.main([*TINY, "--parts=second", f"--out={tmp_path / 'a.jsonl'}"])
    (row,) = read_json_lines(tmp_path / "a.jsonl")
    assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"] < 60
    assert (row["support"], row["features"], row["image_size"]) == (3, "4,4", 16)
    with pytest.raises(SystemExit):
        predict.main([*TINY, "--parts=third"])


def test_a_mask_and_its_preparation_are_timed(tmp_path):
    predict.main([*TINY, "--parts=mask,prepare", f"--out={tmp_path / 'a.jsonl'}"])
    rows = read_json_lines(tmp_path / "a.jsonl")
    assert [row["name"] for row in rows] == ["a mask, support prepared", "preparing the support"]
    assert all(0 < row["fastest"] <= row["seconds"] <= row["slowest"] < 60 for row in rows)


def test_a_checkpoint_is_not_compared_with_torch(capsys):
    with pytest.raises(SystemExit):
        predict.main(["--checkpoint=small", "--parts=mask,throughput"])
    assert "leave --checkpoint out" in capsys.readouterr().err


def test_a_failed_process_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="ended with 1"):
        predict.command(tmp_path, "query.png", "out", 3)


def test_new_processes_are_timed(tmp_path):
    predict.main([*TINY, "--parts=start,volume", f"--out={tmp_path / 'a.jsonl'}"])
    start, volume = read_json_lines(tmp_path / "a.jsonl")
    assert start["seconds"] > 0.1  # imports alone take longer
    assert 50 < volume["peak_mb"] < 20_000


def test_the_loop_in_torch_is_compared(tmp_path):
    pytest.importorskip("torch")
    predict.main([*TINY, "--image_size=128", "--parts=throughput", f"--out={tmp_path / 'a.jsonl'}"])
    (row,) = read_json_lines(tmp_path / "a.jsonl")
    assert row["ratio"] == pytest.approx(row["queries_a_second"] / row["torch"], rel=0.05)
