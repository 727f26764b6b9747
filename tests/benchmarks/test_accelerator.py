"""The stages of the kit: their clocks, their lines, the cosine that ends with the time, and kills that lose nothing."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    accelerator,
    accelerator_parity,
    accelerator_speed,
    accelerator_stage,
    accelerator_train,
    kit,
    pack,
)
from benchmarks.lines import write_line
from universeg_jax.checkpoints import store
from universeg_jax.configs import accelerator as recipe
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.training.optimizer import make_optimizer, make_schedule

ROOT = Path(__file__).parents[2]


def stage_of(tmp_path, seconds=60.0):
    return accelerator_stage.Stage("speed", argparse.Namespace(out=tmp_path, until=time.time() + seconds))


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / accelerator.RESULTS).read_text().splitlines()]


def test_lines_are_on_disk_when_they_are_written(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write_line({"a": 1}, tmp_path / "lines.jsonl")
    assert len(synced) == 1
    assert (tmp_path / "lines.jsonl").read_text() == '{"a": 1}\n'


@pytest.mark.parametrize(("warmup", "end"), [(0, 40), (7, 40), (1, 20)])
def test_the_cosine_is_that_of_the_config(warmup, end):
    config = recipe.get_config()
    config.optimizer.warmup_steps, config.num_steps = warmup, end
    schedule, steps = make_schedule(config), np.arange(end + 5)
    peak = config.optimizer.learning_rate
    found = accelerator_train.cosine(steps, end, peak, warmup)
    np.testing.assert_allclose(found, [schedule(step) for step in steps], atol=1e-6 * peak)


def test_updates_are_those_of_the_config_and_the_end_can_be_moved():
    config = recipe.get_config()
    config.optimizer.update({"weight_decay": 0.1, "warmup_steps": 2})
    config.num_steps = 6
    key = jax.random.split(jax.random.key(0), 3)
    params = {"kernel": jax.random.normal(key[0], (3, 3, 2, 4)), "bias": jax.random.normal(key[1], (4,))}
    grads = jax.tree.map(lambda p: jnp.sin(3 * p), params)
    (usual, _), timed = make_optimizer(config), accelerator_train.timed_optimizer(config)
    state, own = timed.init(params), usual.init(params)
    state = accelerator_train.with_end(
        argparse.Namespace(opt_state=state, _replace=lambda opt_state: argparse.Namespace(opt_state=opt_state)),
        6,
        jax.devices()[0],
    ).opt_state
    for _ in range(5):
        (wanted, own), (found, state) = usual.update(grads, own, params), timed.update(grads, state, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), found, wanted)
    assert float(state[-1].end) == 6
    assert int(state[-1].step) == 5


def test_steps_fit_the_seconds_that_are_left():
    assert accelerator_train.fit_steps(10, seconds_left=100, step_seconds=0.5) == 210
    assert accelerator_train.fit_steps(10, seconds_left=-3, step_seconds=0.5) == 11


def test_a_part_runs_only_with_time_for_it_and_its_failure_is_told(tmp_path, monkeypatch):
    stage = stage_of(tmp_path, seconds=10)
    assert stage.part("fits", 5, lambda x: x + 1, 1) == 2
    assert stage.part("does not", 11, lambda: 1 / 0) is None
    assert stage.failed == 0
    assert stage.part("fails", 1, lambda: 1 / 0) is None
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    stage.end()
    assert ended == [1]
    skipped, failed, end = rows_of(tmp_path)
    assert skipped["skipped"] == "does not"
    assert failed["failed"] == "fails"
    assert end["failed"] == 1
    assert "ZeroDivisionError" in failed["error"]


def test_a_function_is_compiled_once_and_counted(tmp_path):
    stage = stage_of(tmp_path)
    compiled, about = stage.compile("square", lambda x: x @ x, jnp.ones((8, 8)))
    assert float(compiled(jnp.ones((8, 8)))[0, 0]) == 8
    assert about["compile_seconds"] > 0
    assert stage.programs >= 1
    assert stage.compile_seconds > 0
    with pytest.raises(AssertionError, match="twice"):
        stage.compile("square", lambda x: x, jnp.ones(1))


def test_what_must_be_known_is_measured_first():
    wanted = accelerator_speed.cases(accelerator_speed.FULL)
    assert len(set(wanted)) == len(wanted)
    first = wanted[: len(wanted) // 2]
    for by in ("jax", "torch eager", "torch compile"):
        for kind in ("forward", "gradient"):
            for batch in (1, 4, 16):
                assert accelerator_speed.Case(by, kind, 64, batch, "bfloat16") in first
    assert {case.support for case in wanted} == {64, 16}
    assert {case.dtype for case in wanted} == {"bfloat16", "float32"}


def test_share_of_peak_is_of_the_documented_chip(monkeypatch):
    monkeypatch.setattr(accelerator_speed, "about_device", lambda: {"device": "NVIDIA H100 80GB HBM3"})
    assert accelerator_speed.rate(989.0, 1.0) == {"tflops": 0.99, "share_of_peak": 0.001}
    monkeypatch.setattr(accelerator_speed, "about_device", lambda: {"device": "cpu"})
    assert accelerator_speed.rate(989.0, 1.0) == {"tflops": 0.99}


def test_differences_are_relative_to_the_largest_entry():
    assert accelerator_parity.apart({"a": np.array([1.0, 4.0])}, {"a": np.array([1.0, 2.0])}) == 1.0
    assert accelerator_parity.apart({"a": np.zeros(2)}, {"a": np.zeros(2)}) == 0.0


def test_boxes_shrink_with_the_minutes_and_what_is_left_goes_on(tmp_path):
    for minutes, share in ((9, 1.0), (4.5, 0.5), (18, 1.0)):
        args = argparse.Namespace(minutes=minutes, tiny=False, out=tmp_path, stages=list(accelerator.STAGES))
        run, boxes = accelerator.Run(args), accelerator.BOXES
        for stage, seconds in zip(("parity", "speed", "loop"), (60, 210, 270), strict=True):
            assert run.box(stage) - run.measuring == pytest.approx(share * seconds, abs=0.5)
        run.measuring -= 1000  # what came before took longer than its box
        assert run.box("loop") - time.time() == pytest.approx(share * boxes["loop"], abs=0.5)
        assert run.box("train") == run.until - accelerator.LAST
        run.until = time.time() + 10
        assert run.box("speed") - time.time() == pytest.approx(10 - accelerator.LAST, abs=0.5)
    assert sum(boxes.values()) <= 0.5 * 60 * accelerator.FULL_MINUTES


@pytest.mark.parametrize(("minutes", "share"), [(5, 1.0), (2.5, 0.5)])
def test_without_training_the_boxes_share_the_minutes(minutes, share, tmp_path):
    stages = ["parity", "speed", "loop"]
    run = accelerator.Run(argparse.Namespace(minutes=minutes, tiny=False, out=tmp_path, stages=stages))
    assert run.box("loop") - run.measuring == pytest.approx(share * 270, abs=0.5)
    assert run.box("loop") < run.until


def test_the_cache_that_comes_back_is_the_latest_that_fits(tmp_path, monkeypatch):
    cache, out = tmp_path / "cache", tmp_path / "out"
    (cache / "inner").mkdir(parents=True)
    for age, name in enumerate(("new", "inner/middle", "old")):
        (cache / name).write_bytes(bytes(400_000))
        os.utime(cache / name, (1000 - age, 1000 - age))
    run = accelerator.Run(argparse.Namespace(minutes=1, out=out))
    monkeypatch.setattr(accelerator, "FILE_MB", 2)
    accelerator.pack_cache(run, cache)
    (out / accelerator.CACHE).rename(tmp_path / kit.CACHE)
    accelerator.unpack_cache(tmp_path, tmp_path / "again")
    there = {str(p.relative_to(tmp_path / "again")) for p in (tmp_path / "again").rglob("*") if p.is_file()}
    assert there == {"new", "inner/middle"}
    assert rows_of(out)[-1]["count"] == 1
    assert not list(out.glob("*.tmp"))


def test_a_stage_that_does_not_end_is_ended():
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    )
    patient = "import time; print(1, flush=True); time.sleep(60)"
    for code, how in (("pass", "by itself"), (patient, "SIGTERM"), (stubborn, "SIGKILL")):
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
        process.stdout.read(1)
        started = time.time()
        assert accelerator.wait(process, time.time()) == how
        assert time.time() - started < 3 * accelerator.GRACE


OVERRUNS = """
import sys, time
from benchmarks import accelerator_stage
sys.argv = ["stage", "--kit=k", "--out=" + sys.argv[1], f"--until={time.time() + 0.5}"]
accelerator_stage.start("speed", "").part("slow part", 0, time.sleep, 600)
"""


def test_a_stage_that_overruns_is_cut_and_says_where(tmp_path):
    started = time.time()
    done = subprocess.run([sys.executable, "-c", OVERRUNS, str(tmp_path)], cwd=ROOT, timeout=300)
    assert time.time() - started < 290
    (row,) = rows_of(tmp_path)
    assert done.returncode == 1
    assert row["cut"] == ["slow part"]
    assert 0 < row["seconds_over"] < accelerator.GRACE
    assert row["failed"] == 1
    assert row["compile_seconds"] == 0


UNPACKS = "import time; from benchmarks.kit import die_with_parent as f; f(); print(1, flush=True); time.sleep(60)"


def test_what_unpacks_the_kit_dies_with_the_run():
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {UNPACKS!r}]).wait()"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.read(2) == b"1\n"
    process.kill()
    started = time.time()
    assert process.stdout.read() == b""  # ends when nobody holds the pipe, and the child does
    assert time.time() - started < 30
    process.wait()


@pytest.fixture(scope="session")
def small_kit(data_dir, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("kits") / "kit"
    pack.pack(data_dir, str(checkpoint), out, wheels=())
    return out


def test_the_step_that_parity_compares_is_one_of_training():
    step, (state, batch) = accelerator_parity.step_and_inputs()
    params, loss = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, state.params)
    assert loss.shape == ()


@pytest.fixture
def one_device(monkeypatch):
    """The tests have several devices, the rehearsal one: its batch does not divide."""
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)


@pytest.mark.parametrize("handed_in", [False, True])
def test_training_goes_on_from_the_kits_checkpoint_or_from_another(
    handed_in, small_kit, checkpoint, data_dir, tmp_path, one_device
):
    path = checkpoint if handed_in else small_kit / kit.CHECKPOINT
    args = argparse.Namespace(out=tmp_path, until=0.0, tiny=True, data_dir=data_dir, checkpoint=path)
    run = accelerator_train.prepare(accelerator_stage.Stage("train", args))
    jax.tree.map(np.testing.assert_array_equal, run.state.params, store.load(checkpoint)[0])
    assert set(run.header["lineage"]["trained_on"]) == {"train_discs"}
    assert len(run.sampler.tasks) == 1
    assert run.evaluate is not None


def start(kit: Path, out: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.accelerator", f"--kit={kit}", f"--out={out}", "--tiny", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_all_stages_from_a_packed_kit(small_kit, tmp_path):
    done = start(small_kit, tmp_path, "--minutes=15", "--profile").communicate()[0]
    rows = rows_of(tmp_path)
    ends = {row["of"]: row for row in rows if row["stage"] == "run" and "of" in row}
    assert {name: row["status"] for name, row in ends.items()} == dict.fromkeys(("datasets", *accelerator.STAGES), 0), (
        done
    )
    assert not [row for row in rows if row.get("failed") or row.get("ok") is False]
    assert {row.get("check") for row in rows} >= {"golden", "checkpoint", "step", "deterministic", "sharded"}
    assert {row.get("part") for row in rows} >= {"bare", "loop", "plain", "deterministic"}
    before, after = (next(row for row in rows if row.get("val") == when) for when in ("before", "after"))
    assert before["datasets"].keys() == after["datasets"].keys() == {"val_discs"}
    assert rows[-1]["too_much"] == []
    assert len(rows[-1]["files"]) <= accelerator.FILES
    check_weights(tmp_path, rows)


def check_weights(out: Path, rows: list[dict]) -> None:
    """OUT's weights are the last that a line names, know where they come from, and predict."""
    header = store.read_metadata(out / accelerator_train.WEIGHTS)
    assert header["step"] == [row["step"] for row in rows if "saved" in row][-1]
    assert set(header["lineage"]["trained_on"]) == {"train_discs"}
    predictor = Predictor.from_checkpoint(out / accelerator_train.WEIGHTS)
    size = predictor.config.image_size
    ones = np.ones((1, 2, size, size, 1), np.float32)
    assert np.isfinite(predictor.logits(ones[:, 0], ones, ones)).all()
    assert predictor.config.model.dtype == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("stage", accelerator.STAGES)
def test_a_kill_loses_nothing_that_was_written(stage, small_kit, tmp_path):
    process = start(small_kit, tmp_path, "--minutes=10", f"--stages={stage}")
    # A line of the stage's own, after the one that names the device.
    deadline = time.time() + 400
    while time.time() < deadline and process.poll() is None:
        lines = (
            (tmp_path / accelerator.RESULTS).read_text().splitlines()
            if (tmp_path / accelerator.RESULTS).exists()
            else []
        )
        if sum(f'"stage": "{stage}"' in line for line in lines) >= 2:
            break
        time.sleep(0.05)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    rows = rows_of(tmp_path)  # every line is whole
    assert [row["stage"] for row in rows].count(stage) >= 2
