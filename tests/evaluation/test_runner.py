"""The evaluation protocol: support sampling, averaging, reports."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.fixtures import build_discs, disc_examples, memory_dataset, tiny_config
from universeg_jax.checkpoints import store
from universeg_jax.cli import main
from universeg_jax.configuration import to_dict
from universeg_jax.data.builder import build
from universeg_jax.data.dataset import DatasetMeta, open_dataset
from universeg_jax.data.tasks import FIRST, SECOND, dataset_tasks
from universeg_jax.episode import to_device_floats
from universeg_jax.errors import UserError
from universeg_jax.evaluation import runner, trivial
from universeg_jax.evaluation.cases import Settings, gather_episodes, query_cases, sample_support, support_pool
from universeg_jax.evaluation.runner import evaluate, evaluate_to, seen_before, select_datasets, summarize
from universeg_jax.evaluation.surfaces import surface_scores
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.readers.cases import Example
from universeg_jax.reports.markdown import percent


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return build_discs(tmp_path_factory.mktemp("data"), "discs", "test", count=20)


def truth(params, episode):
    return episode.query_label


def nan(params, episode):
    return episode.query_label * jnp.nan


def half(params, episode):
    """Every other row of the truth: half of its pixels and no false positives."""
    return episode.query_label * (jnp.arange(episode.query_label.shape[1]) % 2 == 0)[None, :, None, None]


@given(seed=st.integers(0, 50), size=st.integers(1, 30), draw=st.integers(0, 5))
def test_supports_come_from_the_support_split_and_repeat_only_above_the_pool(seed, size, draw):
    dataset = memory_dataset("d", "test", [f"s{i % 15}" for i in range(30)], [1] * 30)
    (task,) = dataset_tasks(dataset)
    pool = support_pool(task)
    for case in query_cases(task):
        chosen = sample_support(case, pool, size, draw, seed)
        assert case.subject not in pool.subjects[chosen]
        assert len(np.unique(chosen)) == min(size, len(pool)) or size > len(pool)
        np.testing.assert_array_equal(chosen, sample_support(case, pool, size, draw, seed))


def test_a_query_subject_in_the_pool_is_refused():
    dataset = memory_dataset("d", "test", [f"s{i}" for i in range(5)], [1] * 5)
    (task,) = dataset_tasks(dataset)
    with pytest.raises(ValueError, match="is in the support pool"):
        sample_support(query_cases(task)[0], task.side(SECOND), 1, 0, 0)


def test_smaller_pools_and_fewer_cases_are_subsets():
    dataset = memory_dataset("d", "test", [f"s{i}" for i in range(50)], [1] * 50)
    (task,) = dataset_tasks(dataset)
    pools = [set(support_pool(task, n).rows.tolist()) for n in (1, 4, 16, 0)]
    assert [len(p) for p in pools] == [1, 4, 16, 30]
    assert pools[0] < pools[1] < pools[2] < pools[3] == set(task.side(FIRST).rows.tolist())
    assert (
        {c.row for c in query_cases(task, 3)}
        < {c.row for c in query_cases(task, 7)}
        < {c.row for c in query_cases(task)}
    )


def test_the_truth_scores_1_and_half_of_it_two_thirds(dataset):
    tasks = dataset_tasks(dataset)
    rows = evaluate({"truth": (truth, None), "half": (half, None)}, [dataset], tasks, Settings((2,)), progress=False)
    assert len(rows) == 2 * len(query_cases(tasks[0]))
    assert summarize(rows, "truth", 2, 1)["mean_dice"] == 1
    assert abs(summarize(rows, "half", 2, 1)["mean_dice"] - 2 / 3) < 0.02
    assert {row["effective_support"] for row in rows} == {2}


def test_batch_size_and_order_change_nothing(dataset):
    tasks = dataset_tasks(dataset)
    method = {"mean": (trivial.mean_mask, None)}
    rows = [evaluate(method, [dataset], tasks, Settings((3,), (1, 2), batch_size=b), progress=False) for b in (1, 3, 8)]
    assert rows[0] == rows[1] == rows[2]


def test_an_ensemble_averages_probabilities_of_its_draws(dataset):
    tasks = dataset_tasks(dataset)
    rows = evaluate({"m": (trivial.mean_mask, None)}, [dataset], tasks, Settings((1,), (1, 3)), progress=False)
    one, three = ([r for r in rows if r["ensemble"] == k] for k in (1, 3))
    assert all(r["dice"] == r["single_dice"] for r in one)
    for alone, of_three in zip(one, three, strict=True):
        draws = [float(x) for x in of_three["dice_by_draw"].split()]
        assert (len(draws), alone["dice_by_draw"]) == (3, of_three["dice_by_draw"].split()[0])
        assert of_three["single_dice"] == pytest.approx(np.mean(draws), abs=1e-6)
    assert any(r["dice"] != r["single_dice"] for r in three)
    # The mean of three single supports, computed by hand for the first case.
    case, pool = query_cases(tasks[0])[0], support_pool(tasks[0])
    settings = Settings((1,), (3,))
    episode, _ = gather_episodes([case], {"discs": dataset}, settings, 1, 1)
    for k in range(3):
        row = int(pool.rows[sample_support(case, pool, 1, k, 0)[0]])
        np.testing.assert_array_equal(episode.support_labels[0, k, 0, ..., 0], dataset[row]["masks"][0])
    floats = to_device_floats(episode, 128)
    vote = (np.asarray(floats.support_labels)[0, :, 0].mean(0) >= 0.5)[..., 0]
    target = np.asarray(floats.query_label)[0, ..., 0] > 0
    expected = 2 * (vote & target).sum() / (vote.sum() + target.sum())
    np.testing.assert_allclose(three[0]["dice"], expected, rtol=1e-6)


def test_images_without_the_structure_are_not_queries(tmp_path):
    with_disc = disc_examples(9)
    without = [Example(e.image, e.masks[:0], (), f"none{i}", f"none{i}") for i, e in enumerate(with_disc)]
    build(DatasetMeta("d", "test", {1: "disc"}, 16), [*with_disc, *without], lambda e: [e], tmp_path)
    mixed = open_dataset(tmp_path, "d")
    assert len(mixed) == 18
    rows = evaluate({"m": (truth, None)}, [mixed], dataset_tasks(mixed), Settings((1,)), progress=False)
    assert rows
    assert not any(of["empty"] or of["subject"].startswith("none") for of in rows)


def test_a_prediction_that_is_not_finite_is_refused(dataset):
    with pytest.raises(FloatingPointError, match="m predicts NaN or inf: task discs/"):
        evaluate(
            {"m": (nan, None)},
            [dataset],
            dataset_tasks(dataset),
            Settings((1,)),
            False,
        )


def test_scores_of_a_case_computed_by_hand(dataset):
    """Half of the rows of the truth and a column of false positives, with scores computed from the masks."""

    def method(params, episode):
        size = episode.query_label.shape[1]
        column = (jnp.arange(size) == 0)[None, None, :, None]
        return jnp.maximum(0.6 * half(params, episode), jnp.where(column, 0.55, 0.0))

    task = dataset_tasks(dataset)[0]
    settings = Settings((1,), surfaces=True, tolerance=1.0)
    got = evaluate({"m": (method, None)}, [dataset], [task], settings, progress=False)[0]
    case = query_cases(task)[0]
    episode, _ = gather_episodes([case], {"discs": dataset}, settings, 1, 1)
    target = np.asarray(to_device_floats(episode, 128).query_label)[0, ..., 0] > 0
    found = target & (np.arange(128) % 2 == 0)[:, None]
    mask = found | (np.arange(128) == 0)[None]
    assert not target[:, 0].any()
    expected = {
        "dice": 2 * found.sum() / (mask.sum() + target.sum()),
        "oracle_dice": 2 * found.sum() / (found.sum() + target.sum()),  # a threshold above the column
        "sensitivity": found.sum() / target.sum(),
        "precision": found.sum() / mask.sum(),
        "false_positive_area": 128 / 128**2,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)
    assert (got["hd95"], got["nsd"]) == surface_scores(mask, target, (1, 1), 1.0)
    assert (got["row"], got["slice"]) == (case.row, got["subject"])  # named so by the fixture
    without = evaluate({"m": (method, None)}, [dataset], [task], Settings((1,)), progress=False)[0]
    assert (without["hd95"], without["nsd"]) == (None, None)
    assert {**without, "hd95": got["hd95"], "nsd": got["nsd"]} == got


def test_datasets_of_two_sizes_are_refused(dataset):
    other = memory_dataset("other", "test", ["a", "b", "c"], [1] * 3, size=32)
    with pytest.raises(UserError, match=r"different sizes: .*'other': 32.*one --size"):
        evaluate({"m": (truth, None)}, [dataset, other], dataset_tasks(dataset), Settings((1,)), progress=False)


def test_a_support_larger_than_the_pool_is_sampled_with_replacement_and_reported(dataset, tmp_path):
    (task,) = dataset_tasks(dataset)
    rows = evaluate({"m": (truth, None)}, [dataset], [task], Settings((9,), pool_size=3), progress=False)
    assert {r["effective_support"] for r in rows} <= {1, 2, 3}
    summary = evaluate_to(tmp_path, {"m": (truth, None)}, [dataset], Settings((9,), pool_size=3), {})
    assert summary["datasets"]["discs"]["effective_support"] <= 3
    assert "different examples among 9" in (tmp_path / "report.md").read_text()


def test_results_of_another_run_are_refused_and_kept(dataset, tmp_path):
    first = evaluate_to(tmp_path, {"m": (truth, None)}, [dataset], Settings((1,)), {"params_hash": "a"})
    for about, settings in (({"params_hash": "b"}, Settings((1,))), ({"params_hash": "a"}, Settings((2,)))):
        with pytest.raises(UserError, match="holds cases.csv, summary.json, report.md, report.html of another run"):
            evaluate_to(tmp_path, {"m": (half, None)}, [dataset], settings, about)
    assert json.loads((tmp_path / "summary.json").read_text()) == first
    again = evaluate_to(tmp_path, {"m": (truth, None)}, [dataset], Settings((1,), batch_size=3), {"params_hash": "a"})
    assert again == first
    evaluate_to(tmp_path, {"m": (half, None)}, [dataset], Settings((2,)), {}, overwrite=True)
    assert json.loads((tmp_path / "summary.json").read_text())["support_size"] == 2


def test_the_report_shows_tables_and_the_best_median_and_worst_case(dataset, tmp_path):
    methods = {"mean": (trivial.mean_mask, None), "nearest": (trivial.nearest_label, None)}
    summary = evaluate_to(tmp_path, methods, [dataset], Settings((1, 3), (1, 2), surfaces=True), {})
    with (tmp_path / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [r for r in rows if (r["method"], r["support_size"], r["ensemble"]) == ("mean", "3", "2")]
    scores = sorted(float(r["dice"]) for r in rows)
    assert np.asarray(Image.open(tmp_path / "figures" / "discs.png")).std() > 5
    text = (tmp_path / "report.md").read_text()
    for which, score in (("best", scores[-1]), ("worst", scores[0])):
        name = re.search(rf"{which}: ([^;\n]+)", text).group(1)
        assert score in [float(r["dice"]) for r in rows if r["slice"] == name]
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert 'src="data:' in page
    assert "http" not in page
    for shown in (percent(summary["mean_dice"]), "HD95 (pixels)", "nearest"):
        assert shown in text
        assert shown in page
    of = summary["datasets"]["discs"]
    assert f"{percent(of['ci_low'])} to {percent(of['ci_high'])}" in page


def test_figures_show_the_masks_that_were_scored(dataset, tmp_path, monkeypatch):
    kept, methods = {}, {"m": (trivial.mean_mask, None)}
    settings, (task,) = Settings((2,), (3,), flips=True), dataset_tasks(dataset)
    rows = evaluate(methods, [dataset], [task], settings, progress=False, keep=kept)
    for case, of in zip(query_cases(task), rows, strict=True):
        drawn = runner.segment_case(trivial.mean_mask, None, dataset, case, settings)
        np.testing.assert_allclose(drawn["dice"], of["dice"], rtol=1e-6)
        shown = runner.show_case(dataset, case, settings, kept[task.name, case.row], of["dice"])
        np.testing.assert_array_equal(shown["probabilities"], drawn["probabilities"])
    monkeypatch.setattr(runner, "mean_probabilities", None)  # a report predicts nothing again
    evaluate_to(tmp_path, methods, [dataset], Settings((3, 1), (2, 1)), {"role": "test"})
    assert "figures/discs.png" in (tmp_path / "report.md").read_text()


def test_files_and_skipped_datasets(dataset, tmp_path):
    lone = memory_dataset("lone", "test", ["a", "a"], [1, 1])
    settings = Settings((1, 3), (1, 2))
    summary = evaluate_to(
        tmp_path, {"m": (truth, None)}, [dataset, lone], settings, {"role": "test"}, with_report=False
    )
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (summary["support_size"], summary["ensemble"], summary["mean_dice"]) == (3, 2, 1.0)
    assert len(summary["settings"]) == 4
    assert set(summary["datasets"]) == {"discs"}
    assert set(summary["datasets"]["discs"]) >= {"dice", "ci_low", "ci_high", "n_cases", "n_subjects"}
    assert "1 subjects, 3 needed" in summary["skipped"]["lone"]
    lines = (tmp_path / "cases.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * summary["datasets"]["discs"]["n_cases"]


def test_wrong_names_roles_and_settings_are_refused(dataset):
    with pytest.raises(UserError, match=r"not built in D: other; available: discs \(test\)"):
        select_datasets([dataset], "D", ("other",))
    with pytest.raises(UserError, match="no dataset with role 'val'"):
        select_datasets([dataset], "D", role="val")
    for options in (
        {"support_sizes": (0,)},
        {"ensembles": ()},
        {"pool_size": -1},
        {"batch_size": 0},
        {"tolerance": -1},
    ):
        with pytest.raises(UserError, match=f"{next(iter(options)).rstrip('s')}.*=.* must be at least"):
            Settings(**options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint at 16 pixels, which is neither the size of the data nor the official one."""
    config = tiny_config(image_size=16)
    path = tmp_path_factory.mktemp("checkpoint") / "model"
    params = init_params(build_model(config.model), 0)
    store.write_params(path, params, {"config": to_dict(config), "metrics": None})
    return path


