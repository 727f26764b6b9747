"""The step, the loop, and resuming: what a run ends in must not depend on devices, kills or hosts."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.fixtures import build_discs, tiny_config
from universeg_jax import checkpoints, evaluation, training, weights
from universeg_jax.configuration import ConfigError, check_resumable, to_dict
from universeg_jax.data.episodes import Batch, batches, make_sampler
from universeg_jax.data.tasks import task_table
from universeg_jax.episode import Episode, to_device_floats
from universeg_jax.errors import UserError
from universeg_jax.model import build_model, init_params
from universeg_jax.report import write_report
from universeg_jax.reporting import lock, read_json, read_json_lines, write_json

ROOT = Path(__file__).parents[1]
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


def steps(config, data_dir, devices, count=5):
    """Parameters after `count` steps on some of the fake devices."""
    dataset = training.open_data(config)[0][0]
    sampler = make_sampler(
        [dataset], task_table([dataset]), seed=0, support_size=3, **training.kind_shares(config), size=16
    )
    model = build_model(config.model)
    optimizer, schedule = training.make_optimizer(config)
    step = functools.partial(training.train_step, model=model, optimizer=optimizer, schedule=schedule, config=config)
    devices = jax.devices()[:devices]
    pmapped = jax.pmap(step, axis_name="batch", in_axes=(None, 0), out_axes=None, donate_argnums=0, devices=devices)
    state = training.init_state(init_params(model, 0), optimizer, bool(config.ema_decay))
    sums = []
    for batch in batches(sampler, batch_size=config.batch_size, first_step=0, last_step=count):
        shards = jax.tree.map(lambda x: np.asarray(x).reshape((len(devices), -1, *x.shape[1:])), batch)
        state, metrics = pmapped(state, shards)
        sums.append(jax.device_get(metrics))
    return jax.device_get(state), sums


def test_one_and_four_devices_give_the_same_parameters(data_dir):
    config = tiny_config(data_dir, ema_decay=0.9, kinds={"real": 0.5, "synthetic": 0.5})
    # Plain SGD: an optimizer that normalises gradients would hide a wrong scale.
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 0.1
    (one, one_sums), (four, four_sums) = (steps(config, data_dir, n) for n in (1, 4))
    start = init_params(build_model(config.model), 0)
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one.params, start)), strict=True)) > 1e-3
    assert_trees_equal(one.params, four.params, atol=1e-6)
    assert_trees_equal(one.ema, four.ema, atol=1e-6)
    assert_trees_equal(one_sums, four_sums, atol=1e-4, rtol=1e-5)
    assert one_sums[0]["loss"][1] == config.batch_size


def test_one_step_of_sgd_is_the_gradient_of_the_mean_loss(data_dir):
    config = tiny_config(data_dir)
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 1.0
    (state, _) = steps(config, data_dir, devices=1, count=1)
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
    # Compiling takes most of the time here; a program that runs slower compiles three times as fast.
    jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    run = jit(functools.partial(training.device_episodes, config=config))
    together, _ = run(batch)
    order = np.array([2, 0, 7, 3, 1, 6, 5, 4])
    shuffled, _ = run(jax.tree.map(lambda x: x[order], batch))
    assert_trees_equal(shuffled, jax.tree.map(lambda x: x[order], together), atol=1e-6)
    later, _ = run(batch._replace(index=batch.index + 8))
    assert np.abs(later.query_image - together.query_image).max((1, 2, 3)).min() > 0.05
    assert run._cache_size() == 1  # one program for all kinds
    # Each is what its kind alone would have made of it.
    for kind, name in enumerate(MIXED):
        alone = tiny_config(data_dir, kinds=dict.fromkeys(MIXED, 0.0) | {name: 1.0})
        chosen = np.flatnonzero(batch.kind == kind)
        part, _ = jit(functools.partial(training.device_episodes, config=alone))(
            jax.tree.map(lambda x, chosen=chosen: x[chosen], batch)
        )
        expected = jax.tree.map(lambda x, chosen=chosen: x[chosen], together)
        assert_trees_equal(part, expected, atol=1e-5)


def test_a_kind_without_weight_is_not_even_traced(data_dir, monkeypatch):
    batch = mixed_batch(tiny_config(data_dir, kinds=MIXED))
    made = []
    makers = {"synthetic": (training.synthesis, "synthetic_episode")}
    makers["superpixel"] = (training.superpixel, "superpixel_episode")
    for name, (module, function) in makers.items():
        original = getattr(module, function)
        monkeypatch.setattr(module, function, lambda *x, n=name, f=original: made.append(n) or f(*x))
    for kinds, expected in (
        ({"real": 1.0, "synthetic": 0.0, "superpixel": 0.0}, set()),
        ({"real": 1.0, "synthetic": 0.0, "superpixel": 0.1}, {"superpixel"}),
        ({"real": 1.0, "synthetic": 0.1, "superpixel": 0.0}, {"synthetic"}),
        ({"real": 0.0, "synthetic": 0.1, "superpixel": 0.1}, {"synthetic", "superpixel"}),
    ):
        made.clear()
        config = tiny_config(data_dir, kinds=kinds)
        jax.eval_shape(functools.partial(training.device_episodes, config=config), batch)
        assert set(made) == expected


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


def rows_without_times(workdir):
    rows = read_json_lines(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in ("time", "seconds_waiting")} for row in rows]


def test_a_run_leaves_what_it_promises_and_stopping_changes_nothing(data_dir, tmp_path):
    config = tiny_config(data_dir, ema_decay=0.9)
    whole = training.train_and_evaluate(config, tmp_path / "whole")
    assert int(whole.step) == 6
    assert [row["step"] for row in rows_without_times(tmp_path / "whole")] == list(range(6))
    evaluations = read_json_lines(tmp_path / "whole" / "eval" / "metrics.jsonl")
    assert [row["step"] for row in evaluations] == [3, 6]
    assert read_json(tmp_path / "whole" / "eval" / "summary.json")["mean_dice"] == evaluations[-1]["mean_dice"]
    kept = {int(p.name) for p in (tmp_path / "whole" / "checkpoints").iterdir()}
    best = max(evaluations, key=lambda row: (row["mean_dice"], row["step"]))["step"]
    assert kept == {6, best}
    assert checkpoints.resolve(tmp_path / "whole").name == str(best)
    record = checkpoints.read_metadata(checkpoints.resolve(tmp_path / "whole"))
    assert set(record["lineage"]["trained_on"]) == {"train_discs"}
    assert set(record["lineage"]["selected_on"]) == {"val_discs"}
    assert record["config"] == to_dict(config)

    # A constant schedule: the first steps of a longer run are those of a shorter one.
    training.train_and_evaluate(tiny_config(data_dir, ema_decay=0.9, num_steps=4), tmp_path / "parts")
    parts = training.train_and_evaluate(config, tmp_path / "parts")
    for a, b in zip(*map(jax.tree.leaves, (jax.device_get(whole), jax.device_get(parts))), strict=True):
        np.testing.assert_array_equal(a, b)
    assert rows_without_times(tmp_path / "parts") == rows_without_times(tmp_path / "whole")

    again = training.train_and_evaluate(config, tmp_path / "whole")  # nothing is left to do
    assert_trees_equal(jax.device_get(again.params), jax.device_get(whole.params), atol=0)
    with pytest.raises(ConfigError, match=r"config.seed: 0 there, 1 given"):
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


CHILD = """
import sys
sys.path.insert(0, {root!r})
from absl import flags
flags.FLAGS.mark_as_parsed()
from tests.fixtures import tiny_config
from universeg_jax.training import train_and_evaluate
train_and_evaluate(tiny_config({data!r}, num_steps={steps}, eval_every=4), {workdir!r})
"""


def start(data_dir, workdir, count):
    code = CHILD.format(root=str(ROOT), data=str(data_dir), workdir=str(workdir), steps=count)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def kill_and_compare(data_dir, tmp_path, delays, sig=signal.SIGKILL, count=40):
    """Ends in the same parameters and lines, bit for bit, as a run that nobody killed."""
    whole = start(data_dir, tmp_path / "whole", count)
    assert whole.wait(120) == 0, whole.stderr.read()
    for delay in delays:
        process = start(data_dir, tmp_path / "killed", count)
        wait_for_steps(process, tmp_path / "killed", delay)
        process.send_signal(sig)
        process.wait(60)
    last = start(data_dir, tmp_path / "killed", count)
    assert last.wait(120) == 0, last.stderr.read()
    abstract = init_params(build_model(tiny_config().model), 0)
    ends = [
        checkpoints.load_params(tmp_path / name / "checkpoints" / str(count), abstract) for name in ("whole", "killed")
    ]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert rows_without_times(tmp_path / "killed") == rows_without_times(tmp_path / "whole")
    logs = [read_json_lines(tmp_path / name / "eval" / "metrics.jsonl") for name in ("whole", "killed")]
    assert logs[0] == logs[1]


def wait_for_steps(process, workdir, steps_or_seconds):
    """An int waits until so many more steps are logged, a float sleeps so many seconds."""
    if isinstance(steps_or_seconds, float):
        time.sleep(steps_or_seconds)
        return
    log, deadline = workdir / "metrics.jsonl", time.time() + 100
    target = len(read_json_lines(log)) + steps_or_seconds
    while process.poll() is None and time.time() < deadline and len(read_json_lines(log)) < target:
        time.sleep(0.02)


def test_a_killed_run_ends_as_one_that_was_not(data_dir, tmp_path):
    kill_and_compare(data_dir, tmp_path, [1.0, 5, 13])


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_instants(data_dir, tmp_path):
    rng = np.random.default_rng(int(os.environ.get("KILL_SEED", "0")))
    kill_and_compare(data_dir, tmp_path, [float(x) for x in rng.uniform(1, 14, 20)], count=400)


def test_sigterm_saves_and_ends_with_code_0(data_dir, tmp_path):
    process = start(data_dir, tmp_path, 100_000)
    wait_for_steps(process, tmp_path, 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    logged = len(read_json_lines(tmp_path / "metrics.jsonl"))
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == logged


FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))  # bytes a file: room for logs, none for a checkpoint
"""


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(data_dir, tmp_path):
    training.train_and_evaluate(tiny_config(data_dir, num_steps=2), tmp_path)
    code = FULL_DISK + CHILD.format(root=str(ROOT), data=str(data_dir), workdir=str(tmp_path), steps=40)
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1
    assert re.search(r"CheckpointError: no checkpoint could be written.*the last good one is of step 2", ended.stderr)
    again = training.train_and_evaluate(tiny_config(data_dir, num_steps=4), tmp_path)  # there is room again
    assert int(again.step) == 4


