"""`universeg replay`: any single episode of a run equals the one that the run was trained on."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from tests.fixtures import build_discs, tiny_config
from universeg_jax import cli
from universeg_jax.checkpoints import store
from universeg_jax.checkpoints.lineage import lineage
from universeg_jax.configuration import read_config, to_dict, write_config
from universeg_jax.episode import stack_examples
from universeg_jax.episodes import inputs, replay
from universeg_jax.episodes.on_device import device_episodes, support_size_of, trim_support
from universeg_jax.episodes.sampler import batches

STEP = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, config) of a run with a checkpoint that records its training data."""
    path = tmp_path_factory.mktemp("replay")
    build_discs(path / "data", "discs", "train_open", count=12)
    config = tiny_config(path / "data", batch_size=2, num_steps=3, support_schedule="uniform")
    workdir = path / "run"
    (workdir / "checkpoints").mkdir(parents=True)
    write_config(config, workdir)
    record = lineage(config, *inputs.open_data(config))
    store.write_params(workdir / "checkpoints" / "3", {"w": np.ones(1)}, {"lineage": record, "metrics": None})
    return workdir, config


def test_replay_plots_the_episode_of_the_training_step(run, tmp_path, monkeypatch, capsys):
    workdir, config = run
    plots = {}
    monkeypatch.setattr(replay, "plot_rows", lambda rows, path, title: plots.update({path.name: (rows, title)}))
    for k in range(2):
        command = ["replay", f"--workdir={workdir}", f"--step={STEP}", f"--index={k}", f"--out={tmp_path / str(k)}"]
        assert cli.main(command) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / str(k)) for k in range(2)]
    sampler = inputs.open_sampler(config, inputs.open_data(config)[0])
    batch = next(batches(sampler, batch_size=2, first_step=STEP, last_step=STEP + 1))
    batch = trim_support(batch, *support_size_of(STEP, config))
    trained_on = jax.jit(functools.partial(device_episodes, config=config))(batch)[0]
    count = 1 + int(batch.episode.support_mask[0].sum())
    for k in range(2):
        (raw, augmented), title = plots[str(k)]
        assert (raw[0], augmented[0]) == ("raw", "augmented")
        assert title.startswith(f"episode {2 * STEP + k} of seed 0: ")
        for part, expected in zip(augmented[1:], stack_examples(trained_on), strict=True):
            np.testing.assert_allclose(part, expected[k, :count, ..., 0], atol=1e-6)


def test_the_plot_holds_every_entry_over_several_rows(run, tmp_path, monkeypatch):
    _, config = run
    config = config.copy_and_resolve_references()
    config.support_schedule, config.support_size = "fixed", 14
    sampler = inputs.open_sampler(config, inputs.open_data(config)[0])
    rows = []
    plot_rows = replay.plot_rows
    monkeypatch.setattr(replay, "plot_rows", lambda given, *rest: (rows.extend(given), plot_rows(given, *rest)))
    path = replay.plot_episode(sampler, 0, config, tmp_path / "episode.png")
    assert [row[0] for row in rows] == ["raw", "augmented"] * 2
    for title in ("raw", "augmented"):
        images = np.concatenate([images for name, images, _ in rows if name == title])
        shown = ~np.isnan(images).any((1, 2))
        assert len(images) == 2 * replay.COLUMNS
        assert shown[:15].all()  # the query and 14 support entries
        assert not shown[15:].any()
    assert np.asarray(Image.open(path)).std() > 5


def test_the_config_of_a_run_is_read_back(run, tmp_path):
    workdir, config = run
    assert to_dict(read_config(workdir)) == to_dict(config)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--step=3"], "--step 3: use 0 to 2 for this run"),
        (["--step=-1"], "--step -1"),
        (["--step=0", "--index=2"], "--index 2: use 0 to 1 for this run"),
        (["--step=0", "--data_dir=nowhere"], "no dataset of roles"),
    ],
)
def test_an_episode_outside_the_run_is_refused(run, capsys, arguments, word):
    assert cli.main(["replay", f"--workdir={run[0]}", *arguments]) == 1
    assert word in capsys.readouterr().err
    assert not list(run[0].glob("*.png"))


def test_data_other_than_the_runs_is_refused(run, tmp_path, capsys):
    build_discs(tmp_path, "discs", "train_open", count=12, seed=1)
    assert cli.main(["replay", f"--workdir={run[0]}", "--step=0", f"--data_dir={tmp_path}"]) == 1
    assert "was trained on other datasets than data_dir has: discs (built anew)" in capsys.readouterr().err
    assert cli.main(["replay", f"--workdir={tmp_path}", "--step=0"]) == 1
    assert "holds no config.json" in capsys.readouterr().err
