"""Cases: which slices of a volume become examples, and which cases are dropped."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from tests.fixtures import block_volume, write_nifti
from tests.readers.test_dicom import series
from universeg_jax.cli import main
from universeg_jax.data.dataset import open_dataset, read_report
from universeg_jax.data.tasks import task_table
from universeg_jax.readers.cases import Case, make_examples, wanted_axes
from universeg_jax.readers.dicom import read_dicom_image
from universeg_jax.readers.errors import FolderError, ImageError
from universeg_jax.readers.folder import read_folder, read_support
from universeg_jax.readers.labels import LabelFile
from universeg_jax.readers.volume_files import read_volume
from universeg_jax.readers.volumes import IN_PLANE


def volume_folder(path, count=4, shape=(24, 20, 16), ids=(1, 2), spacing=(1.0, 1.0, 1.0), **meta):
    for i in range(count):
        image, label = block_volume(shape, ids, seed=i)
        write_nifti(path / "images" / f"p{i}_0.nii.gz", image, spacing)
        write_nifti(path / "labels" / f"p{i}_0.nii.gz", label, spacing)
    (path / "meta.json").write_text(json.dumps(meta))
    return path


def build(folder, data_dir, *more):
    assert (
        main(["build", "--folder", str(folder), "--name", "v", "--data_dir", str(data_dir), "--size", "32", *more]) == 0
    )
    return open_dataset(data_dir, "v")


def test_volumes_become_mid_and_max_slices_of_three_axes(tmp_path):
    dataset = build(volume_folder(tmp_path / "scans", modality="brain MR"), tmp_path / "data")
    tasks = task_table([dataset])
    assert {(t.axis, t.slicing, t.label) for t in tasks if not t.unusable} >= {
        (axis, "max", label) for axis in range(3) for label in (1, 2)
    }
    assert {t.modality for t in tasks} == {"brain MR"}
    for axis in (1, 2):
        (task,) = [t for t in tasks if (t.axis, t.slicing, t.label) == (axis, "mid", 2)]
        assert len(task.rows) == 4
    for row in range(len(dataset)):
        example = dataset[row]
        for mask in example["masks"]:
            inside = example["image"][mask > 0]
            assert inside.size
            assert inside.mean() > 150  # the block is bright, and its mask lies on it


def test_each_example_is_the_slice_of_its_name(tmp_path):
    """Compares with slices cut by hand of a volume that needs no resampling."""
    image = np.zeros((16, 16, 16), np.int16)
    label = np.zeros((16, 16, 16), np.uint8)
    label[2:6, 4:12, 3:9], label[9, 9, 12] = 1, 2
    label[4, 2:14, 5] = 1  # most pixels of label 1: across x in slice 4
    image[:] = np.arange(16)[:, None, None] + 40 * (label > 0)
    write_nifti(tmp_path / "a.nii", image), write_nifti(tmp_path / "b.nii", label)
    case = Case(str(tmp_path / "a.nii"), (LabelFile(str(tmp_path / "b.nii")),), "s", "c", 16, volume=True)
    examples = {(e.axis, e.slicing, e.labels): e for e in make_examples(case)}
    assert {(e.name) for e in examples.values()} == {
        "c/axis0/max4", "c/axis0/max9", "c/axis1/mid8", "c/axis1/max4", "c/axis1/max9", "c/axis2/mid8",
        "c/axis2/max5", "c/axis2/max12",
    }  # fmt: skip
    for (axis, slicing, labels), index in {(0, "max", (1,)): 4, (2, "max", (2,)): 12, (1, "mid", (1,)): 8}.items():
        example = examples[axis, slicing, labels]
        cut = [x.take(index, axis).T[::-1, ::-1] for x in (image, label)]
        np.testing.assert_array_equal(example.masks[0], cut[1] == labels[0])
        np.testing.assert_array_equal(example.image, np.round((cut[0] - image.min()) / np.ptp(image) * 255))


def test_labels_on_one_slice_share_an_example(tmp_path):
    image, label = block_volume((24, 20, 16), (1, 2, 3))
    write_nifti(tmp_path / "a.nii", image), write_nifti(tmp_path / "b.nii", label)
    case = Case(str(tmp_path / "a.nii"), (LabelFile(str(tmp_path / "b.nii")),), "s", "c", 16, volume=True, axes=(2,))
    assert [(e.slicing, e.labels) for e in make_examples(case)] == [("max", (1, 2, 3)), ("mid", (1, 2, 3))]


@pytest.mark.parametrize(
    ("spacing", "shape", "wanted"),
    [
        ((1, 1, 1.9), (8, 8, 8), (0, 1, 2)),
        ((1, 1, 5), (8, 8, 8), (2,)),
        ((5, 1, 1), (8, 8, 8), (0,)),
        ((1, 1, 1), (8, 8, 1), (2,)),
    ],
)
def test_axes_follow_the_voxels(tmp_path, spacing, shape, wanted):
    path = write_nifti(tmp_path / "a.nii", block_volume(shape)[0], spacing)
    assert wanted_axes(Case(str(path), (), "s", "c", 16), read_volume(path)) == wanted
    assert wanted_axes(Case(str(path), (), "s", "c", 16, axes=(1,)), read_volume(path)) == (1,)


def test_acquired_planes_are_one_task_in_any_direction(tmp_path):
    folder = volume_folder(tmp_path / "scans", shape=(24, 20, 8), spacing=(1, 1, 6), axes=["in-plane"])
    image, label = block_volume((24, 20, 8), (1, 2))
    turned = np.array([[0, 0, 6, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)  # slices across x
    for part, data in (("images", image), ("labels", label)):
        nib.save(nib.Nifti1Image(data, turned), folder / part / "p9_0.nii.gz")
    dataset = build(folder, tmp_path / "data")
    assert set(dataset.index.axis.tolist()) == {IN_PLANE}
    assert all(len(t.rows) == 5 for t in task_table([dataset]) if t.slicing == "max")


def test_a_volume_of_one_slice_is_an_image(tmp_path):
    dataset = build(volume_folder(tmp_path / "scans", shape=(24, 20, 1)), tmp_path / "data")
    assert len(dataset) == 4
    assert {t.slicing for t in task_table([dataset])} == {"image"}


@pytest.mark.parametrize(
    ("meta", "inside", "outside"),
    [
        ({"modality": "abdominal CT"}, 600 / 1500, 0.0),
        ({"modality": "abdominal CT", "window": [-100, 100]}, 1.0, 0.0),
        ({"modality": "abdominal CT", "window": "none"}, 1100 / 4000, 0.0),
        ({}, 1100 / 4000, 0.0),
    ],
)
def test_the_window_comes_from_meta_or_the_modality(tmp_path, meta, inside, outside):
    _, label = block_volume((16, 16, 16))
    image = np.where(label, 100, -1000).astype(np.int16)
    image[0, 0, 0] = 3000  # metal, outside the slices of the examples
    write_nifti(tmp_path / "images" / "a.nii", image), write_nifti(tmp_path / "labels" / "a.nii", label)
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "axes": "axial"}))
    (example,) = [e for e in make_examples(read_folder(tmp_path, 16).cases[0]) if e.slicing == "mid"]
    assert set(np.unique(example.image[example.masks[0] > 0])) == {round(inside * 255)}
    assert set(np.unique(example.image[example.masks[0] == 0])) == {round(outside * 255)}


def test_every_kind_of_volume_in_one_folder(tmp_path):
    image, label = block_volume((12, 12, 6))
    write_nifti(tmp_path / "images" / "a.nii", image), write_nifti(tmp_path / "labels" / "a.nii", label)
    for kind in ("nrrd", "mha", "mhd"):
        for part, data in (("images", image), ("labels", label)):
            sitk.WriteImage(sitk.GetImageFromArray(data), tmp_path / part / f"{kind}.{kind}")
    for part, data in (("images", image), ("labels", label)):
        tifffile.imwrite(tmp_path / part / "t.tif", data.T.astype(np.uint16), photometric="minisblack")
    series(tmp_path / "images" / "d")
    scan = read_volume(tmp_path / "images" / "d")
    block = np.zeros(scan.shape, np.uint8)
    block[40:80, 40:80, 1:4] = 1
    nib.save(nib.Nifti1Image(block, scan.affine), tmp_path / "labels" / "d.nii.gz")
    folder = read_folder(tmp_path, 16)
    assert [case.name for case in folder.cases] == ["a", "d", "mha", "mhd", "nrrd", "t"]
    assert folder.ignored == ()  # the .raw of a .mhd is read with it
    axes = {case.name: {e.axis for e in make_examples(case)} for case in folder.cases}
    assert axes == {"a": {0, 1, 2}, "d": {2}, "mha": {0, 1, 2}, "mhd": {0, 1, 2}, "nrrd": {0, 1, 2}, "t": {2}}
    with pytest.raises(FolderError, match="a.nii is a volume; a support set holds images"):
        read_support(tmp_path)


def test_dicom_files_of_one_frame_are_images(tmp_path):
    series(tmp_path / "images", 3)
    series(tmp_path / "zero", 1, PixelData=bytes(2 * 128 * 128))
    (tmp_path / "zero" / "0.dcm").rename(tmp_path / "images" / "3.dcm")
    (tmp_path / "labels").mkdir()
    for i in range(4):
        Image.fromarray(np.eye(128, dtype=np.uint8)).save(tmp_path / "labels" / f"{i}.png")
    first, *_, last = read_folder(tmp_path, 128).cases
    (example,) = make_examples(first)
    assert (example.slicing, example.image.shape) == ("image", (128, 128))
    pixels = read_dicom_image(tmp_path / "images" / "0.dcm")
    np.testing.assert_allclose(example.image, 255 * (pixels - pixels.min()) / np.ptp(pixels), atol=0.51)
    with pytest.raises(ImageError, match="3.dcm: every pixel is the same"):
        make_examples(last)
    (windowed,) = make_examples(replace(first, modality="chest CT"))  # Hounsfield units, unlike a PNG's
    expected = np.clip(pixels, -500, 1000)
    expected = (expected - expected.min()) / np.ptp(expected)
    np.testing.assert_allclose(windowed.image, 255 * expected, atol=0.51)
    (same,) = make_examples(replace(first, window="ct"))
    np.testing.assert_array_equal(same.image, windowed.image)


def test_only_bad_volumes_are_dropped_and_counted(tmp_path, capsys):
    folder = volume_folder(tmp_path / "scans", count=12, shape=(12, 12, 12), labels={"1": "a", "2": "b"})
    image, label = block_volume((12, 12, 12), (1, 2))
    outside = write_nifti(tmp_path / "outside.nii.gz", image)
    damage = {
        "p0_0": ("images", b"", "cannot be read"),
        "p1_0": ("images", np.where(label, np.nan, image).astype(np.float32), "NaN"),
        "p2_0": ("images", np.zeros_like(image), "every voxel is the same"),
        "p3_0": ("labels", label + 0.5, "not class ids"),
        "p4_0": ("labels", label[:-1], "differ in shape"),
        "p5_0": ("labels", np.zeros_like(label), "no class occurs"),
        "p6_0": ("images", None, "link out of its folder"),
        "p7_0": ("labels", label, "different places"),
    }
    for name, (part, what, _) in damage.items():
        path = folder / part / f"{name}.nii.gz"
        path.unlink()
        if what is None:
            path.symlink_to(outside)
        elif isinstance(what, bytes):
            path.write_bytes(what)
        else:
            write_nifti(path, what, (1, 1, 1) if name != "p7_0" else (1, 1, 2))
    dataset = build(folder, tmp_path / "data")
    report = read_report(tmp_path / "data", "v")
    assert sorted(report.dropped) == sorted(damage)
    for name, (*_, problem) in damage.items():
        assert problem in report.dropped[name]
    assert sum(report.dropped_by_problem.values()) == 8
    assert set(dataset.index.subjects) == {"p8", "p9", "p10", "p11"}
    error = capsys.readouterr().err
    assert error.count("dropped 1: ") == 8
    assert str(tmp_path) not in json.dumps(vars(report))


@pytest.mark.shared
@pytest.mark.skipif(
    "UNIVERSEG_SHARED" not in os.environ, reason="UNIVERSEG_SHARED does not name the real data's folder"
)
def test_real_volumes_become_slices_of_three_axes_with_the_head_up(tmp_path):
    """Hippocampi of the Decathlon: whole, in every axis; NRRD files of another project beside them."""
    volumes = Path(os.environ["UNIVERSEG_SHARED"]) / "data" / "volumes"
    for file in sorted((volumes / "msd_hippocampus").glob("*_image.nii.gz")):
        for part, path in (("images", file), ("labels", Path(str(file).replace("_image", "_label")))):
            (tmp_path / "scans" / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "scans" / part / file.name.replace("_image", ""))
    for name in ("brain1", "brain2"):
        for part, kind in (("images", "image"), ("labels", "label")):
            path = volumes / "pyradiomics_nrrd" / "raw" / f"{name}_{kind}.nrrd"
            shutil.copy(path, tmp_path / "scans" / part / f"{name}.nrrd")
    (tmp_path / "scans" / "meta.json").write_text('{"modality": "MR", "subjects": "(.*)"}')
    dataset = build(tmp_path / "scans", tmp_path / "data")
    assert len(dataset.index.subjects) == 26
    report = read_report(tmp_path / "data", "v")
    assert report.dropped == {}
    # Label 2 is the posterior hippocampus: in sagittal slices, with the face to the left, it lies right of label 1.
    found = 0
    for row in range(len(dataset)):
        example = dataset[row]
        if example["axis"] == 0 and example["labels"].tolist() == [1, 2]:
            anterior, posterior = (np.nonzero(mask)[1].mean() for mask in example["masks"])
            found += 1
            assert posterior > anterior
    assert found >= 20


@pytest.mark.shared
@pytest.mark.skipif(
    "UNIVERSEG_SHARED" not in os.environ, reason="UNIVERSEG_SHARED does not name the real data's folder"
)
def test_volumes_of_every_set_at_hand_are_built_and_nothing_is_dropped(tmp_path):
    """Case → (image, label, axes by the size of its voxels)."""
    volumes, whole = Path(os.environ["UNIVERSEG_SHARED"]) / "data" / "volumes", {0, 1, 2}
    cases = {
        "tumour": ("brats2015_flair/*pat0001_1_Flair", "brats2015_flair/*pat0001_1_OTMultiClass", whole),
        "lesions": ("ms_lesions_flair/*_FLAIR", "ms_lesions_flair/*_lesions", whole),
        "cord": ("spinal_cord_mr/unf01_T2w_image", "spinal_cord_mr/unf01_T2w_seg", whole),
        "thick": ("spinal_cord_mr/sct_T2s_image", "spinal_cord_mr/sct_T2s_seg", {2}),
        "breast": ("pyradiomics_nrrd/raw/breast1_image", "pyradiomics_nrrd/raw/breast1_label", {2}),
        "prostate": (
            "pyradiomics_nrrd/raw/prostate_phantom_subvolume",
            "pyradiomics_nrrd/raw/prostate_phantom_subvolume-label",
            {2},
        ),
    }
    for name, (*pair, _) in cases.items():
        for part, pattern in zip(("images", "labels"), pair, strict=True):
            (file,) = volumes.glob(f"{pattern}.n*")
            (tmp_path / "scans" / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path / "scans" / part / f"{name}.{file.name.partition('.')[2]}")
    (tmp_path / "scans" / "meta.json").write_text('{"modality": "MR"}')
    dataset = build(tmp_path / "scans", tmp_path / "data")
    assert read_report(tmp_path / "data", "v").dropped == {}
    examples = [dataset[row] for row in range(len(dataset))]
    found = {name: {int(e["axis"]) for e in examples if e["subject"].decode() == name} for name in cases}
    assert found == {name: axes for name, (*_, axes) in cases.items()}
