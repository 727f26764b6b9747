"""The `universeg` command line: help, examples, and suggestions for unknown commands and flags."""

import shlex
import subprocess
import sys

import pytest

from universeg_jax.cli import COMMANDS, main, make_parser, parse


def test_help_summarises_every_command_and_needs_no_jax():
    code = "import sys, universeg_jax.cli as c\ntry: c.parse(['--help'])\nfinally: assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    for name in COMMANDS:
        (start,) = (i for i, words in enumerate(lines) if words[:1] == [name])
        summary = lines[start][1:] or lines[start + 1]
        assert summary[0][0].isupper(), name
        assert summary[-1].endswith("."), name


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_parses_and_its_flags_are_explained(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        parse([name, "--help"])
    text = capsys.readouterr().out
    words = shlex.split(text.partition("example: universeg ")[2])
    assert words[0] == name
    assert make_parser().parse_args(words).command == name


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["predcit"], "unknown command predcit; did you mean predict?"),
        (["xyz"], "unknown command xyz; `universeg --help` lists all"),
        (["predict", "--quereis", "scans"], "unknown flag --quereis; did you mean --queries?"),
        (["evaluate", "--supportsize=4"], "unknown flag --supportsize; did you mean --support_size?"),
        (["tasks", "--zzz"], "unknown flag --zzz\n"),
    ],
)
def test_an_unknown_command_or_flag_gets_a_suggestion(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert message in capsys.readouterr().err


def test_a_value_that_begins_with_dashes_is_no_flag(capsys):
    args = parse(["build", "--list", "--beam", "--runner=SparkRunner --spark_version=3"])
    assert args.beam == "--runner=SparkRunner --spark_version=3"


def test_a_removed_flag_names_its_replacement(capsys):
    arguments = ["--support", "s", "--queries", "q", "--out", "o"]
    for beam in (["--beam"], ["--beam", "--runner=SparkRunner --spark_version=3"]):
        assert main(["predict", *arguments, *beam]) == 1
        assert "--beam was removed: use --jobs N on one machine" in capsys.readouterr().err
