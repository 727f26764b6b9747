"""`universeg evaluate --predictions` scores the masks of any tool file by file."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from universeg_jax.cli import main
from universeg_jax.errors import UserError
from universeg_jax.evaluation.mask_files import score_masks
from universeg_jax.evaluation.surfaces import surface_scores
from universeg_jax.readers.errors import ImageError


def save(path, array, spacing=(2.0, 1.0, 0.5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.ndim == 3:
        nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), path.with_suffix(".nii.gz"))
    else:
        Image.fromarray(array.astype(np.uint8)).save(path.with_suffix(".png"))


def shifted(shape, value=1, by=0):
    mask = np.zeros(shape, np.float32)
    mask[tuple(slice(4 + (by if axis == 0 else 0), 9 + by * (axis == 0)) for axis in range(len(shape)))] = value
    return mask


@pytest.fixture(params=[(16, 14), (16, 14, 12)], ids=["images", "volumes"])
def folders(tmp_path, request):
    """Three subjects, predictions moved by 0, 1 and 2 along the first axis; a second label in the first one alone."""
    for i in range(3):
        truth, prediction = shifted(request.param), shifted(request.param, by=i)
        if i == 0:
            truth[-1, -2:], prediction[-1, -1:] = 2, 2
        save(tmp_path / "mine" / "labels" / f"s{i}_0", truth)
        save(tmp_path / "tool" / f"s{i}_0", prediction)
    return tmp_path / "tool", tmp_path / "mine" / "labels", request.param


def test_scores_computed_by_hand_in_the_unit_of_the_files(folders, tmp_path):
    predictions, labels, shape = folders
    summary = score_masks(predictions, labels, tmp_path / "out", surfaces=True, tolerance=1.0)
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        rows = {(row["slice"], row["label"]): row for row in csv.DictReader(file)}
    assert len(rows) == 6
    overlap = [1, 4 / 5, 3 / 5]
    unit, spacing = ("pixels", (1, 1)) if len(shape) == 2 else ("mm", (2.0, 1.0, 0.5))
    for i in range(3):
        row = rows[f"s{i}_0", "1"]
        np.testing.assert_allclose([float(row[x]) for x in ("dice", "sensitivity", "precision")], overlap[i])
        expected = surface_scores(shifted(shape, by=i), shifted(shape), spacing, 1.0)
        np.testing.assert_allclose([float(row["hd95"]), float(row["nsd"])], expected)
        assert (row["distance_unit"], row["dataset"], row["method"]) == (unit, "mine", "tool")
        assert row["subject"] == (f"s{i}" if len(shape) == 2 else f"s{i}_0")
    assert float(rows["s2_0", "1"]["hd95"]) == 2 * spacing[0]
    assert float(rows["s0_0", "2"]["dice"]) == pytest.approx(2 / 3)
    assert [rows[f"s{i}_0", "2"]["empty"] for i in range(3)] == ["False", "True", "True"]
    assert summary["mean_dice"] == pytest.approx((np.mean(overlap) + 2 / 3) / 2)
    assert summary["datasets"]["mine"]["n_empty"] == 2
    assert f"HD95 ({unit})" in (tmp_path / "out" / "report.md").read_text()


def test_the_command_names_missing_and_surplus_masks(folders, tmp_path, capsys):
    predictions, labels, shape = folders
    arguments = ["evaluate", "--predictions", str(predictions), "--labels", str(labels), "--out", str(tmp_path / "out")]
    save(predictions / "extra", shifted(shape))
    for name in ("predict.json", "s0_0_overlay.png"):  # `predict --overlay` wrote the folder; the picture is no mask
        (predictions / name).write_bytes(b"")
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "1 masks have no label: extra" in output
    assert "hd95 and nsd of cases.csv are empty: --surfaces measures them" in output
    assert "| mine |" in output
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["datasets"]["mine"]["n_subjects"] == 3
    next(predictions.glob("s1_0*")).unlink()
    assert main(arguments) == 1
    assert "lacks masks for 1 of 3 labels: s1_0" in capsys.readouterr().err
    assert main(arguments[:3] + arguments[5:]) == 1
    assert "--predictions needs --labels=FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "array", "error", "message"),
    [
        ("tool/s1_0", np.ones((16, 13)), UserError, "is 13x16, its label .* 14x16"),
        ("tool/s1_0", np.ones((16, 14, 3)), UserError, "one is a volume and the other an image"),
        ("mine/labels/s3_0", np.ones((16, 14)), UserError, "lacks masks for 1 of 4 labels: s3_0"),
    ],
)
def test_images_that_cannot_be_scored_are_named(tmp_path, file, array, error, message):
    for i in range(3):
        for folder in ("mine/labels", "tool"):
            save(tmp_path / folder / f"s{i}_0", shifted((16, 14)))
    if array.ndim == 3:
        (tmp_path / f"{file}.png").unlink()
    save(tmp_path / file, array)
    with pytest.raises(error, match=message):
        score_masks(tmp_path / "tool", tmp_path / "mine" / "labels", tmp_path / "out")


def test_folders_that_cannot_be_compared_are_named(tmp_path):
    tool, labels = tmp_path / "tool", tmp_path / "labels"
    for folder in (tool, labels):
        save(folder / "a_0", shifted((16, 14)))
    with pytest.raises(UserError, match="absent is not a folder"):
        score_masks(tmp_path / "absent", labels, tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none holds no masks: neither images nor \.nii"):
        score_masks(tool, tmp_path / "none", tmp_path / "out")
    save(tool / "a_0", shifted((16, 14), value=3))
    with pytest.raises(UserError, match=r"tool holds the ids \[3\], the labels \[1\]"):
        score_masks(tool, labels, tmp_path / "out")
    for folder in (tool, labels):
        save(folder / "a_0", shifted((16, 14)))
        save(folder / "b_0", shifted((16, 14, 12)))
    assert score_masks(tool, labels, tmp_path / "out")["mean_dice"] == 1
    with pytest.raises(UserError, match="images and volumes: pixels and mm have no common mean"):
        score_masks(tool, labels, tmp_path / "again", surfaces=True)
    save(tool / "a_0", shifted((16, 14, 12)))
    with pytest.raises(UserError, match=r"a_0.* and .*a_0.* have the same name"):
        score_masks(tool, labels, tmp_path / "again")


def test_nan_other_grids_and_other_ids_are_refused(tmp_path):
    shape, tool, labels = (16, 14, 12), tmp_path / "tool", tmp_path / "labels"
    for i in range(3):
        save(labels / f"v{i}", shifted(shape))
        save(tool / f"v{i}", shifted(shape))
    save(tool / "v1", np.where(shifted(shape) > 0, np.nan, 0).astype(np.float32))
    with pytest.raises(ImageError, match=r"v1.nii.gz: values are not class ids"):
        score_masks(tool, labels, tmp_path / "out")
    save(tool / "v1", shifted(shape), spacing=(3.0, 1.0, 0.5))
    with pytest.raises(ImageError, match=r"v1.nii.gz: .* lie in different places"):
        score_masks(tool, labels, tmp_path / "out")
    for i in range(3):
        save(tool / f"v{i}", shifted(shape, value=254))
    with pytest.raises(UserError, match=r"holds the ids \[254\], the labels \[1\]"):
        score_masks(tool, labels, tmp_path / "out")
    save(labels / "v0", np.zeros(shape, np.float32))
    with pytest.raises(UserError, match="not a folder"):
        score_masks(tmp_path / "absent", labels, tmp_path / "out")


def test_results_of_other_masks_are_refused(folders, tmp_path):
    predictions, labels, shape = folders
    first = score_masks(predictions, labels, tmp_path / "out")
    assert score_masks(predictions, labels, tmp_path / "out") == first
    save(predictions / "s0_0", shifted(shape, by=1))
    with pytest.raises(UserError, match="of another run"):
        score_masks(predictions, labels, tmp_path / "out")
    assert score_masks(predictions, labels, tmp_path / "out", overwrite=True) != first
