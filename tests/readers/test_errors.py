"""The errors about files."""

import pickle

from universeg_jax.readers.errors import ImageError


def test_an_image_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(ImageError("a.png", "is bad", "very")))
    assert (str(error), error.problem) == ("a.png: is bad (very)", "is bad")


def test_a_message_is_one_printable_line():
    error = ImageError("a.dcm", "holds no image", "1.2\x00\x08\n  \x1b[31mred")
    assert str(error) == "a.dcm: holds no image (1.2 [31mred)"
