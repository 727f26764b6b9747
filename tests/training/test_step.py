"""The step: its result must not depend on devices, on parts of a batch, or on the other episodes of a batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.fixtures import assert_trees_equal, tiny_config
from universeg_jax.checkpoints import store
from universeg_jax.configs import default
from universeg_jax.configuration import to_dict
from universeg_jax.data.tasks import task_table
from universeg_jax.episode import Episode, split_query, to_device_floats
from universeg_jax.episodes import inputs, on_device
from universeg_jax.episodes.on_device import (
    device_episodes,
    plain_episode,
    support_size_of,
    trim_support,
)
from universeg_jax.episodes.sampler import Batch, batches, make_sampler
from universeg_jax.evaluation.scoring import model_method
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.training.optimizer import make_optimizer
from universeg_jax.training.step import (
    accumulated_gradient,
    init_state,
    loss_and_dice,
    train_step,
)

MIXED = {"real": 1.0, "synthetic": 1.0, "superpixel": 1.0, "painted": 1.0}


def stepper(config, data_dir, devices):
    """(first state, function of (state, first, last) → (state, sums of each step)) on some of the fake devices."""
    dataset = inputs.open_data(config)[0][0]
    sampler = make_sampler(
        [dataset], task_table([dataset]), seed=0, support_size=3, **inputs.kind_shares(config), size=16
    )
    model = build_model(config.model)
    optimizer, schedule = make_optimizer(config)
    one = functools.partial(train_step, model=model, optimizer=optimizer, schedule=schedule, config=config)
    devices = jax.devices()[:devices]
    pmapped = jax.pmap(one, axis_name="batch", in_axes=(None, 0), out_axes=None, devices=devices)

    def run(state, first, last):
        sums = []
        for batch in batches(sampler, batch_size=config.batch_size, first_step=first, last_step=last):
            shards = jax.tree.map(lambda x: np.asarray(x).reshape((len(devices), -1, *x.shape[1:])), batch)
            state, metrics = pmapped(state, shards)
            sums.append(jax.device_get(metrics))
        return state, sums

    return init_state(init_params(model, 0), optimizer, bool(config.ema_decay)), run


@pytest.mark.parametrize("corrections", [0.0, 0.5])
def test_one_and_four_devices_give_the_same_parameters(data_dir, tmp_path, corrections):
    config = tiny_config(data_dir, ema_decay=0.9, corrections=corrections)
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
    with store.open_checkpointer(tmp_path) as checkpointer:
        three, _ = on_four(start, 0, 3)
        store.save(checkpointer, 3, three.params, three, {"config": to_dict(config)}, None)
    with store.open_checkpointer(tmp_path) as checkpointer:
        moved, _ = on_one(store.restore_state(checkpointer, start), 3, 5)
    assert_trees_equal(moved, one, atol=1e-6)
    loaded, _ = store.load(tmp_path)
    assert_trees_equal(loaded, jax.device_get(three.params), atol=0)
    assert {x.sharding.num_devices for x in jax.tree.leaves(loaded)} == {1}


def test_one_step_of_sgd_is_the_gradient_of_the_mean_loss(data_dir):
    config = tiny_config(data_dir)
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 1.0
    start, run = stepper(config, data_dir, devices=1)
    state, _ = run(start, 0, 1)
    dataset = inputs.open_data(config)[0][0]
    sampler = make_sampler([dataset], task_table([dataset]), seed=0, support_size=3, size=16)
    batch = next(batches(sampler, batch_size=4, first_step=0, last_step=1))
    model = build_model(config.model, form="plain")
    params = init_params(model, 0)
    episode, *_ = jax.jit(functools.partial(device_episodes, config=config))(batch)

    def loss(params):
        p = jax.nn.sigmoid(model.apply({"params": params}, episode.query_image, *episode[2:]))
        y, axes = episode.query_label, (1, 2, 3)
        return (1 - (2 * (p * y).sum(axes) + 1e-7) / ((p**2).sum(axes) + (y**2).sum(axes) + 1e-7)).mean()

    expected = jax.tree.map(lambda p, g: p - g, params, jax.jit(jax.grad(loss))(params))
    assert_trees_equal(state.params, expected, atol=1e-5)


def mixed_batch(config, count=8):
    dataset = inputs.open_data(config)[0][0]
    shares = inputs.kind_shares(config)
    sampler = make_sampler([dataset], task_table([dataset]), seed=0, support_size=3, **shares, size=16)
    return next(batches(sampler, batch_size=count, first_step=0, last_step=1))


def test_device_episodes_depend_on_seed_and_index_alone(data_dir):
    config = tiny_config(data_dir, kinds=MIXED)
    batch = mixed_batch(config)
    assert set(batch.kind.tolist()) == {0, 1, 2, 3}
    run = jax.jit(functools.partial(device_episodes, config=config))
    together, *_ = run(batch)
    order = np.array([2, 0, 7, 3, 1, 6, 5, 4])
    shuffled, *_ = run(jax.tree.map(lambda x: x[order], batch))
    assert_trees_equal(shuffled, jax.tree.map(lambda x: x[order], together), atol=1e-6)
    later, *_ = run(batch._replace(index=batch.index + 8))
    assert np.abs(later.query_image - together.query_image).max((1, 2, 3)).min() > 0.05
    assert run._cache_size() == 1  # one program for all kinds


def test_each_kind_has_its_maker_and_kinds_of_weight_0_are_not_traced(data_dir, monkeypatch):
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

    def paint(key, images, codes, config):
        made.append("painted")
        return jnp.full(images.shape, -3.0)

    monkeypatch.setattr(on_device.painting, "paint", paint)
    monkeypatch.setattr(on_device.synthesis, "synthetic_episode", synthetic)
    monkeypatch.setattr(on_device.superpixel, "superpixel_episode", superpixels)
    for drawn in (
        ["real"],
        ["real", "superpixel"],
        ["real", "synthetic"],
        ["synthetic", "superpixel"],
        ["painted"],
        list(MIXED),
    ):
        made.clear()
        config = tiny_config(data_dir, kinds={name: float(name in drawn) for name in MIXED})
        there = np.isin(batch.kind, [list(MIXED).index(name) for name in drawn])
        index, kind, raw = jax.tree.map(lambda x, there=there: x[there], (batch.index, batch.kind, batch.episode))
        plain = jax.jit(jax.vmap(lambda *x, config=config: plain_episode(*x, config)[0].query_image))
        found = np.asarray(plain(index, kind, raw)).mean((1, 2, 3))
        assert set(made) == set(drawn) - {"real"}
        expected = raw.query_image.mean((1, 2, 3)) / 255
        np.testing.assert_allclose(found, np.choose(kind, [expected, -1.0, -2.0, -3.0]), atol=1e-5)


@pytest.mark.parametrize("size", [16, 32])
def test_a_painted_episode_has_its_label_and_is_painted_by_all_labels(size, monkeypatch):
    """Also where images shrink: paint ends where the label does."""
    rng, seen = np.random.default_rng(0), []
    images, codes = rng.integers(0, 256, (3, 32, 32, 1), np.uint8), np.zeros((3, 32, 32, 1), np.uint8)
    codes[:, 3:12, 4:9], codes[:, 10:21, 12:29], codes[:, 22:31, 1:12] = 1, 2, 9
    raw = split_query(images, codes, np.ones(2, np.uint8))
    painted = on_device.painting.paint
    monkeypatch.setattr(on_device.painting, "paint", lambda *x: seen.append(x[2]) or painted(*x))
    config = tiny_config(kinds={"real": 0.0, "painted": 1.0}, image_size=size)
    episode, _ = plain_episode(jnp.uint32(0), jnp.uint8(3), raw, config)
    expected = to_device_floats(split_query(images, codes == 1, np.ones(2, np.uint8)), size)
    assert_trees_equal(
        episode._replace(query_image=0, support_images=0), expected._replace(query_image=0, support_images=0)
    )
    (found,) = seen
    assert (found.shape, found.dtype) == ((3, size, size), jnp.int32)
    assert set(np.unique(found).tolist()) == {0, 1, 2, 9}
    labels = np.concatenate([episode.query_label[None], episode.support_labels])[..., 0]
    np.testing.assert_array_equal(found == 1, labels > 0)
    assert np.abs(episode.query_image - expected.query_image).max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_step_and_the_evaluation_lower_for_tpu(data_dir, dtype):
    """No TPU has run them; lowering shows that they need nothing of a CPU."""
    config = tiny_config(data_dir, ema_decay=0.9)
    config.model.dtype = dtype
    if dtype == "float32":  # episodes do not depend on the dtype
        config.update({"kinds": MIXED, "augment": default.get_config().augment})
    model = build_model(config.model)
    optimizer, schedule = make_optimizer(config)
    step = functools.partial(
        train_step, model=model, optimizer=optimizer, schedule=schedule, config=config, axis_name="batch"
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("batch",))
    sharded = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P("batch")), out_specs=(P(), P()), check_vma=False))
    state = init_state(init_params(model, 0), optimizer, ema=True)
    batch = jax.tree.map(jnp.asarray, mixed_batch(config, 4))
    exported = jax.export.export(sharded, platforms=["tpu"])(state, batch)
    assert exported.platforms == ("tpu",)
    text = exported.mlir_module()
    assert ("bf16" in text) == (dtype == "bfloat16")
    assert "all_reduce" in text
    assert made_at_once(text, episodes=1)
    method = model_method(model, config.image_size)
    lowered = jax.export.export(jax.jit(method), platforms=["tpu"])(state.params, to_device_floats(batch.episode, 16))
    assert ("bf16" in lowered.mlir_module()) == (dtype == "bfloat16")


def made_at_once(text, episodes):
    """Tells whether a program converts the pixels of all episodes together, not in a loop."""
    return f"(tensor<{episodes}x3x16x16x1xui8>) -> tensor<{episodes}x3x16x16x1xf32>" in text


def test_an_accelerator_makes_all_episodes_at_once_and_a_cpu_one_after_another(data_dir):
    config = tiny_config(data_dir)
    make = jax.jit(functools.partial(device_episodes, config=config))
    text = {
        platform: jax.export.export(make, platforms=[platform])(mixed_batch(config, 5)).mlir_module()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert {platform: made_at_once(text[platform], 5) for platform in text} == {"cpu": False, "cuda": True, "tpu": True}


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    model = build_model({"encoder_blocks": (4, 4)})
    params = init_params(model, 0)
    rng = np.random.default_rng(0)
    query, images = rng.random((4, 16, 16, 1)), rng.random((4, 3, 16, 16, 1))
    episode = Episode(query, query > 0.5, images, images > 0.6, np.ones((4, 3)))
    episode = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), episode)
    scores = functools.partial(loss_and_dice, model=model, config=tiny_config())
    whole, split = (
        jax.jit(lambda p, parts=parts: accumulated_gradient(scores, p, (episode, None), parts))(params)
        for parts in (1, 2)
    )
    assert_trees_equal(split, whole, atol=1e-6)


@pytest.mark.parametrize("schedule", ["uniform", "log_uniform"])
def test_support_sizes_follow_their_schedule(schedule):
    config = tiny_config(support_size=48, support_schedule=schedule)
    sizes, slots = np.array([support_size_of(step, config) for step in range(4000)]).T
    assert (sizes == np.array([support_size_of(step, config)[0] for step in range(4000)])).all()
    assert sizes.min() == 1
    assert sizes.max() == 48
    assert set(slots) == {1, 2, 4, 8, 16, 32, 48}
    assert ((sizes <= slots) & (slots < 2 * sizes)).all()
    below = np.arange(1, 49) / 48 if schedule == "uniform" else np.log(np.arange(2, 50)) / np.log(49)
    seen = np.array([(sizes <= n).mean() for n in range(1, 49)])
    assert np.abs(seen - below).max() < 4 * np.sqrt(0.25 / 4000)
    assert support_size_of(7, tiny_config(support_size=48)) == (48, 48)


def test_trimmed_support_keeps_the_first_entries():
    images = np.arange(2 * 5).reshape(2, 5, 1, 1, 1)
    episode = Episode(images[:, 0], images[:, 0], images, images + 1, np.ones((2, 5), np.uint8))
    batch = trim_support(Batch(np.arange(2), np.zeros(2), np.zeros(2), episode), 3, 4)
    np.testing.assert_array_equal(batch.episode.support_images, images[:, :4])
    np.testing.assert_array_equal(batch.episode.support_mask, [[1, 1, 1, 0]] * 2)
