"""The step, the loop, and resuming: what a run ends in must not depend on devices, kills or hosts."""

import functools
import os
import re
import signal
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tensorboardX.proto.event_pb2 import Event

from configs import default
from tests.fixtures import build_discs, tiny_config
from tests.processes import rows_without_times
from universeg_jax import checkpoints, evaluation, training, weights
from universeg_jax.configuration import ConfigError, to_dict
from universeg_jax.data.episodes import Batch, batches, make_sampler
from universeg_jax.data.tasks import task_table
from universeg_jax.episode import Episode, to_device_floats
from universeg_jax.errors import UserError
from universeg_jax.lineage import lineage
from universeg_jax.model import build_model, init_params
from universeg_jax.report import write_report
from universeg_jax.reporting import JsonLines, lock, read_json, read_json_lines, write_json

MIXED = {"real": 1.0, "synthetic": 1.0, "superpixel": 1.0}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    build_discs(path, "train_discs", "train_open", count=20)
    build_discs(path, "val_discs", "val", count=8, seed=1)
    build_discs(path, "test_discs", "test", count=8, seed=2)
    return path


def assert_trees_equal(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def stepper(config, data_dir, devices):
    """(first state, function of (state, first, last) → (state, sums of each step)) on some of the fake devices."""
    dataset = training.open_data(config)[0][0]
    sampler = make_sampler(
        [dataset], task_table([dataset]), seed=0, support_size=3, **training.kind_shares(config), size=16
    )
    model = build_model(config.model)
    optimizer, schedule = training.make_optimizer(config)
    step = functools.partial(training.train_step, model=model, optimizer=optimizer, schedule=schedule, config=config)
    devices = jax.devices()[:devices]
    pmapped = jax.pmap(step, axis_name="batch", in_axes=(None, 0), out_axes=None, devices=devices)

    def run(state, first, last):
        sums = []
        for batch in batches(sampler, batch_size=config.batch_size, first_step=first, last_step=last):
            shards = jax.tree.map(lambda x: np.asarray(x).reshape((len(devices), -1, *x.shape[1:])), batch)
            state, metrics = pmapped(state, shards)
            sums.append(jax.device_get(metrics))
        return state, sums

    return training.init_state(init_params(model, 0), optimizer, bool(config.ema_decay)), run


def test_one_and_four_devices_give_the_same_parameters(data_dir, tmp_path):
    config = tiny_config(data_dir, ema_decay=0.9)
    # Plain SGD: an optimizer that normalises gradients would hide a wrong scale.
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 0.1
    (start, on_one), (_, on_four) = (stepper(config, data_dir, n) for n in (1, 4))
    (one, one_sums), (four, four_sums) = (run(start, 0, 5) for run in (on_one, on_four))
    moves = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.params, start.params)
    assert max(jax.tree.leaves(moves)) > 1e-3
    assert_trees_equal(one.params, four.params, atol=1e-6)
    assert_trees_equal(one.ema, four.ema, atol=1e-6)
    assert_trees_equal(one_sums, four_sums, atol=1e-4, rtol=1e-5)
    assert one_sums[0]["loss"][1] == config.batch_size

    # A checkpoint of four devices is continued by one.
    with checkpoints.open_checkpointer(tmp_path) as checkpointer:
        three, _ = on_four(start, 0, 3)
        checkpoints.save(checkpointer, 3, three.params, three, {"config": to_dict(config)}, None)
    with checkpoints.open_checkpointer(tmp_path) as checkpointer:
        moved, _ = on_one(checkpoints.restore_state(checkpointer, start), 3, 5)
    assert_trees_equal(moved, one, atol=1e-6)
    loaded, _ = checkpoints.load(tmp_path)
    assert_trees_equal(loaded, jax.device_get(three.params), atol=0)
    assert {x.sharding.num_devices for x in jax.tree.leaves(loaded)} == {1}


