"""The builder: an ordinary TFDS dataset, as a whole or not at all, the same bytes from the same input."""

import dataclasses
import functools
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from tests.fixtures import build_discs, disc_examples, itself
from universeg_jax.data import builder, staging
from universeg_jax.data import dataset as dataset_files
from universeg_jax.data.builder import build, worker_pool
from universeg_jax.data.dataset import (
    BuildError,
    DatasetMeta,
    list_datasets,
    open_dataset,
    read_report,
)
from universeg_jax.data.staging import open_staging
from universeg_jax.readers.cases import Example
from universeg_jax.readers.errors import ImageError

META = DatasetMeta("discs", "train_open", {1: "disc", 2: "never"}, 16, "g", "made", "CC0", "nobody", False)


def test_a_built_dataset_is_read_back(tmp_path):
    examples = disc_examples(5)
    report = build(META, examples, itself, tmp_path)
    dataset = open_dataset(tmp_path, "discs")
    assert dataset.meta == META
    assert len(dataset) == 5
    for row, example in enumerate(examples):
        read = pickle.loads(pickle.dumps(dataset))[row]
        np.testing.assert_array_equal(read["image"], example.image)
        np.testing.assert_array_equal(read["masks"], example.masks)
        assert read["subject"].decode() == example.subject
    assert dataset.index.subjects == tuple(e.subject for e in examples)
    np.testing.assert_array_equal(dataset.index.mask_area, [e.masks.sum() for e in examples])
    assert dataset.index.mask_row.tolist() == list(range(5))
    assert report.labels_never_seen == {"2": "never"}
    assert (report.examples, report.subjects, report.labels, report.dropped) == (5, 5, 1, {})
    assert list_datasets(tmp_path) == ["discs"]


def test_it_is_an_ordinary_tfds_dataset(tmp_path):
    build_discs(tmp_path, "discs", "val", count=4)
    opened = tfds.builder_from_directory(tmp_path / "discs" / dataset_files.VERSION)
    assert opened.info.metadata["role"] == "val"
    assert len(opened.as_data_source(split=dataset_files.SPLIT)) == 4
    assert not any("discs" in name for name in tfds.core.registered.list_imported_builders())


def contents(path):
    path = Path(path)
    return {p.relative_to(path): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_the_same_input_gives_the_same_bytes_whatever_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "SECONDS_TO_START", 0)  # else nothing so small would be worth a process
    cases, processes = list(range(70)), []
    map_in_order = builder._map_in_order
    monkeypatch.setattr(builder, "_map_in_order", lambda *args: processes.append(1) or map_in_order(*args))
    meta = DatasetMeta("d", "val", {1: "x"}, 16)
    build(meta, cases, numbered, tmp_path / "a")
    with worker_pool(2) as pool:
        build(meta, cases, numbered, tmp_path / "b", pool)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")
        assert len(processes) == 1
        with pytest.raises(BuildError, match="worker process died.*fewer --workers"):
            build(meta, [*cases, -1], numbered, tmp_path / "b", pool)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def numbered(case):
    if case < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if case % 10 == 3:
        raise ImageError(f"/some/where/{case}", "is bad", f"as {case}")
    return disc_examples(1, seed=case)


