"""The rest of a volume from some of its slices."""

from dataclasses import replace

import numpy as np
import pytest

from tests.fixtures import disc
from universeg_jax.errors import UserError
from universeg_jax.prediction.between import CompletionOptions, Labelled, Mix, Setting, choose_mixes, fill_gap
from universeg_jax.prediction.complete import complete
from universeg_jax.prediction.gaps import Gap
from universeg_jax.prediction.motion import Motion
from universeg_jax.prediction.support import Support
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.labelled_slices import LabelledSlices
from universeg_jax.readers.volumes import make_volume

COUNT, SIZE = 17, 40
LABELLED = (0, 8, 16)
PLAIN = CompletionOptions(network=False, motion=False, smooth=0)
MOVED = CompletionOptions(network=False)


def tube(drift=0.0):
    """(image, ids) [X, Y, Z] of a bright tube, id 5, that drifts and swings, beside a straight one, id 2."""
    z = np.arange(COUNT)
    places = 14 + drift * np.sin(np.pi * z / 8)
    ids = np.stack([5 * disc(SIZE, (p, 12), 6) + 2 * disc(SIZE, (20, 30), 5) for p in places], -1).astype(np.int32)
    noise = np.random.default_rng(0).normal(0, 0.02, ids.shape)
    return (0.2 + 0.6 * (ids == 5) + 0.3 * (ids == 2) + noise).astype(np.float32), ids


def some(ids, slices=LABELLED):
    part = np.zeros_like(ids)
    part[..., list(slices)] = ids[..., list(slices)]
    return part


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_labelled_slices_come_back_untouched(predictor):
    image, ids = tube(3)
    part = some(ids)
    part[3, 3, 8] = 2  # a speck that nobody would predict
    found = predictor.complete(image, part, support_size=2)
    np.testing.assert_array_equal(found.mask[..., list(LABELLED)], part[..., list(LABELLED)])
    assert found.mask.dtype == np.int32
    assert set(np.unique(found.mask)) <= {0, 2, 5}
    assert (found.uncertainty[..., list(LABELLED)] == 0).all()
    assert (found.uncertainty.min() >= 0) & (found.uncertainty.max() <= 1)
    assert found.labelled == (LabelledSlices(2, LABELLED),)


def test_straight_structures_are_interpolated_exactly(predictor):
    image, ids = tube()
    np.testing.assert_array_equal(predictor.complete(image, some(ids), network=False, motion=False).mask, ids)


def test_motion_follows_what_interpolation_cannot_know(predictor):
    image, ids = tube(4)  # back where it was in every labelled slice
    plain, moved = (predictor.complete(image, some(ids), network=False, motion=motion).mask for motion in (False, True))
    between = [z for z in range(COUNT) if z not in LABELLED]
    scores = [dice(mask[..., between] == 5, ids[..., between] == 5) for mask in (plain, moved)]
    assert scores[0] < 0.8
    assert scores[1] > 0.85


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis_gives_the_same(predictor, axis):
    image, ids = tube(3)
    expected = predictor.complete(image, some(ids), network=False).mask
    turned = [np.moveaxis(data, 2, axis) for data in (image, some(ids))]
    found = predictor.complete(*turned, network=False)
    assert found.labelled[0].axis == axis
    assert (np.moveaxis(found.mask, axis, 2) == expected).mean() > 0.998


def test_pixels_that_are_not_square_are_made_so(predictor):
    image, ids = tube(3)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    volume, part = (make_volume(data[:, ::2], affine) for data in (image, some(ids)))
    found = complete(predictor, volume, part, window="none", options=MOVED)
    assert found.mask.shape == volume.shape
    np.testing.assert_array_equal(found.mask[..., list(LABELLED)], part.data[..., list(LABELLED)])
    assert dice(found.mask == 5, ids[:, ::2] == 5) > 0.9


def test_slices_of_several_axes_are_used_together(predictor):
    image, ids = tube(4)
    part = some(ids)
    part[14] = ids[14]
    found = predictor.complete(image, part, network=False, motion=False)
    assert [each.axis for each in found.labelled] == [0, 2]
    np.testing.assert_array_equal(found.mask[14], ids[14])
    one = predictor.complete(image, some(ids), network=False, motion=False)
    near = slice(12, 17)
    assert dice(found.mask[near] == 5, ids[near] == 5) > dice(one.mask[near] == 5, ids[near] == 5)


def test_one_slice_reaches_the_whole_volume(predictor):
    image, ids = tube(3)
    found = predictor.complete(image, some(ids, (8,)), network=False)
    assert found.labelled == (LabelledSlices(2, (8,)),)
    assert min(dice(found.mask[..., z] == 5, ids[..., z] == 5) for z in range(COUNT)) > 0.8


def test_nothing_grows_beyond_slices_that_are_labelled_empty(predictor):
    image, ids = tube()
    part = some(ids, (4, 8, 12))
    assert not predictor.complete(image, part, network=False).mask[..., [0, 16]].any()  # a step beyond
    found = predictor.complete(image, part, {"slices": (4, 8, 12)}, network=False)
    assert found.mask[..., [0, 16]].any((0, 1)).all()


