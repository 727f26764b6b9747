"""The ONNX file in ONNX Runtime, and the errors if it cannot be written."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures import random_params, tiny_config
from universeg_jax.cli import main
from universeg_jax.export import onnx_export
from universeg_jax.model import pretrained
from universeg_jax.model.factory import build_model, param_shapes


@pytest.fixture(scope="module")
def packages():
    for name in ("jax2onnx", "onnx", "onnxruntime"):
        pytest.importorskip(name, reason="needs universeg_jax[onnx] and jax2onnx")


def test_onnx_runtime_gives_the_models_logits(packages, checkpoint, predictor, tmp_path, capsys):
    import onnxruntime

    out = tmp_path / "model.onnx"
    arguments = ["export", "--checkpoint", str(checkpoint), "--out", str(out), "--support_size", "4"]
    assert main(arguments) == 0
    assert "4 entries, logits within" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == list(onnx_export.NAMES)
    rng = np.random.default_rng(3)
    for count in (1, 3, 4):
        inputs = {name: rng.random(x.shape, np.float32) for name, x in onnx_export.example_inputs(16, 4).items()}
        inputs["support_labels"] = np.round(inputs["support_labels"])
        inputs["support_mask"] = (np.arange(4)[None] < count).astype(np.float32)
        (logits,) = session.run(["logits"], inputs)
        some = [inputs[name][:, :count] for name in ("support_images", "support_labels")]
        np.testing.assert_allclose(logits, predictor.logits(inputs["query_image"], *some), atol=1e-4)
    meta = json.loads(session.get_modelmeta().custom_metadata_map["universeg_jax"])
    assert (meta["image_size"], meta["support_size"], list(meta["inputs"])) == (16, 4, list(onnx_export.NAMES))
    assert main(arguments) == 1
    assert "exists already" in capsys.readouterr().err


def test_pretrained_keys_can_be_converted():
    """Without the packages: ONNX has no choice by platform, as their features have on a CPU."""
    seen = []

    class Converter:
        @staticmethod
        def to_onnx(function, inputs, **_):
            seen.append(str(jax.make_jaxpr(function)(*inputs)))

    config = tiny_config()
    config.model.update({"encoder_blocks": (4, 5), "keys": "lite0", "key_columns": True, "key_probe": True})
    shapes = param_shapes(build_model(config.model))
    onnx_export.convert(Converter, random_params(shapes), config, onnx_export.example_inputs(16, 2))
    assert "platform_index" not in seen[0]
    assert "platform_index" in str(jax.make_jaxpr(pretrained.features)(jnp.zeros((1, 32, 32, 1))))


def test_onnx_runtime_gives_the_logits_of_the_packaged_weights(packages, tmp_path, capsys):
    out = tmp_path / "small.onnx"
    assert main(["export", "--checkpoint", "small", "--out", str(out), "--support_size", "2"]) == 0
    assert "2 entries, logits within" in capsys.readouterr().out


def test_a_program_that_differs_is_not_written(packages, checkpoint, tmp_path, monkeypatch, capsys):
    right = onnx_export.convert
    monkeypatch.setattr(
        onnx_export,
        "convert",
        lambda package, params, *rest: right(
            package, {**params, "out": {**params["out"], "bias": params["out"]["bias"] + 1}}, *rest
        ),
    )
    out = tmp_path / "model.onnx"
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(out), "--support_size", "2"]) == 1
    assert "logits differ by 1.0e+00" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_the_packages_the_error_names_them(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "model.onnx")]) == 1
    assert "pip install --no-deps 'jax2onnx" in capsys.readouterr().err