def test_dropped_cases_are_counted_by_problem(tmp_path):
    report = build(DatasetMeta("d", "val", {1: "x"}, 16), list(range(20)), numbered, tmp_path, ignored=("a.txt",))
    assert report.dropped == {"3": "is bad (as 3)", "13": "is bad (as 13)"}  # without the path of the files
    assert report.dropped_by_problem == {"is bad": 2}
    assert len(open_dataset(tmp_path, "d")) == 18
    assert read_report(tmp_path, "d") == report
    with pytest.raises(BuildError, match=r"no example is left of 1 cases \(3: is bad\)"):
        build(DatasetMeta("e", "val", {1: "x"}, 16), [3], numbered, tmp_path)
    with pytest.raises(BuildError, match="no cases were found"):
        build(DatasetMeta("e", "val", {1: "x"}, 16), [], numbered, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def many_masks(case):
    """No mask, one, two: over several subsets, modalities, axes and slicings."""
    masks = np.zeros((case % 3, 8, 8), np.uint8)
    masks[:, : case + 1] = 1
    image = np.full((8, 8), case, np.uint8)
    labels, slicing = (7, 300)[: case % 3], dataset_files.SLICINGS[case % 3]
    where = {"subset": f"set {case % 2}", "modality": "MRé" if case < 3 else "CT", "axis": case % 3}
    return [Example(image, masks, labels, f"s{case // 2}", f"n{case}", slicing=slicing, **where)]


def test_the_index_agrees_with_the_records_and_is_small(tmp_path):
    build(DatasetMeta("d", "val", {7: "a", 300: "b"}, 8), list(range(6)), many_masks, tmp_path)
    dataset = open_dataset(tmp_path, "d")
    index = dataset.index
    at = 0
    for row in range(6):
        read, (example,) = dataset[row], many_masks(row)
        assert read["labels"].tolist() == list(example.labels)
        assert (read["masks"].shape, read["masks"].dtype) == ((row % 3, 8, 8), np.uint8)
        assert index.subjects[index.subject[row]] == read["subject"].decode() == example.subject
        assert index.subsets[index.subset[row]] == read["subset"].decode() == example.subset
        assert index.modalities[index.modality[row]] == read["modality"].decode() == example.modality
        assert index.slicings[index.slicing[row]] == read["slicing"].decode() == example.slicing
        assert index.axis[row] == read["axis"] == example.axis
        for position, (label, mask) in enumerate(zip(example.labels, example.masks, strict=True)):
            columns = (index.mask_row, index.mask_position, index.mask_label, index.mask_area)
            assert [int(column[at]) for column in columns] == [row, position, label, mask.sum()]
            at += 1
    assert at == len(index.mask_row) == 6
    columns = [value for value in vars(index).values() if isinstance(value, np.ndarray)]
    assert sum(column.nbytes for column in columns) / len(dataset) <= 100


def test_the_pixel_table_agrees_with_the_records(tmp_path):
    build(DatasetMeta("d", "val", {7: "a", 300: "b"}, 8), list(range(6)), many_masks, tmp_path)
    dataset = open_dataset(tmp_path, "d")
    rows, positions = dataset.index.mask_row[::-1], dataset.index.mask_position[::-1]
    mapped = dataset.gather(rows, positions)
    for array, name in zip(mapped, ("image", "masks"), strict=True):
        read = [
            dataset[int(r)][name] if name == "image" else dataset[int(r)][name][p]
            for r, p in zip(rows, positions, strict=True)
        ]
        np.testing.assert_array_equal(array, np.stack(read))
        assert array.dtype == np.uint8
    (Path(dataset.directory) / dataset_files.MASK_TABLE).unlink()
    dataset_files._table.cache_clear()
    for array, expected in zip(dataset.gather(rows, positions), mapped, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_a_map_shows_the_smaller_of_two_labels_that_overlap(tmp_path):
    def nested(case):
        masks = np.zeros((2, 8, 8), np.uint8)
        masks[case % 2], masks[1 - case % 2, 2:4, 2:4] = 1, 1
        return [Example(np.zeros((8, 8), np.uint8), masks, (7, 300), f"s{case}", f"n{case}")]

    build(DatasetMeta("d", "val", {7: "a", 300: "b"}, 8), list(range(2)), nested, tmp_path)
    dataset = open_dataset(tmp_path, "d")
    maps = dataset.gather_maps(np.array([1, 0, 1]))
    assert maps.dtype == np.uint8
    for case, labels in zip((1, 0, 1), maps, strict=True):
        expected = np.full((8, 8), 1 + case % 2)
        expected[2:4, 2:4] = 2 - case % 2
        np.testing.assert_array_equal(labels, expected)
    (Path(dataset.directory) / dataset_files.MASK_TABLE).unlink()
    dataset_files._table.cache_clear()
    np.testing.assert_array_equal(dataset.gather_maps(np.array([1, 0, 1])), maps)


def test_the_labels_of_a_map_go_round_after_254(tmp_path):
    def one(case):
        image = np.zeros((8, 8), np.uint8)
        return [Example(image, np.ones((1, 8, 8), np.uint8), (case,), f"s{case}", f"n{case}")]

    build(
        DatasetMeta("d", "val", {label: f"l{label}" for label in range(1, 257)}, 8), [1, 254, 255, 256], one, tmp_path
    )
    maps = open_dataset(tmp_path, "d").gather_maps(np.arange(4))
    assert maps[:, 0, 0].tolist() == [1, 254, 1, 2]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"image": np.zeros((16, 16), np.float32)}, "image is float32"),
        ({"image": np.zeros((16, 17), np.uint8)}, r"must be uint8 \(16, 16\)"),
        ({"masks": np.full((1, 16, 16), 255, np.uint8)}, "masks hold 255"),
        ({"labels": (1, 2)}, r"must be uint8 \(2, 16, 16\)"),
        ({"labels": (3,)}, r"label ids \(3,\) must differ and have names"),
        ({"slicing": "middle"}, "choose one of image, mid, max"),
    ],
)
def test_a_bad_example_is_named(tmp_path, change, word):
    example = dataclasses.replace(disc_examples(1)[0], **change)
    with pytest.raises(BuildError, match=f"d, example 's00': .*{word}"):
        build(DatasetMeta("d", "val", {1: "x", 2: "y"}, 16), [example], itself, tmp_path)


