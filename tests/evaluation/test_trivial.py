"""Baselines without parameters, on support sets with a known answer."""

import jax
import numpy as np

from tests.fixtures import disc
from universeg_jax.episode import Episode
from universeg_jax.evaluation.trivial import edge_features, mean_mask, nearest_features, nearest_label


def episode():
    images = np.stack([np.full((4, 4, 1), value, np.float32) for value in (0.1, 0.9, 0.5)])
    labels = np.zeros((3, 4, 4, 1), np.float32)
    labels[0, 0], labels[1, :2], labels[2] = 1, 1, 1
    query = np.full((1, 4, 4, 1), 0.55, np.float32)
    return Episode(query, np.zeros_like(query), images[None], labels[None], np.array([[1, 1, 0]], np.float32))


def test_mean_mask_ignores_padding():
    np.testing.assert_allclose(mean_mask(None, episode())[0, :, 0, 0], [1, 0.5, 0, 0])


def test_nearest_label_ignores_padding():
    # The third entry, which is padding, is nearest; of the others, 0.9 is nearer to 0.55 than 0.1.
    np.testing.assert_allclose(nearest_label(None, episode())[0, :, 0, 0], [1, 1, 0, 0])


def test_nearest_features_compare_shapes_and_not_brightness():
    """The query is a bright disc: its pixels are nearest to a bright square, its edges to a dim disc."""
    circle, square = disc(32, (16, 16), 9), np.zeros((32, 32), bool)
    square[8:25, 8:25] = True
    images = np.stack([0.2 * circle + 0.4, 0.9 * square, 0.9 * circle]).astype(np.float32)[..., None]
    labels = np.stack([circle, square, circle]).astype(np.float32)[..., None]
    query = (0.9 * circle).astype(np.float32)[None, ..., None]
    one = Episode(query, query, images[None], labels[None], np.array([[1, 1, 0]], np.float32))
    np.testing.assert_array_equal(jax.jit(nearest_label)(None, one)[0], labels[1])
    np.testing.assert_array_equal(jax.jit(nearest_features)(None, one)[0], labels[0])


def test_edge_features_are_histograms_of_directions():
    ramp = np.broadcast_to(np.linspace(0, 1, 16, dtype=np.float32), (16, 16))
    flat = np.full_like(ramp, 0.5)
    features = np.asarray(jax.jit(edge_features)(np.stack([ramp, ramp.T, 0.3 * ramp + 0.5, flat])[..., None]))
    rows, columns = features[0].reshape(8, 64), features[1].reshape(8, 64)
    np.testing.assert_allclose(rows[0], 1 / 8, rtol=1e-3)  # all gradients point right
    np.testing.assert_allclose(rows[1:], 0, atol=1e-5)
    np.testing.assert_allclose(columns[4], 1 / 8, rtol=1e-3)  # gradients point down
    np.testing.assert_allclose(features[2], features[0], atol=1e-3)
    np.testing.assert_array_equal(features[3], 0)
