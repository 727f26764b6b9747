"""The check of a support set: planted mistakes with known predictions; the command on a tiny model."""

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
    dice_scores,
    find_duplicates,
    find_few_subjects,
    find_label_mistakes,
    find_unusual_intensities,
    find_vanished_labels,
    nearest_others,
    rows_of_others,
)
from universeg_jax.prediction.check_curve import compare_sizes, find_harmful, sample_supports, sizes_to_compare
from universeg_jax.prediction.check_report import curve_lines
from universeg_jax.prediction.selection import select_examples
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
    """Probabilities [N, L, 128, 128] of a model that is nearly right."""
    return np.where(support.masks.swapaxes(0, 1) > 0, level, 1 - level).astype(np.float32)


@pytest.fixture(scope="module")
def clean():
    return discs()


def test_a_clean_set_has_no_findings(clean):
    assert find_label_mistakes(perfect(clean), clean) == []
    assert find_duplicates(clean) == []
    assert find_unusual_intensities(clean) == []
    np.testing.assert_allclose(dice_scores(perfect(clean), clean), 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["empty", "inverted", "shifted", "another's label", "swapped"])
def test_a_planted_mistake_is_found_and_named(clean, kind, seed):
    """Predictions come from the images, so a wrong label does not change them."""
    spoilt, i = spoil(clean, kind, np.random.default_rng(seed))
    findings = find_label_mistakes(perfect(clean), spoilt)
    assert [f.example for f in findings] == [f"e{i}"]
    assert findings[0].kind == kind or (kind == "another's label" and findings[0].kind == "shifted")


def test_a_duplicate_is_found(clean):
    spoilt, i = spoil(clean, "duplicate", np.random.default_rng(0))
    (found,) = find_duplicates(spoilt)
    assert f"e{i}" in (found.example, found.message.split()[4].rstrip(";"))


def test_blank_slices_and_slices_of_one_volume_are_no_duplicates(clean):
    names = tuple(f"scan{i // 4}, slice {i % 4}" for i in range(16))
    images = np.where(np.arange(16)[:, None, None] % 4 == 0, 0, clean.images)  # the first slice of each is blank
    images[2], masks = images[1], clean.masks * (np.arange(16)[:, None, None] % 4 > 0)
    support = replace(clean, images=images, masks=masks, names=names)
    assert find_duplicates(support) == []
    assert find_label_mistakes(perfect(support), support) == []
    images[6] = images[1]
    assert [f.example for f in find_duplicates(support)] == ["scan1, slice 2"] * 2  # of two slices of scan0


def test_a_label_too_thin_in_every_example_is_found(clean):
    masks = clean.masks * np.array([1, 0], np.uint8)[:, None, None, None]
    assert [f.message[:8] for f in find_vanished_labels(replace(clean, masks=masks))] == ["label 2:"]
    assert find_vanished_labels(clean) == []


def test_a_copied_label_is_found_though_all_labels_are_nearly_alike(clean):
    masks = clean.masks.copy()
    masks[:, 3] = masks[:, 8]
    probabilities = perfect(clean)
    findings = find_label_mistakes(
        probabilities, Support(clean.images, masks, clean.labels, clean.names, clean.subjects)
    )
    assert [(f.example, f.kind) for f in findings] == [("e3", "another's label")]
    assert "e8" in findings[0].message


def test_an_unexplained_label_is_a_misfit_unless_the_spread_is_usual(clean):
    masks = clean.masks.copy()
    masks[0, 3] = 0
    masks[0, 3, ::5, ::2] = 1  # dots: no shift, exchange or other label makes a disc of them
    spoilt = Support(clean.images, masks, clean.labels, clean.names, clean.subjects)
    (found,) = find_label_mistakes(perfect(clean), spoilt)
    assert (found.example, found.kind) == ("e3", "misfit")
    assert "label 1: does not match the prediction from the others (Dice 10, median 100)" in found.message
    # If the model finds only a part of every second label, one more poor match is no finding.
    probabilities = perfect(clean)
    for i in range(0, len(clean), 2):
        probabilities[i, 0, ::2] = 0
    probabilities[1, 0, np.arange(128) % 3 > 0] = 0
    assert find_label_mistakes(probabilities, clean) == []


