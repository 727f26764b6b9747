"""`universeg predict` that is stopped, short of disk, shared by processes or given damaged files loses nothing."""

import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import write_folder
from tests.prediction.tables import names, table
from tests.prediction.test_support import write_volumes
from universeg_jax.cli import main
from universeg_jax.errors import UserError
from universeg_jax.prediction.files import (
    predict_files,
)
from universeg_jax.prediction.predictor import Segmenter, make_prediction
from universeg_jax.prediction.support import read_support_folder
from universeg_jax.readers.errors import ImageError


def test_two_processes_do_what_one_does(predictor, tmp_path, capsys):
    folder = write_folder(tmp_path / "s", count=3, ids=(1, 2))
    segmenter = predictor.segmenter(read_support_folder(folder))
    (folder / "images" / "p9_0.png").write_bytes(b"broken")
    assert predict_files(segmenter, [folder / "images"], tmp_path / "one") == 1
    assert predict_files(segmenter, [folder / "images"], tmp_path / "two", jobs=2) == 1
    assert "p9_0.png" in capsys.readouterr().err
    assert table(tmp_path / "two") == table(tmp_path / "one")
    assert len(names(tmp_path / "two")) == 3
    for name in names(tmp_path / "two"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    with pytest.raises(UserError, match="jobs=0"):
        predict_files(segmenter, [folder / "images"], tmp_path / "two", jobs=0)


def test_a_killed_job_resumes_with_what_is_missing(segmenter, tmp_path, capsys):
    """Killed between a mask and its line, and in the middle of a line."""
    folder, out = write_folder(tmp_path / "s", count=4), tmp_path / "out"
    assert predict_files(segmenter, [folder / "images"], out) == 0
    whole_table, before = table(out), {name: (out / name).stat().st_mtime_ns for name in names(out)}
    lines = (out / "predictions.csv").read_bytes().splitlines(keepends=True)
    (out / "predictions.csv").write_bytes(b"".join(lines[:3]) + lines[3][:9])
    (out / "p3_0.png").unlink()
    capsys.readouterr()
    assert predict_files(segmenter, [folder / "images"], out) == 0
    assert "2 masks written" in (said := capsys.readouterr().out)
    assert "2 already there" in said
    assert table(out) == whole_table
    assert [n for n in names(out) if (out / n).stat().st_mtime_ns == before[n]] == ["p0_0.png", "p1_0.png"]


@pytest.mark.slow
def test_a_killed_job_of_two_processes_resumes(checkpoint, predictor, tmp_path):
    """Finished files stay, no orphan keeps writing, and the rest is written by the next run."""
    support = write_folder(tmp_path / "support", count=2)
    queries, out = write_folder(tmp_path / "new", count=300) / "images", tmp_path / "out"
    command = [sys.executable, "-m", "universeg_jax.cli", "predict", "--jobs", "2", "--checkpoint", checkpoint]
    process = subprocess.Popen(
        [*map(str, command), "--support", support, "--queries", queries, "--out", out],
        env={**os.environ, "JAX_PLATFORMS": "cpu"}, start_new_session=True,
    )  # fmt: skip

    def written():
        return list(out.glob("p*.png"))

    while len(written()) < 10:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while is_alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    finished = {path.name: path.stat().st_mtime_ns for path in written()}
    assert 10 <= len(finished) < 300
    segmenter = predictor.segmenter(read_support_folder(support))
    assert predict_files(segmenter, [queries], out, jobs=2) == 0
    assert sorted(row[1] for row in table(out)) == names(out) == sorted(f"p{i}_0.png" for i in range(300))
    kept = [name for name, time_ns in finished.items() if (out / name).stat().st_mtime_ns == time_ns]
    assert len(kept) >= len(finished) - 4  # lines cut short or not yet written, at most two per process


def is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_full_disk_stops_the_job_and_leaves_whole_files(predictor, tmp_path, monkeypatch, capsys):
    """Files of this process may not grow beyond some bytes: a real failure of a real write."""
    folder, out = write_folder(tmp_path / "s", count=3, shape=(200, 200)), tmp_path / "out"
    segmenter = predictor.segmenter(read_support_folder(folder))
    segmenter(folder / "images" / "p0_0.png")  # compiled, so that no cache is written
    assert predict_files(segmenter, [folder / "images" / "p0_0.png"], out) == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8)).save(noise)
    monkeypatch.setattr(
        Segmenter, "__call__", lambda *_: make_prediction(np.random.default_rng(0).random((1, 200, 200)), (1,))
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(UserError, match="File too large; finished masks are in .*: free some space"):
            predict_files(segmenter, [folder / "images" / "p0_0.png", noise], out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(out) == ["p0_0.png"]
    Image.open(out / "p0_0.png").load()
    assert predict_files(segmenter, [folder / "images" / "p0_0.png", noise], out) == 0
    assert names(out) == ["noise.png", "p0_0.png"]


def test_a_file_of_5_gb_is_not_read(segmenter, tmp_path, capsys):
    files = [tmp_path / "a.png", tmp_path / "b.nii", tmp_path / "c.nrrd"]
    for file in files:
        with file.open("wb") as handle:
            handle.truncate(5 * 10**9)  # sparse: it takes no room
    assert predict_files(segmenter, files, tmp_path / "out") == 1
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "too large" in line] == said
    assert len(said) == 3
    assert names(tmp_path / "out") == []


@pytest.mark.slow
def test_every_damaged_file_is_named_in_one_line(segmenter, tmp_path, capsys):
    """1,000 files with random bytes changed, one call: no traceback, no other shape, no input overwritten."""
    source = write_folder(tmp_path / "s", count=2)
    rng = np.random.default_rng(0)
    folder = tmp_path / "fuzzed"
    folder.mkdir()
    whole_file = (source / "images" / "p0_0.png").read_bytes()
    volume = (write_volumes(tmp_path / "v", radii=(0.5,)) / "images" / "case0.nii.gz").read_bytes()
    for i in range(1000):
        data, ending = (whole_file, "png") if i % 10 else (volume, "nii.gz")
        changed = bytearray(data[: rng.integers(1, len(data) + 1)] if i % 3 == 0 else data)
        for place in rng.integers(0, len(changed), 3):
            changed[place] = rng.integers(256)
        (folder / f"f{i}.{ending}").write_bytes(changed)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert predict_files(segmenter, [folder], tmp_path / "out") == 1
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    said = capsys.readouterr().err
    skipped = [line for line in said.splitlines() if line.startswith("skipped: ")]
    masks = [p for p in (tmp_path / "out").iterdir() if p.name[0] == "f"]
    assert len(skipped) + len(masks) == 1000
    assert "Traceback" not in said
    for mask in masks:
        if mask.suffix == ".png":
            assert Image.open(mask).size == Image.open(folder / mask.name).size


def test_ctrl_c_leaves_whole_files_and_names_the_remedy(loaded, checkpoint, tmp_path, monkeypatch, capsys):
    """A real signal while the third mask is written."""
    folder, out = write_folder(tmp_path / "s", count=3), tmp_path / "out"
    arguments = ["predict", "--checkpoint", str(checkpoint), "--support", str(folder)]
    arguments += ["--queries", str(folder / "images"), "--out", str(out)]
    save, handler = Image.Image.save, signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(image, path, **options):
        save(image, path, **options)
        if len(list(out.glob("p*.png"))) == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as context:
        context.setattr(Image.Image, "save", interrupted)
        assert main(arguments) == 130
    signal.signal(signal.SIGINT, handler)
    assert "rerun the same command to resume" in capsys.readouterr().out
    assert names(out) == ["p0_0.png", "p1_0.png"]
    assert main(arguments) == 0
    assert names(out) == ["p0_0.png", "p1_0.png", "p2_0.png"]


def test_image_errors_are_those_of_the_readers(segmenter, tmp_path):
    with pytest.raises(ImageError):
        segmenter(tmp_path / "absent.png")
