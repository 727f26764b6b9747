"""Warnings about predictions: present if something is wrong, absent if not."""

import numpy as np
import pytest

from tests.fixtures import disc
from universeg_jax.prediction.predictor import make_prediction
from universeg_jax.prediction.support import make_support
from universeg_jax.prediction.warnings import appearance, find_warnings, support_statistics


def disc_image(seed, contrast=1.0, radius=30):
    rng = np.random.default_rng(seed)
    mask = disc(128, rng.uniform(50, 78, 2), radius)
    return np.clip(0.3 + 0.1 * rng.normal(size=(128, 128)) + 0.4 * mask, 0, 1) ** contrast, mask.astype(np.uint8)


@pytest.fixture(scope="module")
def statistics():
    return support_statistics(make_support(*zip(*[disc_image(i) for i in range(8)], strict=True)))


def warnings_of(statistics, image, probabilities):
    p = probabilities[None].astype(np.float32)
    return find_warnings(statistics, image[None].astype(np.float32), p[None], make_prediction(p, (3,)))


def test_a_good_prediction_has_no_warnings(statistics):
    for seed in range(20, 40):
        image, mask = disc_image(seed)
        assert warnings_of(statistics, image, 0.05 + 0.9 * mask) == ()


def test_another_modality_gives_a_warning(statistics):
    for image in (1 - disc_image(20)[0], disc_image(20, contrast=4)[0], disc(128, (60, 60), 40) * 1.0):
        assert any(
            "looks unlike the support" in remark for remark in warnings_of(statistics, image, 0.9 * disc_image(20)[1])
        )


def test_empty_unsure_and_unusually_sized_masks_give_a_warning(statistics):
    image, mask = disc_image(20)
    assert warnings_of(statistics, image, 0.4 * mask) == ("label 3: nothing found",)
    expected = 2 * 0.52 * mask.sum() / (0.52 * mask.sum() + 0.1 * (mask == 0).sum() + mask.sum())
    assert warnings_of(statistics, image, np.where(mask, 0.52, 0.1)) == (f"label 3: low confidence ({expected:.3f})",)
    large = warnings_of(statistics, image, 0.99 * np.ones((128, 128)))
    assert large == ("label 3: more than 4 times larger than in any example",)
    small = warnings_of(statistics, image, 0.99 * disc(128, (60, 60), 5))
    assert small == ("label 3: more than 4 times smaller than in any example",)


@pytest.mark.parametrize(("confidence", "warns"), [(0.5994, True), (0.5996, False), (0.6, False)])
def test_a_confidence_that_prints_as_the_limit_gives_no_warning(statistics, confidence, warns):
    """With p = 0.6 on m of N pixels and b elsewhere, the expected Dice is 1.2 m / (1.6 m + b (N - m))."""
    image, mask = disc_image(20)
    inside, outside = mask.sum(), (1 - mask).sum()
    found = warnings_of(statistics, image, np.where(mask, 0.6, (1.2 / confidence - 1.6) * inside / outside))
    assert found == (("label 3: low confidence (0.599)",) if warns else ())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_examples_do_not_show_how_much_images_of_a_set_differ(count):
    """A little more noise is no other modality; an inverted image is."""
    few = support_statistics(make_support(*zip(*[disc_image(i) for i in range(count)], strict=True)))
    image, mask = disc_image(20)
    other = np.clip(image + 0.05 * np.random.default_rng(1).normal(size=image.shape), 0, 1)
    assert warnings_of(few, other, 0.05 + 0.9 * mask) == ()
    (said,) = warnings_of(few, 1 - image, 0.05 + 0.9 * mask)
    assert "looks unlike the support" in said


def test_the_distance_is_the_difference_of_grey_values():
    flat = np.zeros((2, 128, 128), np.float32)
    flat[1] = 0.5
    a, b = appearance(flat)
    np.testing.assert_allclose(np.abs(a[0] - b[0]).mean(), 0.5, atol=1 / 32)
    np.testing.assert_array_equal(a[1], b[1])
