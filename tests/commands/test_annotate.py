"""The annotation loop by command line, and the token of a server."""

import numpy as np
import pytest

from tests.annotation.fixtures import volume_project, write_mask
from tests.fixtures import write_folder, write_nifti
from universeg_jax.annotation.session import Session
from universeg_jax.cli import main, make_parser
from universeg_jax.commands.serve import read_token
from universeg_jax.errors import UserError
from universeg_jax.readers.folder import read_folder
from universeg_jax.readers.images import read_label


def test_the_loop_by_command_line(tmp_path, checkpoint, capsys):
    source, path = write_folder(tmp_path / "scans", 4), str(tmp_path / "project")

    def annotate(action, *arguments):
        code = main(["annotate", action, path, *map(str, arguments)])
        output = capsys.readouterr()
        return code, output.out + output.err

    new = annotate("new", "--images", source, "--labels", "1=disc", "--order", "order", "--checkpoint", checkpoint)
    assert new == (0, f"{path}: 4 images, 0 volumes; `universeg annotate next` begins\n")
    assert "no label yet: draw one" in annotate("next")[1]
    code, text = annotate("accept", "p0_0")
    assert code == 1
    assert "p0_0.png does not exist: `universeg annotate next` predicts, or give a MASK" in text
    assert annotate("accept", "p0_0", source / "labels/p0_0.png") == (0, "1 labelled, 3 left\n")
    code, text = annotate("next")
    assert text.startswith(f"p1_0  {path}/images/p1_0.png\nprediction: {path}/predictions/p1_0.png, expected Dice ")
    assert annotate("accept", "p1_0") == (0, "2 labelled, 2 left\n")
    np.testing.assert_array_equal(
        read_label(tmp_path / "project/labels/p1_0.png"), read_label(tmp_path / "project/predictions/p1_0.png")
    )
    assert annotate("undo") == (0, "undo: p1_0\n1 labelled, 3 left\n")
    assert annotate("redo") == (0, "redo: p1_0\n2 labelled, 2 left\n")
    assert annotate("lock", "p1_0")[0] == 0
    assert "p1_0 is locked" in annotate("forget", "p1_0")[1]
    assert annotate("lock", "--label", 1)[0] == 0
    code, text = annotate("status")
    assert (
        "2 labelled, 2 left; 2 steps to undo, 0 to redo\nlocked: p1_0, label 1\nDice to expect, by leaving one out:"
        in text
    )
    code, text = annotate("run")
    assert (code, text.splitlines()[0]) == (0, f"{path}/predictions: 2 predicted")
    assert sorted(f.name for f in (tmp_path / "project/predictions").iterdir())[-1] == "predictions.csv"
    write_mask(tmp_path / "project/labels/p0_0.png", np.ones((20, 30)))
    code, text = annotate("status")
    assert code == 1
    assert "p0_0.png was edited outside" in text
    assert annotate("restore", "p0_0") == (0, "2 labelled, 2 left\n")
    assert annotate("accept")[1].startswith("universeg annotate: say which image")


def test_slices_of_a_file_are_accepted_as_the_file_numbers_them(tmp_path, capsys):
    path, truth = volume_project(tmp_path, shape=(12, 14, 6))
    truth["scan0"][..., 4] = 0
    file = write_nifti(tmp_path / "some.nii.gz", truth["scan0"], (1.0, 1.0, -3.0))
    assert main(["annotate", "accept", str(path), "scan0", str(file), "--slices", "1,4"]) == 0
    with Session(path) as session:
        assert session.labelled() == ["scan0/1", "scan0/4"]
        np.testing.assert_array_equal(session.mask("scan0/1"), truth["scan0"][..., 1].T[::-1, ::-1])
        assert not session.mask("scan0/4").any()
    other = write_nifti(tmp_path / "other.nii.gz", truth["scan0"][:-1], (1.0, 1.0, -3.0))
    assert main(["annotate", "accept", str(path), "scan0", str(other)]) == 1
    assert "differ in shape" in capsys.readouterr().err
    assert main(["annotate", "accept", str(path), "scan0", str(file)]) == 0
    (case,) = read_folder(path).cases
    assert case.fault == ("", "")


def test_labels_without_names_and_wrong_words(capsys):
    parse = make_parser().parse_args
    assert parse(["annotate", "new", "p", "--labels", "1=liver,2"]).labels == {1: "liver", 2: "label 2"}
    for wrong in (["new", "p", "--labels", "0=liver"], ["accept", "p", "--slices", "a"], ["paint", "p"]):
        with pytest.raises(SystemExit, match="2"):
            parse(["annotate", *wrong])
    assert "write them as 1=liver,2=tumour" in capsys.readouterr().err


def test_another_host_needs_a_token(tmp_path):
    assert read_token(None, "127.0.0.1") == ""
    with pytest.raises(UserError, match=r"--host 0\.0\.0\.0 opens the project to other machines: give --token FILE"):
        read_token(None, "0.0.0.0")
    file = tmp_path / "token"
    file.write_text("short\n")
    with pytest.raises(UserError, match="at least 16 ASCII characters"):
        read_token(file, "0.0.0.0")
    file.write_text("0123456789abcdef\n")
    assert read_token(file, "0.0.0.0") == "0123456789abcdef"
