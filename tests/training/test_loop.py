"""The loop and resuming: the result of a run must not depend on where it was stopped."""

import os
import re
import shutil
import signal
import struct

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from tests.fixtures import assert_trees_equal, build_discs, tiny_config
from tests.processes import rows_without_times
from universeg_jax.checkpoints import packaged, store
from universeg_jax.checkpoints.lineage import lineage
from universeg_jax.configuration import ConfigError, to_dict
from universeg_jax.episodes import inputs
from universeg_jax.errors import UserError
from universeg_jax.evaluation import runner
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.reports.files import (
    JsonLines,
    lock,
    read_json,
    read_json_lines,
    write_json,
)
from universeg_jax.training import loop, setup
from universeg_jax.training.report import write_run_report
from universeg_jax.training.step import TrainState


def fake_run(config, step):
    """A Run whose step is cheap and whose evaluation scores 0.5."""

    class Fake:
        def __call__(self, params, check):
            return {"mean_dice": 0.5, "datasets": {"val_discs": {"dice": 0.5}}}

        def plot(self, *args):
            raise AssertionError("pictures are not asked for")

    params = {"w": np.ones(1, np.float32)}
    data = inputs.open_data(config)[0]
    metadata = {"config": to_dict(config), "lineage": {"code_version": "1"}}
    state = TrainState(np.int32(0), params, (), None)
    return setup.Run(step, inputs.open_sampler(config, data), Fake(), state, metadata)


@jax.jit
def cheap_step(state, batch):
    names = ("loss", "dice", "grad_norm", "param_norm", "learning_rate")
    index = batch.index.ravel()
    sums = {name: (state.step.astype(float), 1.0) for name in names} | {"episodes": index, "losses": index * 0.0}
    return state._replace(step=state.step + 1), sums


def test_the_loop_keeps_its_order_and_fetches_a_step_once_the_next_is_dispatched(data_dir, tmp_path, monkeypatch):
    events = []

    def told(module, name, what):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: (events.append(what(args)), function(*args))[1])

    count = iter(range(100))
    told(loop, "shard_batch", lambda args: f"batch {next(count)}")
    told(loop.store, "save", lambda args: f"save {args[1]}")
    told(JsonLines, "write", lambda args: ("log" if "loss" in args[1] else "evaluate") + f" {args[1]['step']}")
    steps = iter(range(100))
    config = tiny_config(data_dir, num_steps=4, eval_every=3, checkpoint_every=2)
    run = fake_run(config, lambda state, batch: (events.append(f"step {next(steps)}"), cheap_step(state, batch))[1])
    monkeypatch.setattr(loop, "prepare_run", lambda config: run)
    loop.train_and_evaluate(config, tmp_path)
    assert events == [
        *("batch 0", "step 0", "batch 1", "step 1", "log 0"),
        *("log 1", "save 2", "batch 2", "step 2"),  # all that was logged before a checkpoint is on disk
        *("log 2", "evaluate 3", "save 3", "batch 3", "step 3"),
        *("log 3", "evaluate 4", "save 4"),
    ]


def test_implicit_transfers_between_host_and_device_are_refused(data_dir, tmp_path, monkeypatch):
    config = tiny_config(data_dir)
    run = fake_run(config, lambda state, batch: cheap_step(state._replace(step=np.int32(0)), batch))
    monkeypatch.setattr(loop, "prepare_run", lambda config: run)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        loop.train_and_evaluate(config, tmp_path)


def test_the_start_prints_memory_and_end_and_a_profile_is_written(data_dir, tmp_path, monkeypatch, capsys):
    config = tiny_config(data_dir, num_steps=24, eval_every=100, checkpoint_every=100)
    monkeypatch.setattr(loop, "prepare_run", lambda config: fake_run(config, cheap_step))
    loop.train_and_evaluate(config, tmp_path / "long", profile=True)
    said = capsys.readouterr().err
    assert re.search(r"first step after \d+ s; [\d.]+ GB of memory at most", said)
    assert re.search(r"expected end \d{4}-\d\d-\d\d \d\d:\d\d", said)
    assert re.search(r"24/24 \[.*<.*loss=.*episodes/s=.*waiting=", said)  # with the time that is left
    assert list((tmp_path / "long" / "profile").rglob("*.xplane.pb"))
    config.num_steps = 3
    loop.train_and_evaluate(config, tmp_path / "short", profile=True)
    assert "no trace" in capsys.readouterr().err


