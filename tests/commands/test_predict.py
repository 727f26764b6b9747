"""The command line of `universeg predict`: answered at once where it is wrong, and in words of the support folder."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.fixtures import write_folder
from universeg_jax.cli import main
from universeg_jax.commands.predict import label_id
from universeg_jax.errors import UserError
from universeg_jax.prediction.predictor import Predictor


def test_a_command_line_is_parsed_without_numpy_and_jax():
    """Imports take seconds, and a mistyped flag must not wait for them."""
    code = """
import sys
from universeg_jax.cli import parse
try:
    parse(["predict", "--suport", "a", "--queries", "b", "--out", "c"])
except SystemExit as error:
    print(error.code, [name for name in ("numpy", "scipy", "jax", "flax") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []"
    assert "unknown flag --suport; did you mean --support?" in done.stderr


def test_a_label_has_an_id_and_a_name(tmp_path):
    folder = write_folder(tmp_path / "s", count=2, ids=(1, 2))
    (folder / "meta.json").write_text(json.dumps({"labels": {"1": "Liver", "2": "spleen"}}))

    def of(label):
        return label_id(SimpleNamespace(label=label, support=str(folder), ignore=None))

    assert [of(label) for label in (None, "2", "7", "liver", "spleen")] == [None, 2, 7, 1, 2]
    with pytest.raises(UserError, match="--label kidney: .* has 1 Liver, 2 spleen; give one of these"):
        of("kidney")


def test_one_example_other_files_and_a_name_of_a_label_are_told(tmp_path, monkeypatch, predictor, checkpoint, capsys):
    monkeypatch.setattr(Predictor, "from_checkpoint", lambda path: predictor)
    folder = write_folder(tmp_path / "s", count=1, ids=(1, 2))
    (folder / "meta.json").write_text(json.dumps({"labels": {"1": "liver", "2": "spleen"}}))
    (folder / "images" / "notes.txt").write_text("hello")
    queries = write_folder(tmp_path / "q", count=1) / "images"
    arguments = ["predict", "--support", str(folder), "--queries", str(queries), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--label", "spleen", "--overlay"]) == 0
    said = capsys.readouterr()
    assert "images/notes.txt: passed over" in said.err
    assert "only one labelled example" in said.err
    assert "outlines: spleen red" in said.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "--queries", "q", "--out", "{}/out"],
        ["check", "--json", "{}/a.json"],
        ["finetune", "--out", "{}/out"],
    ],
)
def test_a_place_that_cannot_be_written_to_is_named_before_the_work(tmp_path, capsys, arguments):
    """The support folder does not exist, and would be complained of next."""
    (tmp_path / "file").write_text("")
    arguments = [arguments[0], "--support", str(tmp_path / "no"), *(a.format(tmp_path / "file") for a in arguments[1:])]
    assert main(arguments) == 1
    assert "cannot be written to" in capsys.readouterr().err
