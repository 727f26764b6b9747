"""Scoring on the device: models at their own size, averages over flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures import build_discs, tiny_config
from universeg_jax.data.tasks import dataset_tasks
from universeg_jax.episode import Episode, to_device_floats
from universeg_jax.evaluation import trivial
from universeg_jax.evaluation.cases import Settings, gather_episodes, query_cases
from universeg_jax.evaluation.scoring import model_method, over_flips
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.prediction.predictor import Predictor


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return build_discs(tmp_path_factory.mktemp("data"), "discs", "test", count=20)


def first_episode(dataset):
    """The first case [1, 128, 128, 1] with its first draw of two support examples."""
    case = query_cases(dataset_tasks(dataset)[0])[0]
    episode, _ = gather_episodes([case], {"discs": dataset}, Settings(), 2, 1)
    return to_device_floats(Episode(*episode[:2], *(x[:, 0] for x in episode[2:])), 128)


def test_flips_average_the_method_over_flipped_images(dataset):
    """An equivariant method gives the same for all flips; a method with a fixed corner marks each corner once."""

    def corner(params, episode):
        size = episode.query_image.shape[1]
        first = jnp.arange(size) < size // 2
        quarter = (first[:, None] & first[None])[None, :, :, None]
        return jnp.broadcast_to(quarter.astype(jnp.float32), episode.query_image.shape)

    floats = first_episode(dataset)
    for equivariant in (lambda _, episode: episode.query_label, trivial.mean_mask, trivial.nearest_label):
        np.testing.assert_allclose(over_flips(equivariant)(None, floats), equivariant(None, floats), atol=1e-6)
    np.testing.assert_allclose(over_flips(corner)(None, floats), 0.25)


def test_a_model_runs_at_its_own_size_and_is_scored_at_128(dataset):
    config = tiny_config(image_size=16)  # neither the size of the data nor the official one
    predictor = Predictor(init_params(build_model(config.model), 0), config)
    floats = first_episode(dataset)
    got = model_method(predictor.model, 16)(predictor.params, floats)
    small = [jax.image.resize(x, (*x.shape[:-3], 16, 16, 1), "linear") for x in (floats[0], floats[2], floats[3])]
    logits = predictor.logits(small[0], small[1], (small[2] >= 0.5).astype(jnp.float32))
    expected = jax.nn.sigmoid(jax.image.resize(logits, (1, 128, 128, 1), "linear"))
    np.testing.assert_allclose(got, expected, atol=1e-5)
