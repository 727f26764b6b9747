"""The guesses that `benchmarks.keys` measures, on cells whose answer is known, and its lines."""

import json

import numpy as np

from benchmarks import keys
from tests.fixtures import build_discs, random_params
from tests.model.test_recognition import pixels_of_cells
from universeg_jax.episode import Episode
from universeg_jax.model import pretrained
from universeg_jax.model.factory import build_model, param_shapes


def test_a_guess_is_the_label_of_the_cells_that_look_alike():
    axes = np.eye(2, dtype=np.float32)
    query = axes[[[0, 1], [1, 1]]][:, :, None]
    support = axes[[[[0, 0], [1, 1]]]][:, :, :, None]
    labels = np.zeros((1, keys.SIZE, keys.SIZE, 1), np.float32)
    labels[:, : keys.SIZE // 2] = 1  # of the cells that look like the first axis
    found = np.asarray(keys.guess(query, support, labels, 20.0, 0.0))
    assert found.shape == (keys.SIZE, keys.SIZE, 1)
    np.testing.assert_allclose(found[0, 0], 1, atol=1e-6)
    np.testing.assert_allclose(found[-1, -1], 0, atol=1e-6)


def test_the_best_threshold_is_one_for_all():
    truth = np.zeros((2, 10, 10), bool)
    truth[:, :2] = True
    apart = np.where(truth, 0.3, 0.1)
    assert keys.best_dice(apart, truth) == 1
    apart[1] += 0.5  # a threshold for the first marks all of the second
    assert 0.6 < keys.best_dice(apart, truth) < 0.7


def test_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretrained, "features", pixels_of_cells)
    build_discs(tmp_path, "discs", "val", count=8, size=128)
    keys.main([f"--data_dir={tmp_path}", "--support_size=2", "--max_cases=1", f"--out={tmp_path / 'out.jsonl'}"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    of_strides = {f"{kind} {stride}" for kind in ("frozen", "normalised") for stride in (8, 16, 32)}
    assert {line["guess"] for line in lines} == of_strides | {"columns", "columns, every cell", "probe"}
    assert all(line["datasets"].keys() == {"discs"} and 0 < line["dice"] <= 100 for line in lines)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 9


def test_keys_of_a_checkpoint_are_measured_head_by_head(monkeypatch):
    monkeypatch.setattr(pretrained, "features", pixels_of_cells)
    model = build_model({"encoder_blocks": (4, 4), "matching": 3, "keys": "lite0", "key_heads": 2})
    rng = np.random.default_rng(0)
    images = rng.random((1, 2, keys.SIZE, keys.SIZE, 1)).astype(np.float32)
    episode = Episode(images[:, 0], images[:, 0], images, np.ones_like(images), np.ones((1, 2), np.float32))
    found = keys.guesses(model, random_params(param_shapes(model)), episode)
    heads = {"from scratch": 3, "learned 8": 1, "learned 16": 2, "learned 32": 2}
    for name, count in heads.items():
        assert found[name].shape == (keys.SIZE, keys.SIZE, count)
        np.testing.assert_allclose(found[name], 1, atol=1e-4)  # where all of the support is foreground
