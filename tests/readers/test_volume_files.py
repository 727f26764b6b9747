"""Volumes from files of every kind, and refused files."""

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from tests.readers.test_dicom import series
from universeg_jax.readers import checks, notes
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.volume_files import (
    is_volume,
    mask_extension,
    read_label_volume,
    read_volume,
    voxels_of,
    write_like,
)

DATA = np.random.default_rng(0).integers(-1000, 2000, (7, 6, 5)).astype(np.int16)
AFFINE = np.array([[0, 0, 2.5, -30], [-0.8, 0, 0, 40], [0, -1.2, 0, 10], [0, 0, 0, 1]], float)


def nifti(path, data=DATA, affine=AFFINE):
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_nifti(tmp_path, name):
    volume = read_volume(nifti(tmp_path / name))
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.file_data(), DATA)
    np.testing.assert_allclose(volume.file_affine(), AFFINE, atol=1e-5)


@pytest.mark.parametrize("kind", ["nrrd", "mha"])
def test_itk_files_have_the_same_position_as_nifti(tmp_path, kind):
    """SimpleITK writes one image in its LPS and as NIfTI: read back, both are one volume."""
    image = sitk.GetImageFromArray(DATA)
    image.SetSpacing((0.7, 1.3, 2.5))
    image.SetOrigin((10, -20, 30))
    turn = np.linalg.qr(np.array([[0.1, 1, 0], [1, 0, 0.05], [0, 0.02, -1]]))[0]
    image.SetDirection(turn.ravel() * np.sign(np.linalg.det(turn)))
    for name in (f"a.{kind}", "a.nii"):
        sitk.WriteImage(image, tmp_path / name)
    volume, expected = read_volume(tmp_path / f"a.{kind}"), read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.data, expected.data)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4)
    np.testing.assert_array_equal(volume.file_data(), DATA.T)


def test_one_of_several_channels_is_read(tmp_path):
    nifti(tmp_path / "a.nii", np.stack([DATA, 2 * DATA], -1))
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([DATA, 2 * DATA], -1), isVector=True), tmp_path / "a.nrrd")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii", channel=1).file_data(), 2 * DATA)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nrrd", channel=1).file_data(), 2 * DATA.T)
    for name in ("a.nii", "a.nrrd"):
        for channel in (None, 2, -1):
            with pytest.raises(ImageError, match="several channels or times .2"):
                read_volume(tmp_path / name, channel)
    nifti(tmp_path / "one.nii", DATA[..., None])
    assert read_volume(tmp_path / "one.nii").shape == read_volume(tmp_path / "one.nii", 0).shape


def test_pages_of_a_tiff_are_slices_in_their_order(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DATA.astype(np.uint16), photometric="minisblack")
    volume = read_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume.data[::-1, ::-1].transpose(2, 1, 0), DATA.astype(np.uint16))
    assert volume.spacing == (1, 1, 1)
    assert is_volume(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "one.tif", DATA[0])
    assert not is_volume(tmp_path / "one.tif")
    with tifffile.TiffWriter(tmp_path / "odd.tif") as writer:
        writer.write(DATA[0])
        writer.write(DATA[0, :3])
    with pytest.raises(ImageError, match="pages differ in size"):
        read_volume(tmp_path / "odd.tif")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_mask_is_written_on_the_grid_of_its_image(tmp_path, ending):
    """Anisotropic, flipped and oblique; the header differs from the image's only in the data type."""
    source, target = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    nifti(tmp_path / "a.nii.gz")
    if ending in (".nrrd", ".mha"):
        sitk.WriteImage(sitk.ReadImage(tmp_path / "a.nii.gz"), source)
    elif ending == ".nii":
        image = nib.load(tmp_path / "a.nii.gz")
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = b"of a scanner"
        image.set_qform(AFFINE, 1)
        image.set_sform(AFFINE, 2)
        nib.save(image, source)
    volume = read_volume(source)
    write_like(target, (volume.data > 0).astype(np.uint8), source, volume)
    again = read_label_volume(target)
    np.testing.assert_array_equal(again.data, volume.data > 0)
    np.testing.assert_array_equal(again.affine, volume.affine)
    if ending in (".nrrd", ".mha"):
        first, second = sitk.ReadImage(source), sitk.ReadImage(target)
        assert first.GetDirection() == second.GetDirection()
        assert (first.GetOrigin(), first.GetSpacing()) == (second.GetOrigin(), second.GetSpacing())
        assert second.GetPixelIDTypeAsString() == "8-bit unsigned integer"
    else:
        first, second = nib.load(source), nib.load(target)
        assert second.get_data_dtype() == np.uint8
        for field in (
            "qform_code",
            "sform_code",
            "pixdim",
            "xyzt_units",
            "descrip",
            "srow_x",
            "quatern_b",
            "qoffset_x",
        ):
            np.testing.assert_array_equal(first.header[field], second.header[field], err_msg=field)


