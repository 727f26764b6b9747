"""The two forward passes agree, and on a CPU one program serves all support sets."""

import jax
import numpy as np
import pytest

from universeg_jax.prediction.forward import ROOM, Forward


@pytest.fixture(scope="module")
def inputs():
    """queries [3, 128, 128, 1], images [9, 16, 16, 1], masks [2, 9, 16, 16, 1]."""
    rng = np.random.default_rng(0)
    images = rng.random((9, 16, 16, 1), np.float32)
    masks = np.stack([images > 0.6, images < 0.2]).astype(np.uint8)
    return rng.random((3, 128, 128, 1), np.float32), images, masks


@pytest.mark.parametrize(("flips", "overlap"), [(False, False), (True, True)])
def test_one_by_one_equals_the_batch_of_an_accelerator(predictor, inputs, flips, overlap):
    """Two samples of three examples each; a row of -1 is no example."""
    queries, images, masks = inputs
    rows = np.array([[[0, 1, 2], [3, 4, 5]], [[6, 7, -1], [8, -1, 1]], [[2, 2, 3], [-1, 5, 6]]], np.int32)
    parts = (predictor.params, queries, images, masks, [], rows)
    done = []
    found = predictor.forward(*parts, flips, overlap, done.append)
    assert done == [1, 1, 1]
    assert found.shape == (3, 2, 128, 128)
    expected = predictor.forward._batch(*parts, flips=flips, overlap=overlap)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_one_program_serves_every_number_of_examples_labels_and_samples(predictor, inputs):
    queries, images, masks = inputs
    forward = Forward(predictor.model, 16)
    for number, labels, samples, size in ((1, 2, 1, 3), (3, 1, 2, 9), (2, 2, 1, 1), (1, 1, 1, ROOM)):
        rows = np.zeros((number, samples, size), np.int32)
        forward(predictor.params, queries[:number], images[:size], masks[:labels, :size], [], rows, False, False)
    assert len(forward._one._compiled) == 1
    assert [forward.room(n) for n in (1, ROOM, ROOM + 1, 100)] == [ROOM, ROOM, 2 * ROOM, 128]


def test_a_larger_support_takes_a_larger_program(predictor, inputs):
    queries, images, masks = inputs
    rows = np.arange(ROOM + 2, dtype=np.int32)[None, None] % 9
    found = predictor.forward(predictor.params, queries[:1], images, masks[:1], [], rows, False, False)
    query = jax.image.resize(queries[:1], (1, 16, 16, 1), "linear")
    logits = predictor.logits(query, images[rows[0]], np.asarray(masks[0][rows[0]], np.float32))
    expected = jax.nn.sigmoid(jax.image.resize(logits, (1, 128, 128, 1), "linear"))
    np.testing.assert_allclose(found[0, 0], expected[0, ..., 0], atol=1e-5)
