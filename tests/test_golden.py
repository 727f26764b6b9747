"""The golden vectors are the ones that were agreed on, and PyTorch can make them and others like them."""

import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.model.test_universeg import GOLDEN


def test_vectors_have_their_checksums():
    lines = (GOLDEN / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in map(str.split, lines)}
    assert sums == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in GOLDEN.glob("*.npz")}


def regenerate(monkeypatch, *args: str | Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed; the vectors are recomputed with it")
    from tests.golden import regenerate

    monkeypatch.setattr(sys, "argv", ["regenerate", *map(str, args)])
    regenerate.main()


@pytest.mark.shared
def test_pytorch_computes_what_the_vectors_hold(monkeypatch, tmp_path):
    regenerate(monkeypatch, "--out", tmp_path / "out")
    names = {file.name for file in GOLDEN.glob("*.npz")}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    for name in names:
        before, after = np.load(GOLDEN / name), np.load(tmp_path / "out" / name)
        assert {key: (before[key].shape, before[key].dtype) for key in before} == {
            key: (after[key].shape, after[key].dtype) for key in after
        }


@pytest.mark.shared
def test_a_wrong_gradient_is_noticed(monkeypatch, tmp_path):
    for file in GOLDEN.glob("universeg_nf8_s5_grad*.npz"):
        shutil.copy(file, tmp_path)
    file = tmp_path / "universeg_nf8_s5_grad.npz"
    arrays = dict(np.load(file))
    arrays["grad/out_conv.conv.weight"] = arrays["grad/out_conv.conv.weight"] * 1.001
    np.savez_compressed(file, **arrays)
    with pytest.raises(SystemExit, match="universeg_nf8_s5_grad: beyond"):
        regenerate(monkeypatch, "--source", tmp_path)


@pytest.mark.shared
def test_fresh_vectors_keep_shapes_and_ties(monkeypatch, tmp_path):
    regenerate(monkeypatch, "--fresh", 0, "--out", tmp_path)
    old, new = (np.load(folder / "universeg_nf8_ties_grad.npz") for folder in (GOLDEN, tmp_path))
    assert {key: old[key].shape for key in old} == {key: new[key].shape for key in new}
    assert not np.array_equal(old["target_image"], new["target_image"])
    windows = new["target_image"].reshape(2, 24, 2, 24, 2).transpose(0, 1, 3, 2, 4).reshape(2, 24, 24, 4)
    assert ((windows == windows.max(-1, keepdims=True)).sum(-1) > 1).mean() > 0.5