def fake_run(config, step):
    """A Run whose step is cheap and whose evaluation scores 0.5."""

    class Fake:
        def __call__(self, params, check):
            return {"mean_dice": 0.5, "datasets": {"val_discs": {"dice": 0.5}}}

        def draw(self, *args):
            raise AssertionError("pictures are not asked for")

    params = {"w": np.ones(1, np.float32)}
    data = training.open_data(config)[0]
    metadata = {"config": to_dict(config), "lineage": {"code_version": "1"}}
    state = training.TrainState(np.int32(0), params, (), None)
    return training.Run(step, training.sampler_of(config, data), Fake(), state, metadata)


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
    told(training, "shard_batch", lambda args: f"batch {next(count)}")
    told(training.checkpoints, "save", lambda args: f"save {args[1]}")
    told(JsonLines, "write", lambda args: ("log" if "loss" in args[1] else "evaluate") + f" {args[1]['step']}")
    steps = iter(range(100))
    config = tiny_config(data_dir, num_steps=4, eval_every=3, checkpoint_every=2)
    run = fake_run(config, lambda state, batch: (events.append(f"step {next(steps)}"), cheap_step(state, batch))[1])
    monkeypatch.setattr(training, "prepare", lambda config: run)
    training.train_and_evaluate(config, tmp_path)
    assert events == [
        *("batch 0", "step 0", "batch 1", "step 1", "log 0"),
        *("log 1", "save 2", "batch 2", "step 2"),  # all that was logged before a checkpoint is on disk
        *("log 2", "evaluate 3", "save 3", "batch 3", "step 3"),
        *("log 3", "evaluate 4", "save 4"),
    ]


def test_nothing_moves_between_host_and_device_unasked(data_dir, tmp_path, monkeypatch):
    config = tiny_config(data_dir)
    run = fake_run(config, lambda state, batch: cheap_step(state._replace(step=np.int32(0)), batch))
    monkeypatch.setattr(training, "prepare", lambda config: run)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        training.train_and_evaluate(config, tmp_path)


def test_the_start_tells_what_to_expect_and_a_profile_is_written(data_dir, tmp_path, monkeypatch, capsys):
    config = tiny_config(data_dir, num_steps=24, eval_every=100, checkpoint_every=100)
    monkeypatch.setattr(training, "prepare", lambda config: fake_run(config, cheap_step))
    training.train_and_evaluate(config, tmp_path / "long", profile=True)
    said = capsys.readouterr().err
    assert re.search(r"first step after \d+ s; [\d.]+ GB of memory at most", said)
    assert re.search(r"expected end \d{4}-\d\d-\d\d \d\d:\d\d", said)
    assert re.search(r"24/24 \[.*<.*loss=.*episodes/s=.*waiting=", said)  # with the time that is left
    assert list((tmp_path / "long" / "profile").rglob("*.xplane.pb"))
    config.num_steps = 3
    training.train_and_evaluate(config, tmp_path / "short", profile=True)
    assert "no trace" in capsys.readouterr().err


def test_one_step_of_sgd_is_the_gradient_of_the_mean_loss(data_dir):
    config = tiny_config(data_dir)
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 1.0
    start, run = stepper(config, data_dir, devices=1)
    state, _ = run(start, 0, 1)
    dataset = training.open_data(config)[0][0]
    sampler = make_sampler([dataset], task_table([dataset]), seed=0, support_size=3, size=16)
    batch = next(batches(sampler, batch_size=4, first_step=0, last_step=1))
    model = build_model(config.model, form="plain")
    params = init_params(model, 0)
    episode, _ = jax.jit(functools.partial(training.device_episodes, config=config))(batch)

    def loss(params):
        p = jax.nn.sigmoid(model.apply({"params": params}, episode.query_image, *episode[2:]))
        y, axes = episode.query_label, (1, 2, 3)
        return (1 - (2 * (p * y).sum(axes) + 1e-7) / ((p**2).sum(axes) + (y**2).sum(axes) + 1e-7)).mean()

    expected = jax.tree.map(lambda p, g: p - g, params, jax.jit(jax.grad(loss))(params))
    assert_trees_equal(state.params, expected, atol=1e-5)


def mixed_batch(config, count=8):
    dataset = training.open_data(config)[0][0]
    shares = training.kind_shares(config)
    sampler = make_sampler([dataset], task_table([dataset]), seed=0, support_size=3, **shares, size=16)
    return next(batches(sampler, batch_size=count, first_step=0, last_step=1))


def test_device_episodes_depend_on_seed_and_index_alone(data_dir):
    config = tiny_config(data_dir, kinds=MIXED)
    batch = mixed_batch(config)
    assert set(batch.kind.tolist()) == {0, 1, 2}
    run = jax.jit(functools.partial(training.device_episodes, config=config))
    together, _ = run(batch)
    order = np.array([2, 0, 7, 3, 1, 6, 5, 4])
    shuffled, _ = run(jax.tree.map(lambda x: x[order], batch))
    assert_trees_equal(shuffled, jax.tree.map(lambda x: x[order], together), atol=1e-6)
    later, _ = run(batch._replace(index=batch.index + 8))
    assert np.abs(later.query_image - together.query_image).max((1, 2, 3)).min() > 0.05
    assert run._cache_size() == 1  # one program for all kinds


