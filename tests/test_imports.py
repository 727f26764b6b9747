"""Training needs no library that only reads people's files or draws: a machine without them can train."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures import tiny_config
from universeg_jax.configuration import to_dict

ROOT = Path(__file__).parents[1]
READERS = ("SimpleITK", "nibabel", "pydicom", "highdicom", "tifffile", "matplotlib", "torch")
TRAIN = """
import json, sys
sys.modules.update(dict.fromkeys({readers}))  # importing one of them raises
from ml_collections import ConfigDict
from universeg_jax.training.loop import train_and_evaluate

train_and_evaluate(ConfigDict(json.loads({config!r})), {workdir!r})
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_and_evaluation_import_no_reader():
    modules = "universeg_jax.training.loop, universeg_jax.evaluation.runner"
    found = run(f"import sys, {modules}; print(*sys.modules, sep='\\n')")
    imported = {name.split(".")[0] for name in found.splitlines()}
    assert imported >= {"universeg_jax", "tensorflow_datasets"}
    assert not imported & {*READERS, "tensorflow"}


@pytest.mark.slow
def test_a_run_is_trained_and_scored_where_no_reader_is_installed(data_dir, tmp_path):
    config = json.dumps(to_dict(tiny_config(data_dir, num_steps=1)))
    run(TRAIN.format(readers=READERS, config=config, workdir=str(tmp_path / "run")))
    assert (tmp_path / "run" / "eval" / "summary.json").exists()
