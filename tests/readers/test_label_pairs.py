"""Labels whose names differ from those of their images, and folders of masks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import write_folder
from universeg_jax.readers import notes
from universeg_jax.readers.errors import FolderError
from universeg_jax.readers.folder import read_folder, read_support
from universeg_jax.readers.label_pairs import pair_names


def listed(*names):
    return {name: [Path(f"{name}.png")] for name in names}


def paired(images, labels):
    """Image → the words of its labels."""
    names, pairs = pair_names(listed(*images), listed(*labels))
    return {image: sorted(pairs.get(case, {})) for image, case in names.items()}


def test_names_that_pair():
    assert paired(["p1", "p10"], ["p1_mask", "p10_mask"]) == {"p1": [""], "p10": [""]}
    assert paired(["p1", "p2"], ["p1_liver", "p1_tumour", "p2-liver"]) == {"p1": ["liver", "tumour"], "p2": ["liver"]}
    assert paired(["image_01", "image_02"], ["mask_01", "mask_02"]) == {"image_01": [""], "image_02": [""]}
    assert paired(["a_0000", "b_0000"], ["a", "b"]) == {"a_0000": [""], "b_0000": [""]}
    assert paired(["p 1", "p 2"], ["p 1 GT", "p 2 GT"]) == {"p 1": [""], "p 2": [""]}
    assert paired(["p1", "p2"], ["p1_seg_v2"]) == {"p1": ["seg_v2"], "p2": []}


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (["p1", "p2"], ["p3_mask", "p4_mask"]),
        (["p1"], ["p10"]),  # no word between: another case
        (["a_1", "a_2"], ["b_1", "b_2"]),
        (["p1", "p2"], ["p1_mask", "other"]),
        (["image", "img"], ["mask", "label"]),  # nothing is left
        (["p1_img", "p1_image"], ["p1_mask", "p1_label"]),  # two become one
    ],
)
def test_names_in_doubt_do_not_pair(images, labels):
    assert paired(images, labels) == {}


def rename(folder, part, change):
    for file in (folder / part).iterdir():
        file.rename(file.with_stem(change(file.stem)))


def test_a_folder_of_words_reads_as_without(tmp_path):
    plain = write_folder(tmp_path / "plain", count=3, ids=(1, 4))
    images, labels, names = read_support(plain)
    for image_name, label_name in ((str, "{}_mask".format), ("image_{}".format, "{}_seg".format)):
        folder = write_folder(tmp_path / image_name("a"), count=3, ids=(1, 4))
        rename(folder, "images", image_name)
        rename(folder, "labels", label_name)
        with notes.collect() as said:
            read = read_support(folder)
        np.testing.assert_array_equal(np.stack(read[0]), np.stack(images))
        np.testing.assert_array_equal(np.stack(read[1]), np.stack(labels))
        assert read[2] == names
        assert [case.subject for case in read_folder(folder).cases] == ["p0", "p1", "p2"]
        assert "they are taken for a pair" in said.lines()[0]


def split(folder, place):
    """Makes each label one mask for each id, 255 on 0, at labels/`place(case, id)`.png."""
    for file in list((folder / "labels").iterdir()):
        ids = np.asarray(Image.open(file))
        file.unlink()
        for i in (1, 2):
            path = folder / "labels" / f"{place(file.stem, i)}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.where(ids == i, 255, 0).astype(np.uint8)).save(path)
    return folder


NAMES = {1: "liver", 2: "tumour"}


@pytest.mark.parametrize(
    ("place", "taken"),
    [
        (lambda case, i: f"{case}_{NAMES[i]}", "masks labels/<image>_<class>, one for each class"),
        (lambda case, i: f"{case}/{NAMES[i]}", "masks labels/<image>/<class>, one for each class"),
        (lambda case, i: f"{NAMES[i]}/{case}", "a folder of masks for each class"),
    ],
)
def test_a_mask_for_each_class(tmp_path, place, taken):
    expected = read_support(write_folder(tmp_path / "plain", count=3, ids=(1, 2)))[1]
    folder = split(write_folder(tmp_path / "s", count=3, ids=(1, 2)), place)
    read = read_folder(folder)
    assert (read.labels, read.taken) == (NAMES, taken)
    assert not read.ignored
    np.testing.assert_array_equal(np.stack(read_support(folder)[1]), np.stack(expected))
    (folder / "meta.json").write_text('{"instances": true}')
    np.testing.assert_array_equal(np.stack(read_support(folder)[1]), np.stack(expected) > 0)


def test_masks_whose_names_never_recur_are_objects_and_numbered_ones_are_asked_about(tmp_path):
    expected = read_support(write_folder(tmp_path / "plain", count=3, ids=(1, 2)))[1]
    folder = split(write_folder(tmp_path / "s", count=3, ids=(1, 2)), lambda case, i: f"{case}/{abs(hash((case, i)))}")
    assert read_folder(folder).labels == {1: "object"}
    np.testing.assert_array_equal(np.stack(read_support(folder)[1]), np.stack(expected) > 0)
    folder = split(write_folder(tmp_path / "n", count=3, ids=(1, 2)), lambda case, i: f"{case}/mask_{i}")
    with pytest.raises(FolderError, match='mask_1.png: a mask with a number; .*write "instances": true'):
        read_folder(folder)
    (folder / "meta.json").write_text('{"instances": true}')
    np.testing.assert_array_equal(np.stack(read_support(folder)[1]), np.stack(expected) > 0)