def test_each_kind_has_its_maker_and_one_without_weight_is_not_even_traced(data_dir, monkeypatch):
    batch, made = mixed_batch(tiny_config(data_dir, kinds=MIXED)), []

    def filled(value, support_size):
        images = jnp.full((support_size, 16, 16, 1), value)
        return Episode(images[0], images[0], images, images, jnp.ones(support_size))

    def synthetic(key, size, support_size, config):
        made.append("synthetic")
        return filled(-1.0, support_size)

    def superpixels(key, image, support_size, config):
        made.append("superpixel")
        return filled(-2.0, support_size), jnp.int32(0)

    monkeypatch.setattr(training.synthesis, "synthetic_episode", synthetic)
    monkeypatch.setattr(training.superpixel, "superpixel_episode", superpixels)
    for drawn in (["real"], ["real", "superpixel"], ["real", "synthetic"], ["synthetic", "superpixel"], list(MIXED)):
        made.clear()
        config = tiny_config(data_dir, kinds={name: float(name in drawn) for name in MIXED})
        there = np.isin(batch.kind, [list(MIXED).index(name) for name in drawn])
        index, kind, raw = jax.tree.map(lambda x, there=there: x[there], (batch.index, batch.kind, batch.episode))
        plain = jax.jit(jax.vmap(lambda *x, config=config: training.plain_episode(*x, config)[0].query_image))
        found = np.asarray(plain(index, kind, raw)).mean((1, 2, 3))
        assert set(made) == set(drawn) - {"real"}
        expected = raw.query_image.mean((1, 2, 3)) / 255
        np.testing.assert_allclose(found, np.choose(kind, [expected, -1.0, -2.0]), atol=1e-5)


def test_a_run_of_superpixels_alone_needs_no_label_but_data(data_dir, tmp_path):
    config = tiny_config(data_dir, num_steps=2, kinds={"real": 0.0, "synthetic": 0.0, "superpixel": 1.0})
    config.augment.in_task.view.update({"p": 1.0, "radius": (0.01, 0.01), "shift": (0.0, 0.0)})  # sees no pixel
    training.train_and_evaluate(config, tmp_path / "run")
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [np.isfinite(row["loss"]) for row in rows] == [True, True]
    assert all(row["repaired"] >= 1 + config.support_size for row in rows)  # labels an episode, all of them here
    record = checkpoints.read_metadata(checkpoints.resolve(tmp_path / "run"))["lineage"]
    assert set(record["trained_on"]) == {"train_discs"}  # its images count
    with pytest.raises(UserError, match="no dataset of roles"):
        training.train_and_evaluate(tiny_config(tmp_path / "empty", kinds=config.kinds), tmp_path / "none")


