"""The README's picture from any checkpoint and dataset."""

import sys

from PIL import Image

from benchmarks import picture
from tests.fixtures import build_discs, tiny_config
from universeg_jax.checkpoints import store
from universeg_jax.configuration import to_dict
from universeg_jax.model.factory import build_model, init_params


def test_a_row_for_each_of_four_cases(tmp_path, monkeypatch):
    config = tiny_config()
    params = init_params(build_model(config.model), 0)
    store.write_params(tmp_path / "tiny", params, {"config": to_dict(config), "lineage": {}})
    build_discs(tmp_path / "data", "discs", "test", count=12)
    flags = ["--data_dir", tmp_path / "data", "--dataset=discs", "--support_size=5", "--out", tmp_path / "picture.png"]
    monkeypatch.setattr(sys, "argv", ["picture", "--checkpoint", *map(str, [tmp_path / "tiny", *flags])])
    picture.main()
    with Image.open(tmp_path / "picture.png") as image:
        width, height = image.size
    assert 1.4 < width / height < 1.8  # seven columns, four rows
