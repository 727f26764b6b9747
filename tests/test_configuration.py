"""The rules of fields, retired fields, and which fields may change when a run is resumed."""

import json

import pytest
from ml_collections import ConfigDict

from tests.fixtures import tiny_config
from universeg_jax.configs import default
from universeg_jax.configuration import (
    ADDED,
    RESUMABLE,
    RETIRED,
    RULES,
    WEIGHTS,
    ConfigError,
    check_fields,
    first_match,
    flatten,
    load_config,
    read_config,
    to_dict,
    unknown_field,
    without_retired,
    write_config,
)
from universeg_jax.episodes import structures
from universeg_jax.training import losses

FIELDS = flatten(default.get_config().to_dict())
ALL_KINDS = {"real": 1.0, "synthetic": 1.0, "superpixel": 1.0, "painted": 1.0}


def changed(name, value, **fields):
    config = tiny_config(**fields)
    config.update_from_flattened_dict({name: value})
    return config


def outside(rule, value):
    """Values that break a rule, of the type of `value`."""
    if isinstance(rule, tuple):
        return ["cubic"]
    if rule == "odd":
        return [4, -1]
    if rule == "sizes":
        return [(), (8, 0)]
    if rule.startswith("range"):
        least = int(rule.split()[2])
        return [(least - 1, least + 1), (least + 2, least + 1), (float(least), least + 1.0)]
    low, high = (float(x) for x in rule[1:-1].split(","))
    bad = [] if low == -float("inf") else [type(_number(value))(low - (0 if rule[0] == "(" else 1))]
    bad += [] if high == float("inf") else [high + (0 if rule[-1] == ")" else 0.5)]
    bad += [float("nan"), float("inf")] if isinstance(_number(value), float) else []
    if isinstance(value, tuple):
        return [(x, x) for x in bad] + [(value[1] + 1, value[0] + 1), (*value, value[1])]
    return bad


def _number(value):
    return value[0] if isinstance(value, tuple) and value else value


@pytest.fixture(scope="module")
def config():
    return tiny_config()


@pytest.mark.parametrize("pattern", RULES)
def test_a_value_that_breaks_its_rule_is_refused_with_field_value_and_rule(config, pattern):
    name = next(n for n, x in FIELDS.items() if first_match(n, RULES) == pattern and n != "optimizer.name")
    value = flatten(config.to_dict())[name]
    check_fields(config)
    for bad in outside(RULES[pattern], value):
        config.update_from_flattened_dict({name: bad})
        with pytest.raises(ConfigError) as refused:
            check_fields(config)
        assert str(refused.value).startswith(f"config.{name}={bad!r}: ")
        assert str(refused.value).endswith(" is needed")
    config.update_from_flattened_dict({name: value})


def test_every_number_has_a_rule_and_every_rule_a_field():
    numbers = {n for n, x in FIELDS.items() if isinstance(_number(x), int | float) and not isinstance(x, bool)}
    without = {name for name in numbers if not first_match(name, RULES)}
    assert {name.split(".")[0] for name in without} == {"model"}  # which build_model checks
    assert {first_match(name, RULES) for name in FIELDS} - {None} == RULES.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("batch_size", 1), ("ema_decay", 0.0), ("seed", 0), ("support_schedule", "uniform")),
        *(("augment.task.noise.p", 1.0), ("synthesis.labels", (2, 3)), ("synthesis.tubes.levels", (5, 6))),
        *(("superpixel.area", (0.0, 1.0)), ("augment.in_task.affine.degrees", (-1.0, -1.0))),
    ],
)
def test_the_bounds_of_a_rule_are_allowed(name, value):
    check_fields(changed(name, value))


def test_sections_of_weights_name_what_the_code_knows_and_one_is_above_0():
    assert WEIGHTS["loss"] == tuple(losses.TERMS)
    assert WEIGHTS["synthesis.weights"] == structures.FAMILIES
    for section, names in WEIGHTS.items():
        config = tiny_config()
        config.update_from_flattened_dict({f"{section}.{name}": 0.0 for name in names})
        with pytest.raises(ConfigError, match=rf"config.{section}: the weights of .* are all 0; one above 0 is needed"):
            check_fields(config)
    with pytest.raises(ConfigError, match="config.kinds.reel: only real, synthetic, superpixel, painted have weights"):
        check_fields(
            tiny_config(
                kinds=ConfigDict({"real": 1.0, "reel": 1.0, "synthetic": 0.0, "superpixel": 0.0, "painted": 0.0})
            )
        )


def test_two_probabilities_must_not_exceed_1():
    other = tiny_config(corrections=0.5)
    check_fields(other)
    other.model.name = "senet"
    with pytest.raises(ConfigError, match=r"config.corrections=0.5 and config.model.name='senet': only .* universeg"):
        check_fields(other)
    check_fields(tiny_config(label_union=0.7, all_labels=0.1 + 0.2))
    with pytest.raises(ConfigError, match=r"config.label_union=0.7 and config.all_labels=0.5: .* at most 1"):
        check_fields(tiny_config(label_union=0.7, all_labels=0.5))


