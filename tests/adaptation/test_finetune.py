"""`universeg finetune`: held-out subjects are not trained on, the score never drops, and the lineage is recorded."""

import os
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.fixtures import tiny_config, write_folder
from universeg_jax import Predictor
from universeg_jax.adaptation import fitting
from universeg_jax.adaptation.finetune import (
    choose_held_out,
    finetune,
    finetune_to,
    read_tasks,
    scores_text,
    scoring_episode,
    training_episode,
)
from universeg_jax.adaptation.fitting import Recipe
from universeg_jax.adaptation.leave_one_out import loss_weights
from universeg_jax.checkpoints import store
from universeg_jax.checkpoints.lineage import check_open
from universeg_jax.checkpoints.packaged import params_hash
from universeg_jax.cli import main
from universeg_jax.configuration import to_dict
from universeg_jax.errors import UserError
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.prediction.support import Support, read_support_folder

CONFIG = tiny_config()
PARENT = {"role": "train_open", "licence": "CC0", "fingerprint": "f"}


def write_checkpoint(path, config=None):
    """Parameters alone, as packaged weights are."""
    lineage = {"trained_on": {"open": PARENT}, "selected_on": {}, "parents": ["grandparent"], "synthetic": True}
    params = init_params(build_model(CONFIG.model), 0)
    store.write_params(path, params, {"config": config or to_dict(CONFIG), "lineage": lineage, "metrics": None})
    return path


def numbered_support(subjects, empty=()):
    """Example i has the grey value (i + 1) / 100; of two labels the second is empty in `empty`."""
    count = len(subjects)
    images = np.broadcast_to((np.arange(count, dtype=np.float32)[:, None, None] + 1) / 100, (count, 128, 128))
    masks = np.zeros((2, count, 128, 128), np.uint8)
    masks[0, :, 32:64, 32:64] = masks[1, :, 64:96, 64:96] = 1
    masks[1, list(empty)] = 0
    names = tuple(f"{i}" for i in range(count))
    return Support(images, masks, (1, 2), names, tuple(subjects))


