"""DICOM images and series: positions of slices, units of values, refused files."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import Dataset, dcmread
from pydicom.pixels import pack_bits

from universeg_jax.evaluation.mask_sets import read_pair, read_sets
from universeg_jax.prediction.dicom_seg import write_dicom_seg
from universeg_jax.prediction.files import find_queries, mask_files
from universeg_jax.readers import checks
from universeg_jax.readers.cases import make_examples
from universeg_jax.readers.dicom import read_dicom_image
from universeg_jax.readers.dicom_files import sorted_files
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.folder import read_folder
from universeg_jax.readers.segments import on_grid_of, segment_names
from universeg_jax.readers.volume_files import is_volume, read_label_volume, read_volume, write_like


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
        "no_meta.dcm": "damaged or not DICOM",
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
        ({"ImagePositionPatient": lambda i: [0, 0, i // 2]}, "two slices lie at one position .0.dcm and 1.dcm; 2 such"),
        ({"ImagePositionPatient": lambda i: [12 * (i == 2), 0, 3 * i]}, "not lie on one line .2.dcm lies 12 mm beside"),
        ({"ImagePositionPatient": lambda i: [12 * (i == 4), 0, 3 * i]}, "not lie on one line .4.dcm lies 12 mm beside"),
        ({"ImagePositionPatient": lambda i: [12 * (i == 0), 0, 3 * i]}, "not lie on one line .0.dcm lies 12 mm beside"),
        (
            {"PixelSpacing": lambda i: [1, 1 + (i == 3)]},
            "of pixels .PixelSpacing of 3.dcm is 1, 2, of most 1, 1",
        ),
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


def test_strangers_among_slices_are_passed_over_and_a_damaged_slice_is_not(tmp_path):
    path = series(tmp_path / "scan")
    expected = read_volume(path).data
    for name in ("Thumbs.db", "notes.txt", "DICOMDIR", "README"):
        (path / name).write_bytes(b"\x00 no DICOM")
    assert sorted_files(path)[1] == ["DICOMDIR", "README", "Thumbs.db", "notes.txt"]
    np.testing.assert_array_equal(read_volume(path).data, expected)
    (path / "9.dcm").write_bytes(b"damaged")
    with pytest.raises(ImageError, match=r"9.dcm: cannot be read .it is damaged or not DICOM"):
        read_volume(path)


def test_xrays_in_a_folder_are_images(tmp_path, capsys):
    path = series(tmp_path / "chest")
    for file in path.iterdir():
        dataset = dcmread(file)
        del dataset.ImagePositionPatient
        dataset.save_as(file)
    (path / "0.dcm").rename(path / "IM0")
    (path / "notes.txt").write_text("x")
    assert not is_volume(path)
    assert [file.name for file in find_queries([path])] == ["1.dcm", "2.dcm", "3.dcm", "4.dcm", "IM0"]
    assert "skipped notes.txt" in capsys.readouterr().err
    assert read_dicom_image(path / "IM0").shape == (128, 128)


def test_nested_patients_and_series_are_found_and_named(tmp_path, capsys):
    for place in ("anna/study/CT", "bert/study/CT", "bert/study/late"):
        (tmp_path / place).mkdir(parents=True)
        series(tmp_path / place, count=2)
    (tmp_path / "anna/study/CT/Thumbs.db").write_bytes(b"x")
    found = find_queries([tmp_path])
    assert [str(file.relative_to(tmp_path)) for file in found] == ["anna/study/CT", "bert/study/CT", "bert/study/late"]
    names = [mask_files(file, tmp_path, (1,), False, queries=found)[0].name for file in found]
    assert names == ["anna_study_CT.nii.gz", "bert_study_CT.nii.gz", "late.nii.gz"]
    assert "anna/study/CT: skipped Thumbs.db: not a DICOM image" in capsys.readouterr().err


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_the_darkest_value(tmp_path, photometric):
    path = series(tmp_path / "scan", 2, PhotometricInterpretation=photometric)
    for file in path.iterdir():
        dataset = dcmread(file)
        dataset.add_new("PixelPaddingValue", "US", 63536)  # -2000 in 16 bits, as some scanners write it
        pixels = dataset.pixel_array.copy()
        pixels[:, :20] = -2000
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(file)
    image = read_dicom_image(path / "0.dcm")
    assert (image[:, :20] == image[:, 20:].min()).all()
    stored = 2.0 * pixels[:, 20:] - 1000
    turned = stored.min() + stored.max() - stored if photometric == "MONOCHROME1" else stored
    np.testing.assert_allclose(np.ptp(read_dicom_image(path / "1.dcm")[:, 20:]), np.ptp(turned))


def multiframe(path, positions):
    """An enhanced CT whose frames have the given z, in any order of their own; a SEG where it has segments."""
    dataset = dcmread(shipped("CT_small.dcm"))
    frame = dataset.pixel_array
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"  # Enhanced CT
    for field in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(dataset, field)
    groups = Dataset()
    groups.PlaneOrientationSequence = [Dataset()]
    groups.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    groups.PixelMeasuresSequence = [Dataset()]
    groups.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.75]
    groups.PixelMeasuresSequence[0].SliceThickness = 2.5
    dataset.SharedFunctionalGroupsSequence = [groups]
    dataset.PerFrameFunctionalGroupsSequence = []
    for z in positions:
        each = Dataset()
        each.PlanePositionSequence = [Dataset()]
        each.PlanePositionSequence[0].ImagePositionPatient = [-100, -80, 2.5 * z]
        each.PixelValueTransformationSequence = [Dataset()]
        each.PixelValueTransformationSequence[0].RescaleSlope = 2
        each.PixelValueTransformationSequence[0].RescaleIntercept = -1000
        dataset.PerFrameFunctionalGroupsSequence.append(each)
    pixels = np.stack([frame] * len(positions))
    for z, plane in zip(positions, pixels, strict=True):
        plane[:8] = 100 * z
    dataset.NumberOfFrames, dataset.PixelData = len(positions), pixels.tobytes()
    path.parent.mkdir(exist_ok=True)
    dataset.save_as(path)
    return path


def test_an_enhanced_ct_is_the_volume_of_its_frames(tmp_path):
    single = read_volume(series(tmp_path / "scan"))
    for file in (
        multiframe(tmp_path / "multi.dcm", [3, 0, 4, 1, 2]),
        multiframe(tmp_path / "m" / "IM1", range(5)).parent,
    ):
        assert is_volume(file)
        volume = read_volume(file)
        np.testing.assert_array_equal(volume.data, single.data)
        np.testing.assert_allclose(volume.affine, single.affine)
    with pytest.raises(ImageError, match="two slices lie at one position .frame 1 and frame 4; 1 such pairs"):
        read_volume(multiframe(tmp_path / "times.dcm", [0, 1, 2, 0]))


def test_an_rtstruct_is_refused_with_the_remedy(tmp_path):
    dataset = dcmread(shipped("rtplan.dcm"))
    dataset.Modality = "RTSTRUCT"
    dataset.save_as(tmp_path / "contours.dcm")
    with pytest.raises(ImageError, match="contours.dcm: holds no image .an RTSTRUCT holds contours; save them as a"):
        read_label_volume(tmp_path / "contours.dcm")


def seg_of(folder, label, names):
    """Our own DICOM-SEG of a label [X, Y, Z] on the series in `folder`."""
    volume = read_volume(folder)
    path = folder.parent / "seg.dcm"
    write_dicom_seg(path, {i: label == i for i in names}, names, folder, volume)
    return path


@pytest.mark.parametrize("order", [range(5), [3, 0, 4, 1, 2]])
def test_a_dicom_seg_of_an_enhanced_ct_is_read_back_on_its_grid(tmp_path, order):
    file = multiframe(tmp_path / "scan" / "IM1", order)
    label = np.zeros((128, 128, 5), np.int32)
    label[10:50, 20:90, 1:4], label[60:70, 5:9, 0] = 7, 2
    for scan in (file, file.parent):
        path = seg_of(scan, label, {2: "vessel", 7: "liver"})
        volume = read_label_volume(path)
        np.testing.assert_array_equal(volume.data, label)
        np.testing.assert_allclose(volume.affine, read_volume(scan).affine, atol=1e-6)
        found = dcmread(path)
        assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == dcmread(file).SeriesInstanceUID
        assert segment_names(path) == {2: "vessel", 7: "liver"}


def test_our_own_dicom_seg_is_read_back_as_labels(tmp_path):
    folder = series(tmp_path / "scan")
    label = np.zeros((128, 128, 5), np.int32)
    label[10:50, 20:90, 1:4], label[60:70, 5:9, 0] = 7, 2
    path = seg_of(folder, label, {2: "vessel", 7: "liver"})
    volume = read_label_volume(path)
    np.testing.assert_array_equal(volume.data, label)
    np.testing.assert_allclose(volume.affine, read_volume(folder).affine, atol=1e-6)
    assert segment_names(path) == {2: "vessel", 7: "liver"}
    for part in ("masks", "truth"):  # as `universeg evaluate` finds them
        (tmp_path / part).mkdir()
    shutil.copy(path, tmp_path / "masks" / "a.dcm")
    write_like(tmp_path / "truth" / "a.nii.gz", label.astype(np.uint8), folder, read_volume(folder))
    pair = read_pair("a", *read_sets(tmp_path / "masks", tmp_path / "truth"))
    np.testing.assert_array_equal(pair.prediction, pair.truth)
    np.testing.assert_allclose(pair.spacing, (0.75, 0.5, 2.5))
    support = tmp_path / "support"
    for part, source, name in (("images", folder, "a"), ("labels", path, "a.dcm")):
        (support / part).mkdir(parents=True)
        source.rename(support / part / name)
    read = read_folder(support)
    assert read.labels == {2: "vessel", 7: "liver"}
    assert {i for example in make_examples(read.cases[0]) for i in example.labels} == {2, 7}


def test_a_seg_without_empty_slices_lies_on_the_grid_of_its_series(tmp_path):
    folder = series(tmp_path / "scan")
    label = np.zeros((128, 128, 5), np.int32)
    label[10:50, 20:90, 2:4] = 1
    path = seg_of(folder, label, {1: "liver"})
    dataset = dcmread(path)
    keep = [i for i, plane in enumerate(dataset.pixel_array) if plane.any()]
    dataset.PixelData = pack_bits(dataset.pixel_array[keep])
    dataset.PerFrameFunctionalGroupsSequence = [dataset.PerFrameFunctionalGroupsSequence[i] for i in keep]
    dataset.NumberOfFrames = len(keep)
    dataset.save_as(path)
    assert read_label_volume(path).shape == (128, 128, 2)
    np.testing.assert_array_equal(on_grid_of(read_label_volume(path), read_volume(folder)).data, label)


def test_segments_that_overlap_are_refused(tmp_path):
    folder = series(tmp_path / "scan")
    label = np.zeros((128, 128, 5), bool)
    label[10:50, 20:90, 2:4] = True
    write_dicom_seg(tmp_path / "seg.dcm", {1: label, 2: label}, {}, folder, read_volume(folder))
    with pytest.raises(ImageError, match="seg.dcm: its segments overlap .save each segment into a file of its own"):
        read_label_volume(tmp_path / "seg.dcm")
