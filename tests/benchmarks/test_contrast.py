"""The benchmark of contrasts, on a square whose contrast is known."""

import numpy as np
import pytest

from benchmarks.contrast import contrast


def test_contrast_is_the_step_at_the_border():
    label = np.zeros((32, 32), bool)
    label[10:20, 12:22] = True
    assert contrast(0.4 + 0.25 * label, label) == pytest.approx(0.25)
    assert contrast(0.4 - 0.25 * label, label) == pytest.approx(0.25)
    assert np.isnan(contrast(np.ones((32, 32)), np.zeros((32, 32), bool)))
