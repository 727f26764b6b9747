"""Predictors of the tiny model, compiled once."""

import pytest

from tests.fixtures import write_folder
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.prediction.support import read_support_folder


@pytest.fixture
def loaded(monkeypatch, predictor):
    """Commands use the session's predictor, which compiles once."""
    monkeypatch.setattr(Predictor, "from_checkpoint", lambda path: predictor)


@pytest.fixture(scope="module")
def segmenter(predictor, tmp_path_factory):
    return predictor.segmenter(read_support_folder(write_folder(tmp_path_factory.mktemp("support"), count=3)))