def test_nothing_is_said_of_a_label_that_the_others_do_not_predict(clean):
    probabilities = perfect(clean)
    probabilities[:, 0] = np.roll(perfect(clean, 0.999)[:, 0], 64, -1)  # half an image away from the label, everywhere
    assert [f for f in find_label_mistakes(probabilities, clean) if "label 1" in f.message] == []


def test_unusual_intensities_are_found(clean):
    images = clean.images.copy()
    images[5] = 1 - images[5]
    findings = find_unusual_intensities(Support(images, clean.masks, clean.labels, clean.names, clean.subjects))
    assert [f.example for f in findings] == ["e5"]


@pytest.mark.parametrize("shift", [(0, 20), (-15, 7), (30, -30)])
def test_best_shift_is_the_shift_of_the_label(shift):
    mask = disc(128, (60, 60), 20).astype(np.float32)
    moved = disc(128, (60 + shift[0], 60 + shift[1]), 20)
    best, fit = best_shift(mask, moved)
    assert best == shift
    assert fit > 0.99


def test_others_are_of_other_subjects(clean):
    support = Support(clean.images, clean.masks, clean.labels, clean.names, ("a", "a", *map(str, range(14))))
    assert 1 not in rows_of_others(support)[0]
    assert len(rows_of_others(support)[5]) == 15
    alone = Support(clean.images, clean.masks, clean.labels, clean.names, ("a",) * 16)
    assert all(i not in rows and len(rows) == 15 for i, rows in enumerate(rows_of_others(alone)))
    slices = Support(
        clean.images, clean.masks, clean.labels, [f"scan{i // 4}, slice {i % 4}" for i in range(16)], ("a",) * 16
    )
    assert all(
        len(rows) == 12 and not set(rows) & set(range(i - i % 4, i - i % 4 + 4))
        for i, rows in enumerate(rows_of_others(slices))
    )
    assert "meta.json can name several" in find_few_subjects(slices)[0].message
    with pytest.raises(UserError, match="holds only scan0"):
        rows_of_others(slices.take(range(4)))
    rows = sample_supports(rows_of_others(support), 14, 2, np.random.default_rng(0))
    assert rows.shape == (16, 2, 14)
    assert all(len(set(r)) == 14 for r in rows.reshape(-1, 14).tolist())


def test_the_benchmark_samples_sixteen_or_all(clean):
    rng = np.random.default_rng(0)
    assert len(set(draw_set(clean, rng).names)) == 16
    assert len(set(draw_set(clean.take(range(5)), rng).names)) == 5


def test_only_clear_harm_is_a_finding(clean):
    influence = np.array([np.nan, -0.05, 0.1, -0.01, *[np.nan] * 12])
    assert [i for i, _ in find_harmful(influence)] == [1]


def test_a_slice_at_the_end_is_not_taken_for_another_slice_of_the_same_patient(clean):
    """Predictions of the neighbouring slices fit better, as at the apex of a heart, those of strangers a bit."""
    names = tuple(f"scan{i // 4}, slice {i % 4}" for i in range(16))
    subjects = tuple(f"scan{i // 4}" for i in range(16))
    probabilities = perfect(clean)
    probabilities[0], probabilities[1] = 0.05, perfect(clean)[0]  # the first slice is found in the second image
    images = replace(clean, names=tuple(f"p{i}" for i in range(16)), subjects=subjects)
    for support in (images, replace(images, names=names, positions=np.tile(np.linspace(0, 1, 4), 4))):
        kinds = {f.kind for f in find_label_mistakes(probabilities, support)}
        assert "another's label" not in kinds


