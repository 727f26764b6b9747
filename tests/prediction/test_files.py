"""`universeg predict`: a mask in each query's own geometry; nothing lost, nothing overwritten."""

import csv
import json
import os
import re
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.fixtures import write_folder
from tests.prediction.tables import names
from tests.prediction.test_support import write_volumes
from tests.readers.test_dicom import series
from universeg_jax.cli import main
from universeg_jax.errors import UserError
from universeg_jax.prediction.files import find_queries, label_names, mask_files, plot_overlay, predict_files
from universeg_jax.prediction.options import Options
from universeg_jax.prediction.predictor import make_prediction
from universeg_jax.prediction.support import read_support_folder
from universeg_jax.readers.folder import read_folder
from universeg_jax.readers.slices import volume_slices
from universeg_jax.readers.volume_files import read_label_volume, read_volume
from universeg_jax.readers.volumes import make_volume
from universeg_jax.reports.overlay import COLOURS, colours_text


def test_the_command_writes_a_mask_for_every_query(loaded, checkpoint, tmp_path, capsys):
    support = write_folder(tmp_path / "support", count=3, ids=(1, 2))
    queries = write_folder(tmp_path / "new", count=3, shape=(31, 17)) / "images"
    arguments = ["predict", "--checkpoint", str(checkpoint), "--support", str(support), "--queries", str(queries)]
    out = tmp_path / "masks"
    assert main([*arguments, "--out", str(out), "--overlay"]) == 0
    assert names(out) == sorted(f"p{i}_0{end}.png" for i in range(3) for end in ("", "_overlay"))
    mask = np.asarray(Image.open(out / "p0_0.png"))
    assert mask.shape == (31, 17)
    assert set(np.unique(mask)) <= {0, 1, 2}
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [(row["mask"], row["label"]) for row in rows] == [(f"p{i}_0.png", j) for i in range(3) for j in "12"]
    assert float(rows[1]["size"]) == (mask == 2).sum()

    first = (out / "p1_0.png").stat().st_mtime_ns
    (out / "p2_0.png").unlink()
    capsys.readouterr()
    assert main([*arguments, "--out", str(out)]) == 0  # resumes
    assert "1 masks written" in (said := capsys.readouterr().out)
    assert "2 already there" in said
    assert (out / "p1_0.png").stat().st_mtime_ns == first
    assert main([*arguments, "--out", str(out), "--support_size", "2"]) == 1
    assert "other weights or options" in capsys.readouterr().err
    assert main([*arguments, "--out", str(out), "--support_size", "2", "--overwrite"]) == 0

    (queries / "p1_0.png").write_bytes(b"broken")
    assert main([*arguments, "--out", str(tmp_path / "again")]) == 1
    assert names(tmp_path / "again") == ["p0_0.png", "p2_0.png"]
    assert "p1_0.png" in capsys.readouterr().err
    before = (queries / "p0_0.png").read_bytes()
    assert main([*arguments, "--out", str(queries)]) == 1
    assert "would overwrite" in capsys.readouterr().err
    assert (queries / "p0_0.png").read_bytes() == before
    assert main([*arguments, "--out", str(tmp_path / "x"), "--label", "9"]) == 1
    assert "label 9 never occurs" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_command_names_labels_that_are_inverted(loaded, checkpoint, tmp_path, capsys):
    support = write_folder(tmp_path / "s", count=3)
    arguments = ["predict", "--checkpoint", str(checkpoint), "--support", str(support)]
    arguments += ["--queries", str(support / "images" / "p0_0.png")]
    assert main([*arguments, "--out", str(tmp_path / "right")]) == 0
    assert "is it the background" not in capsys.readouterr().err
    for file in (support / "labels").iterdir():
        Image.fromarray((np.asarray(Image.open(file)) == 0).astype(np.uint8)).save(file)
    assert main([*arguments, "--out", str(tmp_path / "inverted")]) == 0
    assert "of every image: is it the background, with 0 for the structure?" in capsys.readouterr().err


def test_queries_are_listed_once_and_inner_folders_named(tmp_path, capsys):
    images = write_folder(tmp_path, count=2) / "images"
    (images / "more").mkdir()
    (images / "p1_0.png").rename(images / "more" / "p1_0.png")
    os.mkfifo(images / "pipe.png")
    assert find_queries([images, images / "p0_0.png", images]) == [images / "p0_0.png"]
    assert f"{images}: skipped more/: give it as a query of its own" in capsys.readouterr().err


def test_overlapping_labels_have_a_file_each(predictor, tmp_path):
    support = read_support_folder(write_folder(tmp_path / "s", count=3, ids=(1, 200)))
    segmenter = predictor.segmenter(support, Options(overlap=True))
    assert predict_files(segmenter, [tmp_path / "s" / "images"], tmp_path / "out", overlay=True) == 0
    masks = [f"p{i}_0_{j}.png" for i in range(3) for j in (1, 200)]
    assert names(tmp_path / "out") == sorted([*masks, *(f"p{i}_0_overlay.png" for i in range(3))])


