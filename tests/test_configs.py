"""Every config has the default's fields, a docstring with its command, and a model that can be built."""

import ast
import importlib
from pathlib import Path

import jax
import pytest

from universeg_jax.configs import default
from universeg_jax.configuration import flatten, to_dict
from universeg_jax.model.factory import build_model, param_shapes
from universeg_jax.training import setup
from universeg_jax.training.optimizer import make_optimizer

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_config(name, monkeypatch):
    module = importlib.import_module(f"universeg_jax.configs.{name}")
    assert f"python train.py --config=configs/{name}.py" in module.__doc__
    assert "xpected" in module.__doc__
    config = module.get_config()
    assert flatten(to_dict(config)).keys() == flatten(to_dict(default.get_config())).keys()
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    setup.check_config(config)
    make_optimizer(config)
    param_shapes(build_model(config.model))


def test_arguments():
    finetune = importlib.import_module("universeg_jax.configs.finetune").get_config("my_scans")
    assert finetune.train_datasets == ("my_scans",)
    assert importlib.import_module("universeg_jax.configs.small").get_config("128").image_size == 128
    for name in ("senet", "panet", "alpnet"):
        config = importlib.import_module("universeg_jax.configs.baselines").get_config(f"{name}:paper")
        assert (config.model.name, config.image_size, config.support_size) == (name, 128, 64)
    for name, wrong in (
        ("small", "96"),
        ("accelerator", "x"),
        ("keys", "x"),
        ("default", "x"),
        ("release", "x"),
        ("baselines", "unet"),
    ):
        with pytest.raises(ValueError, match=wrong):
            importlib.import_module(f"universeg_jax.configs.{name}").get_config(wrong)


def names_read(tree: ast.AST) -> set[str]:
    """Attributes that are read and names in quotes, outside the functions that make configs."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "get_config":
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        found |= names_read(node)
    return found


def test_every_field_has_a_reader():
    files = [*(ROOT / "universeg_jax").rglob("*.py"), ROOT / "train.py"]
    read = set().union(*(names_read(ast.parse(file.read_text())) for file in files))
    assert not [f for f in flatten(to_dict(default.get_config())) if f.split(".")[-1] not in read]
