"""Public datasets: each is read from synthetic files in the layout that its publisher documents."""

import gzip
import io
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from tests.fixtures import block_volume, disc
from tests.readers.test_dicom import series
from universeg_jax.cli import main
from universeg_jax.data.build import BuildOptions, Target, build_contents
from universeg_jax.data.dataset import open_dataset
from universeg_jax.data.source import (
    FilePattern,
    SourceError,
    _matches,
    all_sources,
    find_sources,
    read_source,
    source_line,
)
from universeg_jax.data.tasks import task_table
from universeg_jax.readers.dicom import read_label_stack

SHAPE = (14, 12, 8)
IDRID = "A. Segmentation"
SCD = "Sunnybrook Cardiac MR Database ContoursPart3/TrainingDataContours/SC-HF-I-01/contours-manual/IRCCI-expert"

# name → (image, {label file: its values}, {subject: …}): as documented, written out by hand. "@" is one of three cases.
LAYOUTS = {
    "acdc": ("ACDC/database/training/patient00@/patient00@_frame01.nii.gz",
             {"ACDC/database/training/patient00@/patient00@_frame01_gt.nii.gz": (1, 2, 3)}, "patient00@"),
    "amos_ct": ("amos22/imagesTr/amos_000@.nii.gz", {"amos22/labelsTr/amos_000@.nii.gz": (1, 6, 15)}, "amos_000@"),
    "amos_mr": ("amos22/imagesTr/amos_050@.nii.gz", {"amos22/labelsTr/amos_050@.nii.gz": (1, 6)}, "amos_050@"),
    "bbbc038": ("stage1_train/a@/images/a@.png",
                {"stage1_train/a@/masks/b@.png": (255,), "stage1_train/a@/masks/c@.png": (255,)}, "a@"),
    "brats": ("HGG/BraTS_00@/BraTS_00@_flair.nii.gz", {"HGG/BraTS_00@/BraTS_00@_seg.nii.gz": (1, 2, 4)}, "BraTS_00@"),
    "btcv": ("RawData/Training/img/img000@.nii.gz", {"RawData/Training/label/label000@.nii.gz": (1, 13)}, "000@"),
    "busi": ("Dataset_BUSI_with_GT/benign/benign (@).png",
             {"Dataset_BUSI_with_GT/benign/benign (@)_mask.png": (255,),
              "Dataset_BUSI_with_GT/benign/benign (@)_mask_1.png": (255,)}, "benign (@)"),
    "camus": ("database_nifti/patient000@/patient000@_2CH_ED.nii.gz",
              {"database_nifti/patient000@/patient000@_2CH_ED_gt.nii.gz": (1, 2, 3)}, "patient000@"),
    "chaos_ct": ("Train_Sets/CT/@/DICOM_anon/", {"Train_Sets/CT/@/Ground/": (255,)}, "@"),
    "chaos_mr": ("Train_Sets/MR/@/T2SPIR/DICOM_anon/", {"Train_Sets/MR/@/T2SPIR/Ground/": (63, 126, 189, 252)}, "@"),
    "drive": ("DRIVE/training/images/2@_training.tif", {"DRIVE/training/1st_manual/2@_manual1.gif": (255,)}, "2@"),
    "feta": ("feta_2.1/sub-00@/anat/sub-00@_rec-mial_T2w.nii.gz",
             {"feta_2.1/sub-00@/anat/sub-00@_rec-mial_dseg.nii.gz": (1, 7)}, "sub-00@"),
    "idrid": (f"{IDRID}/1. Original Images/a. Training Set/IDRiD_0@.jpg",
              {f"{IDRID}/2. All Segmentation Groundtruths/a. Training Set/1. Microaneurysms/IDRiD_0@_MA.tif": (1,),
               f"{IDRID}/2. All Segmentation Groundtruths/a. Training Set/5. Optic Disc/IDRiD_0@_OD.tif": (1,)},
              "IDRiD_0@"),
    "isles": ("ISLES-2022/sub-strokecase000@/ses-0001/dwi/sub-strokecase000@_ses-0001_dwi.nii.gz",
              {"ISLES-2022/derivatives/sub-strokecase000@/ses-0001/sub-strokecase000@_ses-0001_msk.nii.gz": (1,)},
              "sub-strokecase000@"),
    "kits19": ("kits19/data/case_0000@/imaging.nii.gz", {"kits19/data/case_0000@/segmentation.nii.gz": (1, 2)},
               "case_0000@"),
    "lits": ("Training Batch 1/volume-@.nii", {"Training Batch 1/segmentation-@.nii": (1, 2)}, "@"),
    "msd_brain_tumour": ("Task01_BrainTumour/imagesTr/BRATS_00@.nii.gz",
                         {"Task01_BrainTumour/labelsTr/BRATS_00@.nii.gz": (1, 2, 3)}, "BRATS_00@"),
    "msd_heart": ("Task02_Heart/imagesTr/la_00@.nii.gz", {"Task02_Heart/labelsTr/la_00@.nii.gz": (1,)}, "la_00@"),
    "msd_liver": ("Task03_Liver/imagesTr/liver_@.nii.gz", {"Task03_Liver/labelsTr/liver_@.nii.gz": (1, 2)}, "@"),
    "msd_hippocampus": ("Task04_Hippocampus/imagesTr/hippocampus_00@.nii.gz",
                        {"Task04_Hippocampus/labelsTr/hippocampus_00@.nii.gz": (1, 2)}, "hippocampus_00@"),
    "msd_prostate": ("Task05_Prostate/imagesTr/prostate_0@.nii.gz",
                     {"Task05_Prostate/labelsTr/prostate_0@.nii.gz": (1, 2)}, "prostate_0@"),
    "msd_lung": ("Task06_Lung/imagesTr/lung_00@.nii.gz", {"Task06_Lung/labelsTr/lung_00@.nii.gz": (1,)}, "lung_00@"),
    "msd_pancreas": ("Task07_Pancreas/imagesTr/pancreas_00@.nii.gz",
                     {"Task07_Pancreas/labelsTr/pancreas_00@.nii.gz": (1, 2)}, "pancreas_00@"),
    "msd_hepatic_vessel": ("Task08_HepaticVessel/imagesTr/hepaticvessel_00@.nii.gz",
                           {"Task08_HepaticVessel/labelsTr/hepaticvessel_00@.nii.gz": (1, 2)}, "hepaticvessel_00@"),
    "msd_spleen": ("Task09_Spleen/imagesTr/spleen_@.nii.gz", {"Task09_Spleen/labelsTr/spleen_@.nii.gz": (1,)},
                   "spleen_@"),
    "msd_colon": ("Task10_Colon/imagesTr/colon_00@.nii.gz", {"Task10_Colon/labelsTr/colon_00@.nii.gz": (1,)},
                  "colon_00@"),
    "oasis": ("OASIS_OAS1_000@_MR1/aligned_norm.nii.gz", {"OASIS_OAS1_000@_MR1/aligned_seg4.nii.gz": (1, 2, 3, 4)},
              "000@"),
    "pandental": ("Images/@.png", {"Segmentation1/@.png": (255,)}, "@"),
    "promise12": ("TrainingData_Part1/Case0@.mhd", {"TrainingData_Part1/Case0@_segmentation.mhd": (1,)}, "Case0@"),
    "scd": ("challenge_training/SC-HF-I-1/IM-0004-004@.dcm",
            {f"{SCD}/IM-0001-004@-icontour-manual.txt": (1,),
             f"{SCD}/IM-0001-004@-ocontour-manual.txt": (1,)}, "SC-HF-I-1"),
    "spineweb": ("Img_0@.nii", {"Img_0@_Labels.nii": (1,)}, "Img_0@"),
    "stare": ("stare-images/im000@.ppm.gz", {"labels-ah/im000@.ah.ppm.gz": (255,)}, "im000@"),
    "totalsegmentator": ("Totalsegmentator_dataset_v201/s000@/ct.nii.gz",
                         {"Totalsegmentator_dataset_v201/s000@/segmentations/spleen.nii.gz": (1,),
                          "Totalsegmentator_dataset_v201/s000@/segmentations/costal_cartilages.nii.gz": (1,)}, "s000@"),
    "wbc_cellavision": ("segmentation_WBC-master/Dataset 2/00@.bmp",
                        {"segmentation_WBC-master/Dataset 2/00@.png": (128, 255)}, "00@"),
    "wbc_jtsc": ("segmentation_WBC-master/Dataset 1/00@.bmp",
                 {"segmentation_WBC-master/Dataset 1/00@.png": (128, 255)}, "00@"),
    "wmh": ("training/Amsterdam/GE3T/10@/pre/FLAIR.nii.gz", {"training/Amsterdam/GE3T/10@/wmh.nii.gz": (1, 2)}, "10@"),
}  # fmt: skip
EXPECTED_IDS = {  # labels that the fixture holds, where they are not its values
    "bbbc038": {1}, "busi": {1}, "chaos_ct": {1}, "chaos_mr": {1, 2, 3, 4}, "drive": {1}, "idrid": {1, 5},
    "pandental": {1}, "scd": {1, 2}, "stare": {1}, "totalsegmentator": {1, 117}, "wbc_cellavision": {1, 2},
    "wbc_jtsc": {1, 2}, "wmh": {1},
}  # fmt: skip
CHANNELS = {"msd_brain_tumour": 4, "msd_prostate": 2}


