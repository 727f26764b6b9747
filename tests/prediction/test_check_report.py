"""The result of `check` as text and as a page."""

import numpy as np
import pytest

from benchmarks.check import spoil
from tests.fixtures import tiny_config
from tests.prediction.test_check import discs
from universeg_jax.errors import UserError
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.prediction.check import check
from universeg_jax.prediction.check_report import check_text, write_check_page
from universeg_jax.prediction.predictor import Predictor


def test_the_text_names_every_finding_and_the_page_shows_every_example(tmp_path):
    config = tiny_config()
    predictor = Predictor(init_params(build_model(config.model), 0), config)
    spoilt, _ = spoil(discs(6), "duplicate", np.random.default_rng(0))
    result = check(predictor, spoilt, thorough=False)
    assert result["subjects"] == 6
    assert all(f["message"] in check_text(result) for f in result["findings"])
    assert any(f["kind"] == "duplicate" for f in result["findings"])
    write_check_page(tmp_path / "check.html", result, spoilt)
    assert (tmp_path / "check.html").read_text().count("<figure>") == 6
    with pytest.raises(UserError, match="at least two"):
        check(predictor, spoilt.take([0]))
