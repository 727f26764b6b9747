"""Which checkpoints stay, what is inside, and what is said where there is none."""

import json
import shutil

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from tests.fixtures import tiny_config
from tests.processes import steps_saved
from universeg_jax import cli
from universeg_jax.checkpoints import packaged, store
from universeg_jax.checkpoints.lineage import lineage
from universeg_jax.checkpoints.store import CheckpointError, open_checkpointer, save
from universeg_jax.configuration import to_dict

PARAMS = {"w": np.arange(3, dtype=np.float32)}


def save_some(path, scores, keep_every=0):
    """Writes one checkpoint per step, with its score or None."""
    metadata = {"config": to_dict(tiny_config()), "lineage": lineage(tiny_config(), [], [])}
    with open_checkpointer(path, keep_every) as checkpointer:
        for step, score in scores.items():
            save(checkpointer, step, PARAMS, {"step": np.int32(step)}, metadata, score and {"mean_dice": score})


def test_the_latest_two_the_best_and_every_nth_stay(tmp_path):
    save_some(tmp_path, {1: 0.5, 2: 0.7, 3: None, 4: None, 5: 0.6, 6: None, 7: None}, keep_every=4)
    assert steps_saved(tmp_path) == [2, 4, 6, 7]
    assert store.resolve(tmp_path).name == "2"
    with open_checkpointer(tmp_path) as checkpointer:
        assert store.restore_state(checkpointer, {"step": np.int32(0)}) == {"step": 7}
        assert store.latest_metadata(checkpointer)["metrics"] is None


def test_a_checkpoint_without_a_score_is_replaced_by_one_with_it(tmp_path):
    save_some(tmp_path, {1: None, 2: None})
    save_some(tmp_path, {2: 0.5})
    assert steps_saved(tmp_path) == [1, 2]
    assert store.read_metadata(tmp_path / "checkpoints" / "2")["metrics"] == {"mean_dice": 0.5}


def test_the_command_prints_the_metadata(tmp_path, capsys):
    save_some(tmp_path, {3: 0.5})
    assert cli.main(["checkpoint", str(tmp_path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["step"] == 3
    assert shown["config"] == to_dict(tiny_config())
    assert shown["lineage"].keys() == {"code_version", "trained_on", "synthetic", "selected_on", "parents"}
    assert shown["lineage"]["code_version"].startswith("0.")


def test_a_checkpoint_of_another_program_or_shape_is_refused(tmp_path):
    with ocp.training.Checkpointer(tmp_path / "theirs") as theirs:
        theirs.save_checkpointables(1, {"params": {"w": np.zeros(3)}})
    with pytest.raises(CheckpointError, match="written by another program"):
        store.read_metadata(tmp_path / "theirs" / "1")
    save_some(tmp_path / "ours", {1: 0.5})
    path, params = tmp_path / "ours.safetensors", {"w": np.zeros((2, 3), np.float32)}
    packaged.write_file(path, params, {"config": {}})
    assert store.load_params(path, params)["w"].shape == (2, 3)
    store.write_params(tmp_path / "folder", params, {"config": {}})
    for there in (path, tmp_path / "folder"):
        for wanted, word in (
            ({"w": np.zeros((2, 4), np.float32)}, r"w: \(2, 3\) in the file, \(2, 4\) wanted"),
            ({"v": {"w": params["w"]}}, r"v.w: absent in the file, \(2, 3\) wanted"),
            ({**params, "x": np.zeros(1, np.float32)}, r"x: absent in the file, \(1,\) wanted"),
        ):
            with pytest.raises(CheckpointError, match=rf"{there.name} holds a model of another shape \({word}\)"):
                store.load_params(there, wanted)


def test_a_damaged_checkpoint_is_named_with_the_one_before_it(tmp_path):
    """Its metadata cut short, or lost."""
    save_some(tmp_path, {1: 0.5, 2: 0.7})
    newest = tmp_path / "checkpoints" / "2"
    files = [file for file in newest.rglob("*") if file.is_file() and b"universeg_jax checkpoint" in file.read_bytes()]
    assert files
    for contents in ("{", "{}", None):
        for file in files:
            file.write_text(contents) if contents else file.unlink()
        with pytest.raises(CheckpointError, match=r"2 is damaged.*; delete this folder: the run .* from step 1"):
            store.read_metadata(newest)


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("state/manifest.ocdbt", lambda file: file.write_bytes(file.read_bytes()[:20])),
        ("state/_METADATA", lambda file: file.unlink()),
        ("state/d/*", lambda file: file.write_bytes(bytes(file.stat().st_size))),
        ("metrics/metrics", lambda file: file.write_bytes(b'{"mean')),
    ],
)
def test_a_damaged_state_or_score_is_named_with_the_step_from_which_the_run_goes_on(tmp_path, part, damage):
    save_some(tmp_path, {1: 0.5, 2: 0.7})
    newest = tmp_path / "checkpoints" / "2"
    for file in newest.glob(part):
        damage(file)

    def resume():
        with open_checkpointer(tmp_path) as checkpointer:
            assert store.latest_metadata(checkpointer)["step"] in (1, 2)
            return store.restore_state(checkpointer, {"step": np.int32(0)})

    what = "scores" if part == "metrics/metrics" else "training state"
    with pytest.raises(CheckpointError, match=rf"{newest} is damaged: its {what} .*; delete this folder: .* step 1$"):
        resume()
    shutil.rmtree(newest)
    assert resume() == {"step": 1}


def test_a_workdir_without_a_checkpoint_is_refused(tmp_path):
    save_some(tmp_path, {})
    with pytest.raises(CheckpointError, match="has not saved yet"):
        store.resolve(tmp_path)
