"""Boundary distances against all pairs of pixels, SimpleITK, and surface-distance."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from universeg_jax.errors import UserError
from universeg_jax.evaluation.surfaces import boundary, diagonal, surface_scores


def hd95(prediction, truth, spacing):
    return surface_scores(prediction, truth, spacing, 0)[0]


def surface_dice(*arguments):
    return surface_scores(*arguments)[1]


@st.composite
def pairs(draw):
    """Two masks, noise or blobs, empty ones too, of 2 or 3 dimensions, with a spacing."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.lists(st.integers(1, 7), min_size=2, max_size=3))
    sigma, shares = (
        draw(st.sampled_from([0, 1.5])),
        draw(st.lists(st.sampled_from([0, 0.1, 0.5, 1]), min_size=2, max_size=2)),
    )
    masks = []
    for share in shares:
        noise = ndimage.gaussian_filter(rng.random(shape), sigma)
        masks.append(noise < np.quantile(noise, share) if share else np.zeros(shape, bool))
    return *masks, tuple(rng.uniform(0.3, 3, len(shape)))


def boundary_by_loop(mask):
    """Indices of the pixels with a direct neighbour outside."""
    found = []
    for at in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                to = at.copy()
                to[axis] += step
                if not 0 <= to[axis] < mask.shape[axis] or not mask[tuple(to)]:
                    found.append(tuple(at.tolist()))
    return np.array(sorted(set(found)))


def by_all_pairs(prediction, truth, spacing, tolerance):
    """(hd95, surface Dice) from the distances of all pairs of boundary pixels."""
    if not prediction.any() and not truth.any():
        return 0, 1
    if not prediction.any() or not truth.any():
        return np.sqrt(sum((n * s) ** 2 for n, s in zip(truth.shape, spacing, strict=True))), 0
    ours, theirs = (boundary_by_loop(mask) * spacing for mask in (prediction, truth))
    distances = np.sqrt(((ours[:, None] - theirs[None]) ** 2).sum(-1))
    directed = distances.min(1), distances.min(0)
    close = sum((d <= tolerance + 1e-9).sum() for d in directed)
    return max(np.quantile(d, 0.95, method="inverted_cdf") for d in directed), close / (len(ours) + len(theirs))


@settings(max_examples=300)
@given(pair=pairs(), tolerance=st.sampled_from([0, 0.5, 1, 3]))
def test_both_scores_are_those_of_all_pairs(pair, tolerance):
    prediction, truth, spacing = pair
    expected = by_all_pairs(prediction, truth, spacing, tolerance)
    np.testing.assert_allclose(hd95(prediction, truth, spacing), expected[0], rtol=1e-9)
    np.testing.assert_allclose(surface_dice(prediction, truth, spacing, tolerance), expected[1], rtol=1e-9)


def by_itk(prediction, truth, spacing):
    """Distances from each boundary to the other by ITK's contour and distance filters."""
    contours = []
    for mask in (prediction, truth):
        image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))  # ITK sees no boundary at the image's edge
        image.SetSpacing(spacing[::-1])
        contours.append(sitk.BinaryContour(image, fullyConnected=False))
    maps = [
        sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(c, squaredDistance=False, useImageSpacing=True))
        for c in contours
    ]
    ours, theirs = (sitk.GetArrayFromImage(c) > 0 for c in contours)
    return np.maximum(maps[1][ours], 0), np.maximum(maps[0][theirs], 0)


@settings(max_examples=100)
@given(pair=pairs())
def test_distances_are_those_of_itk(pair):
    prediction, truth, spacing = pair
    if not (prediction.any() and truth.any()):
        return
    directed = by_itk(prediction, truth, spacing)
    expected = max(np.quantile(d, 0.95, method="inverted_cdf") for d in directed)
    np.testing.assert_allclose(hd95(prediction, truth, spacing), expected, rtol=1e-5, atol=1e-6)
    tolerance = 1.2345  # no sum of squares, so that rounding decides nothing
    close = (np.concatenate(directed) <= tolerance).mean()
    np.testing.assert_allclose(surface_dice(prediction, truth, spacing, tolerance), close, rtol=1e-9)


