"""nnU-Net and Decathlon folders, recognised by dataset.json."""

import json

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.fixtures import block_volume, write_folder, write_nifti
from universeg_jax.cli import main
from universeg_jax.data.dataset import open_dataset, read_report
from universeg_jax.data.tasks import task_table
from universeg_jax.prediction.support import read_support_folder
from universeg_jax.readers.cases import make_examples, read_pair, read_volume_pair
from universeg_jax.readers.errors import FolderError, ImageError
from universeg_jax.readers.folder import read_folder

LABELS = {"background": 0, "organ": 1, "tumour": 2}


def nnunet(path, names=("liver_1", "liver_2", "liver_10"), channels=("T2", "ADC"), labels=LABELS):
    for i, name in enumerate(names):
        image, label = block_volume((10, 12, 8), (1, 2), seed=i)
        for k in range(len(channels)):
            write_nifti(path / "imagesTr" / f"{name}_{k:04d}.nii.gz", image + 100 * k)
        write_nifti(path / "labelsTr" / f"{name}.nii.gz", label)
    spec = {"channel_names": dict(enumerate(channels)), "labels": labels, "file_ending": ".nii.gz"}
    (path / "dataset.json").write_text(json.dumps(spec))
    return path


def decathlon(path, modalities=("FLAIR", "T1w")):
    names = ["BRATS_001", "BRATS_002", "BRATS_003"]
    for i, name in enumerate(names):
        image, label = block_volume((10, 12, 8), (1, 2), seed=i)
        stack = np.stack([image + 7 * k for k in range(len(modalities))], -1) if len(modalities) > 1 else image
        (path / "imagesTr").mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(stack, np.eye(4)), path / "imagesTr" / f"{name}.nii.gz")
        write_nifti(path / "labelsTr" / f"{name}.nii.gz", label)
    (path / "imagesTr" / "._BRATS_001.nii.gz").write_bytes(b"of another system")
    training = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
    labels = {"0": "background", "1": "edema", "2": "tumour"}
    spec = {"modality": dict(enumerate(modalities)), "labels": labels, "training": training, "licence": "CC-BY-SA 4.0"}
    (path / "dataset.json").write_text(json.dumps(spec))
    return path


@pytest.mark.parametrize(("make", "subjects"), [(nnunet, "liver_"), (decathlon, "BRATS_")])
def test_every_channel_is_a_modality_and_every_case_a_subject(tmp_path, make, subjects):
    folder = make(tmp_path / "raw")
    arguments = ["--name", "d", "--data_dir", str(tmp_path / "data"), "--size", "16"]
    assert main(["build", "--folder", str(folder), *arguments]) == 0
    dataset = open_dataset(tmp_path / "data", "d")
    assert len(dataset.index.subjects) == 3
    assert all(subject.startswith(subjects) for subject in dataset.index.subjects)
    assert len(dataset.index.modalities) == 2
    tasks = task_table([dataset])
    assert {(t.modality, t.axis) for t in tasks} == {(m, a) for m in dataset.index.modalities for a in range(3)}
    assert set(dataset.meta.labels) == {1, 2}


def test_each_channel_is_read_on_its_own(tmp_path):
    for make in (nnunet, decathlon):
        folder = read_folder(make(tmp_path / make.__name__), 16)
        assert [case.name[-4:] for case in folder.cases] == ["0000", "0001"] * 3
        assert [case.subject[-1] for case in folder.cases] == (list("112200") if make is nnunet else list("112233"))
        first, second = (make_examples(case) for case in folder.cases[:2])
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a.masks, b.masks)
    assert folder.licence == "CC-BY-SA 4.0"
    assert folder.ignored == ()
    one = read_folder(decathlon(tmp_path / "one", ("CT",)))
    assert [(case.name, case.channel, case.modality) for case in one.cases][:1] == [("BRATS_001", None, "CT")]


def test_the_old_nnunet_layout_lists_cases_without_their_channel(tmp_path):
    nnunet(tmp_path, channels=("CT",))
    spec = json.loads((tmp_path / "dataset.json").read_text())
    names = ["liver_1", "liver_10", "liver_2"]
    spec["training"] = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
    (tmp_path / "dataset.json").write_text(json.dumps(spec))
    folder = read_folder(tmp_path)
    assert [case.image.rpartition("/")[2] for case in folder.cases] == [
        "liver_1_0000.nii.gz",
        "liver_2_0000.nii.gz",
        "liver_10_0000.nii.gz",
    ]


