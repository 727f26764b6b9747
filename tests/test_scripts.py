"""train.py and eval.py as they are typed."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import train
from universeg_jax import cli
from universeg_jax.configuration import load_config

ROOT = Path(__file__).parents[1]
CONFIG = f"--config={ROOT}/configs/default.py"


def run_script(name, *arguments, timeout=100):
    command = [sys.executable, name, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG, "--config.optimizer.learningrate=2"], "config.optimizer has no field 'learningrate'. Did you mean "),
        ([CONFIG, "--config.optimizer.lr=2"], "config.optimizer has no field 'lr'. Its fields are clip_norm, "),
        ([CONFIG, "--config.batch_size=two"], "flag --config.batch_size=two: "),
        ([CONFIG, "--config.support_size=0"], "config.support_size=0: a number in [1, inf) is needed"),
        ([CONFIG, "extra"], "unknown arguments extra; flags begin with --"),
        (
            [f"{CONFIG.replace('default', 'small')}:96"],
            f"config {ROOT}/configs/small.py:96: configs/small.py:96: ",
        ),
        (["--config=missing.py"], "config missing.py: there is no Python file missing.py; "),
    ],
)
def test_a_wrong_flag_ends_with_one_line(tmp_path, monkeypatch, arguments, message):
    workdir = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["train.py", f"--workdir={workdir}", *arguments])  # ml_collections reads it too
    with pytest.raises(SystemExit) as ended:
        train.main(train.parse(sys.argv))
    line = str(ended.value.code)
    assert line.startswith(f"train.py: {message}")
    assert "\n" not in line
    assert "Traceback" not in line
    assert not workdir.exists()


def test_train_py_ends_with_code_1_and_without_a_traceback(tmp_path):
    result = run_script("train.py", CONFIG, f"--workdir={tmp_path / 'run'}", "--config.optimizer.lr=2")
    assert result.returncode == 1
    assert result.stderr.startswith("train.py: config.optimizer has no field 'lr'")
    assert len(result.stderr.splitlines()) == 1


def test_eval_py_is_the_evaluate_command(tmp_path, monkeypatch, capsys):
    arguments = [f"--checkpoint={tmp_path}", "--role=test", f"--out={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["eval.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "eval.py"), run_name="__main__")
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "holds no checkpoint" in said
    assert cli.main(["evaluate", *arguments]) == 1
    assert capsys.readouterr().err == said


def test_every_field_of_the_default_config_is_explained():
    lines = [
        line for line in (ROOT / "configs" / "default.py").read_text().splitlines() if line.startswith("    config.")
    ]
    assert len(lines) > 30
    made_elsewhere = ("ConfigDict()", "get_config()")  # sections, whose fields are explained one by one
    assert not [line for line in lines if "  # " not in line and not line.endswith(made_elsewhere)]


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m universeg_jax.cli build --list | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    assert done.stderr == ""
    assert done.stdout in ("0\n", "1\n")  # the pipe may have held all of it


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ablate", "--sweep=colour", "--workdir=out"]) == 1
    assert capsys.readouterr().err.startswith("universeg ablate: --sweep=colour: must be one of support_size")
    assert load_config("configs/small.py:64").image_size == 64


@pytest.mark.parametrize("config", [["--config=configs/default.py"], ["--config", "configs/default.py"]])
@pytest.mark.parametrize("dashes", ["-", "--"])
def test_a_flag_of_an_unknown_field_is_named_with_its_section(config, dashes):
    said = train.unknown_flag(["train.py", *config, f"{dashes}config.optimizer.lr=0.1"])
    assert said.startswith("config.optimizer has no field 'lr'. Its fields are")
