"""Training per task: subjects stay on one side, fine-tuning never harms, and rows compare with those of evaluate."""

import csv
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures import build_discs, memory_dataset, tiny_config
from universeg_jax import cli
from universeg_jax.adaptation import per_task, workflow
from universeg_jax.adaptation.fitting import Labelled, Recipe, fit
from universeg_jax.adaptation.leave_one_out import Start, finetune_functions, leave_one_out
from universeg_jax.adaptation.per_task import fit_finetuned, fit_unet, held_out
from universeg_jax.checkpoints import store
from universeg_jax.configuration import to_dict
from universeg_jax.data.tasks import TaskSide, dataset_tasks
from universeg_jax.errors import UserError
from universeg_jax.evaluation import runner
from universeg_jax.evaluation.cases import Settings, support_pool
from universeg_jax.evaluation.cost import cost_table, count_parameters
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.model.unet import UNet
from universeg_jax.reports.files import read_json

RECIPE = Recipe(steps=40, batch_size=4, learning_rate=1e-2, score_every=20, image_size=16)
SETTINGS = Settings((1, 2), (1, 2), max_cases=2)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    build_discs(path, "discs", "test", count=12)
    return path


@pytest.fixture(scope="module")
def dataset(data_dir):
    return runner.open_dataset(data_dir, "discs")


@pytest.fixture(scope="module")
def start():
    config = tiny_config()
    return Start(init_params(build_model(config.model), 0), config)


@pytest.fixture
def checkpoint(tmp_path, start):
    metadata = {"config": to_dict(start.config), "lineage": {}, "metrics": None}
    store.write_params(tmp_path / "checkpoint", start.params, metadata)
    return str(tmp_path / "checkpoint")


def first(examples, count):
    return TaskSide(examples.rows[:count], examples.positions[:count], examples.subjects[:count])


def test_a_fifth_of_the_subjects_is_held_out_and_none_of_few():
    dataset = memory_dataset("d", "test", [f"s{i // 3}" for i in range(60)], [1] * 60)
    pool = support_pool(dataset_tasks(dataset)[0])
    out = held_out(dataset, dataset_tasks(dataset)[0], pool.subjects)
    assert not set(pool.subjects[out]) & set(pool.subjects[~out])
    assert len(set(pool.subjects[out])) == round(0.2 * len(set(pool.subjects)))
    assert not held_out(dataset, dataset_tasks(dataset)[0], pool.subjects[:9]).any()


def test_read_pads_and_marks_trained_and_scored_images(dataset):
    (task,) = dataset_tasks(dataset)
    pool = support_pool(task)
    assert len(pool) == 7
    data = per_task.read(dataset, task, pool, 16, hold_out=True)
    assert data.images.shape == (8, 16, 16, 1)
    scored = np.asarray(data.scored)[np.asarray(data.counts) > 0]
    assert sorted([*np.flatnonzero(data.trained), *scored]) == list(range(7))
    np.testing.assert_array_equal(data.labels[3, ..., 0], dataset[int(pool.rows[3])]["masks"][pool.positions[3]])
    everything = per_task.read(dataset, task, pool, 16, hold_out=False)
    assert (everything.trained.sum(), everything.counts.sum()) == (7, 7)


def test_a_query_is_never_in_its_support():
    subjects = jnp.asarray([0, 0, 1, 2, 2, -1, -1, -1])
    images = jnp.broadcast_to(jnp.arange(8.0)[:, None, None, None], (8, 2, 2, 1))
    data = Labelled(images, images, subjects, subjects >= 0, jnp.arange(4), jnp.ones(4))
    one_subject = data._replace(subjects=jnp.where(subjects >= 0, 0, -1))
    for i in range(5):
        for labelled, allowed in ((data, subjects != subjects[i]), (one_subject, jnp.arange(8) != i)):
            episode = leave_one_out(jax.random.key(i), labelled, jnp.int32(i), 4)
            used = np.asarray(episode.support_images)[np.asarray(episode.support_mask) > 0, 0, 0, 0].astype(int)
            assert len(used) == min(4, int((allowed & (subjects >= 0)).sum()))
            assert len(set(used)) == len(used)
            assert np.asarray(allowed & (subjects >= 0))[used].all()
            assert episode.query_image[0, 0, 0] == i


@pytest.mark.parametrize("showing", [1, 2, 5])
def test_a_support_shows_the_label_if_any_image_does(showing):
    """At least one of four support entries shows a label that few of 40 images show, unless only the query does."""
    shows = jnp.arange(40) < showing
    labels = jnp.broadcast_to(shows[:, None, None, None].astype(jnp.float32), (40, 2, 2, 1))
    data = Labelled(labels, labels, jnp.arange(40), shows, jnp.arange(4), jnp.ones(4))
    counts = []
    for seed in range(30):
        episode = leave_one_out(jax.random.key(seed), data, jnp.int32(0), 4)
        counts.append(int(episode.support_labels.max((1, 2, 3)).sum()))
        assert episode.support_mask.sum() == 4
    assert min(counts) == min(showing - 1, 1)


