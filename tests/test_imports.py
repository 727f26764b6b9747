"""Which packages are needed for what.

Training needs no library that only reads people's files or draws; prediction needs nothing that an extra brings.
"""

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tests.fixtures import block_volume, tiny_config, write_folder
from universeg_jax.cli import COMMANDS
from universeg_jax.configuration import to_dict
from universeg_jax.errors import EXTRAS, UserError, missing_extra

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


BARE = """
import sys
class Lacking:  # importing a package of an extra fails as where it is not installed
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {lacking}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Lacking())
"""
# What flax requires and prediction does not: an installation without them predicts too.
UNUSED = ("orbax", "tensorstore", "SimpleITK")
PREDICTION = """
import numpy as np
from PIL import Image
from universeg_jax import Predictor
from universeg_jax.checkpoints import lineage, store
import {modules}
from universeg_jax.readers import polygons, volume_files
params, config = store.load("small")
assert params and config.image_size == 128
"""
MODULES = (
    *("predictor", "files", "check", "check_report", "complete_files", "workers"),
    *("support", "out_folder", "understood", "motion"),
)


def test_prediction_imports_nothing_that_an_extra_brings():
    modules = ", ".join(f"universeg_jax.prediction.{name}" for name in MODULES)
    run(BARE.format(lacking={*EXTRAS, *UNUSED}) + PREDICTION.format(modules=modules))


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "predict --support scans --queries scans/images --out masks --overlay --support_size 4",
        "check --support scans --html check.html",
        "complete scan.nrrd some.nrrd --out full.nrrd",
    ],
)
def test_commands_of_prediction_run_without_extras(tmp_path, line):
    write_folder(tmp_path / "scans", count=4, shape=(48, 48))
    data, label = block_volume((24, 24, 10), (1,))
    label[..., [1, 2, 4, 5, 7, 8]] = 0
    for name, values in (("scan", data.astype(np.float32)), ("some", label.astype(np.uint8))):
        sitk.WriteImage(sitk.GetImageFromArray(values.T), str(tmp_path / f"{name}.nrrd"))
    code = BARE.format(lacking={*EXTRAS, *UNUSED})
    code += (
        f"import os; os.chdir({str(tmp_path)!r})\nfrom universeg_jax.cli import main\nsys.exit(main({line.split()}))"
    )
    run(code)
    assert any((tmp_path / name).exists() for name in ("masks/p0_0.png", "check.html", "full.nrrd"))


def test_a_command_without_its_extra_says_the_line_that_installs_it():
    """Also `universeg --help` and mistakes of typing need no extra."""
    code = BARE.format(lacking={*EXTRAS}) + "from universeg_jax.cli import main, make_parser\nmake_parser()\n"
    code += "sys.exit(main(['tasks', '--data_dir', 'nowhere', '--html', 'a.html']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("universeg tasks: this needs ")
    assert done.stderr.endswith(": pip install 'universeg_jax[train]'\n")
    assert "Traceback" not in done.stderr
    assert COMMANDS  # all of them were parsed


def test_train_says_so_too():
    code = BARE.format(lacking={"grain"}) + "import runpy; runpy.run_path('train.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == "train.py: this needs grain, which is not installed: pip install 'universeg_jax[train]'\n"


def test_a_package_that_no_extra_brings_is_an_error_of_ours():
    error = ModuleNotFoundError("No module named 'nothing.at.all'", name="nothing.at.all")
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        missing_extra(error)
    assert isinstance(missing_extra(ModuleNotFoundError("", name="zarr.core")), UserError)


def test_extras_bring_what_the_errors_promise():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    brought = {
        extra: {re.split(r"[ \[<>=~;]", line)[0].lower().replace("-", "_") for line in lines.splitlines() if line}
        for extra, lines in parser["options.extras_require"].items()
    }
    names = {"tensorboardX": "tensorboardx"}
    for module, extra in EXTRAS.items():
        assert names.get(module, module) in brought[extra], module
    plain = parser["options"]["install_requires"].lower().replace("-", "_")
    assert not [module for module in EXTRAS if re.search(rf"^{names.get(module, module)}\b", plain, re.MULTILINE)]