def test_any_other_exception_ends_the_build_and_the_previous_dataset_stays(tmp_path):
    before = build_discs(tmp_path, "discs", "val", count=4).fingerprint
    with pytest.raises(ZeroDivisionError):
        build(DatasetMeta("discs", "val", {1: "x"}, 16), [1], lambda case: 1 / 0, tmp_path)
    assert open_dataset(tmp_path, "discs").fingerprint == before
    assert [p.name for p in tmp_path.iterdir()] == ["discs"]


DIES = """
import os, resource, signal, sys
import numpy as np
from universeg_jax.data.builder import build, worker_pool
from universeg_jax.data.dataset import DatasetMeta
from universeg_jax.readers.cases import Example

def make(case):
    if case == 40 and sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    image = np.random.default_rng(case).integers(0, 255, (64, 64)).astype(np.uint8)
    return [Example(image, np.ones((1, 64, 64), np.uint8), (1,), str(case), str(case))]

if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond the limit fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    build(DatasetMeta("discs", "val", {1: "x"}, 64), range(80), make, sys.argv[1])
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def test_the_fields_of_a_record_are_sorted(tmp_path):
    """Otherwise their order differs between processes, and so would the bytes of the same input."""
    directory = Path(build_discs(tmp_path, "discs", "val", count=4).directory)
    (file,) = directory.glob("*.array_record*")
    keys = sorted(("image", "masks", "labels", "axis", "subject", "name", "subset", "modality", "slicing"))
    for record in ArrayRecordReader(str(file)).read_all():
        places = [record.index(bytes([10, len(key)]) + key.encode()) for key in keys if key != "subset"]
        assert places == sorted(places)


@pytest.mark.parametrize("how", ["killed", "full"])
def test_a_build_that_dies_leaves_the_previous_dataset(tmp_path, how):
    before = contents(build_discs(tmp_path, "discs", "val", count=4).directory)
    died = subprocess.run([sys.executable, "-c", DIES, tmp_path, how], capture_output=True, text=True, check=False)
    if how == "killed":
        assert died.returncode == -signal.SIGKILL
        assert (tmp_path / ".discs.building").exists()  # what a killed process leaves
    else:
        assert re.search(r"(BuildError|OSError): .*(File too large|EFBIG)", died.stderr), died.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["discs"]
    assert contents(open_dataset(tmp_path, "discs").directory) == before
    assert list_datasets(tmp_path) == ["discs"]
    assert len(build_discs(tmp_path, "discs", "val", count=6)) == 6
    assert [p.name for p in tmp_path.iterdir()] == ["discs"]


def test_a_full_disk_leaves_the_previous_dataset(tmp_path, monkeypatch):
    before = build_discs(tmp_path, "discs", "val", count=4).fingerprint
    monkeypatch.setattr(builder.np, "savez", functools.partial(_no_space))
    with pytest.raises(OSError, match="No space left"):
        build_discs(tmp_path, "discs", "val", count=6)
    assert open_dataset(tmp_path, "discs").fingerprint == before
    assert [p.name for p in tmp_path.iterdir()] == ["discs"]


def _no_space(*args, **kwargs):
    raise OSError(28, "No space left on device")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("error", [Killed, OSError])
@pytest.mark.parametrize("renames", [1, 2])
def test_a_death_between_the_renames_is_repaired(tmp_path, monkeypatch, renames, error):
    before = build_discs(tmp_path, "discs", "val", count=4)
    calls = []
    replace = os.replace

    def dies(source, target):
        calls.extend([target] * (Path(target).parent == tmp_path))  # the two renames of the swap alone
        if Path(target).parent == tmp_path and len(calls) == renames:
            raise error
        replace(source, target)

    monkeypatch.setattr(staging.os, "replace", dies)
    with pytest.raises(error):
        build_discs(tmp_path, "discs", "val", count=6)
    monkeypatch.undo()
    assert list_datasets(tmp_path) == ["discs"]
    opened = open_dataset(tmp_path, "discs")
    assert opened.fingerprint == before.fingerprint
    np.testing.assert_array_equal(opened[3]["image"], disc_examples(4)[3].image)
    assert len(build_discs(tmp_path, "discs", "val", count=6)) == 6
    assert [p.name for p in tmp_path.iterdir()] == ["discs"]


def test_a_rebuilt_dataset_is_not_read_with_the_old_index(tmp_path):
    old = build_discs(tmp_path, "discs", "val", count=4)
    build_discs(tmp_path, "discs", "val", count=4, seed=1)
    with pytest.raises(BuildError, match="built again since it was opened"):
        old[0]
    image = open_dataset(tmp_path, "discs")[0]["image"]
    np.testing.assert_array_equal(image, disc_examples(1, seed=1)[0].image)


def test_two_builds_of_one_dataset_exclude_each_other(tmp_path):
    with open_staging(tmp_path, "discs"):
        with pytest.raises(BuildError, match="discs is being built in .* by another process"):
            build_discs(tmp_path, "discs", "val", count=4)
        build_discs(tmp_path, "others", "val", count=4)
    assert len(build_discs(tmp_path, "discs", "val", count=4)) == 4


def test_a_folder_that_is_no_dataset_is_left_alone(tmp_path):
    precious = tmp_path / "discs" / "images" / "a.png"
    precious.parent.mkdir(parents=True)
    precious.write_text("raw data")
    with pytest.raises(BuildError, match="discs exists and is no built dataset"):
        build_discs(tmp_path, "discs", "val", count=4)
    assert precious.read_text() == "raw data"


@pytest.mark.parametrize("name", ["index.npz", "metadata.json", "build_report.json"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[::-1]])
def test_a_damaged_dataset_is_named_and_built_again(tmp_path, name, damage):
    file = Path(build_discs(tmp_path, "discs", "val", count=4).directory) / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(BuildError, match="discs/1.0.0 is damaged .*; build it again"):
        open_dataset(tmp_path, "discs")
    assert (read_report(tmp_path, "discs") is None) == (name == "build_report.json")
    assert len(build_discs(tmp_path, "discs", "val", count=4)) == 4


def test_a_missing_dataset_names_the_existing_ones(tmp_path):
    build_discs(tmp_path, "discs", "val", count=3)
    with pytest.raises(BuildError, match="'disks' is not built in .*there: discs"):
        open_dataset(tmp_path, "disks")


@pytest.mark.parametrize(
    ("fields", "word"),
    [({"role": "train"}, "train_open"), ({"name": "My Data"}, "lower-case"), ({"size": 2}, "at least 8")],
)
def test_meta_is_checked(fields, word):
    with pytest.raises(BuildError, match=word):
        DatasetMeta(**{"name": "d", "role": "val", "labels": {1: "x"}, "size": 16, **fields})
