"""Sums over streamed support entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from universeg_jax.model.layers import map_sum, sum_of_first


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_sum_of_the_first_entries_reads_no_others(count):
    """As `map_sum` over those alone; the others, NaN here, leave zeros."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 2, 3)).astype(np.float32)
    weights = np.arange(5, dtype=np.float32)[:, None, None]
    x[count:] = np.nan

    def function(chunk):
        entry, weight = chunk
        return (weight * entry, None), {"kept": entry[0] + 1}

    (total, nothing), kept = jax.jit(lambda n: sum_of_first(n)(function, (x, weights)))(jnp.int32(count))
    (expected, _), stored = map_sum(function, (x[:count], weights[:count]))
    assert nothing is None
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_array_equal(kept["kept"][:count], stored["kept"])
    np.testing.assert_array_equal(kept["kept"][count:], 0)
