"""The weights that come with the project: open lineage, what the model card says, and what they do on a made task."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.fixtures import disc
from universeg_jax.checkpoints import packaged, store
from universeg_jax.checkpoints.lineage import check_open
from universeg_jax.prediction.check import dice_scores
from universeg_jax.prediction.options import Options
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.prediction.support import make_support

DICE = {"small": 0.987}  # on `made_task`; a change of more than 0.01 is a change of what the weights do
CARD = Path(__file__).parents[2] / "docs" / "model-card.md"


def made_task(count=24, seed=7):
    """Bright and dark discs on textured ground: the dark one is the label. No training data has such images."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for _ in range(count):
        ground = np.kron(rng.random((16, 16)), np.ones((8, 8))) * 0.2 + 0.4 + 0.05 * rng.normal(size=(128, 128))
        dark = disc(128, rng.uniform(35, 93, 2), rng.uniform(12, 22))
        bright = disc(128, rng.uniform(35, 93, 2), rng.uniform(12, 22)) & ~dark
        images.append(np.clip(ground + 0.35 * bright - 0.3 * dark, 0, 1))
        labels.append(dark.astype(int))
    return images, labels


@pytest.mark.parametrize("name", DICE)
def test_dice_on_a_synthetic_task_stays_the_same(name):
    images, labels = made_task()
    support, queries = make_support(images[:8], labels[:8]), make_support(images[8:], labels[8:])
    found = Predictor.from_pretrained(name).segmenter(support, Options()).probabilities(queries.images)
    np.testing.assert_allclose(dice_scores(found, queries).mean(), DICE[name], atol=0.01)


def test_all_weights_are_measured_and_on_the_card():
    assert set(packaged.packaged()) == set(DICE)
    card = CARD.read_text()
    total = 0
    for name, path in packaged.packaged().items():
        header = store.read_metadata(path)
        check_open(header["lineage"])
        shapes = store.abstract_params(ConfigDict(header["config"]))
        assert store.first_difference(packaged.read_file(path), shapes) is None  # `load` takes that for granted
        assert all(dataset in card for dataset in header["lineage"]["trained_on"])
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
        assert f"`{name}`" in card
        total += path.stat().st_size
    assert total < 20e6