def test_profile_writes_a_trace(data_dir, tmp_path):
    config = tiny_config(data_dir, num_steps=17, eval_every=100, checkpoint_every=100)
    training.train_and_evaluate(config, tmp_path, profile=True)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_the_step_and_the_evaluation_lower_for_tpu(data_dir):
    """No TPU has run them; that they lower shows that nothing in them belongs to a CPU."""
    config = tiny_config(data_dir, ema_decay=0.9, kinds=MIXED)
    config.model.dtype = "bfloat16"
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
    assert "bf16" in text
    assert "all_reduce" in text
    method = evaluation.model_method(model, config.image_size)
    lowered = jax.export.export(jax.jit(method), platforms=["tpu"])(state.params, to_device_floats(batch.episode, 16))
    assert "bf16" in lowered.mlir_module()


def test_a_second_process_in_a_workdir_is_refused(tmp_path, data_dir):
    with lock(tmp_path), pytest.raises(UserError, match="another process is training"):
        training.train_and_evaluate(tiny_config(data_dir), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_episodes(data_dir, tmp_path):
    config = tiny_config(data_dir)
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 1e30
    with pytest.raises(FloatingPointError, match=r"episodes 4, 5, 6, 7;.*Tasks: train_discs.*drawn in") as caught:
        training.train_and_evaluate(config, tmp_path)
    assert caught.value.episodes == [4, 5, 6, 7]
    assert (tmp_path / "episode_4.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"support_size": 0}, "config.support_size=0"),
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
        ({"optimizer": {"name": "adamm"}}, "no such optimizer"),
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


def test_a_run_of_every_option_resumes_exactly(data_dir, tmp_path):
    fields = {
        "support_size": 4,
        "support_schedule": "log_uniform",
        "every_image_as_query": True,
        "accumulation": 1,
        "tensorboard": True,
        "eval": {"pictures": 1},
        "kinds": {"real": 1.0, "synthetic": 0.0},
    }
    whole = training.train_and_evaluate(tiny_config(data_dir, **fields), tmp_path / "whole")
    training.train_and_evaluate(tiny_config(data_dir, num_steps=3, **fields), tmp_path / "parts")
    parts = training.train_and_evaluate(tiny_config(data_dir, **fields), tmp_path / "parts")
    assert_trees_equal(jax.device_get(whole), jax.device_get(parts), atol=0)
    assert list((tmp_path / "whole" / "tensorboard").glob("events*"))
    assert (tmp_path / "whole" / "eval" / "sheet.png").stat().st_size > 1000

    text = write_report(tmp_path / "whole").read_text()
    assert "6 of 6" in text
    assert text.count("data:image/png;base64,") == 2  # curves and masks
    assert "train_discs" in text
    assert "log_uniform" in text
    assert "val_discs" in text
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)


def test_a_torn_last_line_and_later_steps_are_dropped(tmp_path):
    from universeg_jax.reporting import JsonLines

    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"st')
    log = JsonLines(path, resume_step=2)
    log.write({"step": 2, "again": True})
    log.close()
    assert read_json_lines(path) == [{"step": 0}, {"step": 1}, {"step": 2, "again": True}]
    write_json(tmp_path / "deep" / "x.json", {"a": 1})
    assert read_json(tmp_path / "deep" / "x.json") == {"a": 1}


def test_a_run_from_before_a_field_was_added_is_resumed():
    new = to_dict(tiny_config())
    old = to_dict(tiny_config())
    del old["model"]["name"], old["model"]["stride"]
    check_resumable(old, new, Path("run"))
    new["model"]["name"] = "senet"
    with pytest.raises(ConfigError, match=r"config.model.name: 'universeg' there, 'senet' given"):
        check_resumable(old, new, Path("run"))