def test_held_out_subjects_are_in_no_training_episode():
    subjects = ["a", "a", "b", "b", "c", "d", "e", "f", "g", "h"]
    support = numbered_support(subjects, empty=(0, 4))
    tasks = read_tasks(support, 16)
    held_out = {name for name, out in zip(subjects, tasks.held_out, strict=True) if out}
    assert len(held_out) == 2
    scored = {(int(q) // 10, int(q) % 10) for q in tasks.scored}
    expected = {(j, i) for j in (0, 1) for i in range(10) if subjects[i] in held_out and not (j and i in (0, 4))}
    assert scored == expected
    trained = {(int(q) // 10, int(q) % 10) for q in np.flatnonzero(tasks.trained)}
    assert trained == {(j, i) for j in (0, 1) for i in range(10) if not (j and i in (0, 4))} - {
        (j, i) for j in (0, 1) for i in range(10) if subjects[i] in held_out
    }

    samplers = {sample: jax.jit(sample, static_argnums=3) for sample in (training_episode, scoring_episode)}

    def supporters(query, sample):
        episode = samplers[sample](jax.random.key(0), tasks, np.int32(query), 10)
        used = np.asarray(episode.support_images)[np.asarray(episode.support_mask) > 0, 0, 0, 0]
        assert round(100 * float(episode.query_image[0, 0, 0])) - 1 == query % 10
        np.testing.assert_array_equal(episode.query_label, tasks.labels[query // 10, query % 10])
        return {subjects[round(100 * float(x)) - 1] for x in used}

    for query in np.flatnonzero(tasks.trained):
        assert supporters(query, training_episode) == set(subjects) - held_out - {subjects[query % 10]}
    for query in np.asarray(tasks.scored):
        assert supporters(query, scoring_episode) == set(subjects) - {subjects[query % 10]}


def test_few_subjects_are_all_trained_on():
    rng = np.random.default_rng(0)
    marked = np.array([True, True, False, True, True])
    subjects = np.arange(5)
    assert len(choose_held_out(subjects, marked, rng)) == 1
    assert 2 not in [int(choose_held_out(subjects, marked, rng)[0]) for _ in range(20)]  # nothing to score there
    assert len(choose_held_out(subjects, subjects > 1, rng)) == 0
    tasks = read_tasks(numbered_support(["a", "b", "c"]), 16)
    assert (int(tasks.trained.sum()), len(tasks.scored)) == (6, 6)
    for support in (numbered_support(["a"]), numbered_support([])):
        with pytest.raises(UserError, match="at least two examples"):
            read_tasks(support, 16)


def test_fine_tuning_improves_the_score(tmp_path):
    support = read_support_folder(write_folder(tmp_path / "s", count=8, ids=(1, 2)))
    params = init_params(build_model(CONFIG.model), 0)
    tasks = read_tasks(support, 16)
    recipe = Recipe(30, 2, 1e-2, 10, 16)  # that nothing worse comes back is a test of fitting.fit
    fitted = finetune(params, CONFIG, tasks, 3, recipe)
    assert fitted.about["best_step"] > 0
    assert fitted.about["best_score"] > fitted.about["start_score"] + 0.05


def test_training_stops_without_improvement(monkeypatch):
    steps = []

    def step(state, number, key, data):
        steps.append(int(number))
        return state

    scores = iter([0.5, 0.6, 0.4, 0.3, 0.6])
    compiled = lambda *_: (step, lambda *_: next(scores))  # noqa: E731
    optimizer = fitting.optax.identity()
    monkeypatch.setattr(fitting, "programs", lambda *_: (optimizer, compiled))
    tasks = read_tasks(numbered_support(["a", "b"]), 16)
    recipe = Recipe(100, 2, 1e-4, 10, 16)
    fitted = fitting.fit({"x": np.ones(1)}, tasks, None, None, recipe, keep_start=True, patience=3)
    assert (fitted.about["best_step"], fitted.about["best_score"], len(steps)) == (10, 0.6, 40)


def test_predict_accepts_the_checkpoint_of_the_command(tmp_path, capsys):
    start, folder = write_checkpoint(tmp_path / "start"), write_folder(tmp_path / "mine", count=6)
    out = tmp_path / "tuned"
    arguments = ["finetune", "--support", str(folder), "--checkpoint", str(start), "--out", str(out)]
    assert main([*arguments, "--steps", "4", "--score_every", "2"]) == 0
    output = capsys.readouterr().out
    assert "before" in output
    assert "held-out subjects" in output
    metadata = store.read_metadata(out)
    about, support = metadata["finetuned"], read_support_folder(folder)
    assert about["best_score"] >= about["start_score"]
    assert f"{100 * about['start_score']:.1f} before, {100 * about['best_score']:.1f} after" in output
    assert metadata["lineage"]["parents"] == ["grandparent", params_hash(store.load(start)[0])]
    name = f"user:mine-{support.digest()[:8]}"
    assert metadata["lineage"]["selected_on"][name] == {"role": "user", "fingerprint": support.digest()}
    assert set(metadata["lineage"]["trained_on"]) == ({"open", name} if about["best_step"] else {"open"})
    with pytest.raises(UserError, match="may see"):
        check_open(metadata["lineage"])
    assert Predictor.from_checkpoint(out).segmenter(support)(np.eye(20)).mask.shape == (20, 20)
    predict = ["predict", "--checkpoint", str(out), "--support", str(folder), "--queries", str(folder / "images")]
    assert main([*predict, "--out", str(tmp_path / "masks")]) == 0
    assert main(arguments) == 1
    assert "already holds files" in capsys.readouterr().err


def test_wrong_arguments_are_refused_before_the_training(tmp_path):
    start = write_checkpoint(tmp_path / "start")
    support = numbered_support(["a", "b"])
    for fields, word in (({"steps": 0}, "steps=0"), ({"support_size": 0}, "support_size=0")):
        with pytest.raises(UserError, match=word):
            finetune_to(start, support, "mine", tmp_path / "out", **fields)
    with pytest.raises(UserError, match="steps=30 is not a multiple"):
        finetune_to(start, support, "mine", tmp_path / "out", steps=30)
    assert not (tmp_path / "out").exists()


def test_weights_without_a_loss_have_the_published_one(tmp_path):
    config = to_dict(CONFIG)
    assert loss_weights(ConfigDict({})).to_dict().items() <= config.pop("loss").items()
    support = numbered_support(["a", "b"])
    about = finetune_to(write_checkpoint(tmp_path / "start", config), support, "mine", tmp_path / "out", steps=1)
    assert about["scored"] == 4
    assert "too few to hold one out" in scores_text(about, "out")


def test_stopping_keeps_the_best_so_far(tmp_path, monkeypatch, capsys):
    """Ctrl-C in step 5: what scored best after step 4 is written. Before any step was better, nothing is."""
    scores, at = iter([0.5, 0.4, 0.6]), [5]

    def step(state, number, key, data):
        if number == at[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        return (jax.tree.map(lambda x: x + 1.0, state[0]), state[1])

    monkeypatch.setattr(fitting, "programs", lambda *_: (fitting.optax.identity(), lambda *_: (step, score)))
    score = lambda *_: next(scores)  # noqa: E731
    start, folder = write_checkpoint(tmp_path / "start"), write_folder(tmp_path / "mine", count=6)
    arguments = ["finetune", "--support", str(folder), "--checkpoint", str(start), "--out", str(tmp_path / "tuned")]
    assert main([*arguments, "--steps", "8", "--score_every", "2"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"fine-tuning {start} on {folder}")
    assert "stopped after 5 steps" in output
    assert "the parameters of step 4" in output
    before, after = (jax.tree.leaves(store.load(path)[0]) for path in (start, tmp_path / "tuned"))
    np.testing.assert_allclose(after[0], before[0] + 4, rtol=1e-6)
    scores, at = iter([0.5, 0.4]), [2]
    other = tmp_path / "other"
    assert main([*arguments[:-1], str(other), "--steps", "8", "--score_every", "2"]) == 130
    assert "nothing was written" in capsys.readouterr().out
    assert not other.exists()
