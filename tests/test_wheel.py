"""The wheel in an empty environment, outside a clone: every subcommand with the packaged weights."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.fixtures import build_discs, tiny_config, write_folder
from universeg_jax.cli import COMMANDS
from universeg_jax.training.loop import train_and_evaluate

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """bin/ of a virtual environment with the wheel, its requirements and [train], and nothing from this clone."""
    path = tmp_path_factory.mktemp("wheel")
    run = {"check": True, "cwd": path, "stdout": subprocess.DEVNULL}
    shutil.copytree(ROOT, path / "clone", ignore=shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", path, path / "clone"], **run)
    subprocess.run([sys.executable, "-m", "venv", path / "env"], **run)
    (wheel,) = path.glob("*.whl")
    constraints = ROOT / "constraints.txt"
    subprocess.run([path / "env/bin/python", "-m", "pip", "install", "-q", "-c", constraints, f"{wheel}[train]"], **run)
    shutil.rmtree(path / "clone")
    return path / "env" / "bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Inputs of the commands: a support folder, a dataset and a finished run."""
    path = tmp_path_factory.mktemp("work")
    write_folder(path / "scans", count=10, shape=(48, 48))
    build_discs(path / "data", "train_discs", "train_open", count=12)
    config = tiny_config(path / "data", num_steps=2, eval_every=100)
    train_and_evaluate(config, path / "run")
    return path


LINES = {
    "build": "build --folder scans --name scans --data_dir data --role test",
    "tasks": "tasks --data_dir data --html tasks.html",
    "predict": "predict --support scans --queries scans/images --out masks --overlay",
    "check": "check --support scans --html check.html",
    "finetune": "finetune --support scans --out tuned --steps 2 --score_every 2 --support_size 2",
    "evaluate": "evaluate --checkpoint small --data_dir data --datasets scans --support_size 2 --out results",
    "baseline": "baseline --kind mean_mask --data_dir data --datasets scans --support_size 2 --out mean_mask",
    "compare": "compare results mean_mask --out compared",
    "table": "table results mean_mask",
    "report": "report run",
    "sheet": "sheet --kind=synthetic --config=configs/default.py --size 64 --out sheet.png",
    "replay": "replay --workdir run --step 1 --out episode.png",
    "checkpoint": "checkpoint small",
    "convert": "convert released.safetensors released",
    "export": "export --checkpoint small --out model.zip",
}
NOT_IN_A_WHEEL = {"ablate": "ablate --sweep=support_size --workdir sweep --data_dir data"}
SERVED = {"demo"}


@pytest.mark.slow
def test_every_subcommand_works_outside_the_clone(installed, folder):
    assert LINES.keys() | NOT_IN_A_WHEEL.keys() | SERVED == set(COMMANDS)
    released = dict(np.load(ROOT / "tests/golden/universeg_mixed_s3_grad_params.npz"))
    safetensors.numpy.save_file(released, folder / "released.safetensors")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}

    def call(line):
        started = time.time()
        command = [installed / "universeg", *line.split()]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        print(f"{time.time() - started:5.1f} s  universeg {line}")
        return done

    for line in LINES.values():
        done = call(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    for name in ("masks/p0_0.png", "check.html", "tasks.html", "results/report.html", "run/report.html", "model.zip"):
        assert (folder / name).stat().st_size > 0, name
    refused = call(NOT_IN_A_WHEEL["ablate"])
    assert refused.returncode == 1
    assert "of a clone" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_without_gradio_the_demo_names_the_package(installed, folder):
    done = subprocess.run([installed / "universeg", "demo"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'universeg_jax[demo]'" in done.stderr
