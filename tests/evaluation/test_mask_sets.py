"""`universeg evaluate --labels`: labels in every way in which they are kept give the scores of plain files."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from universeg_jax.errors import UserError
from universeg_jax.evaluation.mask_files import score_masks
from universeg_jax.readers.errors import FolderError, ImageError

SHAPE = (20, 30)
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)


def boxes(i):
    """Ids 1 and 2 of case i, as boxes (left, top, right, bottom), and as a label map."""
    places = {1: (2, 3, 10 + i, 15), 2: (15, 4, 25, 10 + i)}
    label = np.zeros(SHAPE, np.uint8)
    for value, (left, top, right, bottom) in places.items():
        label[top:bottom, left:right] = value
    return places, label


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
    """Plain truth, and predictions that miss a column of id 1 and a row of id 2."""
    for i in range(3):
        label = boxes(i)[1]
        write(tmp_path / "plain" / f"p{i}_0.png", label)
        label[:, 2], label[4] = np.where(label[:, 2] == 1, 0, label[:, 2]), np.where(label[4] == 2, 0, label[4])
        write(tmp_path / "tool" / f"p{i}_0.png", label)
    return tmp_path


def scores(folder, labels="truth", tool="tool"):
    """(Dice of each row, ids, notes)"""
    summary = score_masks(folder / tool, folder / labels, folder / "out", overwrite=True)
    rows = (folder / "out" / "cases.csv").read_text().splitlines()
    at = rows[0].split(",").index("dice")
    return sorted(round(float(row.split(",")[at]), 9) for row in rows[1:]), " ".join(summary["notes"])


def polygon(box):
    left, top, right, bottom = box
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def write_labels(folder, kind):
    truth, names = folder / "truth", {1: "liver", 2: "tumour"}
    truth.mkdir()
    if kind == "COCO":
        annotations = [
            {"id": 10 * i + k, "image_id": i, "category_id": k, "segmentation": [np.ravel(polygon(box)).tolist()]}
            for i in range(3)
            for k, box in boxes(i)[0].items()
        ]
        images = [{"id": i, "file_name": f"x/p{i}_0.jpg", "height": 20, "width": 30} for i in range(3)]
        categories = [{"id": k, "name": name} for k, name in names.items()]
        contents = {"images": images, "annotations": annotations, "categories": categories}
        (truth / "all.json").write_text(json.dumps(contents))
    for i in range(3):
        places, label = boxes(i)
        if kind == "LabelMe":
            shapes = [{"label": names[k], "points": polygon(box)} for k, box in places.items()]
            (truth / f"p{i}_0.json").write_text(json.dumps({"shapes": shapes, "imageHeight": 20, "imageWidth": 30}))
        elif kind == "GeoJSON":
            features = [
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [polygon(box)]},
                    "properties": {"classification": {"name": names[k]}},
                }
                for k, box in places.items()
            ]
            (truth / f"p{i}_0.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        elif kind == "colours":
            write(truth / f"p{i}_0.png", COLOURS[label])
            (truth / "meta.json").write_text('{"colours": {"1": "#ff0000", "2": "#00ff00"}}')
        elif kind == "class folders":
            for k, name in names.items():
                write(truth / "labels" / name / f"p{i}_0.png", np.where(label == k, 255, 0).astype(np.uint8))
        elif kind == "words":
            write(truth / f"p{i}_0_mask.png", label)
        elif kind == "palette":
            image = Image.fromarray(label, "P")
            image.putpalette(COLOURS.ravel().tolist())
            image.save(truth / f"p{i}_0.png")


@pytest.mark.parametrize("kind", ["COCO", "LabelMe", "GeoJSON", "colours", "class folders", "words", "palette"])
def test_every_way_to_keep_labels_gives_the_same_scores(folder, kind):
    expected, _ = scores(folder, "plain")
    assert len(expected) == 6
    assert max(expected) < 1
    write_labels(folder, kind)
    found, notes = scores(folder)
    assert found == expected
    words = {"colours": "colours of meta.json", "class folders": "a folder of masks for each class"}
    words |= {"words": "they are taken for a pair", "palette": "subjects are"}
    assert words.get(kind, f"{kind} polygons") in notes


def test_a_coco_file_beside_images_is_the_truth_and_images_are_no_masks(folder):
    expected, _ = scores(folder, "plain")
    write_labels(folder, "COCO")
    for i in range(3):
        write(folder / "truth" / "images" / f"p{i}_0.png", boxes(0)[1])
    assert scores(folder)[0] == expected
    (folder / "truth" / "all.json").unlink()
    with pytest.raises(UserError, match="labels is not a folder"):
        scores(folder)


def test_missing_predictions_and_unknown_ids_are_named(folder):
    write_labels(folder, "COCO")
    (folder / "tool" / "p1_0.png").unlink()
    with pytest.raises(UserError, match="lacks masks for 1 of 3 labels: p1_0"):
        scores(folder)
    write(folder / "tool" / "p1_0.png", boxes(1)[1][:, :-1])
    with pytest.raises(ImageError, match="image and label differ in size .*29x20.*30x20"):
        scores(folder)
    (folder / "plain" / "meta.json").write_text('{"labels": {"1": "liver"}}')
    write(folder / "tool" / "p1_0.png", boxes(1)[1])
    with pytest.raises(FolderError, match=r"ids \[2\] are not in meta.json"):
        scores(folder, "plain")


def as_mask(folder, part, top):
    """Keeps id 1, written as top(i) in the i-th file."""
    for i in range(3):
        ids = np.asarray(Image.open(folder / part / f"p{i}_0.png"))
        write(folder / part / f"p{i}_0.png", np.where(ids == 1, top(i), 0).astype(np.uint8))


def test_masks_of_1_and_of_255_are_one_class(folder):
    for part in ("plain", "tool"):
        as_mask(folder, part, lambda i: 1)
    expected, notes = scores(folder, "plain")
    assert "one class" not in notes
    for truth, prediction in ((lambda i: (1, 255)[i % 2], lambda i: 255), (lambda i: 255, lambda i: 1)):
        write_again(folder, truth, prediction)
        found, notes = scores(folder, "plain")
        assert found == expected
        assert "others 0 and 255: both mean one class" in notes
    (folder / "plain" / "meta.json").write_text('{"labels": {"3": "liver"}}')
    write_again(folder, lambda i: 255, lambda i: 255)
    found, notes = scores(folder, "plain")
    assert found == expected
    assert "255 mean the only id that meta.json names, 3" in notes


def write_again(folder, truth, prediction):
    for part, top in (("plain", truth), ("tool", prediction)):
        for i in range(3):
            mask = np.asarray(Image.open(folder / part / f"p{i}_0.png")) > 0
            write(folder / part / f"p{i}_0.png", np.where(mask, top(i), 0).astype(np.uint8))


def test_what_is_ignored_is_not_scored(folder):
    for i in range(3):
        label = boxes(i)[1]
        label[:, 2], label[4] = np.where(label[:, 2] == 1, 255, label[:, 2]), np.where(label[4] == 2, 255, label[4])
        label[18:] = 255  # where the tool marks something
        write(folder / "truth" / f"p{i}_0.png", label)
        wrong = np.array(Image.open(folder / "tool" / f"p{i}_0.png"))
        wrong[19] = 1
        write(folder / "tool" / f"p{i}_0.png", wrong)
    (folder / "truth" / "meta.json").write_text('{"ignore": [255]}')
    assert scores(folder)[0] == [1.0] * 6


def test_masks_of_overlapping_labels_and_regions(folder):
    for i in range(3):
        label = boxes(i)[1]
        for k, mask in ((1, label > 0), (2, label == 2)):  # as `predict` writes labels that overlap
            write(folder / "ours" / f"p{i}_0_{k}.png", mask.astype(np.uint8) * k)
        write(folder / "nn" / "labelsTr" / f"p{i}_0.png", label)
        write(folder / "nn" / "its" / f"p{i}_0.png", label)
    spec = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    (folder / "nn" / "dataset.json").write_text(json.dumps(spec))
    assert scores(folder, "nn/labelsTr", "ours")[0] == [1.0] * 6
    assert scores(folder, "nn/labelsTr", "nn/its")[0] == [1.0] * 6
    assert "ids of dataset.json" in scores(folder, "nn/labelsTr", "nn/its")[1]
    rows = (folder / "out" / "cases.csv").read_text().splitlines()
    at = rows[0].split(",").index("subject")
    assert {row.split(",")[at] for row in rows[1:]} == {f"p{i}_0" for i in range(3)}  # a case of nnU-Net is a subject
    assert scores(folder, "nn/labelsTr", "tool")[0] != [1.0] * 6


def test_names_of_segments_decide_over_their_numbers(tmp_path):
    label = np.zeros((5, 8, 9), np.uint8)
    label[1:3, 2:5, 2:5], label[3:, 5:, 5:] = 1, 2
    for part, numbers in (("truth", {"liver": 1, "tumour": 2}), ("tool", {"liver": 2, "tumour": 1})):
        (tmp_path / part).mkdir()
        values = np.array([0, numbers["liver"], numbers["tumour"]], np.uint8)[label]
        image = sitk.GetImageFromArray(values)
        for k, (name, number) in enumerate(numbers.items()):
            image.SetMetaData(f"Segment{k}_Name", name)
            image.SetMetaData(f"Segment{k}_LabelValue", str(number))
        sitk.WriteImage(image, str(tmp_path / part / "a.seg.nrrd"))
    assert scores(tmp_path)[0] == [1.0, 1.0]


def test_ids_in_doubt_have_the_notes_of_a_support_folder(folder):
    void, grey, cells = "255 occurs beside small ids", "not all the same (128, 255)", "26 ids without names"
    for i in range(3):
        label = boxes(i)[1]
        write(folder / "void" / f"p{i}_0.png", np.where(label == 2, 255, label).astype(np.uint8))
        write(folder / "greys" / f"p{i}_0.png", ((label == 1) * (128 if i else 255)).astype(np.uint8))
        numbered = np.repeat(np.arange(SHAPE[0] // 2, dtype=np.uint8)[:, None] + 8 * i + 1, SHAPE[1], 1)
        write(folder / "cells" / f"p{i}_0.png", np.repeat(numbered, 2, 0))
    for name, words in (("void", void), ("greys", grey), ("cells", cells), ("plain", "")):
        said = scores(folder, name, name)[1]
        assert [text in said for text in (void, grey, cells)] == [text == words for text in (void, grey, cells)], said
    (folder / "greys" / "meta.json").write_text('{"instances": true}')
    (folder / "void" / "meta.json").write_text('{"ignore": [255]}')
    for name in ("greys", "void"):
        dice, said = scores(folder, name, name)
        assert set(dice) == {1.0}
        assert void not in said
        assert grey not in said
