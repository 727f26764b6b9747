"""The doctor of a support set: planted mistakes, with predictions that are known; the command on a tiny model."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks.check import draw_set, spoil
from tests.fixtures import disc, tiny_config, write_folder
from universeg_jax.checkpoints import store
from universeg_jax.cli import main
from universeg_jax.configuration import to_dict
from universeg_jax.errors import UserError
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.prediction.check import (
    best_shift,
    draw,
    find_duplicates,
    find_harmful,
    find_lost,
    find_mistakes,
    find_odd,
    find_sets,
    others_of,
    scores,
)
from universeg_jax.prediction.support import Support, make_support


def discs(count=16, seed=0):
    """A disc and a smaller one beside it on noise; each its own subject."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for _ in range(count):
        y, x = rng.uniform(40, 80, 2)
        first, second = disc(128, (y, x), rng.uniform(18, 26)), disc(128, (y + 36, x + 20), rng.uniform(10, 14))
        label = np.where(first, 1, 2 * second)
        images.append(np.clip(0.2 * rng.random((128, 128)) + 0.4 * first + 0.7 * second, 0, 1))
        labels.append(label)
    return make_support(images, labels, [f"e{i}" for i in range(count)])


def perfect(support, level=0.95):
    """What a model that is nearly right finds: [N, L, 128, 128]."""
    return np.where(support.masks.swapaxes(0, 1) > 0, level, 1 - level).astype(np.float32)


@pytest.fixture(scope="module")
def clean():
    return discs()


def test_a_clean_set_has_no_findings(clean):
    assert find_mistakes(perfect(clean), clean) == []
    assert find_duplicates(clean) == []
    assert find_odd(clean) == []
    np.testing.assert_allclose(scores(perfect(clean), clean), 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["empty", "inverted", "shifted", "another's label", "swapped"])
def test_a_planted_mistake_is_found_and_named(clean, kind, seed):
    """The model sees pictures, so it finds what is there whatever the label says."""
    spoilt, i = spoil(clean, kind, np.random.default_rng(seed))
    found = find_mistakes(perfect(clean), spoilt)
    assert [f.example for f in found] == [f"e{i}"]
    assert found[0].kind == kind or (kind == "another's label" and found[0].kind == "shifted")


def test_a_duplicate_is_found(clean):
    spoilt, i = spoil(clean, "duplicate", np.random.default_rng(0))
    (found,) = find_duplicates(spoilt)
    assert f"e{i}" in (found.example, found.message.split()[4].rstrip(";"))


def test_blank_slices_and_those_of_one_volume_are_no_copies(clean):
    names = tuple(f"scan{i // 4}, slice {i % 4}" for i in range(16))
    images = np.where(np.arange(16)[:, None, None] % 4 == 0, 0, clean.images)  # the first slice of each is blank
    images[2], masks = images[1], clean.masks * (np.arange(16)[:, None, None] % 4 > 0)
    support = replace(clean, images=images, masks=masks, names=names)
    assert find_duplicates(support) == []
    assert find_mistakes(perfect(support), support) == []
    images[6] = images[1]
    assert [f.example for f in find_duplicates(support)] == ["scan1, slice 2"] * 2  # of two slices of scan0


def test_a_label_of_which_nothing_is_left_is_told(clean):
    masks = clean.masks * np.array([1, 0], np.uint8)[:, None, None, None]
    assert [f.message[:8] for f in find_lost(replace(clean, masks=masks))] == ["label 2:"]
    assert find_lost(clean) == []


def test_a_copied_label_is_found_though_all_labels_are_nearly_alike(clean):
    masks = clean.masks.copy()
    masks[:, 3] = masks[:, 8]
    probabilities = perfect(clean)
    found = find_mistakes(probabilities, Support(clean.images, masks, clean.labels, clean.names, clean.subjects))
    assert [(f.example, f.kind) for f in found] == [("e3", "another's label")]
    assert "e8" in found[0].message


def test_a_label_that_nothing_explains_is_a_misfit_and_a_usual_spread_is_none(clean):
    masks = clean.masks.copy()
    masks[0, 3] = 0
    masks[0, 3, ::5, ::2] = 1  # dots: no shift, exchange or other label makes a disc of them
    spoilt = Support(clean.images, masks, clean.labels, clean.names, clean.subjects)
    (found,) = find_mistakes(perfect(clean), spoilt)
    assert (found.example, found.kind) == ("e3", "misfit")
    assert "label 1: does not fit what the others find (overlap 0." in found.message
    # Where the model finds only a part of every second one, one more that it hardly finds is nothing to tell.
    probabilities = perfect(clean)
    for i in range(0, len(clean), 2):
        probabilities[i, 0, ::2] = 0
    probabilities[1, 0, np.arange(128) % 3 > 0] = 0
    assert find_mistakes(probabilities, clean) == []


