"""`universeg complete`: files in, one file out with the grid, type and ids of the labels."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from tests.prediction.test_complete import COUNT, LABELLED, dice, some, tube
from universeg_jax.cli import main
from universeg_jax.prediction.complete_files import read_partial
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.readers.volume_files import read_label_volume

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 2, 0, -10], [0, 0, -3, 5], [0, 0, 0, 1]])  # x and z run backwards


@pytest.fixture(autouse=True)
def _loaded(monkeypatch, predictor):
    monkeypatch.setattr(Predictor, "from_checkpoint", lambda path: predictor)


def write_nifti(folder, slices=LABELLED, dtype=np.int16):
    image, ids = tube(3)
    nib.save(nib.Nifti1Image(image, AFFINE), folder / "scan.nii.gz")
    given = nib.Nifti1Image(some(ids, slices).astype(dtype), AFFINE, dtype=dtype)
    given.header["descrip"] = b"drawn by Anna"
    nib.save(given, folder / "some.nii.gz")
    return ids


def run(folder, *flags, out="full.nii.gz", volume="scan.nii.gz", labels="some.nii.gz"):
    return main(["complete", str(folder / volume), str(folder / labels), "--out", str(folder / out), "--fast", *flags])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_a_nifti_keeps_grid_type_and_labelled_slices(tmp_path, capsys, dtype):
    ids = write_nifti(tmp_path, dtype=dtype)
    assert run(tmp_path) == 0
    full = nib.load(tmp_path / "full.nii.gz")
    np.testing.assert_array_equal(full.affine, AFFINE)
    assert full.get_data_dtype() == dtype
    assert full.header["descrip"].item() == b"drawn by Anna"
    data = np.asarray(full.dataobj)
    np.testing.assert_array_equal(data[..., list(LABELLED)], ids[..., list(LABELLED)])
    assert dice(data == 5, ids == 5) > 0.9
    said = capsys.readouterr().out
    assert "labelled: 3 of 17 axial slices: 0, 8, 16" in said
    assert "14 slices completed" in said


def test_the_network_is_used_without_fast(tmp_path, predictor, monkeypatch):
    write_nifti(tmp_path)
    asked = []
    monkeypatch.setattr(Predictor, "logits", lambda self, *inputs: asked.append(1) or np.zeros(inputs[0].shape))
    arguments = ["complete", str(tmp_path / "scan.nii.gz"), str(tmp_path / "some.nii.gz")]
    assert main([*arguments, "--out", str(tmp_path / "full.nii.gz")]) == 0
    assert len(asked) == 2 * (COUNT - len(LABELLED)) + 2  # of each label one slice to choose on


def test_slices_are_numbered_as_in_the_file(tmp_path, capsys):
    ids = write_nifti(tmp_path, slices=(1, 5, 9))
    assert run(tmp_path, "--slices", "1,9,13") == 0  # 5 is not one, and 13 is empty
    said = capsys.readouterr().out
    assert "labelled: 3 of 17 axial slices: 1, 9, 13" in said
    assert "replaced, since not among the labelled slices: the labels of axial 5" in said
    data = np.asarray(nib.load(tmp_path / "full.nii.gz").dataobj)
    assert not data[..., 13].any()
    np.testing.assert_array_equal(data[..., 9], ids[..., 9])
    assert data[..., 5].any()


def test_a_step_beyond_the_last_label_is_named(tmp_path, capsys):
    write_nifti(tmp_path, slices=(5, 8, 11))
    assert run(tmp_path) == 0
    assert "taken as empty, a step beyond the last label: axial 2, 14" in capsys.readouterr().out


def test_ignored_voxels_say_what_is_labelled(tmp_path):
    ids = write_nifti(tmp_path)
    given = np.full(ids.shape, 255, np.uint8)
    given[..., [0, 8, 16]] = ids[..., [0, 8, 16]]
    given[..., 4] = 0
    nib.save(nib.Nifti1Image(given, AFFINE), tmp_path / "some.nii.gz")
    assert run(tmp_path, "--ignore", "255") == 0
    data = np.asarray(nib.load(tmp_path / "full.nii.gz").dataobj)
    assert data.max() == 5
    assert not data[..., 4].any()
    assert data[..., 12].any()


def test_an_nrrd_stays_one(tmp_path):
    image, ids = tube(3)
    for name, data in (("scan.nrrd", image), ("some.nrrd", some(ids).astype(np.uint16))):
        written = sitk.GetImageFromArray(data.T)
        written.SetSpacing((0.5, 0.5, 2.0))
        written.SetOrigin((3, 4, 5))
        sitk.WriteImage(written, tmp_path / name)
    assert run(tmp_path, volume="scan.nrrd", labels="some.nrrd", out="full.nrrd") == 0
    full = sitk.ReadImage(tmp_path / "full.nrrd")
    assert full.GetSpacing() == (0.5, 0.5, 2.0)
    assert full.GetOrigin() == (3, 4, 5)
    assert full.GetPixelID() == sitk.sitkUInt16
    np.testing.assert_array_equal(sitk.GetArrayFromImage(full).T[..., 8], ids[..., 8])


def test_a_stack_of_images_stays_one(tmp_path):
    image, ids = tube(3)
    tifffile.imwrite(tmp_path / "frames.tif", np.round(200 * image.T).clip(0, 255).astype(np.uint8))
    tifffile.imwrite(tmp_path / "some.tif", some(ids).T.astype(np.uint8))
    assert run(tmp_path, volume="frames.tif", labels="some.tif", out="full.tif") == 0
    full = tifffile.imread(tmp_path / "full.tif")
    assert (full.shape, full.dtype) == (ids.T.shape, np.uint8)
    np.testing.assert_array_equal(full[[0, 8, 16]], ids.T[[0, 8, 16]])
    assert dice(full == 5, ids.T == 5) > 0.9
    assert read_label_volume(tmp_path / "full.tif").shape == ids.shape


def test_what_must_not_be_written_is_refused_before_any_work(tmp_path, capsys):
    write_nifti(tmp_path)
    before = (tmp_path / "some.nii.gz").read_bytes()
    for out, message in (
        ("some.nii.gz", "would overwrite an input"),
        ("full.tif", "so end it with .nii.gz"),
        ("old.nii.gz", "exists; give another --out, or --overwrite"),
    ):
        (tmp_path / "old.nii.gz").write_bytes(b"old")
        assert run(tmp_path, out=out) == 1
        assert message in capsys.readouterr().err
    assert (tmp_path / "some.nii.gz").read_bytes() == before
    assert run(tmp_path, "--overwrite", out="old.nii.gz") == 0


def test_errors_name_the_file_and_the_remedy(tmp_path, capsys):
    ids = write_nifti(tmp_path, slices=())
    assert run(tmp_path) == 1
    assert "some.nii.gz: no voxel is labelled: label the structures in at least one slice" in capsys.readouterr().err
    nib.save(nib.Nifti1Image(some(ids)[:-1].astype(np.uint8), AFFINE), tmp_path / "some.nii.gz")
    assert run(tmp_path) == 1
    assert "image and label differ in shape" in capsys.readouterr().err
    write_nifti(tmp_path)
    assert run(tmp_path, "--slices", "0,17", "--axis", "axial") == 1
    assert "slice 17 does not exist: the axial slices are 0 to 16" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path, "--slices", "a")
    assert "use numbers such as 0,8,16" in capsys.readouterr().err


def test_a_file_is_understood_without_a_model(tmp_path):
    write_nifti(tmp_path)
    partial = read_partial(tmp_path / "scan.nii.gz", tmp_path / "some.nii.gz")
    assert partial.labelled[0].slices == LABELLED
    assert partial.dtype == np.int16


def test_other_cases_fill_up_the_support(tmp_path, monkeypatch, capsys):
    ids = write_nifti(tmp_path)
    for name in ("images", "labels"):
        (tmp_path / "cases" / name).mkdir(parents=True)
    nib.save(nib.load(tmp_path / "scan.nii.gz"), tmp_path / "cases" / "images" / "b.nii.gz")
    nib.save(nib.Nifti1Image(ids.astype(np.uint8), AFFINE), tmp_path / "cases" / "labels" / "b.nii.gz")
    present = []
    monkeypatch.setattr(Predictor, "logits", lambda self, *inputs: present.append(inputs[3]) or 0 * inputs[0])
    arguments = ["complete", str(tmp_path / "scan.nii.gz"), str(tmp_path / "some.nii.gz"), "--support_size", "6"]
    arguments += ["--out", str(tmp_path / "full.nii.gz"), "--overwrite"]
    assert main(arguments) == 0
    assert present[-1].sum() == 3
    assert main([*arguments, "--support", str(tmp_path / "cases")]) == 0
    assert present[-1].sum() == 6
    in_part = ids.astype(np.uint8)
    in_part[: len(ids) // 2] = 255
    nib.save(nib.Nifti1Image(in_part, AFFINE), tmp_path / "cases" / "labels" / "b.nii.gz")
    known = []
    monkeypatch.setattr(Predictor, "logits", lambda self, *inputs: known.append(inputs[4]) or 0 * inputs[0])
    assert main([*arguments, "--support", str(tmp_path / "cases"), "--ignore", "255", "--slices", "0,8,16"]) == 0
    assert (known[-1][:, :3] == 1).all()  # slices of the volume itself
    assert all(0 < each.mean() < 1 for each in known[-1][0, 3:])
    nib.save(nib.Nifti1Image((ids == 2).astype(np.uint8), AFFINE), tmp_path / "cases" / "labels" / "b.nii.gz")
    capsys.readouterr()
    assert main([*arguments, "--support", str(tmp_path / "cases")]) == 1
    assert "its ids are [1], those to complete [2, 5]: use the same ids in both" in capsys.readouterr().err
