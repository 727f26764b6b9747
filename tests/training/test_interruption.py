"""Killed, stopped or short of disk: a run that is started again ends as one that nothing happened to."""

import os
import re
import signal
import time

import jax
import numpy as np
import pytest

from tests.fixtures import tiny_config
from tests.processes import params_at, rows_without_times, start, steps_saved, wait_for_step, write_config
from universeg_jax.reports.files import read_json_lines
from universeg_jax.training import loop

WITHIN = {"compiling": 0.3, "evaluating": 0.02, "saving": 0.05}  # seconds after which a phase may have ended
RUN = {"eval_every": 4, "checkpoint_every": 2, "eval": {"support_size": 2, "max_cases": 2, "pictures": 0}}


def kill(config, workdir, phase, passed, delay):
    """Starts the run and kills it `delay` s after a phase began, or after its own start; what it was doing then.

    `passed` such phases are let pass, and the very first save, so that there is something to go back to. "" where the
    phase had ended before: then it was killed, but not there.
    """
    # What was compiled before would be read in no time.
    cache = {"JAX_ENABLE_COMPILATION_CACHE": "0"} if phase == "compiling" else {}
    process = start(config, workdir, **(os.environ | cache))
    said = []
    if phase != "anywhere":
        for line in process.stdout:
            said.append(line.strip())
            if line.startswith(phase) and line != "saving 2\n":
                passed -= 1
                if passed < 0:
                    break
        else:
            pytest.fail("\n".join(["the run ended before it was killed:", *said]))
        if phase == "saving":  # the writing goes on in the background
            saved = workdir / "checkpoints" / line.split()[1]
            while process.poll() is None and not saved.exists() and not list(saved.parent.glob(f"{saved.name}.*tmp*")):
                time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    said += process.communicate()[0].splitlines()
    marks = [line for line in said if line.startswith(("-", *WITHIN))] or ["starting"]
    steps = len(read_json_lines(workdir / "metrics.jsonl"))
    done = steps_saved(workdir) if (workdir / "checkpoints").exists() else []
    unfinished = [p.name for p in (workdir / "checkpoints").glob("*tmp*")]
    there = phase in ("anywhere", marks[-1])
    if phase == "saving":
        there = not saved.exists() and list(saved.parent.glob(f"{saved.name}.*tmp*"))
    doing = "between these" if marks[-1] == "-" else marks[-1]
    left = f"; left {', '.join(unfinished)}" if unfinished else ""
    return f"{doing}; {steps} steps logged, checkpoints {done}{left}" if there else ""


def kill_and_compare(data_dir, tmp_path, phases, num_steps, seed=0):
    rng = np.random.default_rng(seed)
    config = write_config(tmp_path / "config.py", data_dir, num_steps=num_steps, **RUN)
    for number, phase in enumerate(phases, 1):
        for attempt in range(10):
            delay = float(rng.uniform(0, WITHIN.get(phase, 8.0) / 2**attempt))
            passed = int(rng.integers(3)) if phase in ("saving", "evaluating") else 0
            if instant := kill(config, tmp_path / "killed", phase, passed, delay):
                break
        else:
            pytest.fail(f"kill {number}: no attempt met the process {phase}")
        told = "its start" if phase == "anywhere" else f"{phase} began"
        print(f"kill {number}, {delay:.3f} s after {told}: {instant}", flush=True)
    last = start(config, tmp_path / "killed")
    said = last.communicate(timeout=300)[0]
    assert last.returncode == 0, said
    loop.train_and_evaluate(tiny_config(data_dir, num_steps=num_steps, **RUN), tmp_path / "whole")
    ends = [params_at(tmp_path / name, num_steps) for name in ("whole", "killed")]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert rows_without_times(tmp_path / "killed") == rows_without_times(tmp_path / "whole")
    logs = [read_json_lines(tmp_path / name / "eval" / "metrics.jsonl") for name in ("whole", "killed")]
    assert logs[0] == logs[1]
    assert steps_saved(tmp_path / "killed") == steps_saved(tmp_path / "whole")


def test_a_killed_run_ends_like_an_uninterrupted_one(data_dir, tmp_path):
    kill_and_compare(data_dir, tmp_path, ["compiling", "saving", "evaluating"], num_steps=24)


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_instants(data_dir, tmp_path):
    seed = int(os.environ.get("KILL_SEED", "0"))
    phases = np.random.default_rng(seed).permutation(["compiling", "saving", "evaluating", "anywhere"] * 5)
    # Long enough that it does not end before the twentieth kill on a fast or a busy machine.
    kill_and_compare(data_dir, tmp_path, [str(phase) for phase in phases], num_steps=400, seed=seed)


def test_sigterm_saves_and_ends_with_code_0(data_dir, tmp_path):
    config = write_config(tmp_path / "config.py", data_dir, num_steps=100_000, eval_every=100_000)
    process = start(config, tmp_path / "run")
    wait_for_step(tmp_path / "run", 5, [process])
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    logged = len(read_json_lines(tmp_path / "run" / "metrics.jsonl"))
    assert steps_saved(tmp_path / "run")[-1] == logged
    assert f"stopped by SIGTERM at step {logged}; the same command continues" in process.stdout.read()


FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))  # bytes a file: room for logs, none for a checkpoint
"""


def test_a_full_disk_leaves_the_last_checkpoint_and_is_reported(data_dir, tmp_path):
    loop.train_and_evaluate(tiny_config(data_dir, num_steps=2), tmp_path / "run")
    config = write_config(tmp_path / "config.py", data_dir, before=FULL_DISK, num_steps=40)
    process = start(config, tmp_path / "run")
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 1
    # Python may print what Orbax's event loop leaves when it is thrown away, even within the line.
    end = "the last good checkpoint is of step 2: make room there and start the same command again"
    assert re.search(f"train\\.py: {tmp_path / 'run'} could not be written to.*{end}", said)
    again = loop.train_and_evaluate(tiny_config(data_dir, num_steps=4), tmp_path / "run")  # there is room again
    assert int(again.step) == 4


def test_a_log_on_a_full_disk_ends_the_run_in_the_same_way(data_dir, tmp_path, monkeypatch):
    def full(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("universeg_jax.reports.files.JsonLines.write", full)
    with pytest.raises(loop.store.CheckpointError, match="No space left on device.*no step yet"):
        loop.train_and_evaluate(tiny_config(data_dir), tmp_path)