def test_an_odd_picture_is_found(clean):
    images = clean.images.copy()
    images[5] = 1 - images[5]
    found = find_odd(Support(images, clean.masks, clean.labels, clean.names, clean.subjects))
    assert [f.example for f in found] == ["e5"]


@pytest.mark.parametrize("shift", [(0, 20), (-15, 7), (30, -30)])
def test_the_shift_is_that_of_the_label(shift):
    mask = disc(128, (60, 60), 20).astype(np.float32)
    moved = disc(128, (60 + shift[0], 60 + shift[1]), 20)
    found, fit = best_shift(mask, moved)
    np.testing.assert_array_equal(found, shift)
    assert fit > 0.99


def test_others_are_of_other_subjects(clean):
    support = Support(clean.images, clean.masks, clean.labels, clean.names, ("a", "a", *map(str, range(14))))
    assert 1 not in others_of(support)[0]
    assert len(others_of(support)[5]) == 15
    alone = Support(clean.images, clean.masks, clean.labels, clean.names, ("a",) * 16)
    assert all(i not in rows and len(rows) == 15 for i, rows in enumerate(others_of(alone)))
    slices = Support(
        clean.images, clean.masks, clean.labels, [f"scan{i // 4}, slice {i % 4}" for i in range(16)], ("a",) * 16
    )
    assert all(
        len(rows) == 12 and not set(rows) & set(range(i - i % 4, i - i % 4 + 4))
        for i, rows in enumerate(others_of(slices))
    )
    assert "meta.json can say so" in find_sets(slices)[0].message
    with pytest.raises(UserError, match="scan0 alone"):
        others_of(slices.take(range(4)))
    rows = draw(others_of(support), 14, 2, np.random.default_rng(0))
    assert rows.shape == (16, 2, 14)
    assert all(len(set(r)) == 14 for r in rows.reshape(-1, 14).tolist())


def test_the_benchmark_draws_sixteen_or_all(clean):
    rng = np.random.default_rng(0)
    assert len(set(draw_set(clean, rng).names)) == 16
    assert len(set(draw_set(clean.take(range(5)), rng).names)) == 5


def test_only_clear_harm_is_told(clean):
    influence = np.array([np.nan, -0.05, 0.1, -0.01, *[np.nan] * 12])
    assert [f.example for f in find_harmful(influence, clean)] == ["e1"]


def test_the_command_on_a_folder(tmp_path, capsys):
    config = tiny_config()
    params = init_params(build_model(config.model), 0)
    store.write_params(tmp_path / "tiny", params, {"config": to_dict(config), "lineage": {}})
    folder = write_folder(tmp_path / "s", count=5)
    arguments = ["check", "--support", str(folder), "--checkpoint", str(tmp_path / "tiny")]
    assert main([*arguments, "--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]) == 0
    said = capsys.readouterr().out
    assert "leave-one-out Dice" in said
    result = json.loads((tmp_path / "a.json").read_text())
    assert [e["name"] for e in result["examples"]] == [f"p{i}_0" for i in range(5)]
    assert [c["support_size"] for c in result["curve"]] == [1, 2, 4]
    assert (tmp_path / "a.html").read_text().count("<figure>") == 5
    Image.fromarray(np.ones((9, 7), np.uint8)).save(folder / "labels" / "p3_0.png")
    (folder / "images" / "p4_0.png").write_bytes(b"broken")
    assert main([*arguments, "--json", str(tmp_path / "a.json")]) == 0
    assert "p3_0: unusable: " in capsys.readouterr().out
    result = json.loads((tmp_path / "a.json").read_text())
    assert [f["example"] for f in result["findings"] if f["kind"] == "unusable"] == ["p3_0", "p4_0"]
    assert len(result["examples"]) == 3
    for part in ("images", "labels"):
        for i in range(1, 5):
            (folder / part / f"p{i}_0.png").unlink()
    assert main(arguments) == 1
    assert "at least two pictures or volumes are needed" in capsys.readouterr().err