def test_datasets_that_a_checkpoint_has_seen_are_named():
    def described(name, group="", fingerprint=""):
        dataset = memory_dataset(name, "test", ["a"], [1], group=group)
        return replace(dataset, fingerprint=fingerprint or name)

    built = [
        described("ct", "hospital"),
        described("mr", "hospital"),
        described("copy", fingerprint="0"),
        described("new"),
        described("chose"),
    ]
    trained = {"ct": {"fingerprint": "rebuilt"}, "old": {"fingerprint": "0"}}
    lineage = {"trained_on": trained, "selected_on": {"chose": {"fingerprint": "chose"}}}
    assert seen_before(lineage, built, built) == [
        "seen in training: copy (as old), ct, mr (same source as ct)",
        "chose the checkpoint: chose",
    ]
    assert seen_before(lineage, [built[3]], built) == []
    assert seen_before({"trained_on": {}, "selected_on": {}}, built, built) == []
    unknown = "the training data of the weights is not fully recorded"
    assert seen_before({"converted_from": "x.pt"}, built, built) == [unknown]
    assert seen_before({**lineage, "unknown_origin": {}}, built[:1], built) == [unknown, "seen in training: ct"]


def test_a_source_group_with_two_roles_is_refused():
    datasets = [memory_dataset(role, role, ["a"], [1], group="g") for role in ("train_open", "test")]
    with pytest.raises(UserError, match=r"source group 'g' .* test \(test\), train_open \(training\)"):
        select_datasets(datasets, "D", role="test")