def random_affine(seed):
    """Oblique, flipped, anisotropic."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.eye(3)[rng.permutation(3)] + rng.uniform(-0.2, 0.2, (3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * rng.uniform(0.8, 3, 3), rng.uniform(-50, 50, 3)
    return affine


@pytest.mark.parametrize("seed", range(3))
def test_the_mask_of_a_volume_is_on_its_grid(predictor, tmp_path, seed):
    support = read_support_folder(write_volumes(tmp_path / "support"))
    affine = random_affine(seed)
    queries = write_volumes(tmp_path / "new", radii=(0.6,), affine=affine) / "images"
    assert predict_files(predictor.segmenter(support), [queries], tmp_path / "out", overlay=True) == 0
    assert names(tmp_path / "out") == ["case0.nii.gz", "case0_overlay.png"]
    image, mask = nib.load(queries / "case0.nii.gz"), nib.load(tmp_path / "out" / "case0.nii.gz")
    assert mask.shape == image.shape
    np.testing.assert_array_equal(mask.affine, image.affine)
    assert mask.get_data_dtype() == np.uint8
    query = read_volume(queries / "case0.nii.gz")
    expected = predictor.segmenter(support)(query)
    np.testing.assert_array_equal(read_label_volume(tmp_path / "out" / "case0.nii.gz").data, expected.mask)
    row = next(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert row["unit"] == "ml"
    millilitres = (expected.mask > 0).sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    np.testing.assert_allclose(float(row["size"]), millilitres, rtol=0.005)  # three significant digits


def test_images_may_support_volumes(segmenter, tmp_path):
    queries = write_volumes(tmp_path / "v", radii=(0.6,)) / "images"
    assert predict_files(segmenter, [queries], tmp_path / "out", axis=0) == 0
    assert read_label_volume(tmp_path / "out" / "case0.nii.gz").shape == (24, 24, 8)


def test_a_wrong_folder_is_refused_before_the_first_prediction(segmenter, tmp_path, capsys):
    folder = write_folder(tmp_path / "s", count=2)

    def refused(queries, out, word):
        with pytest.raises(Exception, match=word):
            predict_files(segmenter, queries, out)

    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    refused([tmp_path / "absent"], tmp_path / "o", "does not exist")
    refused([tmp_path / "empty"], tmp_path / "o", "no images or volumes")
    refused([folder / "images"], tmp_path / "file", "cannot be written")
    refused([folder / "images", folder / "labels"], tmp_path / "o", "would both become")
    assert not (tmp_path / "o").exists()
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.float32), np.eye(4)), tmp_path / "time.nii")
    assert predict_files(segmenter, [tmp_path / "time.nii"], tmp_path / "o") == 1
    assert "several channels or times" in capsys.readouterr().err


def test_one_example_is_enough(predictor, tmp_path):
    folder = write_folder(tmp_path / "s", count=1)
    segmenter = predictor.segmenter(read_support_folder(folder))
    assert predict_files(segmenter, [folder / "images"], tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["p0_0.png"]


def test_a_query_of_another_modality_gives_a_warning_with_its_distance(segmenter, tmp_path, capsys):
    folder = write_folder(tmp_path / "s", count=1)
    inverted = tmp_path / "other.png"
    Image.fromarray(255 - np.asarray(Image.open(folder / "images" / "p0_0.png"))).save(inverted)
    assert predict_files(segmenter, [inverted, folder / "images" / "p0_0.png"], tmp_path / "out") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "looks unlike the support" in line]
    assert len(said) == 1
    assert said[0].startswith(str(inverted))
    assert "intensity distance 0." in said[0]


def test_exchanged_images_and_labels_are_refused(loaded, checkpoint, tmp_path, capsys):
    folder = write_folder(tmp_path / "s", count=2)
    (folder / "images").rename(folder / "x")
    (folder / "labels").rename(folder / "images")
    (folder / "x").rename(folder / "labels")
    arguments = ["predict", "--checkpoint", str(checkpoint), "--support", str(folder)]
    assert main([*arguments, "--queries", str(folder / "images"), "--out", str(tmp_path / "out")]) == 1
    assert "look exchanged: the label has" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_dicom_series_has_a_dicom_seg_on_its_own_grid(predictor, tmp_path, overlap):
    highdicom = pytest.importorskip("highdicom")
    pydicom = pytest.importorskip("pydicom")
    oblique = [0.96, 0.28, 0, -0.28, 0.96, 0]
    scan = series(tmp_path / "scan", SOPInstanceUID=lambda i: f"1.2.3.{i + 1}", ImageOrientationPatient=oblique)
    folder = write_folder(tmp_path / "s", count=3, ids=(2, 7))
    (folder / "meta.json").write_text('{"labels": {"2": "liver", "7": "left kidney"}}')
    segmenter = predictor.segmenter(read_support_folder(folder), Options(overlap=overlap))
    labels = read_folder(folder).labels
    assert predict_files(segmenter, [scan], tmp_path / "out", dicom_seg=labels) == 0
    assert names(tmp_path / "out") == ["scan.dcm"]
    found = highdicom.seg.segread(tmp_path / "out" / "scan.dcm")
    assert [found.get_segment_description(n).segment_label for n in (1, 2)] == ["liver", "left kidney"]
    assert [found.get_segment_description(n).segmented_property_type.value for n in (1, 2)] == ["2", "7"]
    slices = [pydicom.dcmread(file) for file in sorted(scan.iterdir())]
    grid, back = highdicom.get_volume_from_series(slices), found.get_volume()
    assert back.geometry_equal(grid)
    np.testing.assert_array_equal(back.affine, grid.affine)
    query = read_volume(scan)
    expected = segmenter(query)
    for number, label in enumerate((2, 7)):
        mask = expected.of(label)[0]
        here = replace(query, data=mask.astype(np.uint8)).file_data().T  # slices, rows, columns
        uids = [d.SOPInstanceUID for d in sorted(slices, key=lambda d: d.ImagePositionPatient[2])]
        np.testing.assert_array_equal(found.get_pixels_by_source_instance(uids)[..., number], here)
        assert 0 < mask.sum() < mask.size


def test_a_series_that_lacks_what_dicom_seg_needs_is_named(segmenter, tmp_path, capsys):
    pytest.importorskip("highdicom")
    scan = series(tmp_path / "scan")
    for file in scan.iterdir():
        dataset = pydicom_read(file)
        del dataset.StudyInstanceUID
        dataset.save_as(file)
    assert predict_files(segmenter, [scan], tmp_path / "out", dicom_seg={}) == 1
    assert "cannot have a DICOM-SEG" in capsys.readouterr().err
    assert names(tmp_path / "out") == []


def pydicom_read(file):
    return pytest.importorskip("pydicom").dcmread(file)


def test_dicom_seg_without_its_package_is_refused_first(segmenter, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    folder = write_folder(tmp_path / "s", count=2)
    with pytest.raises(UserError, match=r"universeg_jax\[dicom\]"):
        predict_files(segmenter, [folder], tmp_path / "out", dicom_seg={})
    assert not (tmp_path / "out").exists()


def test_queries_are_found_in_natural_order(tmp_path, capsys):
    write_volumes(tmp_path / "v", radii=(0.5,))
    for name in ("b10.png", "b2.png", ".hidden.png", "notes.txt"):
        (tmp_path / "v" / "images" / name).write_bytes(b"")
    found = find_queries([tmp_path / "v" / "images"])
    assert [p.name for p in found] == ["b2.png", "b10.png", "case0.nii.gz"]
    assert "skipped notes.txt: not a supported format" in capsys.readouterr().err


def test_series_are_distinguished_from_other_folders_and_keep_their_names(tmp_path):
    """A folder of volumes with a stray file is none; files of a series may end in a UID, and folders in a number."""
    pytest.importorskip("pydicom")
    volumes = write_volumes(tmp_path / "v", radii=(0.5,)) / "images"
    (volumes / ".DS_Store").write_bytes(b"x")
    (volumes / "LICENSE").write_bytes(b"x")
    assert [p.name for p in find_queries([volumes])] == ["case0.nii.gz"]
    (tmp_path / "scans").mkdir()
    for name in ("1.2.840.100", "1.2.840.101"):
        scan = series(tmp_path / "scans" / name)
        for i, file in enumerate(sorted(scan.iterdir())):
            file.rename(scan / f"CT.1.2.{i}")
    (tmp_path / "scans" / ".DS_Store").write_bytes(b"x")
    found = find_queries([tmp_path / "scans"])
    assert [p.name for p in found] == ["1.2.840.100", "1.2.840.101"]
    targets = [mask_files(scan, tmp_path, (1,), False) for scan in found]
    assert targets == [[tmp_path / "1.2.840.100.nii.gz"], [tmp_path / "1.2.840.101.nii.gz"]]


def test_one_dicom_file_is_an_image(segmenter, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    scan = series(tmp_path / "scan")
    file = sorted(scan.iterdir())[0].rename(tmp_path / "xray.dcm")
    assert predict_files(segmenter, [file], tmp_path / "out") == 0
    pixels = pydicom.dcmread(file).pixel_array
    assert np.asarray(Image.open(tmp_path / "out" / "xray.png")).shape == pixels.shape


def test_queries_are_sliced_and_windowed_like_the_support(predictor, tmp_path):
    """Sagittal examples, an isotropic query: it is cut sagittally; and by the window of the support's meta.json."""
    support = write_volumes(tmp_path / "s", affine=np.diag([4.0, 1, 1, 1]))
    (support / "meta.json").write_text(json.dumps({"labels": {"2": "ball"}, "window": [0, 50]}))
    segmenter = predictor.segmenter(read_support_folder(support))
    assert (segmenter.support.axis, segmenter.support.window) == (0, (0, 50))
    query = read_volume(write_volumes(tmp_path / "q", radii=(0.6,), affine=np.eye(4)) / "images" / "case0.nii.gz")
    expected, _, _ = volume_slices(query, 128, 0, (0, 50))
    np.testing.assert_array_equal(segmenter(query).seen, expected)
    assert segmenter.volume(query, axis=2).seen.shape[0] == query.shape[2]
    other = replace(segmenter.support, window="auto")
    assert other.digest() != segmenter.support.digest()


