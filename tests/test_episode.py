import jax
import jax.numpy as jnp
import numpy as np
import pytest

from universeg_jax.episode import Episode, split_query, stack_examples


def example(batch, xp, dtype):
    shapes = [(2, 2, 1), (2, 2, 1), (3, 2, 2, 1), (3, 2, 2, 1), (3,)]
    rng = np.random.default_rng(0)
    return Episode(*(xp.asarray(rng.integers(0, 2, (*batch, *shape)), dtype) for shape in shapes))


@pytest.mark.parametrize("batch", [(), (4,), (4, 2)])
@pytest.mark.parametrize(("xp", "dtype"), [(np, np.uint8), (jnp, jnp.float32)])
def test_stacking_puts_the_query_first_and_splitting_inverts_it(batch, xp, dtype):
    episode = example(batch, xp, dtype)
    images, labels = stack_examples(episode)
    assert images.shape == labels.shape == (*batch, 4, 2, 2, 1)
    np.testing.assert_array_equal(images[..., 0, :, :, :], episode.query_image)
    np.testing.assert_array_equal(labels[..., 2, :, :, :], episode.support_labels[..., 1, :, :, :])
    jax.tree.map(np.testing.assert_array_equal, split_query(images, labels, episode.support_mask), episode)
    for x in (images, *split_query(images, labels)):
        assert isinstance(x, np.ndarray) == (xp is np)
        assert x.dtype == dtype
    np.testing.assert_array_equal(split_query(images, labels).support_mask, np.ones((*batch, 3)))
