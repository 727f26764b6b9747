"""The model against the released architecture, its forms against each other, and its properties."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import random_params
from universeg_jax.model.factory import build_model, init_params, param_shapes
from universeg_jax.model.layers import max_pool, upsample
from universeg_jax.model.universeg import UniverSeg
from universeg_jax.training.losses import soft_dice

GOLDEN = Path(__file__).parents[1] / "golden"
FORMS = [("plain", 0), ("fast", 0), ("fast", 1), ("fast", 2)]


def golden(name):
    """(arrays channels last, our parameters, our gradients) of a vector of the released architecture."""
    arrays, params = np.load(GOLDEN / f"{name}.npz"), np.load(GOLDEN / f"{name}_params.npz")
    inputs = [
        arrays["target_image"].transpose(0, 2, 3, 1),
        arrays["support_images"].transpose(0, 1, 3, 4, 2),
        arrays["support_labels"].transpose(0, 1, 3, 4, 2).astype(np.float32),
    ]
    grads = {key.removeprefix("grad/"): arrays[key] for key in arrays if key.startswith("grad/")}
    blocks = [
        [(params[f"{part}.{i}.cross.cross_conv.bias"].size, params[f"{part}.{i}.target.vmapped.conv.bias"].size)
         for i in range(8) if f"{part}.{i}.cross.cross_conv.bias" in params]
        for part in ("enc_blocks", "dec_blocks")
    ]  # fmt: skip
    return arrays, inputs, from_release(params), from_release(grads), blocks


def from_release(state):
    """Release keys and OIHW kernels → our tree and HWIO."""
    tree = {}
    for key, value in state.items():
        part, *rest = key.split(".")
        if part == "out_conv":
            module = tree.setdefault("out", {})
        else:
            block = tree.setdefault({"enc_blocks": "encoder_", "dec_blocks": "decoder_"}[part] + rest[0], {})
            module = block.setdefault({"cross": "cross", "target": "query", "support": "support"}[rest[1]], {})
        module["kernel" if value.ndim == 4 else "bias"] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return tree


@pytest.mark.parametrize(("form", "chunk"), FORMS)
@pytest.mark.parametrize("name", ["universeg_nf8_s5_grad", "universeg_mixed_s3_grad", "universeg_nf8_ties_grad"])
def test_logits_and_gradients_equal_the_released_architecture(name, form, chunk):
    arrays, inputs, params, expected_grads, (encoder, decoder) = golden(name)
    model = build_model({"encoder_blocks": encoder, "decoder_blocks": decoder}, form=form, support_chunk=chunk)
    label = arrays["target_label"].transpose(0, 2, 3, 1).astype(np.float32)

    @jax.jit
    def run(params):
        def loss(params):
            logits = model.apply({"params": params}, *inputs)
            return soft_dice(logits, label, squared=False).mean(), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, logits), grads = run(params)
    np.testing.assert_allclose(logits.transpose(0, 3, 1, 2), arrays["logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(loss, arrays["soft_dice_loss"], atol=1e-6)
    assert jax.tree.structure(grads) == jax.tree.structure(expected_grads)
    for (path, grad), expected in zip(
        jax.tree_util.tree_flatten_with_path(grads)[0], jax.tree.leaves(expected_grads), strict=True
    ):
        np.testing.assert_allclose(
            grad, expected, atol=1e-4 * np.abs(expected).max(), rtol=0, err_msg=jax.tree_util.keystr(path)
        )


def random_episode(seed, batch=2, support=5, size=16):
    rng = np.random.default_rng(seed)
    query, images = rng.random((batch, size, size, 1)), rng.random((batch, support, size, size, 1))
    return [x.astype(np.float32) for x in (query, images, images > 0.6)]


def tiny(**fields):
    model = build_model({"encoder_blocks": ((3, 4), (5, 6), (4, 4))}, **fields)
    return model, random_params(param_shapes(model))


EVERY_FIELD = {"norm": "layer", "residual": "both", "cross_activation": "leaky_relu", "matching": 2}


@pytest.mark.parametrize(
    ("variant", "levels"),
    [
        ({}, 1),
        ({}, 3),
        ({"cross_activation": "leaky_relu"}, 2),
        ({"norm": "layer"}, 2),
        ({"residual": "support"}, 2),
        ({"matching": 1}, 2),
        (EVERY_FIELD, 1),
        (EVERY_FIELD, 2),
        pytest.param(EVERY_FIELD, 3, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_forms_agree_in_float64(variant, levels):
    with jax.enable_x64():
        fields = {"encoder_blocks": ((3, 4), (4, 4), (5, 4), (4, 4))[:levels], **variant}
        params = jax.tree.map(np.float64, random_params(param_shapes(build_model(fields))))
        inputs = [x.astype(np.float64) for x in random_episode(0)]
        mask = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 0, 0]], np.float64)
        results = []
        for form, chunk in FORMS:
            model = build_model(fields, form=form, support_chunk=chunk, dtype="float64")
            results.append(jax.jit(lambda p, model=model: model.apply({"params": p}, *inputs, mask))(params))
        assert results[0].dtype == jnp.float64
        for result in results[1:]:
            np.testing.assert_allclose(result, results[0], atol=1e-12, rtol=0)


SLOTS = 9
MODEL, PARAMS = tiny(support_chunk=2)
APPLY = jax.jit(lambda *inputs: MODEL.apply({"params": PARAMS}, *inputs))


@given(seed=st.integers(0, 1000), support=st.integers(1, SLOTS))
def test_order_and_padding_of_the_support_do_not_matter(seed, support):
    query, images, labels = random_episode(seed, support=SLOTS)
    expected = APPLY(query, images, labels, np.tile(np.arange(SLOTS) < support, (2, 1)).astype(np.float32))
    slots = np.random.default_rng(seed).permutation(SLOTS)[:support]
    placed = [np.full_like(x, np.nan) for x in (images, labels)]  # whatever the padding holds
    for to, x in zip(placed, (images, labels), strict=True):
        to[:, slots] = x[:, :support]
    mask = np.zeros((2, SLOTS), np.float32)
    mask[:, slots] = 1
    np.testing.assert_allclose(APPLY(query, *placed, mask), expected, atol=1e-5)


@pytest.mark.parametrize("support", [1, 3, 128])
def test_a_mask_of_ones_equals_no_mask(support):
    query, images, labels = random_episode(support, support=support)
    expected = APPLY(query, images, labels)
    np.testing.assert_allclose(APPLY(query, images, labels, np.ones((2, support), np.float32)), expected, atol=1e-5)
    padded = [np.pad(x, [(0, 0), (0, 3), (0, 0), (0, 0), (0, 0)]) for x in (images, labels)]
    mask = np.tile(np.arange(support + 3) < support, (2, 1)).astype(np.float32)
    np.testing.assert_allclose(APPLY(query, *padded, mask), expected, atol=1e-5)


def test_gradients_ignore_padding():
    query, images, labels = random_episode(3, support=4)
    padded = [np.concatenate([x, x[:, :2] * 0 + 7], 1) for x in (images, labels)]
    mask = np.array([[1.0] * 4 + [0.0] * 2] * 2, np.float32)
    grad = jax.jit(jax.grad(lambda p, *inputs: MODEL.apply({"params": p}, *inputs).sum()))
    expected, grads = grad(PARAMS, query, images, labels), grad(PARAMS, query, *padded, mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), grads, expected)


@pytest.mark.parametrize("form", ["plain", "fast"])
def test_remat_changes_nothing(form):
    inputs = random_episode(5)
    grads = []
    for remat in (False, True):
        model, params = tiny(remat=remat, form=form)
        grads.append(jax.jit(jax.grad(lambda p, model=model: model.apply({"params": p}, *inputs).sum()))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), *grads)


def test_bfloat16_keeps_parameters_and_logits_in_float32():
    model, params = tiny()
    half, _ = tiny(dtype="bfloat16")
    inputs = random_episode(6)
    logits = jax.jit(half.apply)({"params": params}, *inputs)
    assert logits.dtype == jnp.float32
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    reference = jax.jit(model.apply)({"params": params}, *inputs)
    assert np.abs(logits - reference).max() < 0.05 * np.abs(reference).max()


def test_released_size_has_the_published_number_of_parameters():
    params = param_shapes(UniverSeg())
    count = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}
    assert count["encoder_0"] == 75_648
    assert {count[f"encoder_{i}"] for i in (1, 2, 3)} == {147_648}
    assert {count[f"decoder_{i}"] for i in (0, 1, 2)} == {221_376}
    assert sum(count.values()) == 1_182_785


def test_initial_activations_neither_vanish_nor_explode():
    model = build_model({"encoder_blocks": (32, 32, 32, 32)})
    apply = jax.jit(model.apply)
    logits = [apply({"params": init_params(model, seed)}, *random_episode(seed, size=32)) for seed in range(4)]
    assert 0.05 < np.std(np.concatenate(logits)) < 20
    kernel = init_params(UniverSeg(), 0)["encoder_1"]
    for name, gain, fan_in in (("cross", 1.0, 9 * 128), ("query", np.sqrt(2), 9 * 64), ("support", np.sqrt(2), 9 * 64)):
        np.testing.assert_allclose(kernel[name]["kernel"].std(), gain / np.sqrt(fan_in), rtol=0.02)
        assert not kernel[name]["bias"].any()


def test_upsampling_aligns_corners():
    ramp = jnp.arange(4.0)[None, :, None, None] * jnp.ones((1, 4, 4, 1))
    np.testing.assert_allclose(upsample(ramp)[0, :, 3, 0], np.linspace(0, 3, 8), atol=1e-6)


@given(seed=st.integers(0, 1000))
def test_max_pool_gives_the_gradient_to_the_first_maximum(seed):
    x = np.random.default_rng(seed).integers(0, 3, (1, 4, 6, 2)).astype(np.float32)  # many ties
    windows = x.reshape(1, 2, 2, 3, 2, 2).transpose(0, 1, 3, 5, 2, 4).reshape(1, 2, 3, 2, 4)
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), windows.max(-1))
    grad = np.asarray(jax.grad(lambda x: max_pool(x).sum())(jnp.asarray(x)))
    grad = grad.reshape(1, 2, 2, 3, 2, 2).transpose(0, 1, 3, 5, 2, 4).reshape(1, 2, 3, 2, 4)
    np.testing.assert_array_equal(grad, np.eye(4)[windows.argmax(-1)])


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"form": "slow"}, "fast"),
        ({"cross_activation": None}, "leaky_relu"),
        ({"norm": "batch"}, "layer"),
        ({"dtype": "float16"}, "bfloat16"),
        ({"decoder_blocks": (4,)}, "mirror"),
    ],
)
def test_a_wrong_field_is_named_with_its_choices(fields, word):
    with pytest.raises(ValueError, match=word):
        init_params(build_model({"encoder_blocks": (4, 4, 4), **fields}), 0)


@pytest.mark.parametrize(
    ("shapes", "word"),
    [
        (((1, 18, 16, 1), (1, 2, 18, 16, 1)), "multiples of 4"),
        (((1, 16, 16, 1), (1, 0, 16, 16, 1)), "S >= 1"),
        (((1, 16, 16, 1), (1, 2, 8, 16, 1)), "support_images"),
        (((16, 16, 1), (1, 2, 16, 16, 1)), "query_image"),
        (((1, 16, 16, 1), (1, 2, 16, 16, 1), (1, 1, 16, 16, 1)), "support_labels has shape"),
        (
            ((1, 16, 16, 1), (1, 2, 16, 16, 1), (1, 2, 16, 16, 1), (1, 3)),
            r"support_mask has shape \(1, 3\).* = \(1, 2\)",
        ),
    ],
)
def test_a_wrong_shape_is_named(shapes, word):
    model, params = tiny()
    query, images, *rest = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=word):
        model.apply({"params": params}, query, images, *(rest or [images]))


EVERY_KNOWN = {"matching": 2, "residual": "both", "norm": "layer"}


def partly_known(seed, support=5):
    """An episode, its mask, and which labels are known: not all of any entry, and few of one."""
    query, images, labels = random_episode(seed, support=support)
    rng = np.random.default_rng(seed)
    known = (rng.random(labels.shape) < np.linspace(0.1, 0.9, support).reshape((-1, 1, 1, 1))).astype(np.float32)
    mask = (rng.random((2, support)) < 0.7).astype(np.float32)
    mask[:, :1] = 1
    return query, images, labels, mask, known


@pytest.mark.parametrize("variant", [{}, {"matching": 1}, {**EVERY_KNOWN, "cross_activation": "leaky_relu"}], ids=str)
def test_forms_agree_on_labels_that_are_known_in_part(variant):
    with jax.enable_x64():
        fields = {"encoder_blocks": ((3, 4), (4, 4)), **variant}
        params = jax.tree.map(np.float64, random_params(param_shapes(build_model(fields))))
        query, images, labels, mask, known = (x.astype(np.float64) for x in partly_known(0))
        results = []
        for form, chunk in FORMS:
            model = build_model(fields, form=form, support_chunk=chunk, dtype="float64")
            apply = jax.jit(lambda *x, model=model: model.apply({"params": params}, *x[:-1], support_known=x[-1]))
            results.append(apply(query, images, labels, mask, known))
        for result in results[1:]:
            np.testing.assert_allclose(result, results[0], atol=1e-12, rtol=0)


KNOWN_MODEL, KNOWN_PARAMS = tiny(support_chunk=2, **EVERY_KNOWN)
APPLY_KNOWN = jax.jit(
    lambda *inputs: KNOWN_MODEL.apply({"params": KNOWN_PARAMS}, *inputs[:-1], support_known=inputs[-1])
)
APPLY_ALL_KNOWN = jax.jit(lambda *inputs: KNOWN_MODEL.apply({"params": KNOWN_PARAMS}, *inputs))


@given(seed=st.integers(0, 1000))
def test_a_label_that_is_not_known_has_no_effect(seed):
    query, images, labels, mask, known = partly_known(seed)
    expected = APPLY_KNOWN(query, images, labels, mask, known)
    spoilt = np.where((known > 0) & (mask > 0)[..., None, None, None], labels, np.nan)
    np.testing.assert_array_equal(APPLY_KNOWN(query, images, spoilt, mask, known), expected)
    others = np.where(mask[..., None, None, None] > 0, known, np.nan)  # of padding
    np.testing.assert_array_equal(APPLY_KNOWN(query, images, labels, mask, others), expected)
    order = np.random.default_rng(seed).permutation(5)
    moved = APPLY_KNOWN(query, *(x[:, order] for x in (images, labels, mask, known)))
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 1000))
def test_labels_that_are_all_known_change_nothing(seed):
    query, images, labels, mask, known = partly_known(seed)
    expected = APPLY_ALL_KNOWN(query, images, labels, mask)
    np.testing.assert_allclose(
        APPLY_KNOWN(query, images, labels, mask, np.ones_like(known)), expected, rtol=1e-5, atol=1e-5
    )
    assert np.abs(APPLY_KNOWN(query, images, labels, mask, known) - expected).max() > 1e-3


def test_which_labels_are_known_has_their_shape():
    query, images, labels, mask, known = partly_known(0)
    with pytest.raises(ValueError, match=r"support_known has shape \(2, 4, "):
        MODEL.apply({"params": PARAMS}, query, images, labels, mask, support_known=known[:, 1:])
