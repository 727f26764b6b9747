"""Layers of a viewer as files of a project, and units of a session as layers."""

import numpy as np
import pytest

from tests.annotation.fixtures import image_project, volume_project
from universeg_jax.annotation import layers
from universeg_jax.annotation.layers import OpenLayer
from universeg_jax.annotation.project import create
from universeg_jax.annotation.session import Session
from universeg_jax.errors import UserError
from universeg_jax.readers.volumes import Volume


def test_images_become_files_with_their_own_values_and_usable_names(tmp_path):
    rng = np.random.default_rng(0)
    grey, wide = rng.integers(0, 255, (9, 12), np.uint8), rng.integers(0, 60000, (9, 12)).astype(np.uint16)
    real = rng.normal(size=(9, 12)).astype(np.float32)
    colour = np.zeros((9, 12, 4), np.uint8)
    colour[2:, :, 1], colour[..., 3] = 200, 255
    given = [
        OpenLayer("a/b: c", grey, (1, 1)), OpenLayer("a b  c", wide, (1, 1)), OpenLayer("x", real, (1, 1)),
        OpenLayer("x", colour, (1, 1), rgb=True), OpenLayer("...", colour[..., :3] / 255.0, (1, 1), rgb=True),
    ]  # fmt: skip
    names = layers.write_layers(given, tmp_path / "images")
    assert names == ["a_b_c", "a_b_c_", "x", "x_", "image"]
    project, unusable = create(tmp_path / "p", tmp_path / "images", {1: "cell"})
    assert not unusable
    assert sorted(project.items) == sorted(names)
    with Session(tmp_path / "p") as session:
        for name, values in (("a_b_c", grey), ("a_b_c_", wide), ("x", real)):
            np.testing.assert_array_equal(session.image(name), values.astype(np.float32))
        np.testing.assert_array_equal(session.image("x_"), session.image("image"))  # green, as 200 and as 200/255


def test_a_volume_keeps_its_slices_voxel_sizes_and_painted_labels(tmp_path):
    data = np.arange(4 * 6 * 5, dtype=np.int16).reshape(4, 6, 5)
    layers.write_layers([OpenLayer("scan", data, (3.0, 0.5, 0.7))], tmp_path / "images")
    create(tmp_path / "p", tmp_path / "images", {1: "organ"}, axis=2)
    with Session(tmp_path / "p") as session:
        view = layers.view_of(session, "scan")
        np.testing.assert_array_equal(view.image, data)
        assert view.scale == pytest.approx((3.0, 0.5, 0.7))
        assert not view.labels.any()
        assert not view.accepted
        mask = (data[2] % 3 == 0).astype(np.int32)
        session.accept("scan/2", mask)
        view = layers.view_of(session, "scan")
        np.testing.assert_array_equal(view.labels[2], mask)
        assert view.accepted == {2}
        assert not view.labels[[0, 1, 3]].any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_volumes_of_any_axis_come_back_to_their_canonical_axes(tmp_path, axis):
    path, _ = volume_project(tmp_path, (6, 7, 5), axis=axis)
    with Session(path) as session:
        item = session.project.items["scan0"]
        content = session.image("scan0")
        assert isinstance(content, Volume)
        mask = np.random.default_rng(0).integers(0, 2, content.shape).astype(np.int32)
        stack = layers.to_slices(session, "scan0", mask)
        assert stack.shape[0] == item.slices == content.shape[axis]
        np.testing.assert_array_equal(layers.from_slices(session, "scan0", stack), mask)
        image = layers.view_of(session, "scan0").image
        np.testing.assert_array_equal(layers.from_slices(session, "scan0", image), content.data)
        for k in range(item.slices):  # the numbers of slices are those of the session
            np.testing.assert_array_equal(image[k], session.image(f"scan0/{k}"))


def test_an_image_is_shown_with_its_accepted_label(tmp_path):
    path, truth = image_project(tmp_path, 2)
    with Session(path) as session:
        name = session.units()[0]
        assert not layers.view_of(session, name).labels.any()
        session.accept(name, truth[name])
        view = layers.view_of(session, name)
        np.testing.assert_array_equal(view.labels, truth[name])
        assert view.accepted == {0}


@pytest.mark.parametrize(
    ("data", "rgb", "words"),
    [
        (np.zeros((2, 3, 4, 5)), False, "an image of 4 axes"),
        (np.zeros(5), False, "an image of 1 axes"),
        (np.zeros((2, 8, 8, 3), np.uint8), True, "a colour image of 3 axes"),
    ],
)
def test_layers_that_cannot_be_images_are_refused(tmp_path, data, rgb, words):
    with pytest.raises(UserError, match=f"layer movie: {words}"):
        layers.write_layers([OpenLayer("movie", data, (1.0,) * data.ndim, rgb)], tmp_path)
    with pytest.raises(UserError, match="no image layer is open"):
        layers.write_layers([], tmp_path)


def test_corrections_are_what_a_person_changed_now_or_earlier():
    shown, now = np.array([0, 0, 1, 1, 2]), np.array([0, 2, 1, 0, 2])  # one pixel painted, one erased
    earlier = np.array([-1, -1, -1, -1, 2])
    np.testing.assert_array_equal(layers.corrections_of(shown, now, earlier), [-1, 2, -1, 0, 2])
    np.testing.assert_array_equal(layers.corrections_of(now, shown, np.array([0, -1, -1, -1, 2])), [0, 0, -1, 1, 2])
