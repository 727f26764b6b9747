"""meta.json: mistakes are named, and subjects come from a pattern or a table."""

import pytest

from tests.readers.test_cases import volume_folder
from universeg_jax.readers import notes
from universeg_jax.readers.errors import FolderError
from universeg_jax.readers.folder import read_folder


@pytest.mark.parametrize(
    ("meta", "word"),
    [
        ({"axes": ["top"]}, "\"axes\" is .'top'.; write a list of sagittal"),
        ({"axes": 7}, "7; write a list of sagittal"),
        ({"window": [1, 0]}, "write one of auto, ct"),
        ({"window": "bone"}, "'bone'; write one of"),
        ({"subjects": "("}, "which is no pattern"),
        ({"subjects": "p"}, "needs one group"),
        ({"subjects": "x(y)"}, "does not match the case 'p0_0'"),
        ({"subjects": 3}, "write a text"),
        ({"subjects": "absent.csv"}, "absent.csv: cannot be read"),
        ({"subjects": "../x.csv"}, "must lie in the folder"),
    ],
)
def test_mistakes_in_meta_are_named(tmp_path, meta, word):
    with pytest.raises(FolderError, match=word):
        read_folder(volume_folder(tmp_path, count=1, shape=(4, 4, 4), **meta))


def test_subjects_by_a_pattern_or_a_table(tmp_path):
    volume_folder(tmp_path, count=3, shape=(8, 8, 4), subjects=r"^(p\d)")
    assert [case.subject for case in read_folder(tmp_path).cases] == ["p0", "p1", "p2"]
    (tmp_path / "meta.json").write_text('{"subjects": "who.csv"}')
    (tmp_path / "who.csv").write_text("case,subject,age\np0_0,anna,3\np1_0,anna,3\np2_0,bo,4\n")
    assert [case.subject for case in read_folder(tmp_path).cases] == ["anna", "anna", "bo"]
    for text, word in (
        ("case,subject\np0_0,a\np1_0,b\n", "case 'p2_0' has no subject"),
        ("case,who\np0_0,a\n", "needs the columns case and subject"),
        ("case,subject\np0_0,a\np0_0,b\n", "'p0_0' has two subjects"),
    ):
        (tmp_path / "who.csv").write_text(text)
        with pytest.raises(FolderError, match=word):
            read_folder(tmp_path)


def test_keys_that_occur_twice_are_refused_and_misspelt_ones_said(tmp_path):
    folder = volume_folder(tmp_path, count=1, shape=(4, 4, 4))
    (folder / "meta.json").write_text('{"labels": {"1": "liver", "1": "spleen"}}')
    with pytest.raises(FolderError, match="meta.json is not JSON.*the key '1' occurs twice"):
        read_folder(folder)
    (folder / "meta.json").write_text('{"label": {"1": "liver"}, "Instances": true, "scanner": "new"}')
    with notes.collect() as said:
        read_folder(folder)
    lines = sorted(line for line in said.lines() if "meta.json: " in line)
    assert [line.partition("meta.json: ")[2] for line in lines] == [
        '"Instances" is ignored; did you mean "instances"?',
        '"label" is ignored; did you mean "labels"?',
    ]
