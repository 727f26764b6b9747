"""The two baselines on supports whose answer is known."""

import numpy as np

from universeg_jax.baselines.trivial import mean_mask, nearest_label
from universeg_jax.episode import Episode


def episode():
    images = np.stack([np.full((4, 4, 1), value, np.float32) for value in (0.1, 0.9, 0.5)])
    labels = np.zeros((3, 4, 4, 1), np.float32)
    labels[0, 0], labels[1, :2], labels[2] = 1, 1, 1
    query = np.full((1, 4, 4, 1), 0.55, np.float32)
    return Episode(query, np.zeros_like(query), images[None], labels[None], np.array([[1, 1, 0]], np.float32))


def test_mean_mask_is_the_mean_of_entries_that_count():
    np.testing.assert_allclose(mean_mask(None, episode())[0, :, 0, 0], [1, 0.5, 0, 0])


def test_nearest_label_is_that_of_the_nearest_entry_that_counts():
    # The padded third entry would be nearest; of the others 0.9 is nearer to 0.55 than 0.1.
    np.testing.assert_allclose(nearest_label(None, episode())[0, :, 0, 0], [1, 1, 0, 0])
