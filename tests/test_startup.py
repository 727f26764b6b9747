"""Several hosts: two real processes over localhost do what one does, stop together, and end when one is gone."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.fixtures import build_discs, tiny_config
from universeg_jax import checkpoints, startup
from universeg_jax.model import build_model, init_params
from universeg_jax.reporting import read_json_lines

ROOT = Path(__file__).parents[1]

HOST = """
import sys
sys.path.insert(0, {root!r})
import jax
from absl import flags
flags.FLAGS.mark_as_parsed()
from tests.fixtures import tiny_config
from universeg_jax import startup
from universeg_jax.training import train_and_evaluate
if {count} > 1:
    startup.join_hosts("localhost:{port}", {count}, {index})
config = tiny_config({data!r}, num_steps={steps}, eval_every=1000, checkpoint_every=5)
config.optimizer.name, config.optimizer.learning_rate = "sgd", 0.1
try:
    train_and_evaluate(config, {workdir!r})
except jax.errors.JaxRuntimeError as error:
    import os
    print("another host has gone:", error, flush=True)
    os._exit(1)
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    build_discs(path, "train_discs", "train_open", count=20)
    return path


def start(data_dir, workdir, steps, count):
    """One process of four devices, or two of two."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}"}
    values = {"root": str(ROOT), "data": str(data_dir), "workdir": str(workdir), "steps": steps, "count": count}
    codes = [HOST.format(**values, index=i, port=port) for i in range(count)]
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, **out) for code in codes]


def finish(processes, seconds=100):
    """(exit codes, what they said)."""
    said = [p.communicate(timeout=seconds)[0] for p in processes]
    return [p.returncode for p in processes], said


def wait_for_step(workdir, step, processes, seconds=100):
    deadline = time.time() + seconds
    while len(read_json_lines(workdir / "metrics.jsonl")) < step and time.time() < deadline:
        if any(p.poll() is not None for p in processes):
            pytest.fail("\n".join(finish(processes)[1]))
        time.sleep(0.05)


def params_at(workdir, step):
    abstract = init_params(build_model(tiny_config().model), 0)
    return checkpoints.load_params(workdir / "checkpoints" / str(step), abstract)


def test_two_hosts_do_what_one_does_and_stop_together(data_dir, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    alone = start(data_dir, one, 20, count=1)
    pair = start(data_dir, two, 20_000, count=2)
    codes, said = finish(alone)
    assert codes == [0], said
    wait_for_step(two, 20, pair)
    pair[1].send_signal(signal.SIGTERM)  # one of them; both save at the same step
    codes, said = finish(pair, 60)
    assert codes == [0, 0], said
    assert "stopped by SIGTERM at step" in said[0]
    lines = [[(row["step"], row["loss"]) for row in read_json_lines(path / "metrics.jsonl")] for path in (one, two)]
    np.testing.assert_allclose(lines[1][:20], lines[0], rtol=1e-5)
    last = max(int(p.name) for p in (two / "checkpoints").iterdir())
    assert last == len(lines[1])

    # One is killed: the other ends by itself, says why, and both go on from the last checkpoint.
    pair = start(data_dir, two, last + 20_000, count=2)
    wait_for_step(two, last + 10, pair)
    killed = time.time()
    pair[1].kill()
    codes, said = finish(pair, 60)
    assert time.time() - killed < 60
    assert codes[0] not in (0, None)
    assert "another host has gone" in said[0] or "distributed service" in said[0]
    saved = max(int(p.name) for p in (two / "checkpoints").iterdir() if p.name.isdigit())
    assert saved >= last
    pair = start(data_dir, two, saved + 5, count=2)
    codes, said = finish(pair)
    assert codes == [0, 0], said
    alone = start(data_dir, one, saved + 5, count=1)
    assert finish(alone)[0] == [0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params_at(one, saved + 5), params_at(two, saved + 5)
    )


def test_a_compilation_cache_is_kept_unless_one_was_chosen(monkeypatch):
    chosen = jax.config.jax_compilation_cache_dir  # the tests' own
    startup.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == chosen
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        startup.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(Path.home() / ".cache" / "universeg_jax")
    finally:
        jax.config.update("jax_compilation_cache_dir", chosen)


def test_deterministic_adds_its_flag_once(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    startup.make_deterministic()
    startup.make_deterministic()
    assert os.environ["XLA_FLAGS"] == "--xla_a=1 --xla_gpu_deterministic_ops=true"
