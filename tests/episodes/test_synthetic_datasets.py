"""Datasets made for a try: as many subjects as they say, none of them twice."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.fixtures import key
from universeg_jax.data.dataset import open_dataset
from universeg_jax.episode import split_query, stack_examples
from universeg_jax.episodes import synthetic_datasets


def test_no_image_has_two_names(tmp_path, monkeypatch):
    """Half of the subjects of the synthetic tasks are repeated."""

    @jax.jit
    def repeating(key, size, support_size):
        images = jax.random.uniform(key, (64, 32, 32, 1))[jnp.arange(64) // 2]
        return images, (images > 0.5).astype(jnp.float32)

    def draw(key, size, support_size):
        images, labels = (x[: support_size + 1] for x in repeating(key, size, support_size))
        return split_query(images, labels)

    monkeypatch.setattr(synthetic_datasets, "_synthetic_subjects", draw)
    monkeypatch.setattr(synthetic_datasets, "SUBJECTS", 6)
    for name in synthetic_datasets.make_datasets(tmp_path, size=32):
        dataset = open_dataset(tmp_path, name)
        pixels = {dataset[row]["image"].tobytes() for row in range(len(dataset))}
        assert len(pixels) == len(dataset) == len(dataset.index.subjects) == 6


def test_the_first_subjects_are_used_if_none_is_repeated():
    images, labels = synthetic_datasets.sample_subjects(key(), 64, 3)
    episode = synthetic_datasets._synthetic_subjects(key(), 64, 2)
    drawn = stack_examples(jax.device_get(episode))[0][..., 0]
    np.testing.assert_array_equal(images, np.round(255 * drawn))
    np.testing.assert_array_equal(labels[0], episode.query_label[..., 0])
    assert images.dtype == labels.dtype == np.uint8