def test_a_run_leaves_what_it_promises_and_stopping_changes_nothing(data_dir, tmp_path, monkeypatch, capsys):
    config = tiny_config(data_dir, ema_decay=0.9)
    whole = training.train_and_evaluate(config, tmp_path / "whole")
    assert re.search(
        r"^1,877 parameters; 1 tasks of 1 datasets; \d+ GFLOP a step; 4 cpu of 1 host", capsys.readouterr().out
    )
    assert int(whole.step) == 6
    assert [row["step"] for row in rows_without_times(tmp_path / "whole")] == list(range(6))
    evaluations = read_json_lines(tmp_path / "whole" / "eval" / "metrics.jsonl")
    assert [row["step"] for row in evaluations] == [3, 6]
    assert read_json(tmp_path / "whole" / "eval" / "summary.json")["mean_dice"] == evaluations[-1]["mean_dice"]
    kept = {int(p.name) for p in (tmp_path / "whole" / "checkpoints").iterdir()}
    best = max(evaluations, key=lambda row: (row["mean_dice"], row["step"]))["step"]
    assert kept == {4, 6, best}
    assert checkpoints.resolve(tmp_path / "whole").name == str(best)
    record = checkpoints.read_metadata(checkpoints.resolve(tmp_path / "whole"))
    assert set(record["lineage"]["trained_on"]) == {"train_discs"}
    assert set(record["lineage"]["selected_on"]) == {"val_discs"}
    assert record["config"] == to_dict(config)

    # A SIGTERM in the first evaluation does not wait for its end: it is the first thing to do when the run goes on.
    def interrupted(*args, original=evaluation.prefetched):
        os.kill(os.getpid(), signal.SIGTERM)
        yield from original(*args)

    monkeypatch.setattr(evaluation, "prefetched", interrupted)
    with pytest.raises(SystemExit, match="0"):
        training.train_and_evaluate(config, tmp_path / "parts")
    monkeypatch.undo()
    assert "stopped by SIGTERM at step 3" in capsys.readouterr().out
    assert checkpoints.resolve(tmp_path / "parts").name == "3"
    assert not read_json_lines(tmp_path / "parts" / "eval" / "metrics.jsonl")
    monkeypatch.setattr(training, "lineage", lambda *data: {**lineage(*data), "code_version": "another"})
    parts = training.train_and_evaluate(config, tmp_path / "parts")
    assert re.search("step 3 was written by the code .*, and is continued by another", capsys.readouterr().out)
    assert_trees_equal(jax.device_get(whole), jax.device_get(parts), atol=0)
    assert rows_without_times(tmp_path / "parts") == rows_without_times(tmp_path / "whole")
    assert read_json_lines(tmp_path / "parts" / "eval" / "metrics.jsonl") == evaluations
    assert {int(p.name) for p in (tmp_path / "parts" / "checkpoints").iterdir()} == kept
    assert checkpoints.resolve(tmp_path / "parts").name == str(best)

    again = training.train_and_evaluate(config, tmp_path / "whole")  # nothing is left to do
    assert_trees_equal(jax.device_get(again.params), jax.device_get(whole.params), atol=0)
    with pytest.raises(ConfigError, match=r"config.seed: 0 there, 1 given.*May change on resuming: data_dir"):
        training.train_and_evaluate(tiny_config(data_dir, ema_decay=0.9, seed=1), tmp_path / "whole")


def test_starting_from_a_checkpoint_takes_its_parameters_and_lineage(data_dir, tmp_path):
    training.train_and_evaluate(tiny_config(data_dir, num_steps=2), tmp_path / "parent")
    path = checkpoints.resolve(tmp_path / "parent")
    config = tiny_config(data_dir, num_steps=1, init_from=str(path))
    config.optimizer.learning_rate = 0.0
    child = training.train_and_evaluate(config, tmp_path / "child")
    parent = checkpoints.load_params(path, init_params(build_model(config.model), 0))
    assert_trees_equal(jax.device_get(child.params), parent, atol=0)
    record = checkpoints.read_metadata(checkpoints.resolve(tmp_path / "child"))["lineage"]
    assert record["parents"] == [weights.params_hash(parent)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_step_and_the_evaluation_lower_for_tpu(data_dir, dtype):
    """No TPU has run them; that they lower shows that nothing in them belongs to a CPU."""
    config = tiny_config(data_dir, ema_decay=0.9, kinds=MIXED, augment=default.get_config().augment)
    config.model.dtype = dtype
    model = build_model(config.model)
    optimizer, schedule = training.make_optimizer(config)
    step = functools.partial(
        training.train_step, model=model, optimizer=optimizer, schedule=schedule, config=config, axis_name="batch"
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("batch",))
    sharded = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P("batch")), out_specs=(P(), P()), check_vma=False))
    state = training.init_state(init_params(model, 0), optimizer, ema=True)
    batch = jax.tree.map(jnp.asarray, mixed_batch(config, 4))
    exported = jax.export.export(sharded, platforms=["tpu"])(state, batch)
    assert exported.platforms == ("tpu",)
    text = exported.mlir_module()
    assert ("bf16" in text) == (dtype == "bfloat16")
    assert "all_reduce" in text
    method = evaluation.model_method(model, config.image_size)
    lowered = jax.export.export(jax.jit(method), platforms=["tpu"])(state.params, to_device_floats(batch.episode, 16))
    assert ("bf16" in lowered.mlir_module()) == (dtype == "bfloat16")