@pytest.mark.parametrize(
    ("name", "value", "size"),
    [
        ("synthesis.warp_scales", (8, 16), 64),
        ("superpixel.cells", (4, 40), 78),
        ("superpixel.bias_nodes", 80, 80),
    ],
)
def test_grids_finer_than_the_image_are_refused_where_they_are_used(name, value, size):
    check_fields(changed(name, value, image_size=size, kinds=ALL_KINDS))
    check_fields(changed(name, value, image_size=size - 1))  # real episodes alone
    with pytest.raises(ConfigError, match=rf"config.{name}=.* needs config.image_size={size} or more, not {size - 1}"):
        check_fields(changed(name, value, image_size=size - 1, kinds=ALL_KINDS))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("optimizer.lr", "config.optimizer has no field 'lr'. Its fields are clip_norm, decay_steps, learning_rate, "),
        ("optimizer.learningrate", "config.optimizer has no field 'learningrate'. Did you mean \"learning_rate\"?"),
        ("optimizr.name", "config has no field 'optimizr'. Did you mean \"optimizer\"?"),
        ("batch_size.x", "config.batch_size is a value and has no field 'x'"),
    ],
)
def test_an_unknown_field_is_answered_with_the_known_ones(name, message):
    assert unknown_field(tiny_config(), name).startswith(message)
    assert unknown_field(tiny_config(), "optimizer.learning_rate") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("eval.support_size", 3), ("eval.ensemble", 2), ("eval.max_cases", 1)),
        *(("val_role", "test"), ("seed", 1), ("batch_size", 8), ("augment.task.noise.p", 0.1)),
    ],
)
def test_a_field_that_changes_an_episode_or_a_score_must_stay_on_resuming(tmp_path, name, value):
    write_config(tiny_config(), tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ConfigError, match=rf"config.{name}: .* in the run, .* given.*May change on resuming: data_dir"):
        write_config(changed(name, value), tmp_path)
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize("name", [*RESUMABLE, "num_steps"])
def test_a_field_that_changes_neither_may_change_on_resuming(tmp_path, name):
    write_config(tiny_config(), tmp_path)
    value = FIELDS[name]
    new = not value if isinstance(value, bool) else f"{value}_2" if isinstance(value, str) else value + 99
    write_config(changed(name, new), tmp_path)
    assert flatten(json.loads((tmp_path / "config.json").read_text()))[name] == new


def older_config():
    """config.json of a run of an earlier version, with retired fields at values that changed nothing."""
    old = to_dict(tiny_config())
    old |= {"every_image_as_query": False, "draw_exponent": 0.5}
    for augmentation in (old["augment"], old["superpixel"]["views"]):
        for level in ("task", "in_task"):
            augmentation[level]["zoom"] = {"p": 0.0, "factor": [1.0, 2.0]}
            augmentation[level]["low_resolution"] = {"p": 0.0, "factor": [1.0, 4.0]}
            augmentation[level]["view"] = {"p": 0.0, "radius": [0.35, 0.6], "shift": [0.0, 0.1]}
    return old


def test_an_older_run_is_read_and_resumed_without_its_retired_fields(tmp_path):
    old, new = older_config(), to_dict(tiny_config())
    assert {first_match(name, RETIRED) for name in flatten(old)} - {None} == RETIRED.keys()
    assert without_retired(old) == new
    assert not [name for name in FIELDS if first_match(name, RETIRED)]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert to_dict(read_config(tmp_path)) == new
    write_config(tiny_config(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == new


def test_a_run_that_lacks_later_fields_is_resumed_where_they_change_nothing(tmp_path):
    new = to_dict(tiny_config())
    added = {name: first_match(name, ADDED) for name in flatten(new)}
    assert set(added.values()) - {None} == ADDED.keys()
    old = json.loads(json.dumps(new))
    for name in (name for name, pattern in added.items() if pattern):
        section, *rest = name.split(".")
        del (old[section] if rest else old)[rest[0] if rest else section]
    del old["painting"]  # older runs lack the whole section
    (tmp_path / "config.json").write_text(json.dumps(old))
    read = flatten(to_dict(read_config(tmp_path)))
    assert read == {
        name: value for name, value in flatten(new).items() if added[name] not in ("painting.*", "model.key_heads")
    }
    with pytest.raises(ConfigError, match=r"config.model.keys: 'none' in the run, 'lite0' given"):
        write_config(tiny_config(model={"keys": "lite0"}), tmp_path)
    with pytest.raises(ConfigError, match="config.train_without: "):
        write_config(tiny_config(train_without=("test_discs",)), tmp_path)
    write_config(tiny_config(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == new


@pytest.mark.parametrize(
    ("name", "value"), [("every_image_as_query", True), ("augment.task.zoom.p", 0.1), ("draw", "size")]
)
def test_an_older_run_that_used_a_retired_option_is_refused(tmp_path, name, value):
    old = older_config()
    section, parts = old, name.split(".")
    for part in parts[:-1]:
        section = section[part]
    section[parts[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ConfigError, match=f"config.{name}"):
        write_config(tiny_config(), tmp_path)


def test_a_config_loads_by_file_and_argument(tmp_path, monkeypatch):
    assert load_config("configs/small.py:128").image_size == 128
    with pytest.raises(ConfigError, match=r"config configs/small.py:96: .*one of 64, 128"):
        load_config("configs/small.py:96")
    with pytest.raises(ConfigError, match="config missing.py: there is no Python file missing.py"):
        load_config("missing.py")