def test_a_run_of_superpixels_alone_needs_images_but_no_labels(data_dir, tmp_path):
    config = tiny_config(data_dir, num_steps=2, kinds={"real": 0.0, "synthetic": 0.0, "superpixel": 1.0})
    config.augment.in_task.affine.update({"p": 1.0, "translate": (2.0, 2.0)})  # moves every pixel out of the image
    loop.train_and_evaluate(config, tmp_path / "run")
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [np.isfinite(row["loss"]) for row in rows] == [True, True]
    assert all(row["repaired"] >= 1 + config.support_size for row in rows)  # labels an episode, all of them here
    record = store.read_metadata(store.resolve(tmp_path / "run"))["lineage"]
    assert set(record["trained_on"]) == {"train_discs"}  # its images count
    with pytest.raises(UserError, match="no dataset of roles"):
        loop.train_and_evaluate(tiny_config(tmp_path / "empty", kinds=config.kinds), tmp_path / "none")


def test_a_run_writes_its_files_and_an_interruption_changes_nothing(data_dir, tmp_path, monkeypatch, capsys):
    config = tiny_config(data_dir, ema_decay=0.9)
    whole = loop.train_and_evaluate(config, tmp_path / "whole")
    assert re.search(r"^1,877 parameters; 1 tasks of 1 datasets; 4 cpu of 1 host", capsys.readouterr().out)
    assert int(whole.step) == 6
    assert [row["step"] for row in rows_without_times(tmp_path / "whole")] == list(range(6))
    evaluations = read_json_lines(tmp_path / "whole" / "eval" / "metrics.jsonl")
    assert [row["step"] for row in evaluations] == [3, 6]
    assert read_json(tmp_path / "whole" / "eval" / "summary.json")["mean_dice"] == evaluations[-1]["mean_dice"]
    kept = {int(p.name) for p in (tmp_path / "whole" / "checkpoints").iterdir()}
    best = max(evaluations, key=lambda row: (row["mean_dice"], row["step"]))["step"]
    assert kept == {4, 6, best}
    assert store.resolve(tmp_path / "whole").name == str(best)
    record = store.read_metadata(store.resolve(tmp_path / "whole"))
    assert set(record["lineage"]["trained_on"]) == {"train_discs"}
    assert set(record["lineage"]["selected_on"]) == {"val_discs"}
    assert record["config"] == to_dict(config)

    # A SIGTERM in the first evaluation does not wait for its end: it is the first thing to do when the run goes on.
    def interrupted(*args, original=runner.prefetch_batches):
        os.kill(os.getpid(), signal.SIGTERM)
        yield from original(*args)

    monkeypatch.setattr(runner, "prefetch_batches", interrupted)
    with pytest.raises(SystemExit, match="0"):
        loop.train_and_evaluate(config, tmp_path / "parts")
    monkeypatch.undo()
    assert "stopped by SIGTERM at step 3" in capsys.readouterr().out
    assert store.resolve(tmp_path / "parts").name == "3"
    assert not read_json_lines(tmp_path / "parts" / "eval" / "metrics.jsonl")
    monkeypatch.setattr(setup, "lineage", lambda *data: {**lineage(*data), "code_version": "another"})
    parts = loop.train_and_evaluate(config, tmp_path / "parts")
    assert re.search("step 3 was written by version .* of the code; version another continues", capsys.readouterr().out)
    assert_trees_equal(jax.device_get(whole), jax.device_get(parts), atol=0)
    assert rows_without_times(tmp_path / "parts") == rows_without_times(tmp_path / "whole")
    assert read_json_lines(tmp_path / "parts" / "eval" / "metrics.jsonl") == evaluations
    assert {int(p.name) for p in (tmp_path / "parts" / "checkpoints").iterdir()} == kept
    assert store.resolve(tmp_path / "parts").name == str(best)

    again = loop.train_and_evaluate(config, tmp_path / "whole")  # nothing is left to do
    assert_trees_equal(jax.device_get(again.params), jax.device_get(whole.params), atol=0)
    with pytest.raises(ConfigError, match=r"config.seed: 0 in the run, 1 given.*May change on resuming: data_dir"):
        loop.train_and_evaluate(tiny_config(data_dir, ema_decay=0.9, seed=1), tmp_path / "whole")