def test_a_second_process_in_a_workdir_is_refused(tmp_path, data_dir):
    with lock(tmp_path), pytest.raises(UserError, match="another process is training"):
        training.train_and_evaluate(tiny_config(data_dir), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_episodes(data_dir, tmp_path):
    config = tiny_config(data_dir)
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 1e15
    with pytest.raises(FloatingPointError, match=r"episodes 4, 5, 6, 7;.*Tasks: train_discs.*drawn in") as caught:
        training.train_and_evaluate(config, tmp_path)
    assert caught.value.episodes == [4, 5, 6, 7]
    assert (tmp_path / "episode_4.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"support_size": 0}, "config.support_size=0"),
        ({"eval": {"batch_size": 0}}, "config.eval.batch_size=0: at least 1"),
        ({"keep_every": -1}, "config.keep_every=-1: at least 0"),
        ({"ema_decay": 1.0}, "config.ema_decay=1.0: a share below 1"),
        ({"loss": {"soft_dice": 0.0}}, "config.loss: .* one above 0"),
        ({"batch_size": 6}, "not a multiple of the 4 devices"),
        ({"train_roles": ("train_research",)}, "no dataset of roles"),
        ({"train_datasets": ("test_discs",)}, "test_discs not among those to train on"),
        ({"kinds": {"real": 0.0, "synthetic": 0.0}}, "config.kinds"),
        ({"kinds": {"superpixel": -1.0}}, "config.kinds"),
        ({"kinds": {"real": float("nan")}}, "config.kinds"),
        ({"augment": {"task": {"edge": {"p": 1.5}}}}, "config.augment.task.edge.p must lie in"),
        ({"augment": {"in_task": {"blur": {"sigma": (2.0, 1.0)}}}}, "config.augment.in_task.blur.sigma must be lowest"),
        ({"kinds": {"synthetic": 1.0}, "synthesis": {"blur_std": (5.0, 0.5)}}, "config.synthesis.blur_std must be"),
        ({"kinds": {"synthetic": 1.0}, "image_size": 8}, "config.synthesis.*_scales .* needs a size of"),
        ({"kinds": {"synthetic": 1.0}, "synthesis": {"weights": {"shapes": 0.0}}}, "config.synthesis.weights must not"),
        ({"kinds": {"superpixel": 1.0}, "image_size": 8}, "config.superpixel.cells .* needs a size of 10, not 8"),
        ({"optimizer": {"name": "adamm"}}, "no such optimizer; is it adam, "),
        ({"optimizer": {"schedule": "sine"}}, "constant, cosine"),
        ({"optimizer": {"weight_decay": 0.1}}, "does not take"),
        ({"init_from": "nowhere"}, "does not exist"),
    ],
)
def test_a_config_that_cannot_run_is_refused(data_dir, tmp_path, fields, word):
    with pytest.raises(UserError, match=word):
        training.train_and_evaluate(tiny_config(data_dir, **fields), tmp_path)
    assert not list(tmp_path.iterdir())


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    model = build_model({"encoder_blocks": (4, 4)})
    params = init_params(model, 0)
    rng = np.random.default_rng(0)
    query, images = rng.random((4, 16, 16, 1)), rng.random((4, 3, 16, 16, 1))
    episode = Episode(query, query > 0.5, images, images > 0.6, np.ones((4, 3)))
    episode = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), episode)
    scores = functools.partial(training.loss_and_dice, model=model, config=tiny_config())
    whole, split = (
        jax.jit(lambda p, parts=parts: training.accumulated_gradient(scores, p, episode, parts))(params)
        for parts in (1, 2)
    )
    assert_trees_equal(split, whole, atol=1e-6)


