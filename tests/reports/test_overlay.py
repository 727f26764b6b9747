import numpy as np

from universeg_jax.reports.overlay import COLOURS, draw_outlines, outline


def test_an_outline_is_the_rim_of_a_mask():
    mask = np.zeros((6, 7), bool)
    mask[1:5, 1:5] = True
    rim = mask.copy()
    rim[2:4, 2:4] = False
    np.testing.assert_array_equal(outline(mask), rim)
    np.testing.assert_array_equal(outline(np.ones((3, 3), bool)), [[1, 1, 1], [1, 0, 1], [1, 1, 1]])


def test_each_mask_has_the_outline_of_its_colour():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 1:4, 1:4] = masks[1, 4:7, 4:7] = True
    canvas = draw_outlines(np.full((8, 8), 9, np.uint8), masks)
    for mask, colour in zip(masks, COLOURS, strict=False):
        assert (canvas[outline(mask)] == colour).all()
    assert (canvas[~(outline(masks[0]) | outline(masks[1]))] == 9).all()
