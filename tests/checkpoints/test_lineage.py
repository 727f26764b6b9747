"""What a checkpoint says of its origin, and that it cannot be lost on the way to packaged weights."""

import numpy as np
import pytest

from tests.fixtures import build_discs, tiny_config
from universeg_jax.checkpoints import packaged, store
from universeg_jax.checkpoints.lineage import check_open, check_same_data, inherit, lineage, resumed
from universeg_jax.errors import UserError

PARAMS = {"w": np.arange(3, dtype=np.float32)}
OPEN = {"role": "train_open", "licence": "CC0", "fingerprint": "1"}
VAL = {"role": "val", "fingerprint": "2"}
PARENT = {"trained_on": {"a": OPEN}, "selected_on": {"v": VAL}, "synthetic": True, "parents": ["grandparent"]}
OWN = {"code_version": "1", "trained_on": {}, "selected_on": {}, "synthetic": False, "parents": []}


def child_of(path, before, record=OWN):
    """The lineage of a run that starts from a checkpoint with lineage `before`."""
    store.write_params(path, PARAMS, {"config": {}, "lineage": before})
    return inherit(path, record, PARAMS)[1]


def saved(workdir, record, step=3):
    """A workdir whose latest checkpoint has this lineage."""
    store.write_params(workdir / "checkpoints" / str(step), PARAMS, {"lineage": record, "metrics": None})


@pytest.mark.parametrize("before", [{"converted_from": "theirs.pt"}, {}])
def test_descendants_of_weights_of_unknown_origin_are_not_packaged(tmp_path, before):
    record = before
    for generation in range(3):
        with pytest.raises(UserError, match="unknown origin"):
            check_open(record)
        record = child_of(tmp_path / str(generation), record)
    assert all(record.get(key) == value for key, value in before.items())
    assert len(record["parents"]) == 3


def test_a_child_inherits_all_datasets_of_its_parent(tmp_path):
    record = child_of(tmp_path / "parent", PARENT, {**OWN, "trained_on": {"b": OPEN}})
    check_open(record)
    assert record["trained_on"] == {"a": {**OPEN, "inherited": True}, "b": OPEN}
    assert record["selected_on"] == {"v": {**VAL, "inherited": True}}
    assert record["synthetic"]
    assert record["parents"][0] == "grandparent"
    assert child_of(tmp_path / "same", PARENT, {**OWN, "trained_on": {"a": OPEN}})["trained_on"] == {"a": OPEN}


def test_a_resumed_run_keeps_the_lineage_of_its_first_part(tmp_path):
    before = child_of(tmp_path / "parent", PARENT, {**OWN, "trained_on": {"b": OPEN}})
    now = {**OWN, "selected_on": {"w": VAL}, "code_version": "2", "parents": ["init_from leads elsewhere now"]}
    record = resumed(now, {"lineage": before})
    assert set(record["trained_on"]) == {"a", "b"}
    assert set(record["selected_on"]) == {"v", "w"}
    assert record["parents"] == before["parents"]
    assert record["synthetic"]
    assert record["code_version"] == "2"


@pytest.mark.parametrize("part", ["trained_on", "selected_on"])
@pytest.mark.parametrize("inherits", [False, True])
def test_changed_datasets_are_named(tmp_path, part, inherits):
    """Also a missing dataset of the run whose name the parent's data has."""
    three = {name: {**OPEN, "fingerprint": name} for name in "abc"}
    own = {**OWN, "trained_on": three, "selected_on": three}
    parent = {**OWN, "trained_on": {**three, "z": OPEN}, "selected_on": {**three, "z": OPEN}}
    saved(tmp_path, child_of(tmp_path / "parent", parent, own) if inherits else own)
    check_same_data(tmp_path, own)
    changes = {
        "a (missing)": {name: three[name] for name in "bc"},
        "b (built anew)": {**three, "b": OPEN},
        "d (new)": {**three, "d": OPEN},
        "a (missing), d (new)": {"b": three["b"], "c": three["c"], "d": OPEN},
    }
    for told, there in changes.items():
        with pytest.raises(UserError) as refused:
            check_same_data(tmp_path, {**own, part: there})
        assert f"was {part.replace('_', ' ')} other datasets than data_dir has: {told};" in str(refused.value)
        check_same_data(tmp_path, {**own, part: there}, [p for p in ("trained_on", "selected_on") if p != part])


def test_a_run_without_validation_may_get_it_on_resuming(tmp_path):
    saved(tmp_path, OWN)
    check_same_data(tmp_path, {**OWN, "selected_on": {"v": VAL}})
    with pytest.raises(UserError, match=r"v \(new\)"):
        check_same_data(tmp_path, {**OWN, "trained_on": {"v": OPEN}})


def test_the_latest_finished_checkpoint_counts(tmp_path):
    check_same_data(tmp_path / "nothing yet", OWN)
    unfinished = tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)
    check_same_data(tmp_path, OWN)
    saved(tmp_path, {**OWN, "trained_on": {"a": OPEN}}, step=9)
    saved(tmp_path, OWN, step=10)
    check_same_data(tmp_path, OWN)


def test_moved_data_is_the_same(tmp_path):
    here, there = (build_discs(tmp_path / place, "discs", "train_open") for place in ("here", "there"))
    saved(tmp_path / "run", lineage(tiny_config(), [here], []))
    check_same_data(tmp_path / "run", lineage(tiny_config(), [there], []))


def test_neutral_parts_start_fresh_where_the_parent_has_none(tmp_path):
    store.write_params(tmp_path / "parent", PARAMS, {"config": {}, "lineage": PARENT})
    keys = {"kernel": np.full((2, 2), 7, np.float32)}
    params, record = inherit(tmp_path / "parent", OWN, {"w": np.zeros(3, np.float32), "recognition": keys})
    np.testing.assert_array_equal(params["w"], PARAMS["w"])
    np.testing.assert_array_equal(params["recognition"]["kernel"], 7)
    assert record["parents"][-1] == packaged.params_hash(PARAMS)
    store.write_params(tmp_path / "child", params, {"config": {}, "lineage": record})
    keys = {"kernel": np.zeros((2, 2), np.float32)}
    again, _ = inherit(tmp_path / "child", OWN, {"w": np.zeros(3, np.float32), "recognition": keys})
    np.testing.assert_array_equal(again["recognition"]["kernel"], 7)


def test_other_parts_do_not_start_fresh(tmp_path):
    store.write_params(tmp_path / "parent", PARAMS, {"config": {}, "lineage": PARENT})
    with pytest.raises(packaged.CheckpointError, match="decoder_9"):
        inherit(tmp_path / "parent", OWN, {"w": np.zeros(3, np.float32), "decoder_9": np.zeros(2, np.float32)})
