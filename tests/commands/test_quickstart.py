"""The quickstart as a whole on real files and on synthetic data, with a config that trains in seconds."""

import re

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import tiny_config, write_folder
from universeg_jax.commands import quickstart
from universeg_jax.data.dataset import open_dataset
from universeg_jax.episodes import synthetic_datasets
from universeg_jax.evaluation.cases import Settings
from universeg_jax.reports.files import read_json, write_json
from universeg_jax.training import loop


@pytest.fixture
def small(monkeypatch):
    """The quickstart with a tiny model."""
    config = tiny_config(num_steps=4, eval_every=2, image_size=32)
    monkeypatch.setattr(quickstart, "default_config", lambda: config.copy_and_resolve_references())
    monkeypatch.setattr(quickstart, "SETTINGS", Settings((1, 2), (1,), batch_size=4))
    monkeypatch.setattr(synthetic_datasets, "SUBJECTS", 6)
    monkeypatch.setattr(loop, "seconds_per_step", lambda config: 0.1)


def test_real_folders_from_start_to_report_and_again(tmp_path, small, capsys):
    splits = '{"roles": {"train_open": ["a"], "val": ["b"], "test": ["c"]}}'
    for name in "abc":
        write_folder(tmp_path / "data" / name, count=8)
    (tmp_path / "data" / "splits.json").write_text(splits)
    arguments = ["--workdir", str(tmp_path / "run"), "--data", str(tmp_path / "data")]
    assert quickstart.main(arguments) == 0
    summary = read_json(tmp_path / "run" / "eval" / "summary.json")
    assert summary["role"] == "test"
    assert set(summary["datasets"]) == {"c"}
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| c |" in report
    assert "mean_mask" in report
    figures = re.findall(r"\]\((.*?\.png)\)", report)
    assert figures == ["figures/curves.png", "figures/support_size.png", "eval/figures/c.png"]
    for name in figures:
        assert np.asarray(Image.open(tmp_path / "run" / name)).std() > 5
    assert quickstart.recorded_steps(tmp_path / "run") == 4
    capsys.readouterr()
    assert quickstart.main(arguments) == 0
    output = capsys.readouterr().out
    assert "3 built so far" in output
    assert "step 4 reached" in output
    assert "exists for these parameters and this data" in output
    for label in (tmp_path / "data" / "c" / "labels").iterdir():  # the test labels are corrected
        Image.fromarray(255 * (np.asarray(Image.open(label)) == 0).astype(np.uint8)).save(label)
    assert quickstart.main(arguments) == 0
    assert "exists for" not in capsys.readouterr().out
    assert read_json(tmp_path / "run" / "eval" / "summary.json")["mean_dice"] != summary["mean_dice"]
    assert quickstart.main(arguments[:2]) == 1  # synthetic data does not mix with real folders
    assert "holds real datasets" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "steps"), [(0.3, 600), (0.7, 400), (0.91, 300), (1.0, 200), (9.0, 200)])
def test_the_steps_fit_the_machine(monkeypatch, capsys, seconds, steps):
    """280 s of steps, in fifties; below 300 the program that was measured, for 200 steps, is kept."""
    measured = []
    monkeypatch.setattr(loop, "seconds_per_step", lambda config: measured.append(config.num_steps) or seconds)
    config = quickstart.default_config()
    assert quickstart.fit_steps(config) == steps
    assert (measured, config.num_steps) == ([200], 600)
    assert f"--num_steps={steps} repeats this run" in capsys.readouterr().out


def test_the_number_given_wins_and_a_resumed_run_keeps_its_own(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(quickstart, "build_data", lambda *_: None)
    monkeypatch.setattr(quickstart, "evaluate_and_report", lambda *_: None)
    monkeypatch.setattr(quickstart, "fit_steps", lambda config: 250)
    monkeypatch.setattr(loop, "train_and_evaluate", lambda config, workdir: trained.append(config.num_steps))
    quickstart.quickstart(tmp_path, "")
    write_json(tmp_path / "config.json", {"num_steps": 350})
    quickstart.quickstart(tmp_path, "")
    quickstart.quickstart(tmp_path, "", num_steps=7)
    assert trained == [250, 350, 7]


def test_a_step_is_timed_without_writing(tmp_path, data_dir):
    config = tiny_config(data_dir, num_steps=4)
    assert 0 < loop.seconds_per_step(config, count=1) < 60
    assert not list(tmp_path.iterdir())


def test_synthetic_data(tmp_path, small):
    names = synthetic_datasets.make_datasets(tmp_path, size=32)
    assert len(names) == 12
    roles = [open_dataset(tmp_path, name).meta.role for name in names]
    assert (roles.count("train_open"), roles.count("val"), roles.count("test")) == (9, 1, 2)
    before = {name: open_dataset(tmp_path, name).fingerprint for name in names}
    synthetic_datasets.make_datasets(tmp_path / "again", size=32)
    assert before == {name: open_dataset(tmp_path / "again", name).fingerprint for name in names}
    dataset = open_dataset(tmp_path, names[0])
    assert len(dataset) == 6
    assert all(0 < dataset[row]["masks"].mean() < 1 for row in range(6))