def test_a_unet_learns_its_task_from_its_support_split(dataset):
    (task,) = dataset_tasks(dataset)
    fitted = fit_unet(dataset, task, support_pool(task), (4, 8), RECIPE)
    assert fitted.about["best_score"] > fitted.about["start_score"] + 0.2
    assert fitted.about["best_step"] in (20, 40)
    two = support_pool(task)
    two = TaskSide(two.rows[[0, 0, 0, 1, 1, 1]], two.positions[[0, 0, 0, 1, 1, 1]], two.subjects[[0, 0, 0, 1, 1, 1]])
    few = fit_unet(dataset, task, two, (4, 8), RECIPE)
    assert few.about["best_step"] == 40
    assert "best_score" not in few.about
    data = per_task.read(dataset, task, two, 16, hold_out=True)
    with pytest.raises(FloatingPointError, match="lower learning_rate=0.01"):
        fit(fitted.params, data._replace(images=data.images * jnp.nan), *functions()[1:], RECIPE, keep_start=False)


def functions():
    return per_task.unet_functions((4, 8), RECIPE.batch_size)


def test_fine_tuning_never_returns_worse_parameters(dataset, start):
    (task,) = dataset_tasks(dataset)
    recipe = replace(RECIPE, steps=20, score_every=10)
    fitted = fit_finetuned(dataset, task, support_pool(task), start, 3, recipe)
    assert fitted.about["best_step"] > 0
    assert fitted.about["best_score"] > fitted.about["start_score"]
    data = per_task.read(dataset, task, support_pool(task), 16, hold_out=False)
    samplers = (leave_one_out, leave_one_out)
    score = finetune_functions(start.config.model.to_json(), start.config.loss.to_json(), 4, 3, *samplers)[1]
    assert float(score(fitted.params, data)) == pytest.approx(fitted.about["best_score"], abs=1e-6)

    def harm(params, key, data):
        return -sum((x**2).sum() for x in jax.tree.leaves(params))

    good = fitted.params
    worse = fit(good, data, harm, score, replace(recipe, learning_rate=1.0), keep_start=True)
    assert worse.about["best_step"] == 0
    jax.tree.map(np.testing.assert_array_equal, worse.params, good)
    alone = fit_finetuned(dataset, task, first(support_pool(task), 1), start, 3, recipe)
    assert alone.params is start.params


