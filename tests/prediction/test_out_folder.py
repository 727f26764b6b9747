"""The folder of masks: nothing is lost, mixed up or overwritten."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import write_folder
from universeg_jax.errors import UserError
from universeg_jax.prediction.files import predict_files
from universeg_jax.prediction.options import Options
from universeg_jax.prediction.out_folder import check_outputs
from universeg_jax.prediction.support import read_support_folder


@pytest.fixture(scope="module")
def segmenter(predictor, tmp_path_factory):
    return predictor.segmenter(read_support_folder(write_folder(tmp_path_factory.mktemp("support"), count=3)))


def rows(out):
    return list(csv.DictReader((out / "predictions.csv").open(encoding="utf-8")))


def test_the_mask_of_another_patient_is_not_reused(segmenter, tmp_path, monkeypatch):
    first, second = (write_folder(tmp_path / name, count=2) / "images" for name in ("anna", "bert"))
    out = tmp_path / "out"
    assert predict_files(segmenter, [first], out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match=r"p0_0\.png is the mask of .*anna.*, not of .*bert"):
        predict_files(segmenter, [second], out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.chdir(tmp_path)
    assert predict_files(segmenter, ["anna/images"], out) == 0  # the same files by another path
    assert predict_files(segmenter, [second], out, overwrite=True) == 0
    assert [row["query"] for row in rows(out)] == [str(second / f"p{i}_0.png") for i in range(2)]


def test_files_that_no_earlier_run_wrote_are_not_overwritten(segmenter, tmp_path):
    folder = write_folder(tmp_path / "new", count=2)
    drawn = (folder / "labels" / "p0_0.png").read_bytes()
    with pytest.raises(UserError, match=r"p0_0\.png exists, and no earlier run wrote it"):
        predict_files(segmenter, [folder / "images"], folder / "labels")
    assert (folder / "labels" / "p0_0.png").read_bytes() == drawn
    assert not (folder / "labels" / "predict.json").exists()
    assert predict_files(segmenter, [folder / "images"], folder / "labels", overwrite=True) == 0


def test_the_table_has_each_mask_once_and_one_setting(segmenter, tmp_path):
    queries, out = write_folder(tmp_path / "new", count=3) / "images", tmp_path / "out"
    assert predict_files(segmenter, [queries], out) == 0
    (out / "p1_0.png").unlink()
    assert predict_files(segmenter, [queries], out) == 0
    assert sorted(row["mask"] for row in rows(out)) == [f"p{i}_0.png" for i in range(3)]
    other = segmenter.predictor.segmenter(segmenter.support, Options(support_size=1))
    assert predict_files(other, [queries / "p0_0.png"], out, overwrite=True) == 0
    assert [row["mask"] for row in rows(out)] == ["p0_0.png"]
    written = (out / "p1_0.png").stat().st_mtime_ns
    assert predict_files(other, [queries], out) == 0  # masks of the first setting are written again
    assert (out / "p1_0.png").stat().st_mtime_ns > written
    assert sorted(row["mask"] for row in rows(out)) == [f"p{i}_0.png" for i in range(3)]


def test_names_that_differ_in_case_alone_are_one_file(tmp_path):
    """On Windows and macOS the second mask would replace the first."""
    one, two = tmp_path / "one" / "a.png", tmp_path / "two" / "A.png"
    with pytest.raises(UserError, match=r"a.png and .*A.png would both become .*A.png; rename one"):
        check_outputs({one: [tmp_path / "out" / "a.png"], two: [tmp_path / "out" / "A.png"]})
    check_outputs({one: [tmp_path / "out" / "a.png"], two: [tmp_path / "out" / "b.png"]})


def test_missing_overlays_are_written(segmenter, tmp_path):
    queries, out = write_folder(tmp_path / "new", count=2) / "images", tmp_path / "out"
    assert predict_files(segmenter, [queries], out) == 0
    assert predict_files(segmenter, [queries], out, overlay=True) == 0
    assert (out / "p0_0_overlay.png").exists()
    assert len(rows(out)) == 2
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(queries / "p0_0_overlay.png")
    with pytest.raises(UserError, match="would both become"):
        predict_files(segmenter, [queries], tmp_path / "other", overlay=True)


def test_a_name_that_is_no_utf8_is_escaped(segmenter, tmp_path):
    folder = write_folder(tmp_path / "new", count=1) / "images"
    odd = os.fsdecode(os.fsencode(folder) + b"/M\xfcller_1.png")
    try:
        os.rename(folder / "p0_0.png", odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    for _ in range(2):
        assert predict_files(segmenter, [folder], tmp_path / "out") == 0
        assert [row["mask"] for row in rows(tmp_path / "out")] == ["M\\udcfcller_1.png"]
