"""How labels lie on their images, without a model; a build says what check says."""

import json

import numpy as np
import pytest
from PIL import Image

from universeg_jax.cli import main
from universeg_jax.readers.label_fit import Fit, fits_of, shared_mistake

SHAPE = (48, 64)


def pairs(count=4, seed=0):
    """(image uint8 [48, 64], mask) of a bright ellipse off the centre."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    found = []
    for _ in range(count):
        mask = ((rows - rng.uniform(12, 20)) / 7) ** 2 + ((columns - rng.uniform(12, 22)) / 11) ** 2 < 1
        found.append(((20 * rng.random(SHAPE) + 100 * mask).astype(np.uint8), mask.astype(np.uint8)))
    return found


def test_a_fit_is_the_share_of_image_and_border_and_the_best_turn():
    image = np.zeros((32, 32))
    image[10:14, 3:9] = 1
    masks = np.stack([image, image[:, ::-1], 0 * image, 1 - image]).astype(np.uint8)
    as_it_is, mirrored, empty, inverted = fits_of(image, masks, (32, 32))
    assert as_it_is == Fit(24 / 1024, 0, "")
    assert mirrored == Fit(24 / 1024, 0, "mirrored left to right")
    assert empty is None
    assert inverted == Fit(1 - 24 / 1024, 1, "")
    (wide,) = fits_of(image, np.pad(np.ones((1, 16, 32), np.uint8), ((0, 0), (8, 8), (0, 0))), (10, 20))
    assert (wide.share, wide.border) == (1, 1)  # the padding of a wide image does not count
    assert fits_of(image, masks[3:], ())[0] == Fit(0, 0, "")  # a slice in the cube of its volume


def test_what_all_labels_share_is_named():
    right, inverted, mirrored = Fit(0.1, 0, ""), Fit(0.9, 1, ""), Fit(0.1, 0, "mirrored top to bottom")

    def kind(*fits):
        return (shared_mistake([(f"p{i}", fit) for i, fit in enumerate(fits)]) or ("",))[0]

    assert kind() == kind(None, None) == kind(right, right, None) == ""
    assert kind(inverted, inverted) == kind(inverted, None) == "inverted"
    assert kind(right, right, inverted) == "inverted"
    assert kind(mirrored, mirrored, mirrored, right) == "turned"
    assert kind(mirrored, mirrored) == kind(mirrored, mirrored, right, right) == ""
    message = shared_mistake([("p0", right), ("p1", inverted), ("p2", right)])[1]
    assert message.startswith("covers the border of p1, but not of the others")


@pytest.mark.parametrize("beam", [False, True])
def test_a_build_warns_of_inverted_and_mirrored_labels_in_the_words_of_check(tmp_path, capsys, beam):
    if beam:
        pytest.importorskip("apache_beam", reason="needs universeg_jax[beam]")
    for name, change, words in (
        ("right", lambda mask: mask, ""),
        ("inverted", lambda mask: 1 - mask, "labels: covers 9"),
        ("mirrored", lambda mask: mask[:, ::-1], "labels: fits 4 of 4 images better when mirrored left to right"),
    ):
        for part in ("images", "labels"):
            (tmp_path / name / part).mkdir(parents=True)
        for i, (image, mask) in enumerate(pairs()):
            Image.fromarray(image).save(tmp_path / name / "images" / f"p{i}.png")
            Image.fromarray(np.ascontiguousarray(change(mask))).save(tmp_path / name / "labels" / f"p{i}.png")
        (tmp_path / name / "meta.json").write_text(json.dumps({"labels": {"1": "cell"}}))
        arguments = ["build", "--folder", str(tmp_path / name), "--data_dir", str(tmp_path / "data"), "--size", "64"]
        assert main([*arguments, "--workers", "1", *(["--beam"] if beam else [])]) == 0
        said = capsys.readouterr().err
        assert (f"{name}: {words}" in said) if words else ("labels:" not in said)