def test_overlays_show_the_outline_alone():
    probabilities = np.zeros((1, 9, 9), np.float32)
    probabilities[0, 2:7, 2:7] = 1
    drawn = np.asarray(plot_overlay(np.eye(9, dtype=np.float32), make_prediction(probabilities, (1,))))
    red = (drawn == (230, 60, 60)).all(-1)
    assert red.sum() == 16
    assert not red[3:6, 3:6].any()


def test_the_overlay_of_a_small_volume_is_enlarged_and_names_its_colours():
    volume = make_volume(np.random.default_rng(0).random((35, 52, 9)).astype(np.float32), np.eye(4))
    probabilities = np.zeros((2, 35, 52, 9), np.float32)
    probabilities[0, 5:20, 5:20, 4] = probabilities[1, 22:30, 30:40, 4] = 0.9
    prediction = make_prediction(probabilities, (1, 2))
    drawn = plot_overlay(volume, prediction, 2, {1: "liver"})
    assert min(drawn.size) == 7 * 35  # 52 pixels become 7 x 52, the largest below 384
    picture = np.asarray(drawn)
    for colour in COLOURS[:2]:  # outlines, and squares of the legend in the lines below
        found = (picture == colour).all(-1)
        assert found[:-32].any()
        assert found[-32:].any()
    assert colours_text(label_names((1, 2), {1: "liver"})) == "liver red, label 2 blue"


