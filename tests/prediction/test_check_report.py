"""What `check` found, in words and on a page."""

import numpy as np
import pytest

from benchmarks.check import spoil
from tests.fixtures import tiny_config
from tests.prediction.test_check import discs
from universeg_jax.errors import UserError
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.prediction.check import check
from universeg_jax.prediction.check_report import as_page, as_text
from universeg_jax.prediction.predictor import Predictor


def test_texts_name_every_finding():
    config = tiny_config()
    predictor = Predictor(init_params(build_model(config.model), 0), config)
    spoilt, _ = spoil(discs(6), "duplicate", np.random.default_rng(0))
    result = check(predictor, spoilt, thorough=False)
    assert result["subjects"] == 6
    assert all(f["message"] in as_text(result) for f in result["findings"])
    assert any(f["kind"] == "duplicate" for f in result["findings"])
    assert as_page(result, spoilt).count("<figure>") == 6
    with pytest.raises(UserError, match="at least two"):
        check(predictor, spoilt.take([0]))