def rows_of(folder):
    with (folder / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_match_those_of_evaluate_and_finished_tasks_are_skipped(data_dir, dataset, tmp_path, start, checkpoint):
    evaluated = runner.evaluate_checkpoint(checkpoint, str(data_dir), ("discs",), "", SETTINGS, tmp_path / "model")
    trainer = workflow.unet_trainer((4, 8), RECIPE)
    summary = workflow.evaluate_per_task(trainer, str(data_dir), ("discs",), "", SETTINGS, tmp_path / "unet")
    key = ("dataset", "task", "subject", "row", "support_size", "ensemble")
    ours, theirs = rows_of(tmp_path / "model"), rows_of(tmp_path / "unet")
    assert ours[0].keys() == theirs[0].keys()
    assert sorted(tuple(r[k] for k in key) for r in ours) == sorted(tuple(r[k] for k in key) for r in theirs)
    assert {r["effective_support"] for r in theirs} == {"7"}
    assert summary.keys() >= evaluated.keys() - {"checkpoint", "params_hash"}
    assert summary["cost"]["parameters"] == count_parameters(trainer.start)
    (training,) = summary["training"].values()
    assert summary["cost"]["preparation_seconds"] == training["seconds"] > 0
    for name in ("model", "unet"):
        assert " M parameters; " in (tmp_path / name / "report.md").read_text()

    def refuse(*_):
        raise AssertionError("trained again")

    again = replace(trainer, fit=refuse)
    once_more = workflow.evaluate_per_task(again, str(data_dir), ("discs",), "", SETTINGS, tmp_path / "unet")
    assert once_more["datasets"] == summary["datasets"]
    other = workflow.unet_trainer((4, 8), replace(RECIPE, steps=20))
    with pytest.raises(UserError, match=r"holds the files of another run \(steps: 40 before, 20 now\)"):
        workflow.evaluate_per_task(other, str(data_dir), ("discs",), "", SETTINGS, tmp_path / "unet")
    with pytest.raises(UserError, match="files of something else"):
        workflow.evaluate_per_task(other, str(data_dir), ("discs",), "", SETTINGS, tmp_path / "model")


def test_the_commands(data_dir, tmp_path, checkpoint, capsys):
    flags = [f"--data_dir={data_dir}", "--role=test", "--support_size=2", "--max_cases=2", "--steps=2"]
    out = tmp_path / "tuned"
    out.mkdir()
    (out / "log.txt").touch()  # as a launcher does that keeps what the command prints
    finetune = ["baseline", "--kind=finetune", *flags, "--score_every=1", "--train_batch_size=1", f"--out={out}"]
    assert cli.main([*finetune, f"--checkpoint={checkpoint}"]) == 0
    assert "M parameters" in capsys.readouterr().out
    summary = read_json(out / "summary.json")
    assert summary["notes"] == [
        "the training data of the weights is not fully recorded"
    ]  # of the weights that are tuned
    (training,) = summary["training"].values()
    assert training["best_score"] >= training["start_score"]
    assert cli.main(["table", str(out)]) == 0
    assert capsys.readouterr().out == cost_table({"tuned": summary}) + "\n"
    assert cli.main(finetune) == 1
    assert "finetune needs a checkpoint" in capsys.readouterr().err
    assert cli.main([*finetune, f"--checkpoint={checkpoint}", "--steps=3", "--score_every=2"]) == 1
    assert "steps=3 is not a multiple of score_every=2" in capsys.readouterr().err
    unet = ["baseline", "--kind=unet", *flags, "--score_every=1", f"--out={tmp_path / 'unet'}"]
    assert cli.main([*unet, "--features=16,x"]) == 1
    assert "--features=16,x: use numbers above 0" in capsys.readouterr().err
    assert cli.main([*unet, "--image_size=100"]) == 1
    assert "image_size=100: a U-Net of 5 levels of features needs a multiple of 16" in capsys.readouterr().err
    small = [*unet, "--features=2,2", "--image_size=16", "--learning_rate=1e30"]
    assert cli.main(small) == 1
    assert "lower learning_rate=1e+30" in capsys.readouterr().err
    assert cli.main(["table", str(tmp_path)]) == 1
    assert "no summary.json" in capsys.readouterr().err


def test_a_table_holds_costs_beside_dice():
    summaries = {
        "ours": {"cost": {"parameters": 1_182_785, "milliseconds": 142.2}, "datasets": {"a": {"dice": 0.5}}},
        "older": {"datasets": {"a": {"dice": 0.25}, "b": {"dice": 0.75}}},
    }
    summaries["ours"]["mean_dice"], summaries["older"]["mean_dice"] = 0.5, 0.5
    lines = cost_table(summaries).splitlines()
    assert lines[0] == "| Dice (%) | M parameters | ms | preparation (s) | a | b | mean |"
    assert lines[2] == "| ours | 1.18 | 142 | 0 | 50.0 | - | 50.0 |"
    assert lines[3] == "| older | - | - | - | 25.0 | 75.0 | 50.0 |"


def test_a_table_shows_the_selected_setting():
    def of(size, dice):
        dataset = {"dice": dice, "ci_low": dice - 0.1, "ci_high": dice + 0.1}
        ends = {"mean_ci_low": dice - 0.05, "mean_ci_high": dice + 0.05}
        return {
            "method": "m",
            "support_size": size,
            "ensemble": 5,
            "mean_dice": dice,
            **ends,
            "datasets": {"a": dataset},
        }

    summaries = {"ours": {**of(64, 0.7), "settings": [of(16, 0.6), of(64, 0.7)]}}
    assert cost_table(summaries).endswith("| 70.0 (60.0 to 80.0) | 70.0 (65.0 to 75.0) |")
    assert cost_table(summaries, support_size=16).endswith("| 60.0 (50.0 to 70.0) | 60.0 (55.0 to 65.0) |")
    with pytest.raises(UserError, match=r"ours has no result for .*'ensemble': 1.*draws: 16 with 5, 64 with 5"):
        cost_table(summaries, ensemble=1)


def test_trivial_baselines_use_the_same_command(data_dir, tmp_path, capsys):
    flags = [f"--data_dir={data_dir}", "--role=test", "--support_size=2", "--max_cases=2", f"--out={tmp_path}"]
    assert cli.main(["baseline", "--kind=nearest_features", *flags]) == 0
    assert "0.00 M parameters" in capsys.readouterr().out
    summary = read_json(tmp_path / "summary.json")
    assert (summary["method"], summary["cost"]["parameters"]) == ("nearest_features", 0)
    assert (tmp_path / "report.html").exists()
    assert cli.main(["baseline", "--kind=mean_mask", *flags]) == 1
    assert "of another run" in capsys.readouterr().err
    assert cli.main(["baseline", "--kind=mean_mask", *flags, "--checkpoint=small"]) == 1
    assert "finetune needs a checkpoint, others take none" in capsys.readouterr().err


def test_a_unet_ignores_the_support_and_names_a_wrong_size():
    model = UNet((2, 4, 4))
    image = jnp.ones((1, 8, 12, 1))
    params = jax.jit(model.init)(jax.random.key(0), image)
    apply = jax.jit(model.apply)
    np.testing.assert_array_equal(apply(params, image, image[None], image[None]), apply(params, image))
    with pytest.raises(ValueError, match="image size 8x10: a U-Net of 3 levels needs multiples of 4"):
        apply(params, image[:, :, :10])
