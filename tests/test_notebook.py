"""docs/predict.ipynb runs from top to bottom."""

import json
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from tests.fixtures import tiny_config
from universeg_jax.checkpoints import store
from universeg_jax.configuration import to_dict
from universeg_jax.model.factory import build_model, init_params

NOTEBOOK = Path(__file__).parent.parent / "docs" / "predict.ipynb"


def test_every_cell_runs_in_order(tmp_path, monkeypatch):
    config = tiny_config()
    params = init_params(build_model(config.model), 0)
    store.write_params(tmp_path / "tiny", params, {"config": to_dict(config), "lineage": {}})
    monkeypatch.setenv("UNIVERSEG_CHECKPOINT", str(tmp_path / "tiny"))
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)  # stored outputs would go out of date
    names = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), names)
    assert names["prediction"].mask.shape == names["query"].shape
    np.testing.assert_array_equal(np.asarray(Image.open("mask.png")), names["prediction"].mask)
    assert len(names["scores"]) == 3
