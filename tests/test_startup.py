"""Several hosts: two real processes over localhost do what one does, end when one is gone, and stop together."""

import functools
import os
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.fixtures import build_discs, tiny_config
from tests.processes import params_at, start, steps_saved, wait_for_step, write_config
from universeg_jax import startup
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.reports.files import read_json_lines
from universeg_jax.training import loop

# Hides no wrong scale of a gradient; at 0.1 rounding grows tenfold in 40 steps, and a busy machine does more of them.
SGD = {"name": "sgd", "learning_rate": 0.01}
RUN = {"eval_every": 100_000, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    build_discs(path, "train_discs", "train_open", count=20)
    return path


def start_two(config, workdir):
    """Two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    xla_flags = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=2")
    environment = os.environ | {"XLA_FLAGS": xla_flags}
    flags = [f"--coordinator=localhost:{port}", "--process_count=2"]
    return [start(config, workdir, *flags, f"--process_index={i}", **environment) for i in range(2)]


def initial(config):
    return init_params(build_model(config.model), config.seed)


def test_two_hosts_train_like_one_also_after_one_was_killed(data_dir, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    config = write_config(tmp_path / "config.py", data_dir, SGD, num_steps=100_000, **RUN)
    pair = start_two(config, two)
    wait_for_step(two, 12, pair)
    killed = time.time()
    pair[1].kill()
    said = pair[0].communicate(timeout=60)[0]
    print(f"one killed; {time.time() - killed:.1f} s later the other ended with code {pair[0].returncode}")
    pair[1].communicate()
    assert pair[0].returncode != 0
    assert "another host has failed" in said or "distributed service" in said
    saved = steps_saved(two)[-1]
    assert saved >= 5

    # Both go on from the last checkpoint; at a SIGTERM of one of them both save at the same step.
    pair = start_two(config, two)
    wait_for_step(two, saved + 8, pair)
    pair[1].send_signal(signal.SIGTERM)
    said = [p.communicate(timeout=30)[0] for p in pair]
    assert [p.returncode for p in pair] == [0, 0], said
    last = steps_saved(two)[-1]
    assert f"stopped by SIGTERM at step {last}" in said[0]

    loop.train_and_evaluate(tiny_config(data_dir, optimizer=SGD, num_steps=last, **RUN), one)
    lines = [[(row["step"], row["loss"]) for row in read_json_lines(path / "metrics.jsonl")] for path in (one, two)]
    assert len(lines[0]) == last
    # Sums in another order part the two by about 1e-6 a step, and how many steps there are depends on the machine.
    together = np.maximum(1e-5, 2e-6 * np.arange(1, last + 1))
    (steps, ours), (others, theirs) = np.array(lines).swapaxes(1, 2)
    np.testing.assert_array_equal(others, steps)
    assert (np.abs(theirs - ours) <= together * ours).all()
    near = functools.partial(np.testing.assert_allclose, atol=together[-1])
    jax.tree.map(near, params_at(one, last), params_at(two, last))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params_at(one, last), initial(tiny_config(data_dir)))
    assert max(jax.tree.leaves(moved)) > 20 * together[-1]  # so that a gradient of another scale would show


def test_the_compilation_cache_has_a_default_folder(monkeypatch):
    chosen = jax.config.jax_compilation_cache_dir  # the tests' own
    startup.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == chosen
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        startup.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(Path.home() / ".cache" / "universeg_jax")
    finally:
        jax.config.update("jax_compilation_cache_dir", chosen)


def test_programs_that_run_often_compile_with_less_effort_on_a_cpu_alone(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    options = startup.compiler_options()
    assert options == {"xla_backend_optimization_level": 1}
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2  # XLA knows the option
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert startup.compiler_options() is None
    monkeypatch.undo()
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # the user's own choice
    assert startup.compiler_options() is None


def test_deterministic_adds_its_flag_once(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    startup.make_deterministic()
    startup.make_deterministic()
    assert os.environ["XLA_FLAGS"] == "--xla_a=1 --xla_gpu_deterministic_ops=true"
