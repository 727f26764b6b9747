"""Painted tasks: new intensities by label and old intensity, the same in all subjects of a task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit, random
from ml_collections import FrozenConfigDict

from tests.fixtures import disc, key, within_4_sigma
from universeg_jax.episodes import painting

SIZE, COUNT, LEVELS = 32, 3, 12
PLAIN = {"subject_std": (0.0, 0.0), "texture": 0.0, "blur": (0.0, 0.0)}  # curves alone


def small_config(**changes):
    config = painting.get_config()
    config.update(changes)
    return FrozenConfigDict(config)


def examples(levels=LEVELS):
    """Images of few grey levels, which occur in all of them, and discs with the codes 1, 2 and 20."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, levels, (COUNT, SIZE, SIZE)) / (levels - 1)
    codes = np.zeros((COUNT, SIZE, SIZE), np.int32)
    for code, centre in ((1, (8, 8)), (2, (22, 9)), (20, (16, 23))):
        codes[:, disc(SIZE, centre, 6)] = code
    return jnp.asarray(images, jnp.float32), jnp.asarray(codes)


@functools.partial(jit, static_argnums=3)
def paint_many(indices, images, codes, config):
    return jax.vmap(lambda i: painting.paint(random.fold_in(key(), i), images, codes, config))(indices)


def greys(painted, images, codes, code):
    """The new intensities of each old one under a code: a list of arrays, one per grey level."""
    inside = np.asarray(codes) == code
    return [painted[inside & np.isclose(images, value)] for value in np.linspace(0, 1, LEVELS)]


def test_intensities_depend_on_label_and_old_intensity_alone():
    images, codes = examples()
    for painted in np.asarray(paint_many(jnp.arange(6), images, codes, small_config(shared=0.0, **PLAIN))):
        assert (painted.min((1, 2)), painted.max((1, 2))) == (pytest.approx(0), pytest.approx(1))
        tables = []
        for code in (0, 1, 2, 20):
            values = greys(painted[:1], images[:1], codes[:1], code)
            assert max(np.ptp(value) for value in values) < 1e-5
            tables.append(np.array([value[0] for value in values]))
        apart = [np.abs(a - b).max() for i, a in enumerate(tables) for b in tables[:i]]
        assert min(apart) > 0.02  # each label has its own curve


def test_shared_curves_know_no_labels():
    images, codes = examples()
    moving = {**PLAIN, "subject_std": (0.05, 0.05)}
    for painted in np.asarray(paint_many(jnp.arange(6), images, codes, small_config(shared=1.0, **moving))):
        for under, elsewhere in zip(*(greys(painted[:1], images[:1], codes[:1], code) for code in (0, 1)), strict=True):
            np.testing.assert_allclose(elsewhere, under[0], atol=1e-5)
    config = small_config(shared=0.3, **moving)
    painted = np.asarray(paint_many(jnp.arange(200), images[:1], codes[:1], config))
    first = [[greys(p, images[:1], codes[:1], code)[0][0] for code in (0, 1)] for p in painted]
    within_4_sigma([abs(a - b) < 1e-6 for a, b in first], 0.3)


def test_curves_are_linear_between_nodes_and_need_not_be_monotone():
    """With two nodes a curve is a line; with six most curves turn."""
    ramp = jnp.linspace(0, 1, SIZE)[None, None] * jnp.ones((1, SIZE, 1))
    codes = jnp.zeros((1, SIZE, SIZE), jnp.int32)
    lines = np.asarray(paint_many(jnp.arange(20), ramp, codes, small_config(nodes=2, **PLAIN)))[:, 0, 0]
    rising = lines[:, -1:] > lines[:, :1]
    np.testing.assert_allclose(lines, np.where(rising, ramp[0, 0], 1 - ramp[0, 0]), atol=1e-5)
    assert rising.any()
    assert not rising.all()
    curves = np.asarray(paint_many(jnp.arange(200), ramp, codes, small_config(**PLAIN)))[:, 0, 0]
    steps = np.diff(curves, axis=1)
    turning = (steps > 1e-6).any(1) & (steps < -1e-6).any(1)
    # Six independent nodes are in order, up or down, with probability 2/6!.
    within_4_sigma(turning, 1 - 2 / 720)


def test_codes_go_round_instead_of_reading_the_curves_of_another_subject():
    images, codes = examples()
    config = small_config(shared=0.0)
    again = jnp.where(codes == 20, 20 - (painting.CODES - 2), codes)
    one, other = (np.asarray(paint_many(jnp.arange(4), images, c, config)) for c in (codes, again))
    np.testing.assert_array_equal(one, other)


def test_subjects_move_and_textures_differ():
    images, codes = examples()
    same = jnp.broadcast_to(images[:1], images.shape)
    still = np.asarray(paint_many(jnp.arange(4), same, codes, small_config(**PLAIN)))
    np.testing.assert_array_equal(still[:, 0], still[:, 1])
    moved = np.asarray(paint_many(jnp.arange(4), same, codes, small_config(**{**PLAIN, "subject_std": (0.05, 0.05)})))
    assert (np.abs(moved[:, 0] - moved[:, 1]).max((1, 2)) > 0.02).all()
    flat = jnp.zeros_like(images)
    config = small_config(**{**PLAIN, "shared": 0.0, "texture": 0.5, "texture_std": (0.1, 0.1)})
    textured = np.asarray(paint_many(jnp.arange(100), flat, codes, config))
    rough = np.array([textured[:, :, np.asarray(codes[0]) == code].std(-1) > 1e-3 for code in (0, 1, 2)])
    assert (rough[..., :1] == rough).all()  # in all subjects of a task
    within_4_sigma(rough[..., 0], 0.5)
    ground = rough[0, :, 0]
    assert (np.abs(textured[ground, 0] - textured[ground, 1])[:, np.asarray(codes[0]) == 0].mean(-1) > 0.005).all()


def test_same_key_same_bytes_and_all_values_are_intensities():
    images, codes = examples(levels=256)
    config = small_config()
    first = np.asarray(paint_many(jnp.arange(40), images, codes, config))
    np.testing.assert_array_equal(first, paint_many(jnp.arange(40), images, codes, config))
    np.testing.assert_allclose(first[::-1], paint_many(jnp.arange(40)[::-1], images, codes, config), atol=1e-6)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert (first.min(), first.max()) == (0, 1)
    assert (np.abs(first[1:] - first[:-1]).mean((1, 2, 3)) > 0.05).all()  # tasks differ
