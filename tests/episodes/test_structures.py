"""Structures: thin, connected, shared or redrawn as configured, and alike at every size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit, random
from ml_collections import FrozenConfigDict
from scipy import ndimage

from tests.fixtures import key
from universeg_jax.episodes import structures, synthesis


@functools.partial(jit, static_argnums=(1, 2, 3))
def structure(keys, kind, config, size):
    flow = jnp.zeros((4, 2, size, size))
    return jax.vmap(lambda k: getattr(structures, kind)(k, flow, config))(keys)


def test_ellipses_are_shared_or_sampled_again():
    config = synthesis.get_config().nests
    config.update({"redraw": 0.0, "radius_std": 0.0, "elongation": (1.0, 1.0), "nested": 0.0})
    codes = np.asarray(structure(random.split(key(), 10), "ellipses", FrozenConfigDict(config), 64))
    assert (codes == codes[:, :1]).all()
    assert ((codes > 0).mean((2, 3)) > 0).all()
    config.redraw = 1.0
    codes = np.asarray(structure(random.split(key(), 10), "ellipses", FrozenConfigDict(config), 64))
    assert (codes != codes[:, :1]).any((2, 3))[:, 1:].all()


def test_ellipses_cover_at_most_their_share_and_insides_are_inside():
    config = synthesis.get_config().blobs
    config.update({"nested": 1.0, "coverage": 0.2, "radius_std": 0.0})
    codes = np.asarray(structure(random.split(key(), 12), "ellipses", FrozenConfigDict(config), 64))
    assert set(np.unique(codes)) == {0, 1, 2}
    assert (codes > 0).mean((2, 3)).max() < 0.25
    counts = [ndimage.label(c > 0)[1] for c in codes.reshape(-1, 64, 64)]
    assert max(counts) > 15
    assert max(counts) < config.count[1]
    config.update({"radius": (40.0, 60.0), "coverage": 1.0, "inner": (0.3, 0.6), "count": (1, 2)})
    codes = np.asarray(structure(random.split(key(), 12), "ellipses", FrozenConfigDict(config), 64))
    touching = sum((ndimage.binary_dilation(c == 2) & (c == 0)).sum() for c in codes.reshape(-1, 64, 64))
    assert touching < 0.01 * (codes == 2).sum()
    assert ((codes == 2).mean((2, 3)) > 0).all()


def test_tubes_are_thin_connected_and_different_in_every_subject():
    config = synthesis.get_config().tubes
    size, widest = 64, config.radius[1] * 64 / 256
    trees = np.asarray(structure(random.split(key(), 12), "tubes", FrozenConfigDict(config), 64)) > 0
    assert trees.mean((2, 3)).min() > 0
    assert trees.mean() < 0.3
    assert (trees != trees[:, :1]).any((2, 3))[:, 1:].all()
    pieces = [ndimage.label(t, np.ones((3, 3)))[1] for t in trees.reshape(-1, size, size)]
    assert np.median(pieces) <= 5
    config.update({"levels": (1, 2), "spread": (0.0, 0.0)})  # without branches the widest place is the trunk
    trunks = np.asarray(structure(random.split(key(), 12), "tubes", FrozenConfigDict(config), 64)) > 0
    depth = [ndimage.distance_transform_edt(t).max() for t in trunks.reshape(-1, size, size)]
    assert np.median(depth) <= widest + 1


def test_structures_look_alike_at_every_size():
    """Wide vessels, because none is thinner than a pixel."""
    config = synthesis.get_config()
    config.tubes.update({"radius": (10.0, 14.0), "taper": (0.9, 1.0)})
    for kind, part in (("tubes", config.tubes), ("ellipses", config.nests)):
        keys = random.split(key(), 12)
        small, large = (np.asarray(structure(keys, kind, FrozenConfigDict(part), size)) > 0 for size in (32, 64))
        assert large.mean() == pytest.approx(small.mean(), rel=0.15)
        reduced = large.reshape(12, 4, 32, 2, 32, 2).mean((3, 5)) >= 0.5
        assert 2 * (reduced & small).sum() / (reduced.sum() + small.sum()) > 0.8
