"""The page of a run: one that has just begun, one with evaluations, one that was resumed; and the command."""

import json

import pytest

from tests.fixtures import tiny_config
from universeg_jax.cli import main
from universeg_jax.configuration import to_dict
from universeg_jax.errors import UserError
from universeg_jax.training.report import progress, write_run_report


def line(step, time):
    values = dict.fromkeys(("loss", "dice", "grad_norm", "param_norm", "learning_rate"), 0.5)
    return {"step": step, **values, "seconds_waiting": 0.5, "time": time}


def write(workdir, lines, evaluations=()):
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "eval").mkdir(exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(to_dict(tiny_config(num_steps=100))))
    for name, rows in (("metrics.jsonl", lines), ("eval/metrics.jsonl", evaluations)):
        (workdir / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workdir


def test_a_run_before_its_first_save(tmp_path, capsys):
    workdir = write(tmp_path / "<mine>", [line(step, 2.0 * step) for step in range(5)])
    assert main(["report", str(workdir)]) == 0
    assert str(workdir / "report.html") in capsys.readouterr().out
    page = (workdir / "report.html").read_text()
    assert "5 of 100" in page
    assert "expected end" in page
    assert "no checkpoint" in page
    assert "&lt;mine&gt;" in page
    assert "<mine>" not in page
    assert "Dice (%) on" not in page
    assert "config.optimizer.learning_rate" in page


def test_scores_are_those_of_the_last_and_of_the_best_evaluation(tmp_path):
    evaluations = [
        {"step": step, "mean_dice": dice, "datasets": {"lungs": dice}}
        for step, dice in ((10, 0.25), (20, 0.75), (30, 0.5))
    ]
    page = write_run_report(write(tmp_path, [line(99, 1.0)], evaluations)).read_text()
    assert "75.0 at step 20" in page
    assert "expected end" not in page  # it is done
    _, _, rest = page.partition("Dice (%) on the validation datasets")
    assert rest.index("step 30") < rest.index("best, step 20") < rest.index("50.0") < rest.index("75.0")


def test_speed_is_measured_since_the_last_start():
    lines = [line(step, 100.0 * step) for step in range(5)] + [line(step, 2.0 * (step - 4)) for step in range(5, 9)]
    rows = dict(progress(lines, [], {"num_steps": 100, "batch_size": 4}))
    assert rows["seconds a step"] == "2, 25% of them waiting for data"
    assert rows["episodes a second"] == "2"


@pytest.mark.parametrize("missing", ["config.json", "metrics.jsonl"])
def test_a_folder_without_a_run_is_refused(tmp_path, missing):
    write(tmp_path, [line(0, 1.0)])
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match="holds no run with a step done"):
        write_run_report(tmp_path)
