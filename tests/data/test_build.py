"""`universeg build` of folders and collections."""

import json
import re
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from tests.fixtures import write_folder
from universeg_jax import data
from universeg_jax.cli import main
from universeg_jax.data import build, builder
from universeg_jax.data.dataset import list_datasets, open_dataset, read_report


def test_a_folder_becomes_a_dataset_and_is_not_built_twice(tmp_path, capsys):
    write_folder(tmp_path / "scans", count=5, ids=(1, 2))
    arguments = ["build", "--folder", str(tmp_path / "scans"), "--name", "mine", "--data_dir", str(tmp_path / "data")]
    assert main([*arguments, "--size", "32", "--role", "val"]) == 0
    assert "| mine | val | 5 | 5 | 2 | 0 | built |" in capsys.readouterr().out
    dataset = open_dataset(tmp_path / "data", "mine")
    assert (dataset.meta.size, dataset.meta.role, dataset.meta.labels) == (32, "val", {1: "label 1", 2: "label 2"})
    assert main([*arguments, "--size", "32", "--role", "val"]) == 0
    assert "as it was" in capsys.readouterr().out
    assert main([*arguments, "--size", "32", "--role", "val", "--overwrite"]) == 0
    assert "| built |" in capsys.readouterr().out
    assert open_dataset(tmp_path / "data", "mine").fingerprint == dataset.fingerprint
    assert main([*arguments, "--size", "32", "--role", "test"]) == 0  # the role is part of the dataset
    assert open_dataset(tmp_path / "data", "mine").meta.role == "test"


def test_dropped_and_skipped_files_are_reported_and_kept(tmp_path, capsys):
    folder = write_folder(tmp_path / "scans", count=5, ids=(1, 2))
    arguments = ["build", "--folder", str(folder), "--data_dir", str(tmp_path / "data"), "--size", "16"]
    assert main(arguments) == 0
    Image.new("L", (30, 20), 9).save(folder / "images" / "p0_0.png")  # constant: nothing to see
    (folder / "labels" / "p3_0.png").write_bytes(b"")
    (folder / "images" / "notes.txt").write_text("check the artefacts")
    (folder / "meta.json").write_text(json.dumps({"labels": {"1": "a", "2": "b", "9": "never seen"}}))
    capsys.readouterr()
    errors = []
    for state in ("built", "as it was"):
        assert main(arguments) == 0
        output = capsys.readouterr()
        assert f"| scans | test | 3 | 3 | 2 | 2 | {state} |" in output.out
        errors.append(output.err)
    for word in (
        "scans: dropped 1: every pixel is the same: p0_0\n", "scans: dropped 1: cannot be read: p3_0\n",
        "scans: skipped: images/notes.txt\n", "scans: labels that never occur: 9 (never seen)\n",
    ):  # fmt: skip
        assert all(word in each for each in errors), errors
    report = read_report(tmp_path / "data", "scans")
    assert report.dropped_by_problem == {"every pixel is the same": 1, "cannot be read": 1}
    assert report.dropped["p0_0"] == "every pixel is the same (9; there is nothing to see in it)"
    assert report.labels_never_seen == {"9": "never seen"}
    assert str(tmp_path) not in json.dumps(vars(report))


def test_the_voxels_beside_a_mhd_are_part_of_the_input(tmp_path, capsys):
    folder = tmp_path / "scans"
    arguments = ["build", "--folder", str(folder), "--data_dir", str(tmp_path / "data"), "--size", "16"]

    def write(radius):
        for i in range(3):
            mask = np.pad(np.ones((radius,) * 3), 12 - radius)[-16:, -16:, -16:]
            for part, voxels in (("images", mask * 100 + np.arange(16)), ("labels", mask)):
                (folder / part).mkdir(parents=True, exist_ok=True)
                image = sitk.GetImageFromArray(voxels.astype(np.int16))
                sitk.WriteImage(image, folder / part / f"p{i}_0.mhd")

    write(4)
    assert main(arguments) == 0
    before = open_dataset(tmp_path / "data", "scans").fingerprint
    assert "skipped" not in capsys.readouterr().err
    assert main(arguments) == 0
    assert "as it was" in capsys.readouterr().out
    headers = [path.read_bytes() for path in sorted((folder / "labels").glob("*.mhd"))]
    write(6)
    assert headers == [path.read_bytes() for path in sorted((folder / "labels").glob("*.mhd"))]
    assert main(arguments) == 0
    assert "| built |" in capsys.readouterr().out
    assert open_dataset(tmp_path / "data", "scans").fingerprint != before