def write(path: Path, data: np.ndarray, spacing=(1.0, 1.0, 1.0)) -> None:
    """Writes an image or volume in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(data, np.diag([*spacing, 1.0])), path)
    elif path.suffix == ".mhd":
        sitk.WriteImage(sitk.GetImageFromArray(data.T.copy()), path)
    elif path.suffix == ".txt":
        path.write_text("".join(f"{x:.2f} {y:.2f}\n" for x, y in data))
    elif path.name.endswith(".ppm.gz"):
        buffer = io.BytesIO()
        Image.fromarray(data.astype(np.uint8)).convert("RGB").save(buffer, "PPM")
        path.write_bytes(gzip.compress(buffer.getvalue()))
    else:
        Image.fromarray(data.astype(np.uint8)).save(path)


def circle(radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 30)
    return np.stack([64 + radius * np.cos(angles), 60 + radius * np.sin(angles)], 1)


def make_layout(name: str, root: Path) -> None:
    image_path, labels, _ = LAYOUTS[name]
    values = tuple(v for each in labels.values() for v in each)
    for case in "123":
        image, label = block_volume(SHAPE, tuple(range(1, len(values) + 1)), seed=int(case))
        flat = np.stack([disc(40, (20, 8 + 24 * k), 6) for k in range(len(values))]) if len(values) < 3 else None
        target = root / image_path.replace("@", case)
        first = 0
        if image_path.endswith("/"):
            target.parent.mkdir(parents=True)
            series(target)
        elif name == "scd":
            target.parent.mkdir(parents=True, exist_ok=True)
            series(target.parent / f"s{case}", 1)
            (target.parent / f"s{case}" / "0.dcm").rename(target)
        elif target.suffix in (".png", ".bmp", ".jpg", ".tif") or name == "stare":
            pixels = 30 * np.random.default_rng(int(case)).random((40, 40)) + 150 * flat.any(0)
            write(target, pixels)
        elif name in CHANNELS:
            write(target, np.stack([image + k for k in range(CHANNELS[name])], -1))
        else:
            write(target, image if name != "camus" else image[..., :1])
        for path, of_file in labels.items():
            path = root / path.replace("@", case)
            if path.suffix == ".txt":
                write(path, circle(20 if "icontour" in path.name else 30))
            elif image_path.endswith("/"):
                path.mkdir(parents=True)
                for k in range(5):  # the n-th label is of the n-th file, which is not the n-th slice
                    mask = np.zeros((128, 128))
                    for n, value in enumerate(of_file):
                        mask[10 + 25 * n : 30 + 25 * n, 40:80] = value * (k in (0, 2))
                    write(path / f"IMG-{k:03d}.png", mask)
            elif flat is not None and path.name.endswith((".png", ".tif", ".gif", ".ppm.gz")):
                write(path, sum(value * flat[first + n] for n, value in enumerate(of_file)))
            else:
                mask = sum(value * (label == first + n + 1) for n, value in enumerate(of_file)).astype(np.uint8)
                write(path, mask if name != "camus" else mask[..., :1])
            first += len(of_file)


def test_the_table_of_layouts_has_every_source():
    assert set(LAYOUTS) == set(all_sources())
    assert len({source.modality for source in all_sources().values()}) >= 8


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_source_is_built_from_its_layout(tmp_path, monkeypatch, name):
    if name == "wmh":  # half of the few voxels here are the pathology that is ignored
        monkeypatch.setattr("universeg_jax.readers.cases.MAX_WITHOUT_LABEL", 1.0)
    make_layout(name, tmp_path / "files")
    (tmp_path / "files" / "__MACOSX").mkdir()
    (tmp_path / "files" / "README.txt").write_text("as published")
    (source,) = find_sources(name)
    contents = read_source(source, tmp_path / "files", 16)
    modalities = CHANNELS.get(name, 1)
    assert len(contents.cases) == 3 * modalities
    expected = {LAYOUTS[name][2].replace("@", case) for case in "123"}
    assert {case.subject for case in contents.cases} == expected
    report, _ = build_contents(contents, Target(name, "test", source.source_group), BuildOptions(tmp_path / "data", 16))
    assert report.dropped == {}
    dataset = open_dataset(tmp_path / "data", name)
    ids = {v for values in LAYOUTS[name][1].values() for v in values}
    assert set(dataset.index.mask_label.tolist()) == EXPECTED_IDS.get(name, ids)
    assert dataset.meta.labels == source.labels
    assert len(dataset.index.modalities) == modalities
    axes = {task.axis for task in task_table([dataset])}
    if source.axes:
        assert axes == set(source.axes)
    for row in range(len(dataset)):
        example = dataset[row]
        if "chaos" not in name and name != "scd":  # their images come from a scanner
            for mask in example["masks"]:
                assert example["image"][mask > 0].mean() > example["image"][mask == 0].mean()


def test_both_layouts_of_isles_are_read(tmp_path):
    make_layout("isles", tmp_path)
    old = tmp_path / "ISLES-2022" / "sub-strokecase0002" / "ses-0001" / "dwi"
    new = tmp_path / "ISLES-2022" / "rawdata" / "sub-strokecase0002" / "ses-0001"
    new.parent.mkdir(parents=True)
    old.rename(new)
    cases = read_source(find_sources("isles")[0], tmp_path, 16).cases
    assert {case.subject[-1] for case in cases} == {"1", "2", "3"}
    assert len(cases) == 3


def test_labels_of_a_series_belong_to_its_files_not_its_slices(tmp_path):
    make_layout("chaos_ct", tmp_path)
    case = read_source(find_sources("chaos_ct")[0], tmp_path, 32).cases[0]
    label = read_label_stack(case.labels[0].path, case.image)
    # series() puts file i at slice 3 i mod 5: the files 0 and 2, which have labels, are the slices 0 and 1.
    assert np.flatnonzero((label.data > 0).any((0, 1))).tolist() == [0, 1]
    (Path(case.labels[0].path) / "IMG-004.png").unlink()
    with pytest.raises(ValueError, match="not one label for each slice .4 labels, 5 slices"):
        read_label_stack(case.labels[0].path, case.image)


def test_overlapping_lesions_keep_all_their_pixels(tmp_path):
    make_layout("idrid", tmp_path)
    for path in tmp_path.rglob("*_OD.tif"):
        write(path, np.ones((40, 40)))
    source = find_sources("idrid")[0]
    build_contents(read_source(source, tmp_path, 40), Target("idrid", "test"), BuildOptions(tmp_path / "data", 40))
    masks = open_dataset(tmp_path / "data", "idrid")[0]["masks"]
    assert masks[1].all()
    assert 0 < masks[0].sum() < 1600


def test_sources_of_the_same_patients_split_them_alike():
    sources = all_sources()
    assert sources["lits"].source_group == sources["msd_liver"].source_group != ""
    assert sources["brats"].source_group == sources["msd_brain_tumour"].source_group != ""
    verified = {"wbc_jtsc", "wbc_cellavision", "bbbc038", "msd_hippocampus", "drive"}
    assert {s.name for s in sources.values() if s.verified} == verified


def test_missing_and_duplicated_files_are_named(tmp_path):
    source = find_sources("lits")[0]
    with pytest.raises(SourceError, match="no source 'litz'; .*--list"):
        find_sources("litz")
    with pytest.raises(SourceError, match="nowhere is no folder"):
        read_source(source, tmp_path / "nowhere", 16)
    with pytest.raises(SourceError, match=r"has no files of lits: volume-.* see https"):
        read_source(source, tmp_path, 16)
    make_layout("lits", tmp_path / "a")
    for file in (tmp_path / "a").rglob("segmentation-2.nii"):
        file.unlink()
    assert read_source(source, tmp_path, 16).ignored == ("a/Training Batch 1/volume-2.nii (has no label)",)
    make_layout("lits", tmp_path / "b")
    with pytest.raises(SourceError, match="holds lits twice, volume-1 among others"):
        read_source(source, tmp_path, 16)


def test_a_value_without_a_class_drops_the_case(tmp_path):
    make_layout("wbc_jtsc", tmp_path)
    (path,) = tmp_path.rglob("001.png")
    write(path, np.full((40, 40), 77))
    source = find_sources("wbc_jtsc")[0]
    report, _ = build_contents(
        read_source(source, tmp_path, 16), Target("w", "test"), BuildOptions(tmp_path / "data", 16)
    )
    assert report.dropped == {"Dataset 1/001": "holds values that mean no class ([77])"}


def test_the_command_lists_and_builds_sources(tmp_path, capsys):
    assert main(["build", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(all_sources()) >= 22
    assert all(re.match(r"\S+ +(un)?verified +\S", line) for line in lines)
    for name in ("wbc_jtsc", "wbc_cellavision"):
        make_layout(name, tmp_path / "files")
    where = ["--path", str(tmp_path / "files"), "--data_dir", str(tmp_path / "data"), "--size", "16"]
    assert main(["build", "--source", "wbc", *where]) == 0
    assert {"wbc_jtsc", "wbc_cellavision"} == {path.name for path in (tmp_path / "data").iterdir()}
    assert main(["build", "--source", "wbc_jtsc", "--name", "mine", "--role", "val", *where]) == 0
    assert open_dataset(tmp_path / "data", "mine").meta.role == "val"
    assert main(["build", "--source", "wbc_jtsc", "--name", "ours", "--source_group", "clinic", *where]) == 0
    assert open_dataset(tmp_path / "data", "ours").meta.source_group == "clinic"
    capsys.readouterr()
    for arguments, word in (
        (["--source", "wbc", "--name", "x", *where], "wbc is wbc_cellavision, wbc_jtsc; choose one"),
        (["--source", "wbc_jtsc", "--role", "train_open", *where], "its licence (GPL-3.0) does not let"),
        (["--source", "acdc", "--data_dir", str(tmp_path)], "get them at https://humanheart"),
        (["--collection", "x", "--source_group", "y"], "stand in its splits.json"),
        (["--folder", "x", "--path", "y"], "--path y goes with --source"),
    ):
        assert main(["build", *arguments]) == 1
        error = capsys.readouterr().err
        assert word in error
        assert error.count("\n") == 1


def test_the_names_of_a_pattern_hold_their_matches():
    files = {"": ["a/"], "a/": ["x-1.png", "x-2.png", "y.png"]}
    assert [(path, f["n"]) for path, f in _matches("x-{n:\\d+}.png", files)] == [("a/x-1.png", "1"), ("a/x-2.png", "2")]
    assert list(_matches("x-{n}.{n}", files)) == []
    line = source_line(replace(find_sources("lits")[0], patterns=(FilePattern("a", "b"),)))
    assert line.startswith("lits ")
    assert "\n" not in line


@pytest.mark.shared
@pytest.mark.skipif(
    "UNIVERSEG_SHARED" not in os.environ, reason="UNIVERSEG_SHARED does not name the real data's folder"
)
@pytest.mark.parametrize(("name", "cases"), [("wbc_jtsc", 40), ("wbc_cellavision", 20), ("bbbc038", 8)])
def test_verified_sources_are_built_from_their_publishers_files(tmp_path, name, cases):
    source = find_sources(name)[0]
    contents = read_source(source, Path(os.environ["UNIVERSEG_SHARED"]) / "data" / "original", 64)
    report, _ = build_contents(contents, Target(name, "test"), BuildOptions(tmp_path, 64))
    assert (report.examples, report.dropped, report.labels_never_seen) == (cases, {}, {})
    assert source.verified
    assert all(not task.unusable for task in task_table([open_dataset(tmp_path, name)]))


@pytest.mark.shared
@pytest.mark.skipif(
    "UNIVERSEG_SHARED" not in os.environ, reason="UNIVERSEG_SHARED does not name the real data's folder"
)
def test_the_decathlons_hippocampi_are_built_in_all_three_axes(tmp_path):
    """The shared volumes are renamed as in the archive."""
    for file in (Path(os.environ["UNIVERSEG_SHARED"]) / "data" / "volumes" / "msd_hippocampus").iterdir():
        name, _, kind = file.name.removesuffix(".nii.gz").rpartition("_")
        target = tmp_path / "Task04_Hippocampus" / f"{kind}sTr" / f"{name}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    source = find_sources("msd_hippocampus")[0]
    contents = read_source(source, tmp_path, 64)
    report, _ = build_contents(contents, Target(source.name, "train_open"), BuildOptions(tmp_path / "data", 64))
    assert source.verified
    assert (report.subjects, report.dropped, report.labels_never_seen) == (24, {}, {})
    tasks = task_table([open_dataset(tmp_path / "data", source.name)])
    assert {(t.axis, t.slicing, t.label) for t in tasks if not t.unusable} >= {
        (axis, "max", label) for axis in range(3) for label in (1, 2)
    }
