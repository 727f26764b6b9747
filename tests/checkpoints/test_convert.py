"""Released weights in and out, and files that must be refused."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.fixtures import tiny_config
from tests.model.test_universeg import GOLDEN, golden
from universeg_jax import Predictor
from universeg_jax.checkpoints import convert, store
from universeg_jax.cli import main
from universeg_jax.configuration import to_dict
from universeg_jax.errors import UserError
from universeg_jax.model.factory import build_model, init_params

NAME = "universeg_mixed_s3_grad"


def state():
    return dict(np.load(GOLDEN / f"{NAME}_params.npz"))


def write(path: Path, tensors) -> Path:
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
    return path


def test_released_weights_predict_as_released_and_come_back_bit_for_bit(tmp_path, capsys):
    arrays, inputs, *_ = golden(NAME)
    source = write(tmp_path / "weights.safetensors", state())
    assert main(["convert", str(source), str(tmp_path / "ours")]) == 0
    assert "encoder ((6, 10), (8, 12), (7, 9))" in capsys.readouterr().out
    logits = Predictor.from_checkpoint(tmp_path / "ours").logits(*inputs)
    np.testing.assert_allclose(logits.transpose(0, 3, 1, 2), arrays["logits"], atol=1e-5, rtol=0)
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back.safetensors")]) == 0
    back = safetensors.numpy.load_file(tmp_path / "back.safetensors")
    assert back.keys() == state().keys()
    for name, value in state().items():
        np.testing.assert_array_equal(back[name], value)
    assert main(["convert", str(source), str(tmp_path / "ours")]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "model",
    [
        {"cross_activation": "leaky_relu"},
        {"name": "senet"},
        {"norm": "layer"},
        {"residual": "both"},
        {"matching": 1},
        {"keys": "lite0"},
    ],
)
def test_a_model_outside_the_released_architecture_is_refused(tmp_path, model):
    """Also if its parameters have the same names and shapes, as with an activation."""
    config = tiny_config()
    config.model.update(model)
    params = init_params(build_model(config.model), 0)
    store.write_params(tmp_path / "ours", params, {"config": to_dict(config), "lineage": {}})
    with pytest.raises(UserError, match="`universeg export` writes other formats"):
        convert.convert(tmp_path / "ours", tmp_path / "w.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_an_existing_file_stays_and_another_image_size_is_reported(tmp_path):
    config = tiny_config()
    params = init_params(build_model(config.model), 0)
    store.write_params(tmp_path / "ours", params, {"config": to_dict(config), "lineage": {}})
    (tmp_path / "w.safetensors").write_bytes(b"the original")
    with pytest.raises(UserError, match="exists already"):
        convert.convert(tmp_path / "ours", tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == b"the original"
    assert f"image size of {config.image_size} pixels" in convert.convert(tmp_path / "ours", tmp_path / "v.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("dec_blocks.1.support.vmapped.conv.bias"),
            "dec_blocks.1.support.vmapped.conv.bias is missing",
        ),
        (lambda s: s.update(extra=np.zeros(3, np.float32)), r"tensor extra \(3,\) has no place"),
        (
            lambda s: s.update({"out_conv.conv.weight": np.zeros((1, 5, 1, 1), np.float32)}),
            "out_conv.conv.weight has shape",
        ),
        (lambda s: s.update({"out_conv.conv.bias": np.zeros(1, np.int64)}), "out_conv.conv.bias is no float32"),
        (lambda s: s.clear(), "0 encoder and 0 decoder blocks"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, change, message):
    tensors = state()
    change(tensors)
    with pytest.raises(UserError, match=message):
        convert.convert(write(tmp_path / "w.safetensors", tensors), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_files_that_hold_no_weights_are_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not this")
    with pytest.raises(UserError, match="not a safetensors file"):
        convert.convert(tmp_path / "w.safetensors", tmp_path / "ours")
    with pytest.raises(UserError, match="is no file"):
        convert.convert(tmp_path / "absent.pt", tmp_path / "ours")


def test_a_torch_file_without_torch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"pip install 'universeg_jax\[convert\]'"):
        convert.convert(tmp_path / "w.pt", tmp_path / "ours")


class Malicious:
    """Creates a file when unpickled without restriction."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_torch_files_nested_or_not_and_a_malicious_pickle(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `convert`)")
    tensors = {name: torch.from_numpy(value) for name, value in state().items()}
    for name, content in (("flat", tensors), ("nested", {"model": tensors, "epoch": 3})):
        torch.save(content, tmp_path / f"{name}.pt")
        convert.convert(tmp_path / f"{name}.pt", tmp_path / name)
        convert.convert(tmp_path / name, tmp_path / f"{name}_back.pt")
        back = torch.load(tmp_path / f"{name}_back.pt", weights_only=True)
        assert all(torch.equal(back[key], value) for key, value in tensors.items())
    bad = {"out_conv.conv.bias": Malicious(tmp_path / "pwned")}
    torch.save(bad, tmp_path / "bad.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(bad))
    for name in ("bad", "plain"):
        with pytest.raises(UserError, match="is refused"):
            convert.convert(tmp_path / f"{name}.pt", tmp_path / "ours")
    assert not (tmp_path / "pwned").exists()
