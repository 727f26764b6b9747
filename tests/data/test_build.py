"""The build command, as it is typed."""

import json

import pytest
from PIL import Image

from tests.fixtures import write_folder
from universeg_jax.cli import main
from universeg_jax.data.builder import list_datasets, open_dataset, read_report


def test_a_folder_becomes_a_dataset_and_is_not_built_twice(tmp_path, capsys):
    write_folder(tmp_path / "scans", count=5, ids=(1, 2))
    arguments = ["build", "--folder", str(tmp_path / "scans"), "--name", "mine", "--data_dir", str(tmp_path / "data")]
    assert main([*arguments, "--size", "32", "--role", "val"]) == 0
    assert "| mine | val | 5 | 5 | 0 | built |" in capsys.readouterr().out
    dataset = open_dataset(tmp_path / "data", "mine")
    assert (dataset.meta.size, dataset.meta.role, dataset.meta.labels) == (32, "val", {1: "label 1", 2: "label 2"})
    assert main([*arguments, "--size", "32", "--role", "val"]) == 0
    assert "as it was" in capsys.readouterr().out
    Image.new("L", (30, 20), 9).save(tmp_path / "scans" / "images" / "p0_0.png")  # constant: nothing to see
    assert main([*arguments, "--size", "32", "--role", "val"]) == 0
    output = capsys.readouterr()
    assert "| mine | val | 4 | 4 | 1 | built |" in output.out
    assert "p0_0.png: every pixel is 9" in output.err
    assert list(read_report(tmp_path / "data", "mine")["dropped"]) == [str(tmp_path / "scans" / "images" / "p0_0.png")]


def test_a_collection_gives_roles_and_groups(tmp_path, capsys):
    for name in ("one", "two", "three"):
        write_folder(tmp_path / "all" / name, count=3)
    splits = {"roles": {"train_open": ["one", "two"], "test": ["three"]}, "source_groups": [["two", "one"]]}
    (tmp_path / "all" / "splits.json").write_text(json.dumps(splits))
    arguments = ["build", "--collection", str(tmp_path / "all"), "--data_dir", str(tmp_path / "data"), "--size", "16"]
    assert main([*arguments, "--roles", "train_open"]) == 0
    assert list_datasets(tmp_path / "data") == ["one", "two"]
    assert {open_dataset(tmp_path / "data", name).meta.source_group for name in ("one", "two")} == {"one+two"}
    assert main(arguments) == 0
    assert open_dataset(tmp_path / "data", "three").meta.role == "test"
    assert main([*arguments, "--roles", "training"]) == 1
    assert "training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--folder", "nowhere"], "nowhere"),
        (["--folder", "scans", "--name", "Bad Name"], "lower-case"),
        (["--folder", "scans", "--data_dir", "scans/images/p0_0.png"], "p0_0.png"),
        (["--collection", "scans"], "splits.json is missing"),
    ],
)
def test_mistakes_end_with_one_line_and_code_1(tmp_path, monkeypatch, capsys, arguments, word):
    write_folder(tmp_path / "scans", count=3)
    monkeypatch.chdir(tmp_path)
    assert main(["build", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("universeg build: ")
    assert word in error
    assert error.count("\n") == 1
    assert not (tmp_path / "data" / "scans").exists()