@pytest.mark.parametrize(
    ("file", "contents"),
    [
        ("labels/p1_0.png", None),  # other pixels
        ("meta.json", '{"modality": "CT"}'),
        ("meta.json", '{"subjects_identifiable": false}'),
    ],
)
def test_any_change_in_a_folder_rebuilds_it(tmp_path, capsys, file, contents):
    folder = write_folder(tmp_path / "scans", count=3)
    arguments = ["build", "--folder", str(folder), "--data_dir", str(tmp_path / "data"), "--size", "16"]
    assert main(arguments) == 0
    before = open_dataset(tmp_path / "data", "scans").fingerprint
    if contents is None:
        label = Image.open(folder / file)
        label.putpixel((0, 0), 1)
        label.save(folder / file)
    else:
        (folder / file).write_text(contents)
    capsys.readouterr()
    assert main(arguments) == 0
    assert "| built |" in capsys.readouterr().out
    if contents:
        assert open_dataset(tmp_path / "data", "scans").fingerprint != before


def test_the_same_files_in_another_place_give_the_same_bytes(tmp_path):
    for place in ("a", "b"):
        folder = write_folder(tmp_path / place / "scans", count=3)
        (folder / "images" / "p1_0.png").write_bytes(b"")
        assert main(["build", "--folder", str(folder), "--data_dir", str(tmp_path / place / "data")]) == 0
    first, second = (
        {p.relative_to(tmp_path / place): p.read_bytes() for p in (tmp_path / place / "data").rglob("*") if p.is_file()}
        for place in ("a", "b")
    )
    assert first == second


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
    ("splits", "word"),
    [
        ("{", "in JSON; it is not: JSONDecodeError"),
        ("[]", "it is not: TypeError"),
        ('{"source_groups": []}', "it is not: KeyError 'roles'"),
        ('{"roles": {"train": ["one"]}}', "roles .'train'.; there are train_open"),
        ('{"roles": {"test": ["one"], "val": ["one"]}}', "one in two roles"),
        ('{"roles": {"test": ["one"]}, "source_groups": [["one", "x"], ["one", "y"]]}', "one in two source groups"),
        ('{"roles": {"test": []}}', "no dataset with role"),
        ('{"roles": {"test": ["absent"]}}', "absent/images is missing"),
    ],
)
def test_a_wrong_splits_file_is_named(tmp_path, capsys, splits, word):
    write_folder(tmp_path / "one", count=3)
    (tmp_path / "splits.json").write_text(splits)
    assert main(["build", "--collection", str(tmp_path), "--data_dir", str(tmp_path / "data"), "--workers", "1"]) == 1
    error = capsys.readouterr().err
    assert re.search(word, error), error
    assert error.count("\n") == 1


def test_a_name_is_checked(tmp_path, capsys):
    folder = write_folder(tmp_path / "scans", count=3)
    assert main(["build", "--folder", str(folder), "--name", "a", "--data_dir", str(tmp_path / "data")]) == 0
    assert main(["build", "--folder", str(folder), "--name", "a b", "--data_dir", str(tmp_path / "data")]) == 1
    assert capsys.readouterr().err.startswith("universeg build: dataset name 'a b'")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--folder", "nowhere"], "nowhere"),
        (["--folder", "scans", "--name", "Bad Name"], "lower-case"),
        (["--folder", "scans", "--data_dir", "scans/images/p0_0.png"], "p0_0.png"),
        (["--folder", "scans", "--data_dir", "."], "scans exists and is no built dataset"),
        (["--folder", "scans", "--size", "2"], "at least 8"),
        (["--folder", "odd"], "no example is left of 3 cases (p0_0: image and label differ in size; p1_0"),
        (["--collection", "scans"], "splits.json is missing"),
    ],
)
def test_mistakes_end_with_one_line_and_code_1(tmp_path, monkeypatch, capsys, arguments, word):
    write_folder(tmp_path / "scans", count=3)
    write_folder(tmp_path / "odd", count=3)
    for i in range(3):
        Image.new("L", (31, 20), i).save(tmp_path / "odd" / "labels" / f"p{i}_0.png")
    monkeypatch.chdir(tmp_path)
    assert main(["build", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("universeg build: ")
    assert word in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "data").glob("*")) + list((tmp_path / "data").glob(".*"))
    assert len(list((tmp_path / "scans").rglob("*.png"))) == 6


