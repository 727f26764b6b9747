"""A researcher's folder: files that are read, and mistakes that are named."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import write_folder
from universeg_jax.readers import notes
from universeg_jax.readers.cases import make_examples
from universeg_jax.readers.errors import FolderError, ImageError
from universeg_jax.readers.folder import list_images, read_folder, read_support


def test_cases_subjects_and_labels_without_meta(tmp_path):
    folder = read_folder(write_folder(tmp_path, count=3, ids=(1, 4)))
    assert [case.name for case in folder.cases] == ["p0_0", "p1_0", "p2_0"]
    assert [case.subject for case in folder.cases] == ["p0", "p1", "p2"]
    assert folder.labels == {1: "label 1", 4: "label 4"}
    assert folder.subjects_identifiable


def test_subjects_are_names_before_the_last_underscore(tmp_path):
    write_folder(tmp_path, count=3)
    for part in ("images", "labels"):
        for old, new in (("p0_0", "a_b_7"), ("p1_0", "plain"), ("p2_0", "_x")):
            (tmp_path / part / f"{old}.png").rename(tmp_path / part / f"{new}.png")
    assert {case.name: case.subject for case in read_folder(tmp_path).cases} == {
        "a_b_7": "a_b",
        "plain": "plain",
        "_x": "_x",
    }


def test_hidden_files_and_inner_folders_are_skipped_and_other_types_named(tmp_path):
    write_folder(tmp_path, count=12)
    for name in (".hidden.png", "notes.txt", "scan.xcf"):
        (tmp_path / "images" / name).write_text("no image")
    (tmp_path / "images" / "inner").mkdir()
    Image.new("L", (30, 20)).save(tmp_path / "images" / "inner" / "p99_0.png")
    Image.new("L", (30, 20)).save(tmp_path / "labels" / "._p0_0.png")
    folder = read_folder(tmp_path)
    assert [case.name for case in folder.cases] == [f"p{i}_0" for i in range(12)]
    assert folder.ignored == ("images/notes.txt", "images/scan.xcf")
    assert [path.name for path in list_images(tmp_path / "images")] == [f"p{i}_0.png" for i in range(12)]


def test_image_and_label_may_be_of_different_types(tmp_path):
    write_folder(tmp_path, count=2)
    Image.open(tmp_path / "images" / "p0_0.png").save(tmp_path / "images" / "p0_0.JPG")
    (tmp_path / "images" / "p0_0.png").unlink()
    images, labels, names = read_support(tmp_path)
    assert names == ["p0_0", "p1_0"]
    assert images[0][labels[0] == 1].mean() > images[0][labels[0] == 0].mean() + 30


def test_a_damaged_label_does_not_hide_the_ids_of_the_others(tmp_path):
    write_folder(tmp_path, count=3, ids=(1, 255))
    (tmp_path / "labels" / "p1_0.png").write_bytes(b"")
    folder = read_folder(tmp_path)
    assert folder.labels == {1: "label 1", 255: "label 255"}
    with pytest.raises(ImageError, match="p1_0.png: cannot be read"):
        make_examples(folder.cases[1])
    with pytest.raises(ImageError, match="p1_0.png: cannot be read"):
        read_support(tmp_path)  # of a support set nothing is dropped


def test_meta_names_labels_and_unknown_subjects(tmp_path):
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
    assert brightness[1] > brightness[0] > brightness[2]  # each mask lies on its disc


def test_support_is_read_with_all_labels_or_one(tmp_path):
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
    elif what == "no pairs":
        for file in (path / "labels").iterdir():
            file.rename(file.with_stem(f"other{file.stem}"))
    elif what == "nothing":
        for file in (path / "images").iterdir():
            file.unlink()
    elif what == "bad meta":
        (path / "meta.json").write_text("{")
    elif what == "labels without ids":
        (path / "meta.json").write_text('{"labels": {"liver": 1}}')
    elif what == "meta of another kind":
        (path / "meta.json").write_text("[1]")
    elif what == "meta of another encoding":
        (path / "meta.json").write_bytes('{"licence": "für alle"}'.encode("latin-1"))
    elif what == "no boolean":
        (path / "meta.json").write_text('{"subjects_identifiable": "false"}')
    elif what == "other types only":
        for file in (path / "images").iterdir():
            file.rename(file.with_suffix(".xcf"))
    elif what == "damaged labels":
        for file in (path / "labels").iterdir():
            file.write_bytes(b"")
    elif what == "empty labels":
        for file in (path / "labels").iterdir():
            Image.new("L", (30, 20)).save(file)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no images folder", "images is missing"),
        ("no pairs", r"images/p0_0.png: has no label .add labels/p0_0\.\*.*; no image of this folder has one"),
        ("nothing", "images holds no images"),
        ("bad meta", "meta.json is not JSON"),
        ("labels without ids", "must map ids to names"),
        ("meta of another kind", "must be an object"),
        ("meta of another encoding", "not JSON in UTF-8"),
        ("no boolean", "'false'; write true or false"),
        ("other types only", "images holds no images.*only p0_0.xcf"),
        ("damaged labels", "labels/p0_0.png: cannot be read"),
        ("empty labels", "every label is empty"),
    ],
)
def test_a_mistake_in_the_folder_is_named(tmp_path, what, message):
    change(write_folder(tmp_path, count=3), what)
    with pytest.raises(FolderError, match=message):
        read_folder(tmp_path)


def test_an_incomplete_or_duplicated_case_costs_only_itself(tmp_path):
    write_folder(tmp_path, count=5)
    (tmp_path / "labels" / "p1_0.png").rename(tmp_path / "labels" / "p1_0.txt")
    (tmp_path / "images" / "p2_0.png").unlink()
    Image.new("L", (30, 20)).save(tmp_path / "labels" / "p3_0.bmp")
    (tmp_path / "meta.json").write_text('{"subjects": "who.csv"}')
    (tmp_path / "who.csv").write_text("case,subject\np0_0,anna\np4_0,bo\n")  # the faulty cases need no subject
    folder = read_folder(tmp_path)
    faults = {
        "p1_0": "images/p1_0.png: has no label .add labels/p1_0",
        "p2_0": "labels/p2_0.png: has no image .add images/p2_0",
        "p3_0": "images/p3_0.png: two files of one name .p3_0.bmp and p3_0.png; keep one",
    }
    assert [case.name for case in folder.cases] == [f"p{i}_0" for i in range(5)]
    assert folder.labels == {1: "label 1"}
    for case in folder.cases:
        if case.name in faults:
            with pytest.raises(ImageError, match=faults[case.name]):
                make_examples(case)
        else:
            assert len(make_examples(case)) == 1
    with pytest.raises(ImageError, match=faults["p1_0"]):
        read_support(tmp_path)  # of a support set nothing is dropped


def test_a_folder_without_images_is_refused(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    with pytest.raises(FolderError, match="holds no images"):
        read_folder(tmp_path)


def test_sizes_that_differ_and_ids_without_a_name(tmp_path):
    write_folder(tmp_path, count=2, ids=(1, 3))
    Image.new("L", (31, 20)).save(tmp_path / "labels" / "p0_0.png")
    (tmp_path / "meta.json").write_text('{"labels": {"1": "a"}}')
    first, second = read_folder(tmp_path).cases
    with pytest.raises(ImageError, match=r"labels/p0_0.png: .*differ in size .the image is 30x20, the label 31x20"):
        make_examples(first)
    with pytest.raises(FolderError, match=r"labels/p1_0.png: ids \[3\] are not in meta.json, which names \[1\]"):
        make_examples(second)


@pytest.mark.shared
@pytest.mark.skipif(
    "UNIVERSEG_SHARED" not in os.environ, reason="UNIVERSEG_SHARED does not name the real data's folder"
)
def test_real_folders_are_read():
    """Every folder at hand: each label lies on its image, and each id is found in the images that show it."""
    root = Path(os.environ["UNIVERSEG_SHARED"]) / "data"
    folders = sorted(path.parent for path in root.glob("*/meta.json"))
    assert len(folders) > 50
    for path in folders:
        meta, folder = json.loads((path / "meta.json").read_text()), read_folder(path, size=16)
        assert len(folder.cases) == meta["n_images"]
        if meta["subjects_identifiable"]:
            assert len({case.subject for case in folder.cases}) == meta["n_subjects"]
        found = Counter(i for case in folder.cases for example in make_examples(case) for i in example.labels)
        labels = (np.asarray(Image.open(file)) for file in sorted((path / "labels").iterdir()))
        assert found == Counter(int(i) for label in labels for i in np.unique(label) if i), path.name


def test_accents_match_in_both_spellings(tmp_path):
    """macOS writes ü as two characters."""
    folder = write_folder(tmp_path, count=1)
    for part, name in (("images", "Mu\u0308ller_1.png"), ("labels", "M\u00fcller_1.png")):
        (folder / part / "p0_0.png").rename(folder / part / name)
    assert [(case.name, case.fault) for case in read_folder(folder).cases] == [("M\u00fcller_1", ("", ""))]


def test_an_unreadable_label_is_not_called_empty(tmp_path):
    folder = write_folder(tmp_path, count=1)
    (folder / "labels" / "p0_0.png").write_bytes(b"damaged")
    with pytest.raises(FolderError) as caught:
        read_folder(folder)
    assert "p0_0.png: cannot be read" in str(caught.value)
    assert "mark what is to be segmented" not in str(caught.value)


def test_inner_folders_of_images_are_named_and_pipes_are_not_opened(tmp_path):
    write_folder(tmp_path, count=3)
    for part in ("images", "labels"):
        (tmp_path / part / "more").mkdir()
        (tmp_path / part / "empty").mkdir()
        (tmp_path / part / "p2_0.png").rename(tmp_path / part / "more" / "p2_0.png")
    os.mkfifo(tmp_path / "images" / "pipe.png")
    with notes.collect() as said:
        folder = read_folder(tmp_path)
    assert [case.name for case in folder.cases] == ["p0_0", "p1_0"]
    assert said.lines() == (
        "images/more: is not read: put its files into images/ itself",
        "labels/more: is not read: put its files into labels/ itself",
    )
    assert "images/pipe.png" not in [case.image for case in folder.cases]
