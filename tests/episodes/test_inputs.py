"""The datasets and tasks that a config trains and is validated on."""

import pytest

from tests.fixtures import build_discs, disc_examples, itself, tiny_config
from universeg_jax.configuration import ConfigError
from universeg_jax.data.builder import build
from universeg_jax.data.dataset import DatasetMeta
from universeg_jax.episodes import inputs
from universeg_jax.errors import UserError


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three datasets to train on and one for validation."""
    path = tmp_path_factory.mktemp("three")
    for seed, name in enumerate(("train_a", "train_b", "train_c")):
        build_discs(path, name, "train_open", count=8, seed=seed)
    build_discs(path, "val_d", "val", count=8, seed=3)
    return path


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, ["train_a", "train_b", "train_c"]),
        ({"train_datasets": ("train_b",)}, ["train_b"]),
        ({"train_without": ("train_b", "not_here")}, ["train_a", "train_c"]),
        ({"train_datasets": ("train_a", "train_b"), "train_without": ("train_b",)}, ["train_a"]),
    ],
)
def test_datasets_are_those_of_the_roles_and_names(three, fields, names):
    config = tiny_config(three, **fields)
    train, validation = inputs.open_data(config)
    assert [d.meta.name for d in train] == names
    assert [d.meta.name for d in validation] == ["val_d"]
    tasks = inputs.open_tasks(config, train)
    assert sorted({task.dataset for task in tasks}) == names


def test_a_config_without_any_dataset_says_what_is_there(three):
    with pytest.raises(ConfigError, match="val_d not among those to train on"):
        inputs.open_data(tiny_config(three, train_datasets=("val_d",)))
    left_out = ("train_a", "train_b", "train_c")
    with pytest.raises(ConfigError, match=r"no dataset .*val_d \(val\); left out: train_a, train_b, train_c"):
        inputs.open_data(tiny_config(three, train_without=left_out))


def test_fewer_tasks_are_a_subset_of_more(three):
    def names(count):
        config = tiny_config(three, train_tasks=count)
        return {task.name for task in inputs.open_tasks(config, inputs.open_data(config)[0])}

    assert [len(names(n)) for n in (1, 2, 3)] == [1, 2, 3]
    assert names(1) < names(2) < names(3)
    with pytest.raises(ConfigError, match="config.train_tasks=4: there are 3"):
        names(4)


def test_a_source_group_on_two_sides_is_refused(tmp_path):
    for name, role in (("a", "train_open"), ("b", "val"), ("c", "test")):
        meta = DatasetMeta(name, role, {1: "disc"}, 16, source_group="scans")
        build(meta, disc_examples(12), itself, tmp_path / "data")
    with pytest.raises(UserError, match=r"'scans' has datasets on several sides: a \(training\), b \(val\);"):
        inputs.open_data(tiny_config(tmp_path / "data"))
    inputs.open_data(tiny_config(tmp_path / "data", val_role="none"))  # c is not used
