"""Weights in one file, and the refusal to package what may not be given away."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.fixtures import tiny_config
from universeg_jax import Predictor
from universeg_jax.checkpoints import packaged, store
from universeg_jax.checkpoints.lineage import package
from universeg_jax.cli import main
from universeg_jax.configuration import to_dict
from universeg_jax.errors import UserError
from universeg_jax.model.factory import build_model, init_params

OPEN = {
    "trained_on": {"a": {"role": "train_open", "licence": "CC0", "fingerprint": "1"}},
    "selected_on": {"b": {"role": "val", "fingerprint": "2"}},
    "synthetic": True,
    "parents": [],
}


def write_checkpoint(path, lineage=OPEN, **model):
    config = tiny_config("/somewhere")
    config.model.update(model)
    params = init_params(build_model(config.model), 0)
    store.write_params(path, params, {"config": to_dict(config), "lineage": lineage})
    return params


def test_packaged_weights_equal_the_checkpoint_and_load_by_name(tmp_path, monkeypatch, capsys):
    params = write_checkpoint(tmp_path / "run", norm="layer")
    assert main(["checkpoint", str(tmp_path / "run"), "--package", str(tmp_path / "weights" / "tiny.safetensors")]) == 0
    assert packaged.params_hash(params) in capsys.readouterr().out
    monkeypatch.setattr(packaged, "FOLDER", tmp_path / "weights")
    for name in ("tiny", tmp_path / "weights" / "tiny.safetensors"):
        loaded = Predictor.from_pretrained(name)
        jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
        assert loaded.config.model.norm == "layer"
    assert store.read_metadata(store.resolve("tiny"))["lineage"] == OPEN
    assert main(["checkpoint", "large"]) == 1
    assert "the name of packaged weights (tiny)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"trained_on": {"r": {"role": "train_research", "licence": "CC0"}}}, r"r \(train_research\)"),
        ({"trained_on": {"t": {"role": "test", "licence": "CC0"}}}, r"t \(test\)"),
        ({"selected_on": {"t": {"role": "test"}}}, "selected on t"),
        ({"trained_on": {"a": {"role": "train_open", "licence": ""}}}, "unknown licence"),
        (None, "unknown origin"),
    ],
)
def test_other_lineages_are_refused(tmp_path, change, word):
    write_checkpoint(tmp_path / "run", {"converted_from": "x.pt"} if change is None else {**OPEN, **change})
    with pytest.raises(UserError, match=word):
        package(tmp_path / "run", tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def test_a_file_that_differs_from_its_header_is_refused(tmp_path):
    write_checkpoint(tmp_path / "run")
    path = tmp_path / "w.safetensors"
    package(tmp_path / "run", path)
    assert packaged.read_header(path)["config"]["data_dir"] == ""  # no place on the machine that made them
    with pytest.raises(UserError, match="ends in .safetensors"):
        package(tmp_path / "run", tmp_path / "w.pt")
    arrays, header = safetensors.numpy.load_file(path), packaged.read_header(path)
    packaged.write_file(path, init_params(build_model(tiny_config().model), 1), header)
    assert packaged.read_file(path)  # a new file of its own
    safetensors.numpy.save_file(
        {**arrays, "out.bias": arrays["out.bias"] + 1}, path, {packaged.KEY: json.dumps(header)}
    )
    with pytest.raises(store.CheckpointError, match="damaged"):
        Predictor.from_checkpoint(path)
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(store.CheckpointError, match="universeg convert"):
        Predictor.from_checkpoint(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(store.CheckpointError, match="cannot be read"):
        Predictor.from_checkpoint(path)


def test_the_mean_of_two_checkpoints_has_the_origin_of_both(tmp_path, capsys):
    first = write_checkpoint(tmp_path / "first", {**OPEN, "parents": ["x", "y"]})
    second = jax.tree.map(lambda p: p + 2, first)
    other = {
        **OPEN,
        "trained_on": {"c": {"role": "train_open", "licence": "CC BY", "fingerprint": "3"}},
        "parents": ["x"],
    }
    config = to_dict(tiny_config("/elsewhere"))
    store.write_params(tmp_path / "second", second, {"config": config, "lineage": other})
    out = tmp_path / "mean.safetensors"
    arguments = ["checkpoint", str(tmp_path / "first"), "--mean_with", str(tmp_path / "second")]
    assert main([*arguments, "--package", str(out)]) == 0
    jax.tree.map(lambda m, p: np.testing.assert_allclose(m, p + 1, atol=1e-6), packaged.read_file(out), first)
    lineage = packaged.read_header(out)["lineage"]
    assert lineage["trained_on"].keys() == {"a", "c"}
    assert lineage["parents"] == ["x", "y"]
    assert lineage["mean_of"] == [packaged.params_hash(p) for p in (first, second)]
    capsys.readouterr()
    assert main(arguments) == 1
    assert "--package FILE" in capsys.readouterr().err


def test_a_part_that_one_lacks_counts_as_one_that_adds_nothing(tmp_path):
    """Its config is of a time when the field was not known."""
    fields = {"keys": "lite0", "key_columns": True}
    write_checkpoint(tmp_path / "old", **fields)
    write_checkpoint(tmp_path / "new", **fields, key_probe=True)
    old, new = (store.load(tmp_path / name)[0] for name in ("old", "new"))
    new["probe"]["enter_0"]["kernel"] += 2
    metadata = store.read_metadata(tmp_path / "old")
    del metadata["config"]["model"]["key_probe"]
    for name, params, held in (("before", old, metadata), ("after", new, store.read_metadata(tmp_path / "new"))):
        store.write_params(tmp_path / name, params, held)
    out = tmp_path / "mean.safetensors"
    package(tmp_path / "after", out, mean_with=tmp_path / "before")
    mean = packaged.read_file(out)["probe"]
    np.testing.assert_allclose(mean["enter_0"]["kernel"], new["probe"]["enter_0"]["kernel"] / 2)
    np.testing.assert_allclose(mean["mix"]["Conv_0"]["kernel"], new["probe"]["mix"]["Conv_0"]["kernel"])
    with pytest.raises(UserError, match="config.model.key_probe=False and True"):
        package(tmp_path / "before", tmp_path / "w.safetensors", mean_with=tmp_path / "after")


def test_checkpoints_that_have_no_mean_are_refused(tmp_path):
    write_checkpoint(tmp_path / "run")
    write_checkpoint(tmp_path / "norm", norm="layer")
    write_checkpoint(tmp_path / "closed", {**OPEN, "selected_on": {"t": {"role": "test"}}})
    out = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="config.model.norm='none' and 'layer'"):
        package(tmp_path / "run", out, mean_with=tmp_path / "norm")
    with pytest.raises(UserError, match="selected on t"):
        package(tmp_path / "run", out, mean_with=tmp_path / "closed")
    assert not out.exists()
