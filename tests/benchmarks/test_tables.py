"""The main table: its commands and its rows."""

import json

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from benchmarks import tables
from tests.fixtures import build_discs
from universeg_jax import cli
from universeg_jax.commands.baseline import TRIVIAL
from universeg_jax.evaluation import trivial
from universeg_jax.evaluation.cases import Settings
from universeg_jax.evaluation.runner import evaluate_to
from universeg_jax.reports.files import write_json
from universeg_jax.training import setup


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """The planned jobs, without running them."""
    planned = []
    monkeypatch.setattr(tables, "run_local", lambda jobs, minutes: planned.extend(jobs) or {})
    arguments = [f"--workdir={tmp_path}", "--steps=7", "--support_size=2,4", "--ensemble=3", "--checkpoints=small"]
    assert tables.main(arguments) == 0
    return planned


def test_every_command_is_valid_and_models_have_equal_episodes(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    names = [job.name for job in jobs]
    assert names == ["universeg", "as_published", "senet", "panet", "alpnet", "small", *TRIVIAL, "unet", "finetune"]
    configs = {}
    for job in jobs:
        assert [out for out, _ in job.evaluations] == [tmp_path / role / job.name for role in ("val", "test")]
        for out, command in job.evaluations:
            args = cli.make_parser().parse_args(command[3:])
            assert (args.out, args.ensemble) == (out, (3,))
            assert args.support_size == ((2,) if job.name == "finetune" else (2, 4))
        if job.train:
            parsed = flags.FlagValues()  # as train.py reads them
            config_flags.DEFINE_config_file("config", lock_config=True, flag_values=parsed)
            given = [part for part in job.train[1:] if not part.startswith("--workdir=")]
            monkeypatch.setattr("sys.argv", given)  # where overrides are looked for
            parsed(given)
            setup.check_config(parsed.config)
            configs[job.name] = parsed.config.to_dict()
    models = {name: config.pop("model") for name, config in configs.items()}
    assert {model["name"] for model in models.values()} == {"universeg", "senet", "panet", "alpnet"}
    assert (models["universeg"]["matching"], models["as_published"]["matching"]) == (4, 0)
    assert all(config == configs["universeg"] for config in configs.values())
    assert configs["universeg"]["num_steps"] == configs["universeg"]["eval_every"] == 7


def test_results_of_other_steps_are_left_out(jobs):
    """So are results fine-tuned from the model that these steps trained."""

    def record(job, **changes):
        for out, command in job.evaluations:
            write_json(out / "evaluated.json", {"command": list(command[1:]), "config": job.config | changes})

    for job in jobs:
        record(job)
    assert tables.outdated(jobs) == set()
    for job in jobs:
        if job.run == jobs[0].run:
            record(job, num_steps=8)
    assert {out.name for out in tables.outdated(jobs)} == {"universeg", "finetune"}


def test_tables_hold_finished_results_with_differences_to_ours(tmp_path):
    dataset = build_discs(tmp_path / "data", "discs", "test", count=12)
    for name, method, sizes in (
        ("universeg", trivial.mean_mask, (2, 4)),
        ("senet", trivial.nearest_label, (2, 4)),
        ("finetune", trivial.nearest_label, (2,)),
    ):
        evaluate_to(
            tmp_path / "test" / name,
            {name: (method, None)},
            [dataset],
            Settings(sizes, (3,), max_cases=5),
            {},
            with_report=False,
        )
    text = tables.table(tmp_path, "test", (2, 4), 3)
    first, second = text.split("## Support size ")[1:]
    assert first.count("| finetune |") == 2  # its Dice and its difference
    assert "finetune" not in second
    assert second.count("| senet |") == 2
    assert "| universeg minus | mean Dice (%) | 95 % interval | p |" in second
    assert tables.table(tmp_path, "val", (2, 4), 3).count("|") == 0
    # Only one of them has a record of its training.
    write_json(tmp_path / "models" / "senet" / "config.json", {"num_steps": 7, "seed": 3})
    write_json(tmp_path / "test" / "senet" / "evaluated.json", {"command": [], "config": {"num_steps": 7, "seed": 3}})
    rows = [json.loads(line) for line in tables.lines(tmp_path, "test", (2, 4), 3)]
    assert [(r["support_size"], r["method"]) for r in rows] == [
        (2, "finetune"), (2, "senet"), (2, "universeg"), (4, "senet"), (4, "universeg"),
    ]  # fmt: skip
    assert all(f"{100 * row['dice']:.1f}" in text and row["max_cases"] == 5 for row in rows)
    assert {(r["method"], r.get("steps"), r.get("seed")) for r in rows} == {
        ("finetune", None, None), ("senet", 7, 3), ("universeg", None, None),
    }  # fmt: skip
    stale = {(tmp_path / "test" / "senet").resolve()}
    assert "senet" not in tables.table(tmp_path, "test", (2, 4), 3, stale)
    assert not any('"senet"' in line for line in tables.lines(tmp_path, "test", (2, 4), 3, stale))
    assert all(row["datasets"]["discs"]["ci_low"] <= row["dice"] <= row["datasets"]["discs"]["ci_high"] for row in rows)