def test_a_change_of_colours_or_of_an_inner_file_is_built_anew(tmp_path, capsys):
    folder = write_folder(tmp_path / "scans", count=3, ids=(1, 2))
    for file in (folder / "labels").iterdir():
        Image.fromarray(np.diag([0, 200, 100]).astype(np.uint8)[np.asarray(Image.open(file))]).save(file)
    arguments = ["build", "--folder", str(folder), "--size", "16", "--data_dir", str(tmp_path / "data")]
    areas = []
    for colours in ({"1": "#00c800", "2": "#000064"}, {"2": "#00c800", "1": "#000064"}):
        (folder / "meta.json").write_text(json.dumps({"colours": colours}))
        assert main(arguments) == 0
        assert "| built |" in capsys.readouterr().out
        index = open_dataset(tmp_path / "data", "scans").index
        areas.append([index.mask_area[index.mask_label == i].tolist() for i in (1, 2)])
    assert areas[0] == areas[1][::-1]
    inner = tmp_path / "a.ome.zarr" / "0" / "0.0"
    inner.parent.mkdir(parents=True)
    digests = []
    for content in (b"1", b"2"):
        inner.write_bytes(content)
        digests.append(build._digest_of(str(tmp_path / "a.ome.zarr")))
    assert digests[0] != digests[1]


def add_alpha(path):
    """Keeps a label in the alpha channel of a white image, on which its reader leaves a note."""
    mask = Image.open(path)
    Image.merge("LA", [Image.new("L", mask.size, 255), mask]).save(path)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_notes_of_the_readers_reach_the_user_and_the_report(tmp_path, capsys, monkeypatch, workers):
    monkeypatch.setattr(builder, "SECONDS_TO_START", 0.0)  # worker processes even for so few files
    folder = write_folder(tmp_path / "scans", count=3)
    for i in (0, 2):
        add_alpha(folder / "labels" / f"p{i}_0.png")
    (folder / "meta.json").write_text(json.dumps({"labels": {"1": "a"}}))
    arguments = ["build", "--folder", str(folder), "--size", "16", "--workers", workers]
    assert main([*arguments, "--data_dir", str(tmp_path / "data")]) == 0
    line = "labels/p0_0.png and 1 more: the colours are the same everywhere, so its alpha is taken as the mask"
    assert f"scans: {line}\n" in capsys.readouterr().err
    assert read_report(tmp_path / "data", "scans").notes == (line,)


def test_beam_with_two_workers_gives_the_same_bytes(tmp_path, capsys):
    pytest.importorskip("apache_beam", reason="needs universeg_jax[beam]")
    folder = write_folder(tmp_path / "scans", count=7, ids=(1, 2))
    (folder / "labels" / "p3_0.png").write_bytes(b"")
    add_alpha(folder / "labels" / "p5_0.png")
    (folder / "meta.json").write_text(json.dumps({"labels": {"1": "a", "2": "b"}}))
    arguments = ["build", "--folder", str(folder), "--size", "16", "--workers", "2"]
    assert main([*arguments, "--data_dir", str(tmp_path / "one")]) == 0
    assert main([*arguments, "--data_dir", str(tmp_path / "two"), "--beam"]) == 0
    output = capsys.readouterr()
    assert output.out.count("| scans | test | 6 | 6 | 2 | 1 | built |") == 2
    assert output.err.count("scans: dropped 1: cannot be read: p3_0\n") == 2
    assert output.err.count("scans: labels/p5_0.png: the colours are the same everywhere") == 2
    one, two = (
        {p.relative_to(tmp_path / place): p.read_bytes() for p in (tmp_path / place).rglob("*") if p.is_file()}
        for place in ("one", "two")
    )
    assert one == two
    (folder / "meta.json").write_text(json.dumps({"labels": {"1": "a"}}))
    assert main([*arguments, "--data_dir", str(tmp_path / "two"), "--beam"]) == 1
    assert "no example is left of 7 cases; build it without --beam" in capsys.readouterr().err
    assert open_dataset(tmp_path / "two", "scans").meta.labels == {1: "a", 2: "b"}  # the previous one stays


def test_without_beam_the_remedy_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "universeg_jax.data.beam", raising=False)
    monkeypatch.delattr(data, "beam", raising=False)  # where Beam is installed, an earlier test may have imported it
    folder = write_folder(tmp_path / "scans", count=3)
    assert main(["build", "--folder", str(folder), "--data_dir", str(tmp_path / "data"), "--beam"]) == 1
    assert "pip install 'universeg_jax[beam]'" in capsys.readouterr().err
