"""Partly labelled examples: what lies under an ignored pixel counts for nothing, and without any nothing changes."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.fixtures import block_volume, disc_examples, random_params, tiny_config, write_folder, write_nifti
from tests.model.test_recognition import pixels_of_cells
from universeg_jax.adaptation.finetune import read_tasks
from universeg_jax.cli import main
from universeg_jax.errors import UserError
from universeg_jax.model import pretrained
from universeg_jax.model.factory import build_model, param_shapes
from universeg_jax.prediction.check import check, find_label_mistakes
from universeg_jax.prediction.check_curve import dice_scores
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.prediction.support import make_support, read_support_folder
from universeg_jax.prediction.understood import find_shared_mistakes
from universeg_jax.prediction.warnings import support_statistics
from universeg_jax.readers import notes
from universeg_jax.readers.cases import make_examples
from universeg_jax.readers.errors import FolderError, ImageError
from universeg_jax.readers.folder import read_folder
from universeg_jax.readers.preprocess import preprocess_ignored, preprocess_mask, preprocess_partly

SEEDS = st.integers(0, 1000)


def some(count=5, seed=0, side=24, share=0.4):
    """(images, labels of the ids 1 and 3, bool: pixels without a label), each with some of everything."""
    rng = np.random.default_rng(seed)
    images = [rng.random((side, side)).astype(np.float32) for _ in range(count)]
    labels = [1 * (x > 0.4) + 2 * (x > 0.7) for x in images]
    return images, labels, [rng.random((side, side)) < share for _ in range(count)]


def marked(labels, ignored, value=255):
    return [np.where(empty, value, label) for label, empty in zip(labels, ignored, strict=True)]


@given(seed=SEEDS, height=st.integers(5, 200), width=st.integers(5, 200), share=st.floats(0, 1))
@settings(max_examples=40)
def test_masks_at_a_size_are_those_of_the_known_pixels(seed, height, width, share):
    rng = np.random.default_rng(seed)
    mask, ignored = rng.random((height, width)) < 0.5, rng.random((height, width)) < share
    found = preprocess_partly(mask, ignored, 16)
    np.testing.assert_array_equal(
        found, preprocess_partly(mask ^ (ignored & (rng.random(mask.shape) < 0.5)), ignored, 16)
    )
    nothing = np.zeros_like(ignored)
    np.testing.assert_array_equal(preprocess_partly(mask, nothing, 16), preprocess_mask(mask, 16))
    assert not preprocess_ignored(nothing, 16).any()
    assert not (found.astype(bool) & preprocess_ignored(ignored, 16)).any()


def test_a_thin_stroke_is_kept_whatever_surrounds_it():
    mask = np.zeros((512, 512), bool)
    mask[255:258] = True
    assert not preprocess_mask(mask, 64).any()  # three of eight rows
    assert preprocess_partly(mask, ~mask, 64)[32].all()
    assert preprocess_ignored(~mask, 64).mean() > 0.9


@given(seed=SEEDS)
@settings(max_examples=5)
def test_what_lies_under_an_ignored_pixel_changes_nothing(predictor, seed):
    images, labels, ignored = some(seed=seed)
    rng = np.random.default_rng(seed)
    support = make_support(images, marked(labels, ignored), ignore=255)
    assert support.labels == (1, 3)
    noise = [rng.permutation(label.ravel()).reshape(label.shape) for label in labels]
    others = [np.where(empty, other, label) for label, other, empty in zip(labels, noise, ignored, strict=True)]
    again = make_support(images, others, ignored=ignored)
    assert again.digest() == support.digest()
    spoilt = replace(support, masks=support.masks | (support.ignored & (rng.random(support.images.shape) < 0.5)))
    found = [predictor.segmenter(each)(images[0]) for each in (support, again, spoilt)]
    for each in found[1:]:
        np.testing.assert_array_equal(each.probabilities, found[0].probabilities)
        assert each.warnings == found[0].warnings


@given(seed=SEEDS)
@settings(max_examples=5)
def test_without_an_ignored_pixel_nothing_changes(predictor, seed):
    images, labels, _ = some(seed=seed)
    expected = predictor.for_support(images, labels)
    for options in ({"ignore": 255}, {"ignore": (9, 255)}, {"ignored": [np.zeros((24, 24), bool)] * 5}):
        support = make_support(images, labels, **options)
        assert support.ignored is None
        assert support.digest() == expected.support.digest()
        found = predictor.segmenter(support)
        assert found.known is None
        np.testing.assert_array_equal(found(images[0]).probabilities, expected(images[0]).probabilities)


def test_the_order_of_the_examples_does_not_matter(predictor):
    images, labels, ignored = some()
    order = [3, 0, 4, 2, 1]
    found = predictor.for_support(images, marked(labels, ignored), ignore=255)
    turned = predictor.for_support([images[i] for i in order], [marked(labels, ignored)[i] for i in order], ignore=255)
    np.testing.assert_allclose(turned(images[0]).probabilities, found(images[0]).probabilities, atol=1e-5)


@pytest.mark.parametrize("flips", [False, True])
def test_all_forms_of_the_model_agree(predictor, flips):
    """The definition, the fast form and a batch as on an accelerator give one result."""
    images, labels, ignored = some(4)
    config = predictor.config.copy_and_resolve_references()
    config.model.form = "plain"
    plain = Predictor(predictor.params, config).for_support(images, marked(labels, ignored), ignore=255, flips=flips)
    fast = predictor.for_support(images, marked(labels, ignored), ignore=255, flips=flips)
    expected = plain(images[0]).probabilities
    np.testing.assert_allclose(fast(images[0]).probabilities, expected, atol=1e-5)
    rows = np.arange(4)[None, None]
    inputs = (predictor.params, fast.support.images[:1, ..., None], fast.images, fast.masks, [], rows)
    batch = predictor.forward._batch(*inputs, flips=flips, overlap=False, known=fast.known)
    np.testing.assert_allclose(batch, fast.by_rows(fast.support.images[:1], rows), atol=1e-5)


def test_a_model_that_needs_every_label_says_so():
    config = tiny_config()
    config.model = {"name": "panet", "encoder_blocks": (4, 4), "stride": 2}
    panet = Predictor(random_params(param_shapes(build_model(config.model))), config)
    images, labels, ignored = some(2)
    panet.for_support(images, labels, ignore=255)
    with pytest.raises(UserError, match="PANet needs a label for every pixel"):
        panet.for_support(images, marked(labels, ignored), ignore=255)
    x = np.zeros((1, 2, 16, 16, 1), np.float32)
    with pytest.raises(UserError, match="PANet needs a label for every pixel"):
        panet.logits(x[:, 0], x, x, None, x)


def test_keys_and_matching_leave_ignored_pixels_out(monkeypatch):
    monkeypatch.setattr(pretrained, "features", pixels_of_cells)
    config = tiny_config()
    fields = {"keys": "lite0", "key_heads": 2, "key_columns": True, "key_probe": True, "matching": 1}
    config.model.update(fields)
    predictor = Predictor(random_params(param_shapes(build_model(config.model))), config)
    images, labels, ignored = some(3)
    segmenter = predictor.for_support(images, marked(labels, ignored), ignore=255)
    config.model.form = "plain"
    plain = Predictor(predictor.params, config).for_support(images, marked(labels, ignored), ignore=255)
    found = segmenter(images[0]).probabilities
    np.testing.assert_allclose(found, plain(images[0]).probabilities, atol=1e-4)
    segmenter.masks = np.where(segmenter.known, segmenter.masks, 1 - segmenter.masks)
    np.testing.assert_array_equal(segmenter(images[0]).probabilities, found)


def test_areas_of_examples_with_ignored_pixels_warn_of_nothing():
    images, labels, ignored = some(2)
    areas = support_statistics(make_support(images, labels, ignored=[ignored[0], None])).areas
    assert (areas[:, 0] == 0).all()
    assert (areas[:, 1] > 0).all()


def test_where_nothing_has_a_label_the_example_is_named(predictor):
    images, labels, _ = some(3)
    labels[1] = np.full((24, 24), 255)
    with pytest.raises(UserError, match="support 1: nothing of it has a label"):
        predictor.for_support(images, labels, ignore=255)
    with pytest.raises(UserError, match="every support label is empty"):
        predictor.for_support(images[:1], [np.where(labels[0] > 0, 255, 0)], ignore=255)


def test_background_must_be_labelled_somewhere_with_0(predictor):
    images, labels, _ = some(3)
    with pytest.raises(UserError, match="no pixel of any example is labelled as background"):
        predictor.for_support(images, [np.where(label, label, 255) for label in labels], ignore=255)
    with pytest.raises(UserError, match="ignore=0: 0 is the background"):
        predictor.for_support(images, labels, ignore=0)


def test_an_ignored_id_of_overlapping_classes():
    images, labels, ignored = some(2)
    maps = [{1: x > 0, 3: x > 1, 9: empty} for x, empty in zip(labels, ignored, strict=True)]
    support = make_support(images, maps, ignore=9)
    assert support.labels == (1, 3)
    plain = make_support(images, [{1: x > 0, 3: x > 1} for x in labels], ignored=ignored)
    assert support.digest() == plain.digest()


def partly_labelled(path, ids=(1, 2), value=255, rows=8):
    folder = write_folder(path, count=5, ids=ids)
    for file in sorted((folder / "labels").iterdir()):
        label = np.array(Image.open(file))
        label[:rows] = value
        Image.fromarray(label).save(file)
    return folder


def test_a_folder_says_what_to_ignore_or_the_caller_does(tmp_path):
    folder = partly_labelled(tmp_path)
    assert read_support_folder(folder).labels == (1, 2, 255)
    support = read_support_folder(folder, ignore=255)
    assert support.labels == (1, 2)
    assert support.ignored.shape == support.images.shape
    assert read_folder(folder, ignore=(255,)).labels == {1: "label 1", 2: "label 2"}
    paths = [sorted((folder / part).iterdir()) for part in ("images", "labels")]
    assert make_support(*paths, ignore=255).digest() == support.digest()
    one = read_support_folder(folder, label=2, ignore=255)
    np.testing.assert_array_equal(one.ignored, support.ignored)
    np.testing.assert_array_equal(one.masks[0], support.masks[1])
    for meta in (
        {"ignore": [255]},
        {"ignore": [255], "labels": {"1": "a", "2": "b", "255": "unsure"}},
        {"labels": {"1": "a", "2": "b", "255": "Ignore"}},
    ):
        (folder / "meta.json").write_text(json.dumps(meta))
        assert read_support_folder(folder).digest() == support.digest()
        assert set(read_folder(folder).labels) == {1, 2}


def test_an_id_that_never_occurs_is_told(tmp_path):
    support = read_support_folder(write_folder(tmp_path, count=3), ignore=200)
    assert support.ignored is None
    assert any("no label holds the id to ignore, 200" in line for line in support.notes)


def test_a_label_that_is_ignored_as_a_whole_is_refused_by_name(tmp_path):
    folder = partly_labelled(tmp_path)
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(folder / "labels" / "p3_0.png")
    with pytest.raises(ImageError, match=r"p3_0.png: holds nothing but the id to ignore"):
        read_support_folder(folder, ignore=255)
    unusable = {}
    assert len(read_support_folder(folder, ignore=255, unusable=unusable)) == 4
    assert list(unusable) == ["p3_0"]


def test_where_labels_are_no_ids_none_can_be_ignored(tmp_path):
    folder = write_folder(tmp_path, count=2)
    for file in list((folder / "labels").iterdir()):
        (folder / "labels" / "disc").mkdir(exist_ok=True)
        file.rename(folder / "labels" / "disc" / file.name)
    with pytest.raises(FolderError, match="where no id can be ignored"):
        read_folder(folder, ignore=(255,))
    (folder / "meta.json").write_text('{"ignore": [255]}')
    assert any('"ignore" has no effect' in line for line in read_folder(folder).notes.lines())


def nnunet(path, labels, change):
    for i in range(3):
        image, label = block_volume((10, 12, 8), (1, 2), seed=i)
        write_nifti(path / "imagesTr" / f"c_{i}_0000.nii.gz", image)
        write_nifti(path / "labelsTr" / f"c_{i}.nii.gz", change(label))
    spec = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (path / "dataset.json").write_text(json.dumps(spec))
    return path


def test_the_ignore_label_of_nnunet_and_slices_without_any_label(tmp_path):
    def change(label):
        label[:, :6] = 3
        label[:, :, :3] = 3  # three of eight slices have no label at all
        return label

    labels = {"background": 0, "organ": 1, "tumour": 2, "ignore": 3}
    support = read_support_folder(nnunet(tmp_path / "a", labels, change), axis=2)
    assert support.labels == (1, 2)
    assert len(support) == 3 * 5
    assert 0.2 < support.ignored.mean() < 0.8
    assert not (support.masks.astype(bool) & support.ignored).any()
    del labels["ignore"]
    assert 3 not in read_support_folder(nnunet(tmp_path / "b", labels, change), axis=2, ignore=3).labels
    regions = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    regions = read_support_folder(nnunet(tmp_path / "c", regions, change), axis=2)
    assert regions.labels == (1, 2)
    np.testing.assert_array_equal(regions.ignored, support.ignored)
    file = tmp_path / "a" / "labelsTr" / "c_1.nii.gz"
    nib.save(nib.Nifti1Image(np.full((10, 12, 8), 3, np.uint8), np.eye(4)), file)
    with pytest.raises(ImageError, match=r"c_1.nii.gz: holds nothing but the id to ignore"):
        read_support_folder(tmp_path / "a")


def test_scores_leave_ignored_pixels_out_of_truth_and_prediction(predictor):
    images, labels, ignored = some(4, side=128)
    support = make_support(images, marked(labels, ignored), ignore=255)
    rng = np.random.default_rng(0)
    p = rng.random((4, 2, 128, 128), np.float32)
    poisoned = np.where(support.ignored[:, None], rng.random(p.shape, np.float32), p)
    np.testing.assert_array_equal(dice_scores(p, support), dice_scores(poisoned, support))
    assert find_label_mistakes(p, support) == find_label_mistakes(poisoned, support)
    for j, i in np.ndindex(2, 4):
        known = ~ignored[i]
        mask, truth = p[i, j][known] >= 0.5, support.masks[j, i][known] > 0
        np.testing.assert_allclose(dice_scores(p, support)[j, i], 2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


def test_perfect_predictions_of_known_pixels_score_one_and_raise_no_alarm():
    examples = disc_examples(8, size=128)
    images, labels = [each.image for each in examples], [each.masks[0] for each in examples]
    ignored = [np.indices((128, 128))[i % 2] > 64 for i in range(8)]
    support = make_support(images, marked(labels, ignored), ignore=255)
    p = np.stack(labels)[:, None].astype(np.float32)  # of the whole disc
    np.testing.assert_allclose(dice_scores(p, support), 1)
    assert find_label_mistakes(p, support) == []
    assert find_shared_mistakes(support) == []


def test_a_check_of_a_partly_labelled_folder(tmp_path, predictor):
    result = check(predictor, read_support_folder(partly_labelled(tmp_path), ignore=255))
    assert {tuple(each["dice"]) for each in result["examples"]} == {("1", "2")}


def test_tiles_leave_ignored_pixels_out(predictor):
    images, labels, ignored = some(3, side=256)
    segmenter = predictor.for_support(images, marked(labels, ignored), ignore=255, tiles=2)
    tiles = segmenter.support.tile_support.support
    assert tiles.ignored.any()
    assert not (tiles.masks.astype(bool) & tiles.ignored).any()
    assert segmenter.tile_segmenter.known is not None
    assert np.isfinite(segmenter(images[0]).probabilities).all()


def test_a_dataset_takes_few_ignored_pixels_and_refuses_many(tmp_path):
    folder = partly_labelled(tmp_path / "few", rows=1)
    (folder / "meta.json").write_text('{"ignore": [255]}')
    (example,) = make_examples(read_folder(folder).cases[0])
    assert any("become background in a dataset" in text for text in example.notes.texts())
    folder = partly_labelled(tmp_path / "many")
    (folder / "meta.json").write_text('{"ignore": [255]}')
    with pytest.raises(ImageError, match=r"p0_0.png: is labelled in part.*40 % .*--support"):
        make_examples(read_folder(folder).cases[0])
    with pytest.raises(UserError, match="% of the pixels have no label, and fine-tuning"):
        read_tasks(read_support_folder(folder), 16)


def test_the_commands_take_the_id(tmp_path, checkpoint, capsys):
    folder = partly_labelled(tmp_path / "s")
    common = ["--support", str(folder), "--checkpoint", str(checkpoint)]
    query = ["--queries", str(folder / "images" / "p0_0.png"), "--out"]
    assert main(["predict", *common, *query, str(tmp_path / "a")]) == 0
    assert "255" in (tmp_path / "a" / "predictions.csv").read_text()
    assert main(["predict", *common, "--ignore", "255", *query, str(tmp_path / "b")]) == 0
    assert 255 not in np.unique(np.asarray(Image.open(tmp_path / "b" / "p0_0.png")))
    capsys.readouterr()
    assert main(["check", *common, "--ignore", "255"]) == 0
    said = capsys.readouterr().out
    assert "without a label: " in said
    assert "id 255" not in said
    with notes.collect():
        assert set(read_folder(folder).labels) == {1, 2, 255}  # without the flag nothing changes
