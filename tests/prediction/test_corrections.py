"""Corrections: they stay, they guide the rest, and the query counts as an example that is known there alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, binary_erosion

from tests.fixtures import random_params, tiny_config
from universeg_jax.episode import FLIPS, resize
from universeg_jax.errors import UserError
from universeg_jax.model.factory import build_model, param_shapes
from universeg_jax.prediction.corrections import UNSAID, check_corrections, see_corrections
from universeg_jax.prediction.forward import exclusive_probabilities
from universeg_jax.prediction.options import Options
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.prediction.selection import select_examples
from universeg_jax.prediction.support import make_support
from universeg_jax.readers.preprocess import preprocess_image, preprocess_mask

SEEDS = st.integers(0, 1000)


def examples(count=5, side=128, seed=0):
    """(images, labels of the ids 1 and 5, a query, corrections of some of its pixels)."""
    rng = np.random.default_rng(seed)
    images = [rng.random((side, side), np.float32) for _ in range(count + 1)]
    labels = [1 * (x > 0.4) + 4 * (x > 0.7) for x in images]
    said = np.where(rng.random((side, side)) < 0.1, labels[-1], UNSAID)
    return images[:-1], labels[:-1], images[-1], said


@given(seed=SEEDS, height=st.integers(5, 60), width=st.integers(5, 60))
@settings(max_examples=15, deadline=None)
def test_what_is_said_stays_at_the_size_of_the_image(predictor, seed, height, width):
    rng = np.random.default_rng(seed)
    images, labels, _, _ = examples(3, 20)
    said = rng.choice([UNSAID, 0, 1, 5], (height, width), p=[0.7, 0.1, 0.1, 0.1])
    prediction = predictor.for_support(images, labels)(rng.random((height, width)), said)
    assert prediction.mask.shape == said.shape
    np.testing.assert_array_equal(prediction.mask[said != UNSAID], said[said != UNSAID])
    assert (prediction.uncertainty[said != UNSAID] < 1e-4).all()


def test_nothing_said_changes_nothing(predictor):
    images, labels, query, said = examples()
    segment = predictor.for_support(images, labels)
    plain = segment(query).probabilities
    np.testing.assert_array_equal(segment(query, np.full_like(said, UNSAID)).probabilities, plain)
    guided = segment(query, said).probabilities
    assert (np.abs(guided - plain)[:, said == UNSAID] > 1e-4).mean() > 0.5  # what is said changes the rest


@pytest.mark.parametrize("changes", [{}, {"flips": True}, {"support_size": 3, "ensemble": 2, "choose": "random"}])
@pytest.mark.parametrize("partial", [False, True])
def test_the_query_is_an_example_that_is_known_in_part(predictor, changes, partial):
    """Against the model itself, called for each label, support sample and flip."""
    images, labels, query, said = examples()
    rng = np.random.default_rng(3)
    ignored = [rng.random((128, 128)) < 0.3 if partial else None for _ in images]
    support, options = make_support(images, labels, ignored=ignored), Options(**{"support_size": 5} | changes)
    segment = predictor.segmenter(support, options)
    at_size, strokes = preprocess_image(query, 128), see_corrections(said, support.labels)
    stack = np.concatenate([support.images, at_size[None]])
    masks = np.concatenate([support.masks, strokes.masks[:, None]], 1)
    known = np.concatenate([np.broadcast_to(support.known, support.images.shape), strokes.known[None]])
    stack, masks, known, asked = (
        np.asarray(resize(jnp.asarray(x, jnp.float32)[..., None], 16)) for x in (stack, masks, known, at_size[None])
    )
    size, expected = options.support_size, 0
    samples = select_examples(support, at_size, None, size, options.ensemble, options.choose, 0)
    flips = FLIPS if options.flips else FLIPS[:1]
    for flip in flips:
        axes = tuple(axis for axis, turned in zip((-3, -2), flip, strict=True) if turned)
        for rows in samples:
            rows = [*rows, len(images)]
            weights = np.array([[1.0] * size + [max(1, size / 2)]])
            one = [np.flip(x[rows], axes)[None] for x in (stack, known)]
            logits = [
                predictor.logits(
                    np.flip(asked, axes),
                    one[0],
                    np.flip(m[rows] >= 0.5, axes)[None] * 1.0,
                    weights,
                    (one[1] >= 0.5) * 1.0,
                )
                for m in masks
            ]
            large = [np.flip(np.asarray(resize(x, 128)), axes)[0, ..., 0] for x in logits]
            expected = expected + exclusive_probabilities(np.stack(large)) / len(samples) / len(flips)
    unsaid = said == UNSAID
    np.testing.assert_allclose(segment(query, said).probabilities[:, unsaid], expected[:, unsaid], atol=1e-5)


def test_an_accelerator_gives_the_same(predictor, monkeypatch):
    images, labels, query, said = examples()
    options = {"support_size": 3, "ensemble": 2, "choose": "random", "flips": True}
    expected = predictor.for_support(images, labels, **options)(query, said).probabilities
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # whose program takes all samples and labels at once
    found = predictor.for_support(images, labels, **options)(query, said).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_keys_of_the_query_are_those_that_the_model_computes():
    config = tiny_config()
    config.model.matching = 2
    config.image_size = 32  # four cells a side
    params = random_params(param_shapes(build_model(config.model)))
    images, labels, query, said = examples(3)
    plain = Predictor(params, config).for_support(images, labels)
    assert plain.keys
    found = plain(query, said).probabilities
    plain.predictor.has_keys = False  # then nothing is prepared
    without = plain.predictor.for_support(images, labels)
    without.keys = []
    np.testing.assert_allclose(found, without(query, said).probabilities, atol=2e-3)  # keys are kept in float16


@given(seed=SEEDS, height=st.integers(5, 900), width=st.integers(5, 900))
@settings(max_examples=20, deadline=None)
def test_nothing_is_known_where_nothing_was_said(seed, height, width):
    """The padding of an image that is not square included, and its rim."""
    said = np.full((height, width), UNSAID)
    assert not see_corrections(said, (1,)).known.any()
    rng = np.random.default_rng(seed)
    row, column = rng.integers(height), rng.integers(width)
    said[row, column] = 1  # a single pixel
    strokes = see_corrections(said, (1, 2))
    assert strokes.known.any()
    np.testing.assert_array_equal(strokes.masks[0] > 0, strokes.known)
    assert not strokes.masks[1].any()
    side = max(height, width)
    centre = [(place + (side - n) // 2 + 0.5) * 128 / side for place, n in ((row, height), (column, width))]
    assert np.abs(np.argwhere(strokes.known) + 0.5 - centre).max() <= max(0.5, 64 / side) + 1e-9


def test_thin_strokes_in_a_large_image_count():
    said = np.full((512, 512), UNSAID)
    said[100:300, 256] = 1
    strokes = see_corrections(said, (1,))
    assert strokes.known[30:70, 64].all()
    np.testing.assert_array_equal(strokes.masks[0] > 0, strokes.known)
    said[said == 1] = 0
    strokes = see_corrections(said, (1,))
    assert strokes.known[30:70, 64].all()
    assert not strokes.masks.any()


@given(seed=SEEDS, height=st.integers(48, 300), width=st.integers(48, 300))
@settings(max_examples=20, deadline=None)
def test_strokes_lie_where_the_image_lies(seed, height, width):
    """A region that is said as a whole has the mask that a label would have, but for pixels on its border."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(height // 2 + 1), rng.integers(width // 2 + 1)
    label = np.zeros((height, width), bool)
    label[top : top + height // 2 + 1, left : left + width // 2 + 1] = True
    strokes = see_corrections(label.astype(np.int32), (1,))
    expected = preprocess_mask(label, 128)
    inside, outside = binary_erosion(expected, iterations=2), binary_dilation(expected, iterations=2)
    assert (strokes.masks[0] >= inside).all()
    assert (strokes.masks[0] <= outside).all()


def test_errors_name_the_value_and_the_remedy(predictor):
    images, labels, query, said = examples(2)
    segment = predictor.for_support(images, labels)
    with pytest.raises(UserError, match=r"corrections are int64 \(4, 4\): use integers of the shape of the image"):
        segment(query, np.zeros((4, 4), int))
    with pytest.raises(UserError, match="corrections are float32"):
        segment(query, said.astype(np.float32))
    with pytest.raises(UserError, match="corrections hold 7: use -1 where nothing is said, 0 for background, .* 1, 5"):
        check_corrections(np.full((2, 2), 7), (2, 2), (1, 5))
    for options, what in (({"tiles": 2}, "the option tiles"), ({"overlap": True}, "labels that overlap")):
        with pytest.raises(UserError, match=f"do not work with {what}"):
            predictor.for_support(images, labels, **options)(query, said)
