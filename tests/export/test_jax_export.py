"""One file for every platform, run with and without the package."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import random_params, tiny_config, write_folder
from universeg_jax import Predictor
from universeg_jax.checkpoints import store
from universeg_jax.cli import main
from universeg_jax.configuration import to_dict
from universeg_jax.errors import UserError
from universeg_jax.export.jax_export import load_exported
from universeg_jax.model.factory import build_model, param_shapes

DOCS = Path(__file__).parents[2] / "docs"
LINEAGE = {"trained_on": {"discs": {"role": "train_open"}}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny"
    config = tiny_config()
    config.model.update({"norm": "layer", "matching": 2})
    params = random_params(param_shapes(build_model(config.model)))
    store.write_params(path, params, {"config": to_dict(config), "lineage": LINEAGE})
    return path


@pytest.fixture(scope="module")
def exported(checkpoint):
    out = checkpoint.parent / "model.zip"
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor.from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def model(exported):
    return load_exported(exported)


@pytest.mark.parametrize(("batch", "support_size"), [(1, 7), (3, 2)])
def test_the_export_equals_the_model_for_any_number_of_queries_and_entries(predictor, model, batch, support_size):
    rng = np.random.default_rng(0)
    query = rng.random((batch, 16, 16, 1), np.float32)
    images = rng.random((batch, support_size, 16, 16, 1), np.float32)
    inputs = (query, images, (images > 0.5).astype(np.float32))
    mask = np.ones((batch, support_size), np.float32)
    mask[:, 1:2] = 0  # with one entry nothing is left
    np.testing.assert_allclose(model(*inputs), predictor.logits(*inputs), atol=1e-5, rtol=0)
    np.testing.assert_allclose(model(*inputs, mask), predictor.logits(*inputs, mask), atol=1e-5, rtol=0)


def test_an_export_takes_examples_that_are_labelled_in_part(checkpoint, predictor, model, tmp_path):
    out = tmp_path / "partly.zip"
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(out), "--partly"]) == 0
    partly = load_exported(out)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (150, 300)) for _ in range(3)]
    labels = [np.where(rng.random(x.shape) < 0.3, 255, x > 128) for x in images]
    labels[0][:, :150] = 255
    expected = predictor.segment(images[0], images, labels, ignore=255).probabilities
    np.testing.assert_allclose(partly.segment(images[0], images, labels, 255), expected, atol=1e-5)
    whole = [x > 128 for x in images]
    expected = model.segment(images[0], images, whole)
    for ignore in (None, 255):
        np.testing.assert_allclose(partly.segment(images[0], images, whole, ignore), expected, atol=1e-5)
    with pytest.raises(ValueError, match="needs a label for every pixel: export it again with --partly"):
        model.segment(images[0], images, labels, 255)
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "a.onnx"), "--partly"]) != 0


def test_the_metadata_describes_the_model(exported, model):
    meta = model.meta
    assert (meta["image_size"], meta["lineage"]) == (16, LINEAGE)
    assert model.exported.platforms == ("cpu", "cuda", "tpu")
    with zipfile.ZipFile(exported) as archive:
        assert json.loads(archive.read("meta.json")) == meta


@pytest.mark.parametrize("shape", [(20, 33), (150, 300), (128, 128)])
def test_images_of_any_size_get_the_probabilities_of_the_predictor(predictor, model, shape):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 4000, (30, 40)), rng.integers(0, 255, shape)]
    labels = [(image > 128).astype(np.uint8) for image in images]
    query = rng.random(shape)
    expected = predictor.segment(query, images, labels).probabilities
    np.testing.assert_allclose(model.segment(query, images, labels), expected, atol=1e-5)


def test_the_file_runs_alone(predictor, exported, tmp_path):
    folder = write_folder(tmp_path / "data", count=4)
    arrays = {
        part: [np.asarray(Image.open(f)) for f in sorted((folder / part).iterdir())] for part in ("images", "labels")
    }
    for name, array in (
        ("query", arrays["images"][3]),
        ("images", np.stack(arrays["images"][:3])),
        ("labels", np.stack(arrays["labels"][:3])),
    ):
        np.save(tmp_path / f"{name}.npy", array)
    files = [part for name in ("query", "images", "labels", "out") for part in (f"--{name}", f"{name}.npy")]
    # An import of this package fails there.
    alone = "import runpy, sys; sys.modules['universeg_jax'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0])"
    done = subprocess.run(
        [sys.executable, "-c", alone, str(exported), *files], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    mask = np.load(tmp_path / "out.npy")
    expected = predictor.segment(arrays["images"][3], arrays["images"][:3], arrays["labels"][:3])
    np.testing.assert_array_equal(mask, expected.mask)
    assert "of 600 pixels" in done.stdout


def test_the_documented_lines_run(predictor, exported, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"query": rng.random((20, 30)), "images": rng.random((3, 24, 40))}
    arrays["labels"] = (arrays["images"] > 0.5).astype(np.uint8)
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "model.zip").write_bytes(exported.read_bytes())
    with zipfile.ZipFile(exported) as archive:
        archive.extract("run_exported.py", tmp_path)
    lines = re.search("```python\n(.*?)```", (DOCS / "export.md").read_text(), re.DOTALL)[1]
    lines += '\nnp.save("probabilities.npy", probabilities)\n'
    done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = predictor.segment(arrays["query"], arrays["images"], arrays["labels"])
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected.probabilities, atol=1e-5)


def test_the_runner_imports_jax_and_numpy_alone(exported):
    with zipfile.ZipFile(exported) as archive:
        source = archive.read("run_exported.py").decode()
    imported = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    third_party = {name for name in imported if name not in sys.stdlib_module_names}
    assert third_party == {"jax", "numpy"}


def test_existing_foreign_and_damaged_files_are_refused(checkpoint, exported, model, tmp_path, capsys):
    before = exported.read_bytes()
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(exported)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert exported.read_bytes() == before
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(UserError, match="was not written by `universeg export`"):
        load_exported(tmp_path / "text.zip")
    with zipfile.ZipFile(exported) as old, zipfile.ZipFile(tmp_path / "damaged.zip", "w") as new:
        new.writestr("meta.json", old.read("meta.json"))
        new.writestr("model.jaxexport", old.read("model.jaxexport")[:-1] + b"?")
    with pytest.raises(UserError, match="is damaged"):
        load_exported(tmp_path / "damaged.zip")
    with pytest.raises(ValueError, match="support 0"):
        model.segment(np.eye(4), [np.eye(4)], [np.eye(5)])
