"""The benchmark of completed volumes scores what it says."""

import json

import nibabel as nib
import numpy as np

from benchmarks import completion
from tests.prediction.test_complete import tube


def test_methods_are_scored_on_the_slices_between(tmp_path, predictor, monkeypatch):
    image, ids = tube(3)
    folder = tmp_path / "volumes" / "tube"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"axis": 2}))
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "a_image.nii.gz")
    nib.save(nib.Nifti1Image(ids.astype(np.uint8), np.eye(4)), folder / "a_label.nii.gz")
    monkeypatch.setattr(completion.Predictor, "from_checkpoint", lambda path: predictor)
    out = tmp_path / "lines.jsonl"
    arguments = ["completion", "--data", str(tmp_path / "volumes"), "--steps", "4", "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*arguments, "--methods", "interpolation,motion,full"])
    completion.main()
    row, mean = (json.loads(line) for line in out.read_text().splitlines())
    assert (row["volume"], row["step"], row["gaps"]) == ("tube/a", 4, 4)
    assert row["interpolation"] == mean["interpolation"]
    assert 0 < row["nearest"]["dice"] < row["interpolation"]["dice"] <= 100
    (scan,) = completion.read_scans(tmp_path / "volumes", 1)
    assert set(np.unique(scan.ids)) == {0, 5}  # the largest label
    gaps = completion.find_gaps((0, 8, 16), 17)
    assert completion.score(scan, [(gap, scan.ids[gap.start : gap.stop]) for gap in gaps]) == {"dice": 100, "hd95": 0}