def test_init_from_takes_parameters_and_lineage(data_dir, tmp_path):
    loop.train_and_evaluate(tiny_config(data_dir, num_steps=2), tmp_path / "parent")
    path = store.resolve(tmp_path / "parent")
    config = tiny_config(data_dir, num_steps=1, init_from=str(path))
    config.optimizer.learning_rate = 0.0
    child = loop.train_and_evaluate(config, tmp_path / "child")
    parent = store.load_params(path, init_params(build_model(config.model), 0))
    assert_trees_equal(jax.device_get(child.params), parent, atol=0)
    record = store.read_metadata(store.resolve(tmp_path / "child"))["lineage"]
    assert record["parents"] == [packaged.params_hash(parent)]
    config.model.encoder_blocks = (4, 4, 4)
    with pytest.raises(UserError, match=r"holds a model of another shape .*config.model"):
        loop.train_and_evaluate(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_resuming_needs_the_same_data_in_any_folder_and_keeps_the_lineage(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    loop.train_and_evaluate(tiny_config(data_dir, num_steps=1), tmp_path / "parent")
    fields = {"init_from": str(tmp_path / "parent"), "eval_every": 100}
    loop.train_and_evaluate(tiny_config(tmp_path / "data", num_steps=2, **fields), tmp_path / "run")
    before = store.read_metadata(store.resolve(tmp_path / "run"))["lineage"]
    loop.train_and_evaluate(tiny_config(data_dir, num_steps=2), tmp_path / "parent")  # another best one now
    (tmp_path / "data").rename(tmp_path / "moved")
    config = tiny_config(tmp_path / "moved", num_steps=3, **fields)
    loop.train_and_evaluate(config, tmp_path / "run")
    after = store.read_metadata([*store.saved(tmp_path / "run").values()][-1])
    assert after["step"] == 3
    assert after["lineage"] == before

    config.num_steps = 4
    left = sorted(path.relative_to(tmp_path) for path in (tmp_path / "run").rglob("*"))
    build_discs(tmp_path / "moved", "more_discs", "val", seed=5)
    with pytest.raises(UserError, match=r"was selected on other datasets .*: more_discs \(new\); give the data_dir"):
        loop.train_and_evaluate(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "moved" / "more_discs")
    shutil.rmtree(tmp_path / "moved" / "train_discs")
    build_discs(tmp_path / "moved", "train_discs", "train_open", count=20, seed=5)
    with pytest.raises(UserError, match=r"was trained on other datasets .*: train_discs \(built anew\)"):
        loop.train_and_evaluate(config, tmp_path / "run")
    assert sorted(path.relative_to(tmp_path) for path in (tmp_path / "run").rglob("*")) == left


def test_an_interrupted_build_of_synthetic_data_is_completed_and_real_data_stays(data_dir, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(setup, "make_datasets", lambda path: made.append(str(path)))
    build_discs(tmp_path, "made_00", "train_open")
    for path in (tmp_path, data_dir):
        setup.prepare_run(tiny_config(path, make_data=True))
    assert made == [str(tmp_path)]


def test_a_second_process_in_a_workdir_is_refused(tmp_path, data_dir):
    with lock(tmp_path), pytest.raises(UserError, match="another process works in"):
        loop.train_and_evaluate(tiny_config(data_dir), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_episodes(data_dir, tmp_path):
    config = tiny_config(data_dir)
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 1e15
    with pytest.raises(
        FloatingPointError, match=r"episodes 4, 5, 6, 7;.*Tasks: train_discs.*shows the first"
    ) as caught:
        loop.train_and_evaluate(config, tmp_path)
    assert caught.value.episodes == [4, 5, 6, 7]
    assert (tmp_path / "episode_4.png").stat().st_size > 1000


@pytest.mark.parametrize(  # tests/test_configuration.py breaks the rule of every field
    ("fields", "word"),
    [
        ({"support_size": 0}, "config.support_size=0"),
        ({"batch_size": 6}, "not a multiple of the 4 devices"),
        ({"train_roles": ("train_research",)}, "no dataset of roles"),
        ({"optimizer": {"name": "adamm"}}, "no such optimizer; did you mean adam, "),
        ({"optimizer": {"weight_decay": 0.1}}, "does not take"),
        ({"init_from": "nowhere"}, "does not exist"),
        ({"image_size": 17}, "config.image_size=17: .* with 2 levels both sides must be multiples of 2"),
        ({"image_size": 100, "model": {"encoder_blocks": (4, 4, 4, 4)}}, "config.image_size=100: .* multiples of 8"),
        ({"image_size": 17, "model": {"name": "panet", "stride": 2}}, "config.image_size=17: "),
        ({"model": {"norm": "batch"}}, "norm"),
    ],
)
def test_a_config_that_cannot_run_is_refused(data_dir, tmp_path, fields, word):
    with pytest.raises(UserError, match=word):
        loop.train_and_evaluate(tiny_config(data_dir, **fields), tmp_path)
    assert not list(tmp_path.iterdir())


def board_events(directory):
    """{tag: steps} of TensorBoard's files: records of length, checksum, event, checksum."""
    found = {}
    for path in directory.glob("events*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found


def test_a_run_of_every_option_resumes_exactly(data_dir, tmp_path):
    fields = {
        "support_size": 2,
        "support_schedule": "log_uniform",
        "batch_size": 8,
        "accumulation": 2,
        "loss": {"bce": 0.5, "focal": 0.1},
        "optimizer": {"name": "adamw", "weight_decay": 0.01, "clip_norm": 1.0, "warmup_steps": 2},
        "tensorboard": True,
        "eval": {"pictures": 1},
        "kinds": {"real": 1.0, "synthetic": 0.0},
    }
    whole = loop.train_and_evaluate(tiny_config(data_dir, **fields), tmp_path / "whole")
    # A constant schedule: the first steps of a longer run are those of a shorter one.
    loop.train_and_evaluate(tiny_config(data_dir, num_steps=3, **fields), tmp_path / "parts")
    parts = loop.train_and_evaluate(tiny_config(data_dir, **fields), tmp_path / "parts")
    assert_trees_equal(jax.device_get(whole), jax.device_get(parts), atol=0)
    shown = board_events(tmp_path / "whole" / "tensorboard")
    names = ("loss", "dice", "grad_norm", "param_norm", "learning_rate", "repaired")
    assert {tag: steps for tag, steps in shown.items() if tag.startswith("train/")} == {
        f"train/{name}": [1, 2, 3, 4, 5, 6] for name in names
    }
    assert shown["val/mean_dice"] == shown["val/val_discs"] == shown["val/masks"] == [3, 6]
    assert (tmp_path / "whole" / "eval" / "sheet.png").stat().st_size > 1000

    text = write_run_report(tmp_path / "whole").read_text()
    assert "6 of 6" in text
    assert text.count("data:image/png;base64,") == 2  # curves and masks
    assert "train_discs" in text
    assert "<td>config.support_schedule</td><td>log_uniform</td>" in text
    assert "val_discs" in text
    with pytest.raises(UserError, match="holds no run"):
        write_run_report(tmp_path)


def test_a_torn_last_line_and_later_steps_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"st')
    log = JsonLines(path, resume_step=2)
    log.write({"step": 2, "again": True})
    log.close()
    assert read_json_lines(path) == [{"step": 0}, {"step": 1}, {"step": 2, "again": True}]
    write_json(tmp_path / "deep" / "x.json", {"a": 1})
    assert read_json(tmp_path / "deep" / "x.json") == {"a": 1}