def test_labels_of_two_volumes_that_are_exchanged_are_found(clean):
    names = tuple(f"scan{i // 4}, slice {i % 4}" for i in range(16))
    subjects = tuple(f"scan{i // 4}" for i in range(16))
    masks = clean.masks[:, [4, 5, 6, 7, 0, 1, 2, 3, *range(8, 16)]]
    positions = np.tile(np.linspace(0, 1, 4), 4)
    support = replace(clean, masks=masks, names=names, subjects=subjects, positions=positions)
    findings = find_label_mistakes(perfect(clean), support)
    assert {f.example.partition(",")[0] for f in findings} == {"scan0", "scan1"}
    one = replace(support, masks=np.concatenate([masks[:, :1], clean.masks[:, 1:]], 1))
    kinds = [f.kind for f in find_label_mistakes(perfect(clean), one)]
    assert "another's label" not in kinds  # a label file is exchanged whole


def test_the_nearest_others_are_those_that_predict_would_choose(clean):
    rows = nearest_others(clean, rows_of_others(clean), 4)
    assert rows.shape == (16, 1, 4)
    for i, chosen in enumerate(rows[:, 0]):
        assert i not in chosen
        others = np.delete(np.arange(16), i)
        expected = others[select_examples(clean.take(others), clean.images[i], None, 4, 1, "nearest", 0)[0]]
        np.testing.assert_array_equal(chosen, expected)


def test_sizes_are_compared_by_paired_gains(clean):
    others = rows_of_others(clean)
    assert sizes_to_compare(others, 4) == [8, 15]
    assert sizes_to_compare(others, 15) == [8]
    before = np.full((2, 16), 0.5)

    def segment(rows, what):
        return perfect(clean) if rows.shape[2] == 8 else np.full((16, 2, 128, 128), 0.1)

    rows = {size: nearest_others(clean, others, size) for size in (8, 15)}
    eight, all_others = compare_sizes(segment, clean, rows, before)
    assert (eight["support_size"], eight["dice"], eight["gain"], eight["error"]) == (8, 1.0, 0.5, 0.0)
    assert (all_others["dice"], all_others["gain"]) == (0.0, -0.5)
    curve = [{"support_size": 2, "dice": 0.4}, {"support_size": 4, "dice": 0.5}]
    lines = curve_lines({"curve": curve, "support_sizes": [curve[1], eight, all_others]})
    assert lines[-1] == "--support_size 8 is better for this set than the default, 4"
    lines = curve_lines({"curve": curve, "support_sizes": [curve[1], all_others]})
    assert lines[-1] == "no number of examples is clearly better than the default, 4"
    assert curve_lines({"curve": curve[:1]}) == []


def test_the_command_on_a_folder(tmp_path, capsys):
    config = tiny_config()
    params = init_params(build_model(config.model), 0)
    store.write_params(tmp_path / "tiny", params, {"config": to_dict(config), "lineage": {}})
    folder = write_folder(tmp_path / "s", count=5)
    arguments = ["check", "--support", str(folder), "--checkpoint", str(tmp_path / "tiny")]
    assert main([*arguments, "--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html"), "--curve"]) == 0
    out = capsys.readouterr().out
    assert out.count("leave-one-out Dice") == out.count("subjects: 5") == 1
    assert out.index("leave-one-out Dice") < out.index("by number of labelled examples: 1: ")
    result = json.loads((tmp_path / "a.json").read_text())
    assert [e["name"] for e in result["examples"]] == [f"p{i}_0" for i in range(5)]
    assert [c["support_size"] for c in result["curve"]] == [1, 2, 4]
    assert [c["support_size"] for c in result["support_sizes"]] == [4]
    assert (tmp_path / "a.html").read_text().count("<figure>") == 5
    Image.fromarray(np.ones((9, 7), np.uint8)).save(folder / "labels" / "p3_0.png")
    (folder / "images" / "p4_0.png").write_bytes(b"broken")
    assert main([*arguments, "--json", str(tmp_path / "a.json")]) == 0
    out = capsys.readouterr().out
    assert "p3_0: unusable: " in out
    assert "by number" not in out  # without --curve
    result = json.loads((tmp_path / "a.json").read_text())
    assert [f["example"] for f in result["findings"] if f["kind"] == "unusable"] == ["p3_0", "p4_0"]
    assert len(result["examples"]) == 3
    for part in ("images", "labels"):
        for i in range(1, 5):
            (folder / part / f"p{i}_0.png").unlink()
    assert main(arguments) == 1
    assert "needs at least two images or volumes" in capsys.readouterr().err