@pytest.mark.parametrize("kind", ["tiff", "dicom"])
def test_the_mask_of_a_tiff_or_a_series_is_nifti_with_its_affine(tmp_path, kind):
    if kind == "tiff":
        source = tmp_path / "a.tif"
        tifffile.imwrite(source, DATA.astype(np.uint16), photometric="minisblack")
    else:
        pytest.importorskip("pydicom")
        source = series(tmp_path / "a", ImageOrientationPatient=[0.96, 0.28, 0, -0.28, 0.96, 0])
    volume = read_volume(source)
    target = tmp_path / f"b{mask_extension(source)}"
    assert target.name == "b.nii.gz"
    write_like(target, (volume.data > volume.data.mean()).astype(np.uint8), source, volume)
    np.testing.assert_allclose(nib.load(target).affine, volume.file_affine(), atol=1e-4)
    again = read_label_volume(target)
    np.testing.assert_array_equal(again.data, volume.data > volume.data.mean())
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-4)


def test_the_mask_of_a_mhd_is_one_mha_file(tmp_path):
    nifti(tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.ReadImage(tmp_path / "a.nii.gz"), tmp_path / "a.mhd")
    volume = read_volume(tmp_path / "a.mhd")
    assert mask_extension("a.mhd") == ".mha"
    write_like(tmp_path / "b.mha", (volume.data > 0).astype(np.uint8), tmp_path / "a.mhd", volume)
    again = read_label_volume(tmp_path / "b.mha")
    np.testing.assert_array_equal(again.data, volume.data > 0)
    np.testing.assert_allclose(again.affine, volume.affine)


def test_labels_are_whole_numbers(tmp_path):
    ids = np.abs(DATA).astype(np.float32)
    label = read_label_volume(nifti(tmp_path / "a.nii", ids))
    assert label.data.dtype == np.int32
    np.testing.assert_array_equal(label.file_data(), ids)
    for wrong in (ids + 0.5, ids - 5000, np.where(ids > 10, np.nan, ids)):
        with pytest.raises(ImageError, match="not class ids"):
            read_label_volume(nifti(tmp_path / "b.nii", wrong))


def test_every_bad_file_raises_an_image_error_with_its_name(tmp_path, monkeypatch):
    whole = nifti(tmp_path / "whole.nii.gz").read_bytes()
    plain = gzip.decompress(whole)
    (tmp_path / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "short.nii").write_bytes(plain[:500])
    (tmp_path / "empty.nii").write_bytes(b"")
    (tmp_path / "text.nrrd").write_text("no volume")
    (tmp_path / "text.mha").write_text("no volume")
    (tmp_path / "notes.txt").write_text("no volume")
    (tmp_path / "folder").mkdir()
    header = bytearray(plain)
    header[40:56] = np.array([3, 30_000, 30_000, 30_000, 1, 1, 1, 1], "<i2").tobytes()
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bytes(header)))
    (tmp_path / "detached.nrrd").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 7 6 5\nencoding: raw\nendian: little\ndata file: /etc/passwd\n\n"
    )
    (tmp_path / "detached.mha").write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementDataFile = /etc/passwd\n"
    )
    (tmp_path / "bomb.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 800 800 800\nencoding: gzip\nendian: little\n\n" + bytes(50)
    )
    nifti(tmp_path / "nan.nii", np.where(DATA > 0, np.nan, DATA).astype(np.float32))
    nifti(tmp_path / "lowest.nii", np.where(DATA > 0, np.finfo(np.float32).min, 0).astype(np.float32))
    nifti(tmp_path / "zero.nii", np.zeros_like(DATA))
    nifti(tmp_path / "five.nii", np.zeros((2, 2, 2, 2, 2), np.int16))
    for name, problem in {
        "truncated.nii.gz": "cannot be read", "short.nii": "cannot be read", "empty.nii": "cannot be read",
        "text.nrrd": "cannot be read", "text.mha": "header has no ElementDataFile", "notes.txt": "extension",
        "folder": "no DICOM", "bomb.nii.gz": "too many voxels", "detached.nrrd": "points to another file",
        "detached.mha": "points to another file", "bomb.nrrd": "more voxels than the file", "nan.nii": "NaN",
        "lowest.nii": "missing data", "zero.nii": "every voxel is the same", "five.nii": "more than four axes",
        "absent.nii": "cannot be read",
    }.items():  # fmt: skip
        with pytest.raises(ImageError, match=f"{name}: .*{problem}"):
            read_volume(tmp_path / name)
    monkeypatch.setattr(checks, "MAX_BYTES", 100)
    with pytest.raises(ImageError, match="too large"):
        read_volume(tmp_path / "whole.nii.gz")


