"""Images and masks on a page, and the mask that comes back from its editor."""

import numpy as np
import pytest

from universeg_jax.annotation import canvas
from universeg_jax.reports.overlay import COLOURS

PAINT = dict(enumerate(COLOURS, 1))
SHAPES = [((40, 60), (1.0, 1.0)), ((900, 700), (1.0, 1.0)), ((640, 640), (1.0, 1.0)), ((30, 60), (4.0, 0.8))]


@pytest.mark.parametrize(("shape", "scale"), SHAPES)
def test_an_untouched_mask_comes_back_exactly(shape, scale):
    rng = np.random.default_rng(0)
    grey, mask = rng.integers(0, 255, shape).astype(np.uint8), rng.integers(0, 7, shape).astype(np.int32)
    value = canvas.editor_value(grey, mask, PAINT, scale)
    np.testing.assert_array_equal(canvas.edited_mask(value, mask, PAINT, scale), mask)


def test_ids_need_not_count_from_1():
    paint = {3: COLOURS[0], 700: COLOURS[1]}
    mask = np.zeros((20, 30), np.int32)
    mask[5:10], mask[12:15] = 3, 700
    value = canvas.editor_value(np.zeros((20, 30), np.uint8), mask, paint)
    value["layers"][0][0] = (*COLOURS[1], 128)  # a line in the second colour
    edited = canvas.edited_mask(value, np.zeros_like(mask), paint)
    assert set(np.unique(edited)) == {0, 3, 700}
    np.testing.assert_array_equal(edited[1:], mask[1:])


@pytest.mark.parametrize(("shape", "scale"), [SHAPES[0], SHAPES[1], SHAPES[3]])
def test_strokes_and_the_eraser_change_what_they_touch(shape, scale):
    height, width = canvas.view_shape(shape, scale)
    grey, mask = np.zeros(shape, np.uint8), np.zeros(shape, np.int32)
    mask[: shape[0] // 4] = 3
    value = canvas.editor_value(grey, mask, PAINT, scale)
    layer = value["layers"][0]
    layer[: height // 8] = 0  # erased
    layer[height // 2 : height, : width // 2] = (*COLOURS[1], 140)  # drawn in the colour of id 2
    layer[height // 2 : height, width // 2 : width] = (*COLOURS[0], 30)  # the blurred rim of a stroke
    edited = canvas.edited_mask(value, mask, PAINT, scale)
    row, column = shape[0], shape[1]
    assert not edited[: row // 8 - 1].any()
    assert (edited[row // 8 + 1 : row // 4] == 3).all()
    assert (edited[row // 2 + 1 :, : column // 2 - 1] == 2).all()
    assert not edited[row // 4 + 1 :, column // 2 + 1 :].any()


def test_overlays_and_heat_maps():
    grey = np.repeat(np.linspace(0, 255, 100)[:, None], 50, 1).astype(np.uint8)
    mask = np.zeros((100, 50), np.uint8)
    mask[20:60, 10:40] = 2
    shown = canvas.overlay(grey, mask, PAINT)
    assert (shown.shape, shown.dtype) == ((640, 320, 3), np.uint8)
    np.testing.assert_array_equal(shown[:, 0], canvas.view(grey)[:, 0])  # unchanged outside the mask
    assert (shown[128, 64:256] == COLOURS[1]).all()  # the outline
    heat = canvas.heat_map(np.array([[0.0, 1.0]]))
    assert heat[0, 0].sum() < 30 < 500 < heat[0, -1].sum()


def test_pixels_are_as_high_and_wide_as_in_the_patient():
    assert canvas.view_shape((20, 100), (5.0, 1.0)) == (640, 640)
    assert canvas.view_shape((20, 100), (2.5, 1.0)) == (320, 640)


def test_intensities_beyond_the_limits_are_black_and_white():
    found = canvas.grey_of(np.array([[-1000.0, -500.0, 250.0, 1000.0, 3000.0]]), (-500.0, 1000.0))
    np.testing.assert_array_equal(found, [[0, 0, 128, 255, 255]])
