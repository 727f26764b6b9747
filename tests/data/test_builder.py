"""The builder: an ordinary TFDS dataset, whole or not at all, the same bytes from the same input."""

import functools
import os
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.fixtures import build_discs, disc_examples, itself
from universeg_jax.data import builder
from universeg_jax.data.builder import BuildError, DatasetMeta, build, list_datasets, open_dataset, read_report
from universeg_jax.data.images import ImageError

META = DatasetMeta("discs", "train_open", {1: "disc", 2: "never"}, 16, "g", "made", "CC0", "nobody", False)


def test_what_was_built_is_read_again(tmp_path):
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
    assert report["labels_never_seen"] == {"2": "never"}
    assert list_datasets(tmp_path) == ["discs"]


def test_it_is_an_ordinary_tfds_dataset(tmp_path):
    build_discs(tmp_path, "discs", "val", count=4)
    opened = tfds.builder_from_directory(tmp_path / "discs" / builder.VERSION)
    assert opened.info.metadata["role"] == "val"
    assert len(opened.as_data_source(split=builder.SPLIT)) == 4
    assert "discs" not in tfds.core.registered.list_imported_builders()


def contents(path):
    return {p.relative_to(path): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_the_same_input_gives_the_same_bytes_whatever_the_workers(tmp_path):
    cases = list(range(70))  # enough for processes to be started
    for name, workers in (("a", 1), ("b", 2)):
        build(DatasetMeta("d", "val", {1: "x"}, 16), cases, numbered, tmp_path / name, workers)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def numbered(case):
    if case % 10 == 3:
        raise ImageError(f"case {case} is bad")
    return disc_examples(1, seed=case)


def test_dropped_cases_are_counted_and_nothing_else_is_lost(tmp_path):
    report = build(DatasetMeta("d", "val", {1: "x"}, 16), list(range(20)), numbered, tmp_path)
    assert report["dropped"] == {"3": "case 3 is bad", "13": "case 13 is bad"}
    assert len(open_dataset(tmp_path, "d")) == 18
    assert read_report(tmp_path, "d") == report
    with pytest.raises(BuildError, match="no example is left of 1 cases .case 3 is bad"):
        build(DatasetMeta("e", "val", {1: "x"}, 16), [3], numbered, tmp_path)
    assert list_datasets(tmp_path) == ["d"]


def test_another_exception_ends_the_build_and_the_previous_dataset_stays(tmp_path):
    before = build_discs(tmp_path, "discs", "val", count=4).fingerprint
    with pytest.raises(ZeroDivisionError):
        build(DatasetMeta("discs", "val", {1: "x"}, 16), [1], lambda case: 1 / 0, tmp_path)
    with pytest.raises(BuildError, match=r"label ids \[1\] have no name"):
        build(DatasetMeta("discs", "val", {2: "x"}, 16), disc_examples(3), itself, tmp_path)
    assert open_dataset(tmp_path, "discs").fingerprint == before
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


@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_between_the_renames_is_mended(tmp_path, monkeypatch, renames):
    build_discs(tmp_path, "discs", "val", count=4)

    class Killed(BaseException):
        pass

    calls = []
    replace = os.replace

    def dies(source, target):
        calls.append(target)
        if len(calls) == renames:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(builder.os, "replace", dies)
    with pytest.raises(Killed):
        build_discs(tmp_path, "discs", "val", count=6)
    monkeypatch.undo()
    assert len(open_dataset(tmp_path, "discs")) == 4
    assert len(build_discs(tmp_path, "discs", "val", count=6)) == 6
    assert [p.name for p in tmp_path.iterdir()] == ["discs"]


def test_a_missing_dataset_names_those_that_are_there(tmp_path):
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
