"""A researcher's folder: what is read, and what is refused with the file's name."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import write_folder
from universeg_jax.data.folder import FolderError, make_examples, read_folder, read_support
from universeg_jax.data.images import ImageError


def test_cases_subjects_and_labels_without_meta(tmp_path):
    folder = read_folder(write_folder(tmp_path, count=3, ids=(1, 4)))
    assert [case.name for case in folder.cases] == ["p0_0", "p1_0", "p2_0"]
    assert [case.subject for case in folder.cases] == ["p0", "p1", "p2"]
    assert folder.labels == {1: "label 1", 4: "label 4"}
    assert folder.subjects_identifiable


def test_meta_names_labels_and_says_whose_pictures_they_are(tmp_path):
    write_folder(tmp_path, count=3, ids=(1, 2))
    meta = {
        "labels": {"0": "background", "1": "cell", "2": "nucleus"},
        "subjects_identifiable": False,
        "licence": "CC0",
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    folder = read_folder(tmp_path)
    assert folder.labels == {1: "cell", 2: "nucleus"}
    assert [case.subject for case in folder.cases] == ["p0_0", "p1_0", "p2_0"]
    assert folder.licence == "CC0"


def test_an_example_has_a_mask_for_each_class_that_occurs(tmp_path):
    case = read_folder(write_folder(tmp_path, count=1, ids=(1, 2)), size=32).cases[0]
    (example,) = make_examples(case)
    assert example.labels == (1, 2)
    assert example.image.shape == (32, 32)
    assert example.image.dtype == example.masks.dtype == np.uint8
    assert example.masks.sum((1, 2)).min() > 10
    assert not (example.masks[0] & example.masks[1]).any()
    brightness = [example.image[mask > 0].mean() for mask in (*example.masks, 1 - example.masks.max(0))]
    assert brightness[1] > brightness[0] > brightness[2]  # the mask lies on what it marks


def test_support_is_read_whole_or_one_label_of_it(tmp_path):
    images, labels, names = read_support(write_folder(tmp_path, count=2, ids=(1, 5)))
    assert names == ["p0_0", "p1_0"]
    assert images[0].shape == labels[0].shape == (20, 30)
    assert set(np.unique(labels[0])) == {0, 1, 5}
    _, labels, _ = read_support(tmp_path, label=5)
    assert set(np.unique(labels[0])) == {0, 1}
    with pytest.raises(FolderError, match=r"label 7 never occurs.*\[1, 5\]"):
        read_support(tmp_path, label=7)


def change(path, what):
    """One mistake in a good folder."""
    if what == "no images folder":
        (path / "images").rename(path / "pictures")
    elif what == "no label":
        (path / "labels" / "p1_0.png").unlink()
    elif what == "no image":
        (path / "images" / "p1_0.png").unlink()
    elif what == "nothing":
        for file in (path / "images").iterdir():
            file.unlink()
    elif what == "two of a name":
        Image.new("L", (30, 20)).save(path / "images" / "p1_0.bmp")
    elif what == "bad meta":
        (path / "meta.json").write_text("{")
    elif what == "labels without ids":
        (path / "meta.json").write_text('{"labels": {"liver": 1}}')
    elif what == "empty labels":
        for file in (path / "labels").iterdir():
            Image.new("L", (30, 20)).save(file)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no images folder", "images is missing"),
        ("no label", r"images/p1_0.png has no label"),
        ("no image", r"labels/p1_0.png has no image"),
        ("nothing", "images holds no pictures"),
        ("two of a name", "p1_0.bmp"),
        ("bad meta", "meta.json is not JSON"),
        ("labels without ids", "must map ids to names"),
        ("empty labels", "every label is empty"),
    ],
)
def test_a_mistake_in_the_folder_is_named(tmp_path, what, message):
    change(write_folder(tmp_path, count=3), what)
    with pytest.raises(FolderError, match=message):
        read_folder(tmp_path)


def test_no_pictures_at_all(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    with pytest.raises(FolderError, match="holds no pictures"):
        read_folder(tmp_path)


def test_sizes_that_differ_and_ids_without_a_name(tmp_path):
    write_folder(tmp_path, count=2, ids=(1, 3))
    Image.new("L", (31, 20)).save(tmp_path / "labels" / "p0_0.png")
    (tmp_path / "meta.json").write_text('{"labels": {"1": "a"}}')
    first, second = read_folder(tmp_path).cases
    with pytest.raises(ImageError, match=r"\(20, 30\), its label \(20, 31\)"):
        make_examples(first)
    with pytest.raises(ImageError, match=r"ids \[3\] are not in meta.json"):
        make_examples(second)