def random_blob(rng, size):
    """A disc of 6 to 19 pixels with a ragged border."""
    y, x = np.mgrid[:size, :size] - rng.uniform(24, size - 24, 2)[:, None, None]
    bumps = ndimage.gaussian_filter(rng.normal(size=(size, size)), 4) * 12
    return np.hypot(y, x) + bumps < rng.uniform(6, 19)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # it imports SciPy by old names
def test_scores_are_near_those_of_deepminds_surface_distance():
    """240 random pairs. The definitions differ slightly (see surfaces.py), but far less than by a wrong spacing,
    percentile, direction or tolerance."""
    library = pytest.importorskip("surface_distance", reason="surface-distance is not installed (extra test)")
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    for _ in range(240):
        pair, spacing = [random_blob(rng, 64) for _ in range(2)], tuple(rng.uniform(0.5, 2, 2))
        distances = library.compute_surface_distances(pair[1], pair[0], spacing)
        close = library.compute_surface_dice_at_tolerance(distances, 2.0)
        theirs.append((library.compute_robust_hausdorff(distances, 95), close))
        ours.append(surface_scores(*pair, spacing, 2.0))
    ours, theirs = np.transpose(ours), np.transpose(theirs)
    apart = np.abs(ours - theirs)
    assert (apart.mean(1) < [0.35, 0.03]).all()
    assert (apart.max(1) < [2, 0.1]).all()
    assert min(np.corrcoef(*pair)[0, 1] for pair in zip(ours, theirs, strict=True)) > 0.98


@given(pair=pairs(), scale=st.floats(0.1, 10))
def test_order_unit_and_padding_do_not_matter(pair, scale):
    prediction, truth, spacing = pair
    score = hd95(prediction, truth, spacing)
    assert hd95(truth, prediction, spacing) == score
    np.testing.assert_allclose(hd95(prediction, truth, tuple(scale * s for s in spacing)), scale * score)
    assert 0 <= score <= diagonal(truth.shape, spacing)
    assert surface_dice(truth, prediction, spacing, 1) == surface_dice(prediction, truth, spacing, 1)
    assert surface_dice(truth, truth, spacing, 0) == 1
    if prediction.any() and truth.any():
        np.testing.assert_allclose(hd95(np.pad(prediction, 3), np.pad(truth, 3), spacing), score)


def test_a_shifted_square_and_its_boundary():
    mask = np.zeros((20, 20), np.uint8)
    mask[5:10, 5:10] = 1
    assert boundary(mask > 0).sum() == 16
    moved = np.roll(mask, 3, axis=1)
    assert hd95(moved, mask, (1, 0.1)) == pytest.approx(0.3)
    assert surface_dice(moved, mask, (1, 0.1), 0.3) == 1  # though 3 × 0.1 > 0.3 in floats
    assert surface_dice(moved, mask, (1, 1), 0) == 8 / 32  # two rows of two common pixels in either boundary


def test_empty_masks_by_formula():
    empty, full = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    assert (hd95(empty, empty, (1, 1)), surface_dice(empty, empty, (1, 1), 0)) == (0, 1)
    for pair in ((empty, full), (full, empty)):
        assert (hd95(*pair, (1, 1)), surface_dice(*pair, (1, 1), 9)) == (5, 0)
    assert hd95(np.zeros((2, 3, 6), bool), np.ones((2, 3, 6), bool), (1, 1, 1)) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 2)), np.zeros((2, 3)), (1, 1), 1), r"shape \(2, 2\), truth of shape \(2, 3\)"),
        ((np.zeros(2), np.zeros(2), (1,), 1), r"\[H, W\] or \[D, H, W\]"),
        ((np.zeros((2, 2)), np.zeros((2, 2)), (1, 1, 1), 1), "spacing=.*: 2 positive numbers"),
        ((np.zeros((2, 2)), np.zeros((2, 2)), (1, 0), 1), "spacing=.*: 2 positive numbers"),
        ((np.full((2, 2), 0.3), np.zeros((2, 2)), (1, 1), 1), "prediction holds values from 0.3 to 0.3"),
        ((np.zeros((2, 2)), np.zeros((2, 2)), (1, 1), -1), "tolerance=-1"),
    ],
)
def test_invalid_masks_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        surface_dice(*arguments)
