"""DICOM images and series: positions of slices, units of values, refused files."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from universeg_jax.readers import checks
from universeg_jax.readers.dicom import read_dicom_image
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.volume_files import is_volume, read_volume


def series(path, count=5, **changes):
    """Writes a CT series made of a file that pydicom ships; the order along z is not that of the file names."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    path.mkdir(exist_ok=True)
    for i in range(count):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        z = (3 * i) % 5
        dataset.ImagePositionPatient = [-100, -80, 2.5 * z]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [0.5, 0.75]
        pixels = dataset.pixel_array.copy()
        pixels[:8] = 100 * z
        dataset.PixelData = pixels.tobytes()
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1000
        for name, value in changes.items():
            setattr(dataset, name, value(i) if callable(value) else value)
        dataset.save_as(path / f"{i}.dcm")
    return path


def test_a_dicom_series_is_sorted_by_position_and_rescaled(tmp_path):
    volume = read_volume(series(tmp_path / "scan"))
    assert volume.shape == (128, 128, 5)
    np.testing.assert_allclose(volume.spacing, [0.75, 0.5, 2.5])
    # Rows begin at the back of y in LPS = the front in RAS: the last of the canonical axis.
    np.testing.assert_array_equal(volume.data[0, -1], [200 * z - 1000 for z in range(5)])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "scan")))
    sitk.WriteImage(reader.Execute(), tmp_path / "itk.nii")
    expected = read_volume(tmp_path / "itk.nii")
    np.testing.assert_array_equal(volume.data, expected.data)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-4)
    assert is_volume(tmp_path / "scan")


def test_monochrome1_is_inverted_and_slices_still_fit(tmp_path):
    series(tmp_path / "a")
    series(tmp_path / "b", PhotometricInterpretation="MONOCHROME1")
    for read, name in ((read_dicom_image, "0.dcm"), (lambda path: read_volume(path).data, "")):
        plain, turned = read(tmp_path / "a" / name), read(tmp_path / "b" / name)
        np.testing.assert_array_equal(turned, plain.max() + plain.min() - plain)


def shipped(name):
    pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    return get_testdata_file(name)


def test_dicom_files_are_the_same_in_every_encoding():
    """MR_small, which pydicom ships in seven transfer syntaxes, and a CT in Hounsfield units."""
    kinds = ("", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless")
    first, *others = (read_volume(shipped(f"MR_small{kind}.dcm")) for kind in kinds)
    for other in others:
        np.testing.assert_array_equal(other.data, first.data)
        np.testing.assert_array_equal(other.affine, first.affine)
    np.testing.assert_allclose(first.spacing, [0.3125, 0.3125, 0.8], rtol=1e-6)  # as its header says
    assert read_volume(shipped("CT_small.dcm")).data.min() == 128 - 1024  # of its stored values, slope 1


def test_a_palette_gives_the_grey_of_its_colours():
    """The luma of the palette's colours, not their indices."""
    from pydicom import dcmread
    from pydicom.pixels import apply_color_lut

    dataset = dcmread(shipped("examples_palette.dcm"))
    red, green, blue = np.moveaxis(apply_color_lut(dataset.pixel_array, dataset).astype(float), -1, 0)
    expected = 0.299 * red + 0.587 * green + 0.114 * blue
    np.testing.assert_allclose(read_dicom_image(shipped("examples_palette.dcm")), expected, rtol=1e-5)


def test_every_dicom_file_of_pydicom_is_read_or_refused_in_one_line(caplog, capfd):
    """Every encoding, broken files, reports and plans without images, several frames."""
    path = Path(shipped("CT_small.dcm")).parent
    outcomes = {}
    for file in sorted(file for file in path.glob("*.dcm") if file.stat().st_size < 200_000):
        for read in (read_dicom_image, read_volume):
            try:
                read(file)
                outcomes[file.name, read] = ""
            except ImageError as error:
                outcomes[file.name, read] = str(error)
    assert all(str(path / name) in said and "\n" not in said for (name, _), said in outcomes.items() if said)
    assert sum(not said for said in outcomes.values()) > 50
    for name, word in {
        "MR_truncated.dcm": "cannot be read", "rtplan.dcm": "holds no image", "rtdose.dcm": "several frames",
        "no_meta.dcm": "cannot be read",
    }.items():  # fmt: skip
        assert word in outcomes[name, read_dicom_image]
    assert not caplog.records
    assert capfd.readouterr() == ("", "")  # the libraries' remarks on headers are silenced


def test_a_deflated_file_that_may_be_a_bomb_is_refused(monkeypatch):
    assert read_dicom_image(shipped("image_dfl.dcm")).shape == (512, 512)
    monkeypatch.setattr(checks, "MAX_BYTES", 1_000_000)
    with pytest.raises(ImageError, match="image_dfl.dcm: may inflate to too many bytes"):
        read_dicom_image(shipped("image_dfl.dcm"))
    assert read_dicom_image(shipped("CT_small.dcm")).shape == (128, 128)  # as large, but not deflated


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"ImagePositionPatient": lambda i: [0, 0, [0, 1, 2, 3, 5][i]]}, "not evenly spaced .1 to 2 mm"),
        ({"ImagePositionPatient": lambda i: [0, 0, i // 2]}, "not evenly spaced"),
        ({"SeriesInstanceUID": lambda i: f"1.2.{i}"}, "5; put each into a folder"),
        ({"NumberOfFrames": 3}, "several frames"),
        (
            {"ImageOrientationPatient": lambda i: [1, 0, 0, 0, 1, 0] if i else [1, 0, 0, 0, 0, 1]},
            "different directions",
        ),
        ({"Rows": 60_000, "Columns": 60_000}, "too many pixels"),
    ],
)
def test_a_series_that_is_no_volume_is_refused(tmp_path, changes, word):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = series(tmp_path / "scan", **changes)
    with pytest.raises(ImageError, match=word):
        read_volume(path)
