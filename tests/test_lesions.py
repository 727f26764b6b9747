"""Lesions in real images: where they lie, that labels are where images changed, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit, lax, random
from jax.sharding import Mesh, PartitionSpec
from ml_collections import FrozenConfigDict
from scipy import ndimage

from tests.fixtures import disc, key
from universeg_jax import lesions
from universeg_jax.episode import Episode

SIZE, COUNT = 48, 4


def some_config(**changes):
    config = lesions.get_config()
    config.update(changes)
    lesions.validate(config)
    return FrozenConfigDict(config)


def bodies():
    """Bright bodies [COUNT, SIZE, SIZE] on black, and an organ in each (bool)."""
    rng = np.random.default_rng(0)
    body = disc(SIZE, (24, 24), 20)
    images = np.where(body, 0.4 + 0.1 * rng.random((COUNT, SIZE, SIZE)), 0)
    organs = np.stack([disc(SIZE, (18 + 4 * i, 16 + 2 * i), 5) for i in range(COUNT)])
    return jnp.asarray(images, jnp.float32), jnp.asarray(organs > 0)


@functools.partial(jit, static_argnums=1)
def draw(indices, config):
    """(images, labels) [B, COUNT, SIZE, SIZE] of as many episodes."""
    return lax.map(lambda i: lesions.laid(random.fold_in(key(), i), *bodies(), config), indices)


def middles(labels):
    return np.array([ndimage.center_of_mass(label) for label in np.asarray(labels).reshape(-1, SIZE, SIZE)])


def test_images_and_labels_are_valid_and_every_image_has_a_lesion():
    images, labels = (np.asarray(x) for x in draw(jnp.arange(64), some_config()))
    assert images.shape == labels.shape == (64, COUNT, SIZE, SIZE)
    assert images.dtype == labels.dtype == np.float32
    assert np.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert set(np.unique(labels)) == {0, 1}
    assert labels.any((2, 3)).all()
    assert labels.mean((2, 3)).max() < 0.9


def test_labels_are_where_images_changed():
    config = some_config(
        edge=(0.001, 0.002), contrast=(0.2, 0.3), contrast_std=0.0, texture=(0.0, 0.0), seen=(1.0, 1.0), bump=(0.0, 0.0)
    )
    before = np.asarray(bodies()[0])[None]
    images, labels = (np.asarray(x) for x in draw(jnp.arange(32), config))
    change = np.abs(images - before)
    inside = (labels > 0) & (before > 0)
    assert (change[inside] > 0.1).mean() > 0.97
    assert change[labels == 0].max() < 0.31 / 2  # half of it on the outline
    # All of them brighter, or all of them darker: the look is the task's.
    signs = np.array([np.sign((i - before[0])[m]).mean() for i, m in zip(images, inside, strict=True)])
    assert (np.abs(signs) > 0.9).all()
    assert {-1.0, 1.0} == set(np.round(signs))


def test_they_lie_elsewhere_in_every_image_and_never_in_dark_background():
    config = some_config(count=(1, 2), radius=(0.02, 0.02), ragged=(0.0, 0.0), inside=0.0)
    _, labels = draw(jnp.arange(64), config)
    at = middles(labels)
    assert np.hypot(*(at - 24).T).max() < 20 + 3
    assert at.std(0).min() > 6  # as far apart as places in the body are: radius / 2 = 10
    by_task = at.reshape(64, COUNT, 2)
    assert np.hypot(*(by_task[:, 0] - by_task[:, 1]).T).mean() > 8


def test_in_organs_they_lie_in_organs():
    config = some_config(count=(1, 2), radius=(0.02, 0.02), ragged=(0.0, 0.0), inside=1.0)
    _, labels = draw(jnp.arange(32), config)
    at = middles(labels).reshape(32, COUNT, 2)
    organ = np.array([(18 + 4 * i, 16 + 2 * i) for i in range(COUNT)])
    assert np.hypot(*np.moveaxis(at - organ, -1, 0)).max() < 5 + 2


def test_how_many_and_how_large():
    config = some_config(count=(3, 4), radius=(0.08, 0.08), radius_std=0.0, elongation=(1.0, 1.0), ragged=(0.0, 0.0))
    _, labels = draw(jnp.arange(32), config)
    parts = [ndimage.label(label)[1] for label in np.asarray(labels).reshape(-1, SIZE, SIZE)]
    assert max(parts) == 3
    areas = np.asarray(labels).sum((2, 3))
    circle = np.pi * (0.08 * SIZE) ** 2
    np.testing.assert_allclose(np.quantile(areas, 0.9), 3 * circle, rtol=0.15)


def test_an_image_without_anything_bright_has_lesions_too():
    dark = jnp.zeros((COUNT, SIZE, SIZE))
    images, labels = lesions.laid(key(), dark, dark > 0, some_config(contrast=(0.3, 0.4)))
    assert np.asarray(labels).any((1, 2)).all()
    assert np.asarray(images)[np.asarray(labels) > 0].mean() > 0.1  # bright: dark ones would not be seen


def test_an_episode_keeps_its_mask_and_loses_its_labels():
    images, organs = bodies()
    real = (images[..., None], organs[..., None].astype(jnp.float32))
    mask = jnp.asarray([1.0, 1.0, 0.0])
    episode = Episode(real[0][0], real[1][0], real[0][1:], real[1][1:], mask)
    made = jit(lesions.lesion_episode, static_argnums=2)(key(), episode, some_config(inside=0.0))
    assert [x.shape for x in made] == [x.shape for x in episode]
    np.testing.assert_array_equal(made.support_mask, mask)
    expected = lesions.laid(key(), images, organs, some_config(inside=0.0))
    np.testing.assert_allclose(made.support_images[..., 0], expected[0][1:], atol=1e-5)
    np.testing.assert_array_equal(made.query_label[..., 0], expected[1][0])


def test_same_key_same_bytes_and_another_key_another_episode():
    first, again, other = (draw(jnp.arange(8) + n, some_config()) for n in (0, 0, 8))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any((1, 2, 3)).all()


def test_four_devices_and_vmap_give_the_same_pixels():
    config = some_config()
    expected = draw(jnp.arange(8), config)
    mesh, split = Mesh(np.array(jax.devices()[:4]), "batch"), PartitionSpec("batch")
    share = functools.partial(draw.__wrapped__, config=config)
    run = jit(jax.shard_map(share, mesh=mesh, in_specs=split, out_specs=split, check_vma=False))
    together = jit(jax.vmap(lambda i: lesions.laid(random.fold_in(key(), i), *bodies(), config)))
    for found in (run(jnp.arange(8)), together(jnp.arange(8))):
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", (0, 3)),
        ("count", (3, 3)),
        ("count", (1.0, 3.0)),
        ("radius", (0.2, 0.1)),
        ("radius", (0.0, 0.1)),
        ("radius", (0.1, 1.5)),
        ("radius_std", -1.0),
        ("elongation", (0.5, 2.0)),
        ("ragged", (0.0, 1.5)),
        ("edge", (0.0, 0.1)),
        ("contrast", (0.0, 0.5)),
        ("contrast_std", float("inf")),
        ("texture", (-0.1, 0.1)),
        ("seen", (0.0, 1.5)),
        ("bump", (0.0, float("nan"))),
        ("inside", 1.5),
        ("darkest", -0.1),
    ],
)
def test_bad_config_names_the_field(field, value):
    config = lesions.get_config()
    lesions.validate(config)
    config[field] = value
    with pytest.raises(ValueError, match=f"config.lesion.{field} "):
        lesions.validate(config)