def test_every_image_as_query_leaves_itself_out():
    batch, support = 2, 3
    images = np.arange(batch * (support + 1), dtype=np.float32).reshape(batch, support + 1, 1, 1, 1)
    mask = np.array([[1, 1, 1], [1, 1, 0]], np.float32)
    episode = Episode(images[:, 0], 10 + images[:, 0], images[:, 1:], 10 + images[:, 1:], mask)
    turned = jax.device_get(training.every_image_as_query(jax.tree.map(jnp.asarray, episode)))
    assert turned.query_image.ravel().tolist() == list(range(8))
    for query, others, kept in zip(turned.query_image.ravel(), turned.support_images, turned.support_mask, strict=True):
        first = 4 * (query // 4)
        assert others.ravel().tolist() == [x for x in range(int(first), int(first) + 4) if x != query]
        assert kept.tolist() == [float(x != 7) for x in others.ravel()]
    np.testing.assert_array_equal(turned.support_labels, turned.support_images + 10)


def test_every_image_as_query_is_the_mean_over_the_images_that_count():
    model = build_model({"encoder_blocks": (4,)})
    params = init_params(model, 0)
    rng = np.random.default_rng(0)
    images, labels = (jnp.asarray(rng.random((1, 4, 8, 8, 1)) > cut, jnp.float32) for cut in (0.5, 0.6))
    mask = jnp.array([[1.0, 1.0, 0.0]])  # the last image is padding
    config = tiny_config()

    def losses_of(config, query, others):
        episode = Episode(images[:, query], labels[:, query], images[:, others], labels[:, others], mask)
        return training.loss_and_dice(params, episode, model, config)

    each = [losses_of(config, i, np.array([j for j in (0, 1, 2) if j != i] + [3])) for i in range(3)]
    config.every_image_as_query = True
    together = losses_of(config, 0, np.array([1, 2, 3]))
    assert_trees_equal(together, jax.tree.map(lambda *x: sum(x) / 3, *each), atol=1e-6)


@pytest.mark.parametrize("schedule", ["uniform", "log_uniform"])
def test_support_sizes_are_drawn_as_the_schedule_says(schedule):
    config = tiny_config(support_size=48, support_schedule=schedule)
    sizes, slots = np.array([training.support_size_of(step, config) for step in range(4000)]).T
    assert (sizes == np.array([training.support_size_of(step, config)[0] for step in range(4000)])).all()
    assert sizes.min() == 1
    assert sizes.max() == 48
    assert set(slots) == {1, 2, 4, 8, 16, 32, 48}
    assert ((sizes <= slots) & (slots < 2 * sizes)).all()
    below = np.arange(1, 49) / 48 if schedule == "uniform" else np.log(np.arange(2, 50)) / np.log(49)
    seen = np.array([(sizes <= n).mean() for n in range(1, 49)])
    assert np.abs(seen - below).max() < 4 * np.sqrt(0.25 / 4000)
    assert training.support_size_of(7, tiny_config(support_size=48)) == (48, 48)


def test_trimmed_support_keeps_the_first_entries():
    images = np.arange(2 * 5).reshape(2, 5, 1, 1, 1)
    episode = Episode(images[:, 0], images[:, 0], images, images + 1, np.ones((2, 5), np.uint8))
    batch = training.trim_support(Batch(np.arange(2), np.zeros(2), np.zeros(2), episode), 3, 4)
    np.testing.assert_array_equal(batch.episode.support_images, images[:, :4])
    np.testing.assert_array_equal(batch.episode.support_mask, [[1, 1, 1, 0]] * 2)


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
        "every_image_as_query": True,
        "batch_size": 8,
        "accumulation": 2,
        "loss": {"bce": 0.5, "focal": 0.1},
        "optimizer": {"name": "adamw", "weight_decay": 0.01, "clip_norm": 1.0, "warmup_steps": 2},
        "tensorboard": True,
        "eval": {"pictures": 1},
        "kinds": {"real": 1.0, "synthetic": 0.0},
    }
    whole = training.train_and_evaluate(tiny_config(data_dir, **fields), tmp_path / "whole")
    # A constant schedule: the first steps of a longer run are those of a shorter one.
    training.train_and_evaluate(tiny_config(data_dir, num_steps=3, **fields), tmp_path / "parts")
    parts = training.train_and_evaluate(tiny_config(data_dir, **fields), tmp_path / "parts")
    assert_trees_equal(jax.device_get(whole), jax.device_get(parts), atol=0)
    shown = board_events(tmp_path / "whole" / "tensorboard")
    names = ("loss", "dice", "grad_norm", "param_norm", "learning_rate", "repaired")
    assert {tag: steps for tag, steps in shown.items() if tag.startswith("train/")} == {
        f"train/{name}": [1, 2, 3, 4, 5, 6] for name in names
    }
    assert shown["val/mean_dice"] == shown["val/val_discs"] == shown["val/masks"] == [3, 6]
    assert (tmp_path / "whole" / "eval" / "sheet.png").stat().st_size > 1000

    text = write_report(tmp_path / "whole").read_text()
    assert "6 of 6" in text
    assert text.count("data:image/png;base64,") == 2  # curves and masks
    assert "train_discs" in text
    assert "<td>config.support_schedule</td><td>log_uniform</td>" in text
    assert "val_discs" in text
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)


def test_a_torn_last_line_and_later_steps_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"st')
    log = JsonLines(path, resume_step=2)
    log.write({"step": 2, "again": True})
    log.close()
    assert read_json_lines(path) == [{"step": 0}, {"step": 1}, {"step": 2, "again": True}]
    write_json(tmp_path / "deep" / "x.json", {"a": 1})
    assert read_json(tmp_path / "deep" / "x.json") == {"a": 1}
