"""train.py and eval.py as they are typed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments, timeout=100):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--config.optimizer.learningrate=2"], 'Did you mean "learning_rate"'),
        (["--config.batch_size=two"], "two"),
        (["--config.support_size=0"], "config.support_size=0"),
        (["extra"], "unknown arguments extra"),
    ],
)
def test_a_wrong_flag_ends_with_one_line(tmp_path, arguments, word):
    workdir = tmp_path / "run"
    result = run("train.py", "--config=configs/default.py", f"--workdir={workdir}", *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("train.py: ")
    assert word in result.stderr
    assert "Traceback" not in result.stderr
    assert not workdir.exists()


def test_eval_names_what_is_missing(tmp_path):
    result = run("eval.py", f"--checkpoint={tmp_path}", "--role=test", f"--out={tmp_path / 'out'}")
    assert result.returncode == 1
    assert "holds no checkpoint" in result.stderr
    assert "Traceback" not in result.stderr


def test_every_field_of_the_default_config_is_explained():
    lines = [
        line for line in (ROOT / "configs" / "default.py").read_text().splitlines() if line.startswith("    config.")
    ]
    assert len(lines) > 30
    made_elsewhere = ("ConfigDict()", "get_config()")  # sections, whose fields are explained one by one
    assert not [line for line in lines if "  # " not in line and not line.endswith(made_elsewhere)]


def test_a_reader_that_has_read_enough_is_no_error():
    command = f"{sys.executable} -m universeg_jax.cli build --list | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    assert done.stderr == ""
    assert done.stdout in ("0\n", "1\n")  # the pipe may have held all of it


def test_ablate_finds_its_configs_from_any_folder(tmp_path):
    code = "import sys; from universeg_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", code, "ablate", "--sweep=colour", "--workdir=out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("universeg ablate: --sweep=colour: one of support_size")