def test_regions_may_overlap_and_ignore_is_no_label(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    folder = read_folder(nnunet(tmp_path, channels=("CT",), labels=labels), 16)
    assert folder.labels == {1: "whole", 2: "core"}
    example = next(e for e in make_examples(folder.cases[0]) if len(e.labels) == 2)
    whole, core = example.masks
    assert (whole >= core).all()
    assert whole.sum() > core.sum() > 0
    _, label = block_volume((10, 12, 8), (1, 2))
    label[0, 0, 0] = 3
    write_nifti(tmp_path / "labelsTr" / "liver_1.nii.gz", label)
    assert len(make_examples(folder.cases[0])) > 0
    label[0, 0, 0] = 4
    write_nifti(tmp_path / "labelsTr" / "liver_1.nii.gz", label)
    with pytest.raises(ImageError, match=r"values that mean no class .*\[4\]"):
        make_examples(folder.cases[0])


@pytest.mark.parametrize("make", [nnunet, decathlon])
def test_an_id_that_dataset_json_lacks_is_added_by_meta_json(tmp_path, make):
    folder = make(tmp_path)
    spec = json.loads((folder / "dataset.json").read_text())
    spec["labels"] = {"background": 0, "organ": 1}
    (folder / "dataset.json").write_text(json.dumps(spec))
    with pytest.raises(
        FolderError, match=r'ids \[2\] are not in dataset.json, which names \[1\]; add them to its "labels"'
    ):
        make_examples(read_folder(folder, 16).cases[0])
    (folder / "meta.json").write_text('{"labels": {"2": "tumour"}}')
    read = read_folder(folder, 16)
    assert read.labels == {1: "organ", 2: "tumour"}
    assert {i for example in make_examples(read.cases[0]) for i in example.labels} == {1, 2}


def test_images_in_the_nnunet_layout(tmp_path):
    source = write_folder(tmp_path / "images", count=3)
    raw = tmp_path / "raw"
    raw.mkdir()
    (source / "images").rename(raw / "imagesTr")
    (source / "labels").rename(raw / "labelsTr")
    for i in range(3):
        (raw / "imagesTr" / f"p{i}_0.png").rename(raw / "imagesTr" / f"p{i}_0_0000.png")
    (raw / "dataset.json").write_text('{"channel_names": {"0": "red"}, "labels": {"background": 0, "x": 1}}')
    (raw / "meta.json").write_text('{"subjects": "^(p)", "modality": "photograph"}')
    folder = read_folder(raw, 16)
    assert [(c.subject, c.modality, c.volume) for c in folder.cases] == [("p", "photograph red", False)] * 3
    assert make_examples(folder.cases[0])[0].slicing == "image"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"channel_names": None}, "must be {.0.: .CT., …}; it is None"),
        ({"channel_names": {"1": "CT"}}, "must be {.0.: .CT."),
        ({"labels": []}, "it is None"),
        ({"labels": {"organ": "one"}}, "label 'organ' is 'one'; ids are whole numbers"),
        ({"labels": {"organ": 1, "tumour": 1}}, "two labels have one id"),
        ({"labels": {"organ": []}}, "label 'organ' is .."),
        ({"training": [{"image": "a"}]}, "must list"),
        (
            {"training": [{"image": "../../etc/passwd", "label": "./labelsTr/liver_1.nii.gz"}]},
            "lies outside the folder",
        ),
        (
            {"training": [{"image": "./a.nii", "label": "./labelsTr/absent.nii.gz"}]},
            "has no label .add labelsTr/absent.nii.gz or .*; this holds for every case",
        ),
        (
            {"channel_names": {"0": "a", "1": "b", "2": "c"}},
            "has no image .add imagesTr/liver_1_0002.nii.gz or .*; this holds for every case",
        ),
    ],
)
def test_mistakes_in_dataset_json_are_named(tmp_path, change, word):
    nnunet(tmp_path)
    spec = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**spec, **change}))
    with pytest.raises(FolderError, match=word):
        read_folder(tmp_path)