def test_a_warning_is_printed_once_and_has_the_confidence_of_the_table(predictor, tmp_path, capsys):
    """Of two labels, an image unlike the support is said once; each low confidence is that of its line."""
    support = read_support_folder(write_folder(tmp_path / "s", count=4, ids=(1, 2)))
    (tmp_path / "q").mkdir()
    noise = np.random.default_rng(0).integers(0, 2, (128, 128)) * 255
    Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "q" / "odd.png")
    assert predict_files(predictor.segmenter(support), [tmp_path / "q"], tmp_path / "out", overlay=True) == 0
    said = capsys.readouterr()
    assert said.err.count("looks unlike the support") == 1
    assert "outlines: label 1 red, label 2 blue" in said.out
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert len(rows) == 2
    for row in rows:
        for number in re.findall(r"low confidence \(([0-9.]+)\)", row["warnings"]):
            assert float(number) == float(row["confidence"]) < 0.6
        assert ("low confidence" in row["warnings"]) == (0 < float(row["confidence"]) < 0.6)


def test_how_a_query_was_understood_stands_in_the_table_and_is_printed_once(predictor, tmp_path, capsys):
    segmenter = predictor.segmenter(read_support_folder(write_folder(tmp_path / "s", count=3)))
    queries = write_folder(tmp_path / "q", count=3) / "images"
    exif = Image.Exif()
    exif[0x112] = 6
    for i in (0, 2):
        Image.open(queries / f"p{i}_0.png").save(queries / f"p{i}_0.png", exif=exif)
    assert predict_files(segmenter, [queries], tmp_path / "out") == 0
    line = "its EXIF orientation is applied: the mask lies on the upright image, not on the raw pixels"
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert [line in row["warnings"] for row in rows] == [True, False, True]
    said = capsys.readouterr().err
    assert said.count(line) == 1
    assert f"images/p0_0.png and 1 more: {line}" in said
    assert Image.open(tmp_path / "out" / "p0_0.png").size == (20, 30)
    scan = write_volumes(tmp_path / "v") / "images"
    assert predict_files(segmenter, [scan], tmp_path / "volumes") == 0
    rows = list(csv.DictReader((tmp_path / "volumes" / "predictions.csv").open()))
    assert all("window mr; --window" in row["warnings"] for row in rows)
