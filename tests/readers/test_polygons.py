"""Filling of shapes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from universeg_jax.readers.polygons import _inside

# Halves and wholes fall on the centres of pixels and between them; other numbers do neither.
NUMBERS = st.one_of(st.integers(-4, 24).map(lambda n: n / 2), st.floats(-2, 12))


@settings(deadline=None, max_examples=300)
@given(ring=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=12), closed=st.booleans())
def test_points_are_inside_where_matplotlib_sees_them_inside(ring, closed):
    ring = np.array([*ring, ring[0]] if closed else ring, float)
    x, y = np.arange(11) + 0.5, np.arange(9) + 0.5
    centres = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    expected = Outline(ring).contains_points(centres).reshape(len(y), len(x))
    np.testing.assert_array_equal(_inside(ring, x, y), expected)