def test_an_incomplete_or_duplicated_case_costs_only_itself(tmp_path):
    for make, damage in (
        (nnunet, {"imagesTr/liver_2_0001.nii.gz": None, "labelsTr/liver_10.nii": block_volume((10, 12, 8))[1]}),
        (decathlon, {"imagesTr/BRATS_001.nii.gz": None, "labelsTr/BRATS_003.nii.gz": None}),
    ):
        folder = make(tmp_path / make.__name__)
        spec = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps(spec | {"file_ending": ""}))  # else .nii.gz is preferred
        for name, data in damage.items():
            (folder / name).unlink() if data is None else write_nifti(folder / name, data)
        arguments = ["--name", make.__name__, "--data_dir", str(tmp_path / "data"), "--size", "16"]
        assert main(["build", "--folder", str(folder), *arguments]) == 0
    report = read_report(tmp_path / "data", "nnunet")
    assert report.dropped_by_problem == {"has no image": 1, "two files of one name": 2}
    assert report.dropped["liver_2_0001"] == "has no image (add imagesTr/liver_2_0001.nii.gz or remove the label)"
    assert open_dataset(tmp_path / "data", "nnunet").index.subjects == ("liver_1", "liver_2")
    report = read_report(tmp_path / "data", "decathlon")
    assert report.dropped_by_problem == {"has no image": 2, "has no label": 2}
    assert open_dataset(tmp_path / "data", "decathlon").index.subjects == ("BRATS_002",)


def test_unused_files_are_named_and_an_empty_folder_is_refused(tmp_path):
    nnunet(tmp_path)
    write_nifti(tmp_path / "imagesTr" / "other_0000.nii.gz", block_volume((4, 4, 4))[0])
    assert read_folder(tmp_path).ignored == ("imagesTr/other_0000.nii.gz",)
    for file in (tmp_path / "labelsTr").iterdir():
        file.unlink()
    with pytest.raises(FolderError, match="holds no labels in labelsTr/"):
        read_folder(tmp_path)


def test_the_spacing_file_beside_a_tiff_volume_is_no_label(tmp_path):
    """nnU-Net's Tiff3DIO keeps case.json beside case.tif, for images and labels."""
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "SEM"}, "labels": {"background": 0, "cell": 1}}')
    for i in range(3):
        image, mask = block_volume((10, 12, 8))
        for part, name, data in (("imagesTr", f"c{i}_0000", image), ("labelsTr", f"c{i}", mask)):
            (tmp_path / part).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / part / f"{name}.tif", data.T.astype(np.uint16), photometric="minisblack")
            (tmp_path / part / f"{name}.json").write_text('{"spacing": [1, 1, 1]}')
    folder = read_folder(tmp_path)
    assert [case.fault for case in folder.cases] == [("", "")] * 3
    assert all(case.volume for case in folder.cases)
    assert len(make_examples(folder.cases[0])) > 0
    assert "labelsTr/c0.json" in folder.ignored


REGIONS = {"background": 0, "core": [2], "whole": [1, 2]}


def test_regions_in_any_order_are_whole_in_build_and_in_support(tmp_path):
    for labels, whole, core in ((REGIONS, 2, 1), ({"whole": ["1", "2"], "core": "2"}, 1, 2)):
        folder = nnunet(tmp_path / str(whole), channels=("CT",), labels=labels)
        _, _label = block_volume((10, 12, 8), (1, 2))
        case = read_folder(folder, 16).cases[0]
        masks = read_volume_pair(case)[1]
        np.testing.assert_array_equal(masks[whole], nib.load(case.labels[0].path).get_fdata() > 0)
        np.testing.assert_array_equal(masks[core], nib.load(case.labels[0].path).get_fdata() == 2)
        support = read_support_folder(folder)
        assert support.overlapping
        assert (support.masks[support.labels.index(whole)] >= support.masks[support.labels.index(core)]).all()
        assert read_support_folder(folder, label=whole).masks.sum() == support.masks[support.labels.index(whole)].sum()


def test_regions_of_images_overlap_in_a_support_set(tmp_path):
    source = write_folder(tmp_path / "images", count=3, ids=(1, 2))
    raw = colour_folder(tmp_path, source, {"0": "x"}, REGIONS)
    support = read_support_folder(raw)
    core, whole = support.masks
    assert support.overlapping
    assert core.sum() > 0
    assert (whole >= core).all()
    assert whole.sum() > 1.5 * core.sum()


def colour_folder(tmp_path, source, channels, labels):
    raw = tmp_path / "raw"
    (raw / "imagesTr").mkdir(parents=True)
    (source / "labels").rename(raw / "labelsTr")
    for file in (source / "images").iterdir():
        Image.open(file).convert("RGB").save(raw / "imagesTr" / f"{file.stem}_0000.png")
    (raw / "dataset.json").write_text(json.dumps({"channel_names": channels, "labels": labels}))
    return raw


