"""Demons against those of ITK."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, map_coordinates

from universeg_jax.prediction.demons import register


def of_itk(fixed, moving, iterations, smooth):
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(iterations)
    demons.SetStandardDeviations(smooth)
    demons.SetNumberOfThreads(1)
    field = sitk.GetArrayFromImage(demons.Execute(*map(sitk.GetImageFromArray, (fixed, moving))))
    return np.stack([field[..., 1], field[..., 0]]), demons.GetElapsedIterations()


def pair(seed, shape, shift):
    """An image and the same one moved by up to some `shift` pixels, float32 [H, W] in [0, 255]."""
    rng = np.random.default_rng(seed)
    image = gaussian_filter(rng.random(shape), 3)
    image = 255 * (image - image.min()) / np.ptp(image)
    moves = gaussian_filter(rng.normal(size=(2, *shape)), (0, 8, 8))
    places = np.indices(shape) + shift * moves / np.abs(moves).max()
    return image.astype(np.float32), map_coordinates(image, places, order=1, mode="nearest").astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("iterations", "smooth", "shift"), [(1, 1.5, 2), (10, 1.5, 4), (10, 0.7, 1), (30, 3.0, 20)])
def test_displacements_are_those_of_itk(seed, iterations, smooth, shift):
    images = pair(seed, (60, 47), shift)
    expected, done = of_itk(*images, iterations, smooth)
    assert done == iterations
    field = register(*images, iterations, smooth)
    assert np.abs(expected).max() > 0.4
    # ITK keeps warped intensities as float32, and a pixel may fall on either side of a border by that.
    assert np.quantile(np.abs(field - expected), 0.99) < 1e-4
    assert np.abs(field - expected).max() < 1e-2


def test_flat_parts_and_blocks_move_as_in_itk():
    fixed, moving = np.zeros((2, 40, 40), np.float32)
    fixed[10:25, 12:30] = moving[12:27, 11:29] = 200
    np.testing.assert_allclose(register(fixed, moving, 10, 1.5), of_itk(fixed, moving, 10, 1.5)[0], atol=1e-4)


@pytest.mark.parametrize("shift", [0, 0.05])
def test_images_that_hardly_differ_end_the_iterations_at_once(shift):
    fixed, moving = pair(0, (60, 47), shift)
    moving = moving if shift else fixed
    expected, done = of_itk(fixed, moving, 30, 1.5)
    assert done == 1
    assert (np.abs(expected).max() > 0.01) == (shift > 0)
    np.testing.assert_allclose(register(fixed, moving, 30, 1.5), expected, atol=1e-7)
