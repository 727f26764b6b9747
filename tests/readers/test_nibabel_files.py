"""Volumes of FreeSurfer, Analyze and pairs of header and voxels; masks of them."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from universeg_jax.readers import notes
from universeg_jax.readers.cases import read_volume_pair
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.folder import read_folder
from universeg_jax.readers.volume_files import (
    mask_extension,
    read_label_volume,
    read_volume,
    stored_type,
    voxels_of,
    write_like,
)

DATA = np.random.default_rng(0).integers(-1000, 2000, (7, 6, 5)).astype(np.int16)


def test_freesurfer_volumes_are_read_and_their_masks_written_alike(tmp_path):
    affine = np.array([[-1.0, 0, 0, 9], [0, 0, 1.5, -4], [0, -2.0, 0, 7], [0, 0, 0, 1]])
    data = np.arange(4 * 5 * 6, dtype=np.int32).reshape(4, 5, 6) * 20
    for name in ("a.mgz", "a.mgh"):
        nib.save(nib.MGHImage(data, affine), tmp_path / name)
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.file_data(), data)
        np.testing.assert_allclose(volume.file_affine(), affine, atol=1e-5)
        assert mask_extension(tmp_path / name) == name[1:]
        for dtype in (np.uint8, np.uint16, np.int32):
            mask = (volume.data % 7).astype(dtype) * (1 if dtype == np.uint8 else 9000)
            write_like(tmp_path / f"m{name[1:]}", mask, tmp_path / name, volume)
            again = read_label_volume(tmp_path / f"m{name[1:]}")
            np.testing.assert_array_equal(again.data, mask)
            np.testing.assert_allclose(again.affine, volume.affine, atol=1e-5)
    (tmp_path / "b.mgz").write_bytes((tmp_path / "a.mgh").read_bytes())
    with pytest.raises(ImageError, match="b.mgz: is no gzip file .rename it to b.mgh"):
        read_volume(tmp_path / "b.mgz")
    assert stored_type(tmp_path / "a.mgz") == np.int32


def test_analyze_and_nifti_pairs_are_read_and_masks_of_them_are_one_file(tmp_path):
    data = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    nib.save(nib.Nifti1Pair(data, np.diag([2.0, 3, 4, 1])), tmp_path / "n.hdr")
    analyze = nib.AnalyzeImage(data, None)
    analyze.header.set_zooms((2, 3, 4))
    nib.save(analyze, tmp_path / "a.hdr")
    for name, side, words in (("n.hdr", 2, ()), ("a.hdr", -2, ("Analyze states no direction",))):
        with notes.collect() as said:
            volume = read_volume(tmp_path / name)
        assert [word in line for word, line in zip(words, said.lines(), strict=True)] == [True] * len(words)
        np.testing.assert_array_equal(volume.file_data(), data)
        assert volume.file_affine()[0, 0] == side
        assert voxels_of(tmp_path / name) == (tmp_path / name).with_suffix(".img")
        assert mask_extension(tmp_path / name) == ".nii.gz"
        write_like(tmp_path / "m.nii.gz", volume.data.astype(np.uint8), tmp_path / name, volume)
        again = nib.load(tmp_path / "m.nii.gz")
        np.testing.assert_array_equal(again.get_fdata(), data)
        np.testing.assert_allclose(again.affine, volume.file_affine())
    with pytest.raises(ImageError, match="n.img: holds voxels without a header .give n.hdr"):
        read_volume(tmp_path / "n.img")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "n.hdr").write_bytes((tmp_path / "n.hdr").read_bytes())
    with pytest.raises(ImageError, match="n.hdr: its file of voxels does not lie beside it"):
        read_volume(tmp_path / "inner" / "n.hdr")
    (tmp_path / "inner" / "n.img").symlink_to(tmp_path / "n.img")
    with pytest.raises(ImageError, match="n.img: is a link out of its folder"):
        read_volume(tmp_path / "inner" / "n.hdr")


def test_a_detached_nrrd_is_read_with_the_file_beside_it(tmp_path):
    image = sitk.GetImageFromArray(DATA)
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, tmp_path / "whole.nrrd")
    expected = read_volume(tmp_path / "whole.nrrd")
    for compressed in (False, True):
        sitk.WriteImage(image, tmp_path / "a.nhdr", compressed)
        volume = read_volume(tmp_path / "a.nhdr")
        np.testing.assert_array_equal(volume.data, expected.data)
        np.testing.assert_array_equal(volume.affine, expected.affine)
        assert voxels_of(tmp_path / "a.nhdr") == tmp_path / ("a.raw.gz" if compressed else "a.raw")
    assert mask_extension(tmp_path / "a.nhdr") == ".nrrd"
    write_like(tmp_path / "m.nrrd", (expected.data > 9).astype(np.uint8), tmp_path / "a.nhdr", volume)
    again = read_label_volume(tmp_path / "m.nrrd")
    np.testing.assert_array_equal(again.data, expected.data > 9)
    np.testing.assert_array_equal(again.affine, expected.affine)
    text = (tmp_path / "a.nhdr").read_text()
    (tmp_path / "inner").mkdir()
    for name in ("../a.raw.gz", str(tmp_path / "a.raw.gz"), "LIST", "a%d.raw 1 3 1", "absent.raw"):
        (tmp_path / "inner" / "b.nhdr").write_text(text.replace("a.raw.gz", name))
        with pytest.raises(ImageError, match="b.nhdr: its file of voxels does not lie beside it"):
            read_volume(tmp_path / "inner" / "b.nhdr")


@pytest.mark.parametrize("ending", ["mgz", "hdr", "nhdr"])
def test_folders_of_other_volumes_are_support_sets(tmp_path, ending):
    for part, seed in (("images", 0), ("labels", 1)):
        (tmp_path / part).mkdir()
        data = np.random.default_rng(seed).integers(0, 3, (4, 5, 6)).astype(np.int16)
        if ending == "nhdr":
            sitk.WriteImage(sitk.GetImageFromArray(data), tmp_path / part / "p1.nhdr")
        else:
            nib.save(
                (nib.MGHImage if ending == "mgz" else nib.AnalyzeImage)(data, np.eye(4)),
                tmp_path / part / f"p1.{ending}",
            )
    with notes.collect():
        folder = read_folder(tmp_path)
        image, ids = read_volume_pair(folder.cases[0])
    assert folder.ignored == ()
    assert folder.labels == {1: "label 1", 2: "label 2"}
    assert image.shape == ids.shape