def test_a_header_may_not_name_voxels_elsewhere(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(DATA), tmp_path / "a.mhd")
    (tmp_path / "inner").mkdir()
    text = (tmp_path / "a.mhd").read_text()
    assert read_volume(tmp_path / "a.mhd").shape == DATA.shape[::-1]
    for name in ("../a.raw", str(tmp_path / "a.raw"), "LIST", "a%d.raw 1 3 1", "absent.raw"):
        (tmp_path / "inner" / "b.mhd").write_text(text.replace("a.raw", name))
        with pytest.raises(ImageError, match="b.mhd: its file of voxels does not lie beside it"):
            read_volume(tmp_path / "inner" / "b.mhd")
    (tmp_path / "inner" / "a.raw").symlink_to(tmp_path / "a.raw")
    (tmp_path / "inner" / "b.mhd").write_text(text)
    with pytest.raises(ImageError, match="a.raw: is a link out of its folder"):
        read_volume(tmp_path / "inner" / "b.mhd")


@pytest.mark.parametrize("line", ["ElementDataFile=LOCAL", "ElementDataFile =LOCAL", "  ElementDataFile  =  LOCAL  "])
def test_headers_of_metaimage_as_other_programs_write_them(tmp_path, line):
    image = sitk.GetImageFromArray(DATA)
    sitk.WriteImage(image, tmp_path / "a.mha")
    expected = read_volume(tmp_path / "a.mha").data
    data = (tmp_path / "a.mha").read_bytes()
    for name in ("b.mha", "b.mhd"):
        (tmp_path / name).write_bytes(data.replace(b"ElementDataFile = LOCAL", line.encode()).replace(b"= 3", b"=3"))
        np.testing.assert_array_equal(read_volume(tmp_path / name).data, expected)
    (tmp_path / "c.mha").write_bytes(
        data.replace(b"ElementDataFile = LOCAL", b"ElementDataFile = a.raw\n" + line.encode())
    )
    with pytest.raises(ImageError, match="c.mha: its header points to another file"):
        read_volume(tmp_path / "c.mha")
    sitk.WriteImage(image, tmp_path / "d.mhd")
    text = (tmp_path / "d.mhd").read_text()
    (tmp_path / "d.mhd").write_text(text.replace("ElementDataFile = d.raw", "ElementDataFile=./d.raw"))
    np.testing.assert_array_equal(read_volume(tmp_path / "d.mhd").data, expected)
    assert voxels_of(tmp_path / "d.mhd") == tmp_path / "d.raw"


def test_an_ending_that_does_not_fit_the_content_is_named(tmp_path):
    packed = nifti(tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "b.nii").write_bytes(packed)
    (tmp_path / "c.nii.gz").write_bytes(gzip.decompress(packed))
    for name, words in (("b.nii", "is a gzip file .rename it to b.nii.gz"), ("c.nii.gz", "is no gzip file .*c.nii[)]")):
        with pytest.raises(ImageError, match=f"{name}: {words}"):
            read_volume(tmp_path / name)


def test_two_places_in_one_header_are_said(tmp_path):
    image = nib.Nifti1Image(DATA, None)
    image.set_sform(np.diag([1.0, 1, 2, 1]), 1)
    for flipped in (False, True):
        image.set_qform(np.diag([-1.0 if flipped else 1.0, 1, 2, 1]), 1)
        nib.save(image, tmp_path / "a.nii")
        with notes.collect() as said:
            volume = read_volume(tmp_path / "a.nii")
        assert [line.partition("header ")[2] for line in said.lines()] == (
            ["states two places, sform and qform, that differ: sform counts"] if flipped else []
        )
        np.testing.assert_array_equal(volume.file_affine(), np.diag([1.0, 1, 2, 1]))
