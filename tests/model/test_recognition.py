"""The guess from pretrained keys: its sums against the definition, its properties, and a model that has it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from tests.fixtures import random_params, tiny_config
from universeg_jax.export.jax_export import export_model
from universeg_jax.model import pretrained
from universeg_jax.model.factory import NEUTRAL, build_model, init_params, param_shapes
from universeg_jax.model.large_support import sharded_logits, streamed_logits
from universeg_jax.model.layers import map_sum
from universeg_jax.model.matching import KEY, KINDS, to_cells
from universeg_jax.model.pretrained import FEATURES
from universeg_jax.model.recognition import SCALES, Columns, Recognition, columns, enlarge, mean_pool

FIELDS = {"encoder_blocks": (4, 5), "keys": "lite0", "key_heads": 2, "key_columns": True, "key_probe": True}
SIZE = 16
ROUNDING = 1e-3  # of logits to 10, from keys of columns that another order of sums rounds to another float16


@pytest.fixture(autouse=True)
def quick_features(request, monkeypatch):
    """Random features of each cell's pixels in place of the network's, which take long to compile."""
    if "network" not in request.keywords:
        monkeypatch.setattr(pretrained, "features", pixels_of_cells)


def pixels_of_cells(images):
    rng = np.random.default_rng(5)
    mixes = {s: rng.normal(size=(s * s, width)).astype(np.float32) / s for s, width in FEATURES.items()}
    return {s: jax.lax.stop_gradient(to_cells(images, s) - 0.5) @ mix.astype(images.dtype) for s, mix in mixes.items()}


@pytest.fixture(scope="module")
def params():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "features", pixels_of_cells)
        return random_params(param_shapes(build_model(FIELDS)))


def episode(seed=0, batch=2, support=4, size=SIZE):
    rng = np.random.default_rng(seed)
    query = rng.random((batch, size, size, 1)).astype(np.float32)
    images = rng.random((batch, support, size, size, 1)).astype(np.float32)
    return query, images, (rng.random(images.shape) > 0.6).astype(np.float32)


@pytest.fixture(scope="module")
def expected(params):
    """Logits of the definition, of an episode where the second query has two entries alone."""
    query, images, labels = episode()
    mask = np.array([[1, 1, 1, 1], [0, 1, 0, 1]], np.float32)
    plain = build_model(FIELDS, form="plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "features", pixels_of_cells)
        return (query, images, labels, mask), jax.jit(plain.apply)({"params": params}, query, images, labels, mask)


def test_labels_are_averaged_by_likeness_and_distance():
    module, (query, images, labels) = Recognition(2, (3,)), episode(batch=1, support=2, size=32)
    entries, weights = np.concatenate([images, labels], -1), np.array([[0.25, 0.75]], np.float32)
    init = functools.partial(module.init, jax.random.key(0), over=map_sum)
    held = random_params(jax.eval_shape(init, query, None, entries[None], None, weights[None])["params"])
    held["mix"] = jax.tree.map(np.zeros_like, held["mix"])
    (added,) = module.apply({"params": held}, query, None, entries[None], None, weights[None], map_sum)
    seen = {kind: pixels_of_cells(enlarge(jnp.asarray(x))) for kind, x in (("query", query), ("support", images))}
    guesses = []
    for i, scale in enumerate(SCALES):
        norm, project = held[f"norms_{i}"], held[f"projections_{i}"]
        keys = {}
        for kind, found in seen.items():
            x = np.asarray(found[scale.stride], np.float64)
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            x = (x * norm["scale"] + norm["bias"]) @ project["kernel"][0, 0] + project["bias"]
            x = x.reshape((*x.shape[:-1], -1, scale.features))
            keys[kind] = x / np.linalg.norm(x, axis=-1, keepdims=True)
        rows, size = keys["query"].shape[1], scale.stride // 2
        y, x = np.mgrid[:rows, :rows] / rows
        step = scale.step
        apart = np.square(y[..., None, None] - y[::step, ::step]) + np.square(x[..., None, None] - x[::step, ::step])
        cosine = np.einsum("ijhd,sklhd->hijskl", keys["query"][0], keys["support"][0, :, ::step, ::step])
        temperature, locality = (
            np.exp(held[f"log_{name}_{scale.stride}"])[:, None, None, None, None, None]
            for name in ("temperature", "locality")
        )
        like = np.exp(temperature * (cosine - 1) - locality * apart[None, :, :, None]) * weights[0, :, None, None]
        cells = labels[0].reshape((2, rows, size, rows, size)).swapaxes(2, 3)[:, ::step, ::step]
        average = np.einsum("hijskl,sklpr->hijpr", like, cells) / like.sum((3, 4, 5))[..., None, None]
        alike = np.log(like.sum((3, 4, 5)) / np.square(rows) + 1e-6) / 10
        guesses += [average.swapaxes(2, 3).reshape((-1, 32, 32)), np.kron(alike, np.ones((size, size)))]
    guess = np.moveaxis(np.concatenate(guesses), 0, -1)
    enter = held["enter_0"]
    np.testing.assert_allclose(added[0], guess @ enter["kernel"][0, 0, : guess.shape[-1]] + enter["bias"], atol=2e-3)


@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_streamed_equals_the_definition(params, expected, chunk):
    inputs, logits = expected
    model = build_model(FIELDS, support_chunk=chunk)
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, *inputs), logits, atol=ROUNDING)


def test_forms_agree_in_float64(params, expected):
    """Where nothing is rounded to float16."""
    with jax.enable_x64():
        held, inputs = jax.tree.map(np.float64, params), [x.astype(np.float64) for x in expected[0]]
        results = []
        for form, chunk in (("plain", 0), ("fast", 0), ("fast", 3)):
            model = build_model(FIELDS, form=form, support_chunk=chunk, dtype="float64")
            results.append(jax.jit(lambda p, model=model: model.apply({"params": p}, *inputs))(held))
        assert results[0].dtype == jnp.float64
        for result in results[1:]:
            np.testing.assert_allclose(result, results[0], atol=1e-8, rtol=0)  # conjugate gradients are not exact


@pytest.mark.parametrize(("height", "width"), [(16, 48), (64, 32), (256, 288)])
def test_images_that_are_not_square_or_large(params, height, width):
    shapes = (1, height, width, 1), (1, 2, height, width, 1)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (shapes[0], shapes[1], shapes[1])]
    model = build_model(FIELDS, dtype="bfloat16")
    logits = jax.eval_shape(model.apply, {"params": params}, *inputs)
    assert (logits.shape, logits.dtype) == (shapes[0], jnp.float32)


def test_order_and_padding_do_not_matter(params, expected):
    (query, images, labels, mask), logits = expected
    order = [2, 0, 3, 1]
    placed = [np.where(mask[:, order, None, None, None] > 0, x[:, order], np.nan) for x in (images, labels)]
    model = build_model(FIELDS)
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply({"params": params}, query, *placed, mask[:, order]), logits, atol=ROUNDING)


@pytest.mark.parametrize(("form", "chunk"), [("plain", 0), ("fast", 1)])
def test_prepared_keys_give_the_same(params, expected, form, chunk):
    (query, images, labels, mask), logits = expected
    model = build_model(FIELDS, form=form, support_chunk=chunk)
    of = jax.jit(lambda x, support: model.apply({"params": params}, x, support, method="keys_of"), static_argnums=1)
    support = padded_with_nan(of(images, True), mask)
    assert [k.shape[2:] for k in support] == [(2, 2, 1, 24), (2, 2, 2, 48), (1, 1, 2, 64), (2, 2, 1, 344)]
    found = jax.jit(model.apply)({"params": params}, query, images, labels, mask, of(query, False), support)
    np.testing.assert_allclose(found, logits, atol=ROUNDING)


@pytest.mark.parametrize("fields", [{}, {"keys": "none", "key_columns": False, "key_probe": False}], ids=str)
@pytest.mark.parametrize(("form", "chunk"), [("plain", 0), ("fast", 1)])
def test_prepared_keys_of_matching_come_first(expected, fields, form, chunk):
    (query, images, labels, mask), _ = expected
    model = build_model({**FIELDS, "matching": 2, **fields}, form=form, support_chunk=chunk)
    variables = {"params": random_params(param_shapes(model))}
    of_query, of_support = (model.apply(variables, x, i == 1, method="keys_of") for i, x in enumerate((query, images)))
    assert [k.shape[-2:] for k in of_query[:2]] == [(2, KEY), (2, KINDS)]
    assert len(of_query) == len(of_support) == (2 if fields else 6)

    def logits(*keys):
        return np.asarray(model.apply(variables, query, images, labels, mask, *keys))

    found = logits(of_query, padded_with_nan(of_support, mask))
    np.testing.assert_allclose(found, logits(), atol=ROUNDING)
    for i in range(2):
        other = (*of_support[:i], jnp.roll(of_support[i], 1, axis=1), *of_support[i + 1 :])  # of other images
        assert np.abs(logits(of_query, other) - found).max() > 10 * ROUNDING


def padded_with_nan(keys, mask):
    return tuple(jnp.where(np.expand_dims(mask == 0, tuple(range(2, k.ndim))), jnp.nan, k) for k in keys)


def test_sharded_over_devices_equals_one(params, expected):
    inputs, logits = expected
    run = sharded_logits(build_model(FIELDS), Mesh(np.array(jax.devices()), ("support",)), "support")
    np.testing.assert_allclose(run(params, *inputs), logits, atol=ROUNDING)


def test_streamed_from_the_host_equals_all_at_once(params):
    query, images, labels = episode(batch=1)
    images, labels = np.uint8(images * 255), np.uint8(labels)
    model = build_model(FIELDS)
    logits = jax.jit(model.apply)({"params": params}, query, images / np.float32(255), labels.astype(np.float32))
    chunks = [(images[0, i : i + 2], labels[0, i : i + 2]) for i in (0, 2)]
    found = streamed_logits(model, params, query, chunks, store=jnp.float32, progress=False)
    np.testing.assert_allclose(found, logits, atol=ROUNDING)


def test_the_exported_program_is_the_model(params, expected):
    inputs, logits = expected
    config = tiny_config()
    config.model.update(FIELDS)
    np.testing.assert_allclose(export_model(params, config, ("cpu",)).call(*inputs), logits, atol=ROUNDING)


@pytest.mark.network
def test_the_network_can_be_exported_for_every_platform(params):
    config = tiny_config()
    config.model.update(FIELDS)
    platforms = ("cpu", "cuda", "tpu")
    assert export_model(params, config, platforms).platforms == platforms  # lowered, not compiled


def test_every_parameter_learns_and_the_pretrained_ones_are_none(params):
    inputs = episode(size=32)  # at stride 32 more than one cell, so that distances differ
    model = build_model(FIELDS, support_chunk=0)
    gradient = jax.jit(jax.grad(lambda params: jnp.square(model.apply({"params": params}, *inputs)).sum()))(params)
    parts = {part: gradient[part] for part in NEUTRAL}
    for path, g in jax.tree_util.tree_leaves_with_path(parts):
        assert np.abs(g).max() > 0, jax.tree_util.keystr(path)
        assert np.isfinite(g).all(), jax.tree_util.keystr(path)
    assert sum(x.size for x in jax.tree.leaves([params[part] for part in NEUTRAL])) < 100_000


def test_columns_compare_every_stride_with_the_image_as_its_norm():
    rng = np.random.default_rng(3)
    seen = {8: rng.normal(2, 3, (2, 4, 4, 5)), 16: rng.normal(0, 9, (2, 2, 2, 7)), 32: rng.normal(size=(2, 1, 1, 3))}
    keys = np.asarray(columns({stride: jnp.asarray(x, jnp.float32) for stride, x in seen.items()}), np.float64)
    assert keys.shape == (2, 4, 4, 1, 15)
    np.testing.assert_allclose(np.square(keys).sum(-1), 1, atol=2e-3)
    x = seen[8][1]
    x = (x - x.mean((0, 1))) / x.std((0, 1))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(
        keys[1, :, :, 0, :5] * np.sqrt(2), x, atol=2e-3
    )  # of one cell at stride 32 nothing is left
    brighter = columns({stride: jnp.asarray(7 * x + 4, jnp.float32) for stride, x in seen.items()})
    np.testing.assert_allclose(brighter, keys, atol=2e-3)


def test_a_guess_by_columns_has_the_labels_of_like_cells_and_their_balance():
    """A quarter of the cells is foreground and looks different."""
    kinds = np.kron(np.array([[0, 1], [0, 0]]), np.ones((16, 16)))[None, ..., None].astype(np.float32)
    module = Recognition(1, (4,), columns=Columns((4,)))
    entries = np.concatenate([kinds, kinds], -1)[:, None]
    inputs = (kinds, None, entries[None], None, np.ones((1, 1, 1), np.float32), map_sum)
    held = jax.jit(lambda key: module.init(key, *inputs[:-1], map_sum))(jax.random.key(0))["params"]
    zero = jax.tree.map(jnp.zeros_like, held)
    zero["columns"]["enter_0"]["kernel"] = jnp.eye(27, 4)[None, None]
    (found,) = jax.jit(lambda held: module.apply({"params": held}, *inputs))(zero)
    inside = kinds[0, ..., 0] > 0
    label, alike, balanced = np.moveaxis(np.asarray(found[0]), -1, 0)[:3]
    assert label[inside].min() > 0.9
    assert label[~inside].max() < 0.1
    np.testing.assert_allclose(balanced, 0.75 * label / (0.75 * label + 0.25 * (1 - label)), atol=1e-3)
    assert np.all(alike < 0)


def test_columns_need_keys():
    with pytest.raises(ValueError, match="key_columns needs config.model.keys"):
        param_shapes(build_model({**FIELDS, "keys": "none", "key_probe": False}))


def test_at_first_a_model_computes_what_it_did_without_keys():
    inputs = episode()
    params = init_params(build_model(FIELDS), 0)
    without = build_model({**FIELDS, "keys": "none", "key_columns": False, "key_probe": False})
    rest = {part: x for part, x in params.items() if part not in NEUTRAL}
    assert len(rest) == len(params) - len(NEUTRAL)
    logits = jax.jit(without.apply)({"params": rest}, *inputs)
    np.testing.assert_allclose(jax.jit(build_model(FIELDS).apply)({"params": params}, *inputs), logits, atol=1e-6)


def test_what_looks_alike_is_found_wherever_it_lies():
    rng = np.random.default_rng(0)
    images = rng.random((1, 4, 32, 32, 1)) * 0.2
    labels = np.zeros_like(images)
    stripes = np.indices((16, 16)).sum(0)[..., None] // 3 % 2
    for i, (y, x) in enumerate([(0, 0), (16, 16), (0, 16), (16, 0)]):
        images[0, i, y : y + 16, x : x + 16] = stripes
        labels[0, i, y : y + 16, x : x + 16] = 1
    module = Recognition(1, (6,))
    entries = np.concatenate([images, labels], -1).astype(np.float32)
    query, support = entries[:, 0, ..., :1], entries[:, 1:]
    inputs = (query, None, support[None], None, np.full((1, 1, 3), 1 / 3, np.float32))
    held = jax.jit(lambda key: module.init(key, *inputs, map_sum))(jax.random.key(0))["params"]
    held["mix"] = jax.tree.map(jnp.zeros_like, held["mix"])
    held["enter_0"]["kernel"] = jnp.eye(30, 6)[None, None]  # the guess itself
    (guess,) = jax.jit(lambda held: module.apply({"params": held}, *inputs, map_sum))(held)
    inside = labels[0, 0, ..., 0] > 0
    for channel in (0, 2):  # labels by strides 8 and 16
        assert guess[0, ..., channel][inside].mean() > guess[0, ..., channel][~inside].mean() + 0.2


@pytest.mark.parametrize(("side", "seen"), [(16, 32), (128, 256), (256, 256)])
def test_images_are_enlarged_below_256_pixels(side, seen):
    assert jax.eval_shape(enlarge, jnp.zeros((2, side, side, 1))).shape == (2, seen, seen, 1)


def test_an_image_that_cells_do_not_fit_is_named():
    with pytest.raises(ValueError, match="24x32.*multiples of 16"):
        enlarge(jnp.zeros((1, 24, 32, 1)))


def test_means_of_pixels():
    x = np.arange(16.0).reshape((1, 4, 4, 1))
    np.testing.assert_array_equal(mean_pool(x)[0, ..., 0], [[2.5, 4.5], [10.5, 12.5]])