def test_every_report_names_datasets_seen_in_training(dataset, tmp_path, capsys):
    config = tiny_config(image_size=16)
    record = {"discs": {"role": "test", "licence": "", "fingerprint": dataset.fingerprint}}
    metadata = {"config": to_dict(config), "metrics": None, "lineage": {"trained_on": record, "selected_on": {}}}
    store.write_params(tmp_path / "model", init_params(build_model(config.model), 0), metadata)
    data_dir, out = Path(dataset.directory).parents[1], tmp_path / "out"
    arguments = [f"--checkpoint={tmp_path / 'model'}", f"--data_dir={data_dir}", "--role=test", f"--out={out}"]
    arguments += ["--support_size=1", "--max_cases=1"]
    assert main(["evaluate", *arguments]) == 0
    assert "seen in training: discs" in capsys.readouterr().out
    assert "seen in training: discs" in json.loads((out / "summary.json").read_text())["notes"]
    for name in ("report.md", "report.html"):
        assert "seen in training: discs." in (out / name).read_text()


def test_the_command_from_checkpoint_to_report(dataset, checkpoint, tmp_path, capsys):
    data_dir = str(Path(dataset.directory).parents[1])
    arguments = ["evaluate", f"--checkpoint={checkpoint}", f"--data_dir={data_dir}", f"--out={tmp_path / 'out'}"]
    arguments += ["--support_size=1", "--max_cases=2", "--surfaces"]
    assert main([*arguments, "--role=test"]) == 0
    assert "NSD within 2 pixels (%)" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    for more, message in (
        (["--datasets=nobody"], "not built in"),
        (["--role=val"], "no dataset with role 'val'"),
        (["--role=test", "--max_cases=1"], "of another run; choose another --out, or add --overwrite"),
        ([], "--checkpoint needs either --datasets=NAMES or --role=ROLE"),
        (["--role=test", f"--checkpoint={tmp_path / 'absent'}"], "does not exist"),
    ):
        assert main([*arguments, *more]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert main([*arguments, "--role=test", "--max_cases=1", "--overwrite"]) == 0
