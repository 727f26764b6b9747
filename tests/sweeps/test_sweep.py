"""Sweeps: their commands, how they resume, and what they report."""

import contextlib
import csv
import itertools
import os
import shutil
import sys

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from tests.fixtures import build_discs, tiny_config
from universeg_jax.cli import main
from universeg_jax.configs import ablations
from universeg_jax.configuration import flatten, to_dict
from universeg_jax.data.dataset import open_dataset
from universeg_jax.episodes import augment
from universeg_jax.episodes.inputs import open_tasks
from universeg_jax.errors import UserError
from universeg_jax.reports.files import lock, read_json, write_json
from universeg_jax.sweeps import sweep
from universeg_jax.sweeps.sweep import SweepOptions, plan, run_job, run_local, run_slurm
from universeg_jax.training import setup

TINY = ["image_size=16", "batch_size=4", "num_steps=2", "model.encoder_blocks=(4,4)", "support_size=2",
        "kinds.synthetic=0.0", "kinds.real=1.0", "eval_every=2", "checkpoint_every=2", "eval.max_cases=1"]  # fmt: skip
TINY += [
    f"augment.{level}.{op}.p=0.0"  # slow to compile
    for level in ("task", "in_task")
    for op in ablations.get_config().augment[level]
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    for i in range(5):
        build_discs(path, f"train_{i}", "train_open", count=6, seed=i)
    for name in ("test_a", "test_b"):
        build_discs(path, name, "test", count=8)
    return str(path)


@pytest.mark.parametrize("name", ablations.SWEEPS)
def test_every_sweep_lists_commands_that_train_can_read(data_dir, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    points, jobs = plan(name, SweepOptions(data_dir, tmp_path / "out"))
    assert len(points) >= 2
    assert len({point.value for point in points}) == len(points)
    assert {out for point in points for out in point.results} == {out for job in jobs for out, _ in job.evaluations}
    base = flatten(to_dict(ablations.get_config()))
    runs = set()
    for job in jobs:
        parsed = flags.FlagValues()  # as train.py reads them
        config_flags.DEFINE_config_file("config", lock_config=True, flag_values=parsed)
        given = [part for part in job.train[1:] if not part.startswith("--workdir=")]
        monkeypatch.setattr(sys, "argv", given)  # where overrides are looked for
        parsed(given)
        setup.check_config(parsed.config)
        changed = flatten(to_dict(parsed.config))
        runs.add(str(changed))
        assert changed.keys() == base.keys()
        assert changed["data_dir"] == data_dir
    assert len(runs) == len(jobs)  # no two are the same
    assert main(["ablate", f"--sweep={name}", f"--workdir={tmp_path / 'out'}", f"--data_dir={data_dir}", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("train.py" in line for line in lines) == len(jobs) >= 2
    assert not (tmp_path / "out").exists()


def test_the_sweeps_are_listed_with_what_they_compare(capsys):
    assert main(["ablate", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(ablations.SWEEPS)
    assert "num_tasks         Nested subsets, by hash of the task's name, over all datasets." in lines
    assert main(["ablate"]) == 1
    assert "--sweep is missing: name one of support_size, num_datasets, " in capsys.readouterr().err


def test_subsets_of_datasets_and_tasks_are_nested(data_dir, tmp_path):
    points = []
    names = sorted(f"train_{i}" for i in range(5))
    ablations.sweep(lambda value, train: points.append((value, train)), "num_datasets", None, names, 5)
    assert [value for value, _ in points] == [1, 2, 5]
    chosen = [train.get("train_datasets", tuple(names)) for _, train in points]
    assert all(set(a) < set(b) for a, b in itertools.pairwise(chosen))
    datasets = [open_dataset(data_dir, name) for name in names]
    kept = [{t.name for t in open_tasks(tiny_config(train_tasks=n), datasets)} for n in (1, 2, 4, 0)]
    assert [len(k) for k in kept] == [1, 2, 4, 5]
    assert kept[0] < kept[1] < kept[2] < kept[3]
    with pytest.raises(UserError, match="train_tasks=9: there are 5 usable"):
        open_tasks(tiny_config(train_tasks=9), datasets)


def test_datasets_without_a_usable_task_are_not_counted(tmp_path, capsys):
    for name, count in (("a", 6), ("b", 6), ("two_subjects", 2)):
        build_discs(tmp_path, name, "train_open", count=count)
    build_discs(tmp_path, "test", "test", count=8)
    points, jobs = plan("num_datasets", SweepOptions(str(tmp_path), tmp_path / "out", seeds=(0,)))
    assert [point.value for point in points] == ["1", "2"]
    assert "two_subjects" not in sweep.listing(jobs)
    setup.prepare_run(tiny_config(data_dir=str(tmp_path)))
    assert "2 tasks of 2 datasets (without a usable task: 1; `universeg tasks` says why)" in capsys.readouterr().out


def configs_of(sweep):
    """The config of each point."""
    base, configs = ablations.get_config(), {}

    def add(value, train=None):
        configs[value] = base.copy_and_resolve_references()
        configs[value].update_from_flattened_dict(train or {})

    ablations.sweep(add, sweep, base, [], 0)
    return configs


def test_the_augmentation_sweep_switches_levels_off():
    configs = configs_of("augmentation")
    on = {
        value: [any(section.p for section in config.augment[level].values()) for level in ("in_task", "task")]
        for value, config in configs.items()
    }
    assert on == {
        "none": [False, False], "in-task": [True, False], "task": [False, True], "both": [True, True],
        "published": [True, True],
    }  # fmt: skip
    assert configs["both"].augment == ablations.get_config().augment
    assert configs["published"].augment == augment.get_config() != configs["both"].augment
    for level in ("in_task", "task"):  # so that their difference is not that of one level
        assert configs["published"].augment[level] != configs["both"].augment[level]
    assert all(config.kinds.to_dict()["synthetic"] == 0 for config in configs.values())


def test_points_of_synthetic_tasks_add_one_family_each():
    configs = configs_of("made_tasks")
    kinds = {value: [k for k, weight in c.kinds.items() if weight] for value, c in configs.items()}
    assert kinds.pop("real") == ["real"]
    assert sorted(kinds.pop("superpixels")) == ["real", "superpixel"]
    assert all(sorted(value) == ["real", "synthetic"] for value in kinds.values())
    families = {v: {f for f, weight in configs[v].synthesis.weights.items() if weight} for v in kinds}
    assert families.pop("all four") == {"shapes", "tubes", "blobs", "nests"}
    for value, found in families.items():
        assert found == {"shapes"} | ({value.removeprefix("and ")} if value.startswith("and ") else set())
    assert (configs["label maps"].synthesis.texture, configs["label maps as published"].synthesis.texture) == (0.3, 0)


def test_equal_runs_are_trained_once(data_dir, tmp_path):
    for name in (
        "support_size",
        "made_tasks",
        "real_synthetic",
        "cross_activation",
        "matching",
        "support_schedule",
        "width",
    ):
        _, jobs = plan(name, SweepOptions(data_dir, tmp_path, seeds=(3,)))
        assert "base_seed3" in [job.name for job in jobs]
    assert "--support_size=8" in next(job for job in jobs if job.name == "base_seed3").evaluations[0][1]
    _, jobs = plan("ensemble", SweepOptions(data_dir, tmp_path, seeds=(3,)))
    assert [job.name for job in jobs] == ["base_seed3"]
    assert len(jobs[0].evaluations) == 4
    assert {"--ensemble=10", "--support_size=8"} < set(jobs[0].evaluations[-1][1])


def test_a_sweep_of_two_runs_from_start_to_figure_and_again(data_dir, tmp_path, capsys, monkeypatch):
    """One of two runs fails; the other one is kept and not repeated."""

    def two(add, config, datasets, tasks):
        add("one", train={"support_size": 1}, evaluate={"support_size": 1})
        add("two", train={"support_size": 0})

    monkeypatch.setitem(ablations.SWEEPS, "two", two)
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=1"))
    arguments = ["ablate", "--sweep=two", f"--workdir={tmp_path}", f"--data_dir={data_dir}", "--seeds=0"]
    arguments += ["--max_cases=2", *(f"--set={change}" for change in TINY)]
    assert main(arguments) == 1
    text = capsys.readouterr().out
    assert text == (tmp_path / "two_test.md").read_text()
    assert "| one |" in text
    assert "config.support_size=0" in text
    with (tmp_path / "two_test.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    (result,) = tmp_path.glob("runs/*/results_*support_size-1*")
    summary = read_json(result / "summary.json")
    np.testing.assert_allclose(float(row["mean_dice"]), summary["mean_dice"])
    np.testing.assert_allclose(float(row["ci_high"]), summary["mean_ci_high"])
    assert np.asarray(Image.open(tmp_path / "two_test.png")).std() > 5
    monkeypatch.setattr(sweep.subprocess, "run", lambda *a, **k: pytest.fail("nothing is left to run"))
    _, jobs = plan("two", SweepOptions(data_dir, tmp_path, seeds=(0,), changes=tuple(TINY), max_cases=2))
    assert run_job(jobs[0]) == ""
    assert main([*arguments, "--launcher=none"]) == 1
    text = capsys.readouterr().out
    assert "| one |" in text
    assert "support_size-0" in text
    assert "no result yet" in text
    assert main([*arguments, "--launcher=none", "--set=num_steps=4"]) == 1
    assert "num_steps=2 in the run, 4 expected" in capsys.readouterr().err


def command_job(folder, code):
    """A job whose training is a line of Python."""
    return sweep.Job(folder, (sys.executable, "-c", code), ())


def steps_job(folder, steps, fails=False):
    """A job whose training writes its config, and whose evaluation appends the num_steps that it evaluated."""
    config, out = folder / "config.json", folder / "results"
    train = f'open({str(config)!r}, \'w\').write(\'{{"num_steps": {steps}, "data_dir": "d"}}\')'
    evaluate = f"open({str(out / 'of')!r}, 'a').write(open({str(config)!r}).read()[14:16])"
    command = (sys.executable, "-c", evaluate)
    train = (sys.executable, "-c", "1/0" if fails else train, f"--config.num_steps={steps}")
    return sweep.Job(folder, train, ((out, command),), {"num_steps": steps, "data_dir": "e", "newer": 1})


def test_results_of_another_training_do_not_count(tmp_path):
    folder = tmp_path / "run"
    out = folder / "results"
    short, long = steps_job(folder, 60), steps_job(folder, 90)
    assert run_local([short]) == run_local([short]) == {}
    assert (out / "of").read_text() == "60"
    assert sweep.evaluated(short, out)
    assert not sweep.evaluated(long, out)
    assert sweep.missing([short, long]) == {
        "run": "the folder holds another run (num_steps=60 in the run, 90 expected)"
    }
    # A training that fails leaves the old results as they are.
    assert "not trained" in run_local([steps_job(folder, 90, fails=True)])["run"]
    assert sweep.missing([short]) == {}
    assert not sweep.evaluated(long, out)
    assert run_local([long]) == {}
    assert (out / "of").read_text() == "6090"
    assert sweep.evaluated(long, out)
    assert not sweep.evaluated(short, out)


def test_fields_are_compared_if_the_run_has_them_or_a_flag_sets_them(tmp_path):
    job = sweep.Job(tmp_path, ("python", "train.py", "--config.b=2"), (), {"a": 1, "b": 2, "new": 3, "data_dir": "x"})
    assert sweep.differing(job, {"a": 1, "b": 2, "data_dir": "y"}) == []
    assert sweep.differing(job, {"a": 0}) == ["a=0 in the run, 1 expected", "b=absent in the run, 2 expected"]
    assert sweep.differing(job, {"a": 1, "b": 2, "old": 3}) == ["old=3 in the run, absent expected"]


def test_the_expected_config_is_the_one_that_train_reads(data_dir, tmp_path, monkeypatch):
    changes = ("num_steps=7", "optimizer.learning_rate=1", "support_schedule=uniform")
    _, jobs = plan("width", SweepOptions(data_dir, tmp_path, seeds=(5,), changes=changes))
    for job in jobs:
        parsed = flags.FlagValues()
        config_flags.DEFINE_config_file("config", lock_config=True, flag_values=parsed)
        given = [part for part in job.train[1:] if not part.startswith("--workdir=")]
        monkeypatch.setattr(sys, "argv", given)
        parsed(given)
        assert sweep.differing(job, flatten(to_dict(parsed.config))) == []
        assert job.config["num_steps"] == 7


def test_submitit_runs_all_jobs_even_if_one_dies(tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed (extra slurm)")
    kill = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    jobs = [command_job(tmp_path / n, code) for n, code in (("a", "print(1)"), ("b", "1/0"), ("c", kill))]
    problems = run_slurm(jobs, tmp_path / "slurm", {"timeout_min": 1}, cluster="local")
    assert (tmp_path / "a" / "trained.json").exists()
    assert problems.keys() == {"b", "c"}
    assert "division by zero" in problems["b"]
    with pytest.raises(UserError, match="--slurm"):
        run_slurm(jobs, tmp_path / "slurm", {"no_such": 1}, cluster="local")


def test_failed_runs_are_repeated_and_finished_runs_are_not(tmp_path, capsys):
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    jobs = [command_job(tmp_path / "good", count), command_job(tmp_path / "bad", f"{count}; 1/0")]
    for _ in range(2):
        assert run_local(jobs).keys() == {"bad"}
    assert (tmp_path / "count").read_text() == "xxx"
    assert "ZeroDivisionError" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "good")
    assert run_local(jobs[:1]) == {}


def test_jobs_of_another_process_are_skipped_and_checked_again(tmp_path, capsys):
    jobs = [command_job(tmp_path / name, "print(1)") for name in ("a", "b")]
    with lock(jobs[0].workdir, ".job"):
        problems = run_local(jobs)
    assert problems.keys() == {"a"}
    assert "another process works in" in problems["a"]
    assert (tmp_path / "b" / "trained.json").exists()
    # The lock on the first job is released while the second one runs.
    holder = contextlib.ExitStack()
    holder.enter_context(lock(jobs[0].workdir, ".job"))
    release = sweep.Job(tmp_path / "c", (), ())
    original = sweep.run_job

    def run(job):
        if job is release:
            holder.close()
        return original(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "run_job", run)
        assert run_local([jobs[0], release]) == {}
    assert (tmp_path / "a" / "trained.json").exists()
    assert "a: another process" in capsys.readouterr().err


def test_no_run_starts_after_the_minutes(tmp_path, monkeypatch):
    now = iter([0, 59, 61, 500, 600])
    monkeypatch.setattr(sweep.time, "monotonic", lambda: next(now))
    jobs = [command_job(tmp_path / name, "") for name in "abcd"]
    write_json(tmp_path / "d" / "trained.json", list(jobs[3].train[1:]))
    assert run_local(jobs, minutes=1) == dict.fromkeys("bc", "not started within 1 minutes")
    assert (tmp_path / "a" / "trained.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep=colour"], "--sweep=colour: must be one of support_size, num_datasets"),
        (["--sweep=width", "--base=absent.py"], "config absent.py: there is no Python file absent.py"),
        (["--sweep=width", "--set=nothing=1"], "--set nothing=1: write FIELD=VALUE of a field"),
        (["--sweep=width", "--set=num_steps"], "--set num_steps: write FIELD=VALUE"),
        (["--sweep=width", "--set=num_steps=many"], "--set num_steps=many: not the field's type"),
        (["--sweep=width", "--role=val"], "one of role val is needed; available: test_a (test)"),
        (["--sweep=width", "--seeds="], "--seeds: at least one"),
    ],
)
def test_errors_of_the_command_take_one_line(data_dir, tmp_path, capsys, arguments, message):
    assert main(["ablate", f"--workdir={tmp_path / 'out'}", f"--data_dir={data_dir}", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