def test_the_uncertainty_is_the_entropy_of_the_scores(predictor):
    image, ids = tube()
    planes, given = np.moveaxis(image, 2, 0), np.moveaxis(np.where(ids == 5, 5, 0), 2, 0)
    setting = Setting(predictor, Labelled(planes, given, LABELLED), Motion(planes), None, PLAIN)
    filled = fill_gap(setting, Gap(1, 8, 0, 8))
    score = np.where(filled.ids[3] > 0, filled.margin[3], -filled.margin[3])
    inside = np.abs(score) < 30
    p = 1 / (1 + np.exp(-score[inside]))
    expected = -p * np.log2(p) - (1 - p) * np.log2(np.maximum(1 - p, 1e-30))
    np.testing.assert_allclose(filled.uncertainty[3][inside], expected, atol=1e-4)
    assert filled.uncertainty[3][~inside].max() < 1e-6


def test_the_network_is_asked_for_each_label_and_slice_with_carried_examples(predictor):
    class Asked:
        config = predictor.config
        inputs: list = []  # noqa: RUF012

        def logits(self, *inputs):
            self.inputs.append(inputs)
            return np.full(inputs[0].shape, 100.0, np.float32)

    image, ids = tube(4)
    image, part = (make_volume(data, np.eye(4)) for data in (image, some(ids)))
    asked, size = Asked(), predictor.config.image_size
    others = Support(*_other_cases())
    found = complete(asked, image, part, others=others, window="none", options=CompletionOptions(5, choose=False))
    assert len(asked.inputs) == 2 * (COUNT - len(LABELLED))
    query, images, masks, present, known = asked.inputs[0]
    assert known is None  # every slice is labelled as a whole
    assert query.shape == (1, size, size, 1)
    assert images.shape == masks.shape == (1, 5, size, size, 1)
    np.testing.assert_array_equal(present, [[1, 1, 1, 0, 0]])  # label 2, which no other case shows
    np.testing.assert_array_equal(asked.inputs[len(asked.inputs) // 2 - 1][3], [[1, 1, 1, 1, 0]])
    assert set(np.unique(masks)) == {0, 1}
    assert found.mask[0].any()  # the windows reach it, and the logits say yes everywhere


class Wrong:
    """A network that sees everything, and only it, inverted."""

    def __init__(self, predictor):
        self.config = predictor.config

    def logits(self, query, images, masks, present, known=None):
        return 3 - 6 * np.asarray(masks[:, 0])


def test_a_network_that_is_wrong_on_labelled_slices_is_not_heard(predictor):
    image, ids = tube()
    slices = (0, 4, 8, 12, 16)
    planes, given = (np.moveaxis(data, 2, 0) for data in (image, some(ids, slices)))
    setting = Setting(Wrong(predictor), Labelled(planes, given, slices), Motion(planes), None, CompletionOptions())
    mixes = choose_mixes(setting)
    assert mixes.keys() == {2, 5}
    assert all(mix.weight >= 8 for mix in mixes.values())
    volume, part = (make_volume(data, np.eye(4)) for data in (image, some(ids, slices)))
    chosen, given = (
        complete(Wrong(predictor), volume, part, window="none", options=CompletionOptions(choose=choose)).mask
        for choose in (True, False)
    )
    assert dice(chosen == 5, ids == 5) > 0.97
    assert dice(given == 5, ids == 5) < dice(chosen == 5, ids == 5)


def test_motion_is_chosen_where_it_helps(predictor):
    class Silent(Wrong):
        def logits(self, query, images, masks, present, known=None):
            return np.zeros(query.shape, np.float32)

    image, ids = tube(4)
    planes, given = (np.moveaxis(data, 2, 0) for data in (image, some(ids, (0, 4, 8, 12, 16))))
    setting = Setting(Silent(predictor), Labelled(planes, given, (0, 4, 8, 12, 16)), Motion(planes), None, MOVED)
    assert choose_mixes(setting) == {}  # without the network nothing is chosen
    mixes = choose_mixes(replace(setting, options=CompletionOptions()))
    assert mixes[5].moved
    assert isinstance(mixes[2], Mix)


def _other_cases():
    masks = np.zeros((1, 2, 128, 128), np.uint8)
    masks[0, 1, 40:60, 40:60] = 1
    images = np.random.default_rng(0).random((2, 128, 128), np.float32)
    return images, masks, (5,), ("a, slice 0", "a, slice 1"), ("a", "a"), np.array([0.2, 0.8], np.float32)


def test_bad_input_is_named(predictor):
    image, ids = tube()
    with pytest.raises(UserError, match="no voxel is labelled"):
        predictor.complete(image, np.zeros_like(ids))
    with pytest.raises(ImageError, match="differ in shape"):
        predictor.complete(image, some(ids)[:-1])
    with pytest.raises(UserError, match="every slice counts as labelled"):
        predictor.complete(image, ids, {"axis": 2})
    with pytest.raises(ImageError, match="every voxel is the same"):
        predictor.complete(np.ones_like(image), some(ids))
    with pytest.raises(UserError, match="support_size=0"):
        predictor.complete(image, some(ids), support_size=0)
    with pytest.raises(UserError, match="distance_weight=-1"):
        CompletionOptions(distance_weight=-1)
    with pytest.raises(UserError, match="leaves nothing to complete from"):
        replace(MOVED, distance_weight=0)
