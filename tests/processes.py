"""Runs of train.py in processes of their own, which tell in which phase they are, so that they can be ended there."""

import subprocess
import sys
import time
from pathlib import Path

from tests.fixtures import tiny_config
from universeg_jax.checkpoints import store
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.reports.files import read_json_lines

ROOT = Path(__file__).parents[1]
CONFIG = """
from tests import processes
from tests.fixtures import tiny_config

def get_config():
    processes.announce_phases()
    config = tiny_config({data!r}, **{fields!r})
    config.optimizer.update({optimizer!r})
    return config
"""


def announce_phases() -> None:
    """Has the process print "compiling", "evaluating" and "saving STEP" where these begin, and "-" where they end."""
    from universeg_jax.training import loop, setup, validation

    def tell(what):
        print(f"\n{what}", flush=True)  # the progress line is left open

    def around(function, name):
        def announced(*args, **kwargs):
            tell(name)
            result = function(*args, **kwargs)
            tell("-")
            return result

        return announced

    pmap_step, save = setup.pmap_step, loop.store.save

    def compiling(step):
        run = pmap_step(step)
        calls = [around(run, "compiling")]
        return lambda *args: (calls.pop() if calls else run)(*args)

    def saving(checkpointer, step, *args):
        tell(f"saving {step}")  # it ends in the background, where the directory gets its name
        save(checkpointer, step, *args)

    setup.pmap_step = compiling
    loop.store.save = saving
    validation.Evaluator.__call__ = around(validation.Evaluator.__call__, "evaluating")


def write_config(path: Path, data_dir: Path, optimizer: dict | None = None, before: str = "", **fields) -> Path:
    """A file for --config: `tiny_config` with some fields; `before` is code that runs first."""
    path.write_text(before + CONFIG.format(data=str(data_dir), fields=fields, optimizer=optimizer or {}))
    return path


def start(config: Path, workdir: Path, *flags: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-u", "train.py", f"--config={config}", f"--workdir={workdir}", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment or None, **pipes)


def wait_for_step(workdir: Path, step: int, processes: list[subprocess.Popen], seconds: float = 100) -> None:
    """Returns once so many steps are logged."""
    deadline = time.time() + seconds
    while len(read_json_lines(workdir / "metrics.jsonl")) < step:
        if time.time() > deadline or any(p.poll() is not None for p in processes):
            for process in processes:
                process.kill()
            raise AssertionError("\n".join(p.communicate()[0] for p in processes))
        time.sleep(0.02)


def steps_saved(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def params_at(workdir: Path, step: int):
    abstract = init_params(build_model(tiny_config().model), 0)
    return store.load_params(workdir / "checkpoints" / str(step), abstract)


def rows_without_times(workdir: Path) -> list[dict]:
    rows = read_json_lines(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in ("time", "seconds_waiting")} for row in rows]