def test_the_order_of_regions_gives_their_ids(tmp_path):
    folder = nnunet(tmp_path, channels=("CT",), labels=REGIONS)
    spec = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(spec | {"regions_class_order": [7, 4]}))
    assert read_folder(folder).labels == {7: "core", 4: "whole"}
    assert read_folder(folder).cases[0].labels[0].classes == ((7, (2,)), (4, (1, 2)))
    for order in ([1], [0, 1], [1, 1], ["a", "b"]):
        (folder / "dataset.json").write_text(json.dumps(spec | {"regions_class_order": order}))
        with pytest.raises(FolderError, match='"regions_class_order" must give each region an id'):
            read_folder(folder)


def test_one_colour_file_stands_for_all_channels(tmp_path):
    source = write_folder(tmp_path / "images", count=3)
    raw = colour_folder(tmp_path, source, {"0": "R", "1": "G", "2": "B"}, {"background": 0, "x": 1})
    cases = read_folder(raw, 16).cases
    assert [(case.name, case.modality, case.channel, case.fault) for case in cases] == [
        (f"p{i}_0", "R, G, B", None, ("", "")) for i in range(3)
    ]
    image, label = read_pair(cases[0])
    grey = np.asarray(Image.open(raw / "imagesTr" / "p0_0_0000.png"))[..., 0]  # red = green = blue
    np.testing.assert_allclose(image, grey, rtol=1e-5)
    np.testing.assert_array_equal(label, np.asarray(Image.open(raw / "labelsTr" / "p0_0.png")))
    for file in (raw / "imagesTr").iterdir():  # grey: one channel of three
        Image.open(file).convert("L").save(file)
    with pytest.raises(FolderError, match="has no image .add imagesTr/p0_0_0001.png"):
        read_folder(raw)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"0": "background", "1": "organ", "2": "tumour"}, {1: "organ", 2: "tumour"}),  # version 1
        ({"background": "0", "organ": "1", "tumour": ["2"]}, {1: "organ", 2: "tumour"}),
        ({"background": 0, "organ": [1], "tumour": 2.0}, {1: "organ", 2: "tumour"}),
        ({"0": 0, "7": 1, "8": 2}, {1: "7", 2: "8"}),  # version 2, with numbers as names
        (["background", "organ", "tumour"], {1: "organ", 2: "tumour"}),
        ({"background": 0, "organ": 1, "ignore": 2}, {1: "organ"}),
        ({"0": "background", "1": "organ", "2": "ignore"}, {1: "organ"}),
    ],
)
def test_ids_as_people_write_them(tmp_path, monkeypatch, labels, names):
    monkeypatch.setattr("universeg_jax.readers.cases.MAX_WITHOUT_LABEL", 0.2)  # more than of a real volume
    folder = nnunet(tmp_path, channels=("CT",), labels=labels)
    read = read_folder(folder, 16)
    assert read.labels == names
    assert {i for example in make_examples(read.cases[0]) for i in example.labels} == set(names)


def test_a_version_1_dataset_json_with_byte_order_mark(tmp_path):
    folder = nnunet(tmp_path, channels=("CT",))
    spec = {"modality": ["CT"], "labels": {"0": "background", "1": "organ", "2": "tumour"}, "numTraining": 3}
    for encoding in ("utf-8-sig", "utf-16"):
        (folder / "dataset.json").write_text(json.dumps(spec), encoding=encoding)
        (folder / "meta.json").write_text('{"modality": "Thörax"}', encoding=encoding)
        read = read_folder(folder)
        assert (read.labels, read.cases[0].modality) == ({1: "organ", 2: "tumour"}, "Thörax CT")


def test_the_file_ending_chooses_among_files_of_one_name(tmp_path):
    folder = nnunet(tmp_path, channels=("CT",))
    Image.new("L", (4, 4)).save(folder / "labelsTr" / "liver_1.png")  # a preview
    read = read_folder(folder)
    assert [case.fault for case in read.cases] == [("", "")] * 3
    assert read.ignored == ("labelsTr/liver_1.png",)
    spec = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(spec | {"file_ending": ".b2nd"}))
    with pytest.raises(FolderError, match='"file_ending" is .*b2nd.*; read are .png'):
        read_folder(folder)
