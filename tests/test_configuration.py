"""What a run's config may be, and what of it may change when the run goes on."""

import json

import pytest

from tests.fixtures import tiny_config
from universeg_jax.configuration import LOWEST, ConfigError, check_lowest, flatten, to_dict, write_config


def changed(name, value):
    config = tiny_config()
    config.update_from_flattened_dict({name: value})
    return config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("eval.support_size", 3), ("eval.ensemble", 2), ("eval.max_cases", 1)),
        *(("val_role", "test"), ("seed", 1), ("batch_size", 8), ("augment.task.noise.p", 0.1)),
    ],
)
def test_what_changes_an_episode_or_a_score_is_refused_on_resuming(tmp_path, name, value):
    write_config(tiny_config(), tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ConfigError, match=rf"config.{name}: .* there, .* given.*May change on resuming: data_dir"):
        write_config(changed(name, value), tmp_path)
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("eval.batch_size", 1), ("eval.pictures", 3), ("eval_every", 7), ("keep_every", 9), ("tensorboard", True)),
        *(("data_dir", "elsewhere"), ("read_threads", 2), ("num_steps", 99)),
    ],
)
def test_what_changes_neither_may_be_another(tmp_path, name, value):
    write_config(tiny_config(), tmp_path)
    write_config(changed(name, value), tmp_path)
    assert flatten(json.loads((tmp_path / "config.json").read_text()))[name] == value


@pytest.mark.parametrize("name", LOWEST)
def test_a_number_below_its_least_is_named(name):
    check_lowest(changed(name, type(flatten(to_dict(tiny_config()))[name])(LOWEST[name])))
    with pytest.raises(ConfigError, match=rf"config.{name}=-1.*: at least {LOWEST[name]} is needed"):
        check_lowest(changed(name, type(flatten(to_dict(tiny_config()))[name])(-1)))
