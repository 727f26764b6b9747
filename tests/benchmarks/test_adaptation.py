"""The figure of Dice against seconds: measured, resumed and plotted."""

import json

import jax
import numpy as np
import pytest

from benchmarks import adaptation
from tests.fixtures import build_discs, tiny_config
from universeg_jax.adaptation.fitting import Fitted
from universeg_jax.adaptation.workflow import Trainer
from universeg_jax.checkpoints import store
from universeg_jax.configuration import to_dict
from universeg_jax.data.tasks import dataset_tasks
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.reports.files import read_json_lines

FLAGS = ("--role=test", "--max_cases=1", "--unet_steps=2", "--finetune_steps=2", "--score_every=2", "--image_size=16")


@pytest.mark.slow
def test_a_tiny_figure_is_measured_resumed_and_plotted(tmp_path, capsys, monkeypatch):
    build_discs(tmp_path / "data", "discs", "test", count=6)
    config = tiny_config()
    metadata = {"config": to_dict(config), "lineage": {}}
    store.write_params(tmp_path / "weights", init_params(build_model(config.model), 0), metadata)
    flags = [*FLAGS, f"--data_dir={tmp_path / 'data'}", f"--checkpoint={tmp_path / 'weights'}", "--features=2,2"]
    flags.append(f"--out={tmp_path / 'out'}")
    assert adaptation.main([*flags, "--sizes=1"]) == 0
    path = tmp_path / "out" / "adaptation.jsonl"
    first = read_json_lines(path)
    assert [line["method"] for line in first] == ["in_context", "finetune", "unet"]
    context, tuned, unet = first
    assert context["training_seconds"] == tuned["training_seconds"] == 0 < unet["training_seconds"]
    assert context["dice"] == tuned["dice"]  # one labelled image is not fine-tuned
    for line in first:
        assert line["seconds"] == line["training_seconds"] + line["mask_seconds"] > 0

    with path.open("a") as file:
        file.write('{"task": "cut sho')  # a kill in the middle of a line
    (tmp_path / "out" / "adaptation.png").unlink()
    capsys.readouterr()
    assert adaptation.main([*flags, "--sizes=1,2"]) == 0
    lines = read_json_lines(path)
    assert lines[:3] == first
    assert [(line["n"], line["method"]) for line in lines[3:]] == [(2, m) for m in ("in_context", "finetune", "unet")]
    assert lines[4]["training_seconds"] > 0
    assert (tmp_path / "out" / "adaptation.png").stat().st_size > 1000
    assert "| U-Net from scratch | 2 |" in capsys.readouterr().out

    monkeypatch.setattr(adaptation, "measure", lambda *_: pytest.fail("measured again"))
    assert adaptation.main([*flags, "--sizes=1,2"]) == 0
    assert adaptation.main([*flags, "--sizes=1,2,4", "--minutes=1e-9"]) == 0
    assert adaptation.main([*flags, "--sizes=1,2", "--unet_steps=4"]) == 1
    assert "holds the files of another run (recipes" in capsys.readouterr().err


def test_a_pool_smaller_than_n_is_the_whole_support(tmp_path):
    dataset = build_discs(tmp_path, "discs", "test", count=10)  # 6 of them in the support pool
    (task,) = dataset_tasks(dataset)
    seen = []

    def method(params, episode):
        jax.debug.callback(lambda images: seen.append(np.asarray(images)), episode.support_images)
        return episode.query_label

    trainer = Trainer("in_context", lambda *_: Fitted({}, {"seconds": 0, "compile_seconds": 0}), method, {}, {})
    for n, labelled in ((4, 4), (6, 6), (64, 6)):
        seen.clear()
        assert adaptation.measure(trainer, dataset, task, n, max_cases=1)["labelled"] == labelled
        jax.effects_barrier()
        assert len(seen) > 4  # the evaluation, and the masks that are timed
        for supports in seen:
            sets = supports.reshape(-1, labelled, *supports.shape[-3:])
            assert all(len(np.unique(images.reshape(labelled, -1), axis=0)) == labelled for images in sets)


def test_a_figure_shows_the_methods_with_points(tmp_path):
    point = {"n": 4, "tasks": 1, "dice": 0.5, "seconds": 2.0, "labelled": 4.0}
    for points in ({}, {"in_context": [point]}, {"in_context": [point], "unet": [point]}):
        adaptation.plot(points, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 1000
        (tmp_path / "figure.png").unlink()


def test_points_are_means_over_tasks_then_datasets():
    def line(dataset, task, dice):
        return {"dataset": dataset, "task": task, "n": 4, "method": "unet", "dice": dice, "seconds": 2.0, "labelled": 4}

    lines = [line("a", "1", 0.0), line("a", "2", 1.0), line("b", "3", 0.9)]
    (point,) = adaptation.summarize([*lines, json.loads(json.dumps(lines[0])) | {"n": 8}])["unet"][:1]
    assert point == {"n": 4, "tasks": 3, "dice": pytest.approx(0.7), "seconds": 2.0, "labelled": 4.0}
