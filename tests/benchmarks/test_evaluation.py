"""The benchmark of evaluation runs on tiny data; its numbers are meaningless."""

import json

import pytest

from benchmarks import evaluation
from tests.fixtures import build_discs

pytestmark = pytest.mark.slow

TINY = ["--support_size=2", "--ensemble=2", "--max_cases=2", "--batch_size=2", "--features=2", "--rounds=1"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    build_discs(path, "discs", "test", count=8, size=128)
    return str(path)


def lines_of(capsys):
    return {line["benchmark"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}


def test_every_part_except_pytorch_prints_a_line(data_dir, tmp_path, capsys):
    only = "--only=batched,compiled,surfaces,memory"
    evaluation.main([f"--data_dir={data_dir}", *TINY, only, "--repeat=2", f"--out={tmp_path / 'lines.jsonl'}"])
    lines = lines_of(capsys)
    assert lines.keys() == {"batched", "compiled", "surfaces", "memory"}
    assert {line["cases"] for line in lines.values()} == {2}
    assert all(lines[part]["seconds"] > 0 for part in ("batched", "compiled", "surfaces"))
    assert lines["compiled"]["share"] > 0
    assert lines["memory"]["peak_mb"] > 50
    assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == 4
    evaluation.main([f"--data_dir={data_dir}", *TINY, only, "--repeat=2", f"--out={tmp_path / 'lines.jsonl'}"])
    assert not lines_of(capsys)  # no measurement is repeated


def test_the_loop_in_pytorch(data_dir, capsys):
    pytest.importorskip("torch", reason="torch is not installed; the benchmark compares with it")
    evaluation.main([f"--data_dir={data_dir}", *TINY, "--only=torch,batched"])
    lines = lines_of(capsys)
    ratio = lines["torch"]["seconds"] / lines["batched"]["seconds"]
    assert lines["batched"]["ratio"] == pytest.approx(ratio, rel=0.1, abs=0.01)


def test_an_unknown_part_is_refused(data_dir):
    with pytest.raises(SystemExit, match="wrong is not one of torch, batched"):
        evaluation.main([f"--data_dir={data_dir}", "--only=wrong"])
