"""The comparison of augmentations and made tasks: what varies, resuming, and the arithmetic of its table."""

import numpy as np
import pytest

from benchmarks import which_helps
from tests.fixtures import build_discs, tiny_config
from universeg_jax.errors import UserError
from universeg_jax.reporting import write_json
from universeg_jax.training import check_parts


def test_variants_differ_in_what_they_say():
    configs = {name: which_helps.config_of(name, 1, 50, "data") for name in which_helps.VARIANTS}
    for config in configs.values():
        check_parts(config)
        assert (config.seed, config.num_steps, config.data_dir, config.val_role) == (1, 50, "data", "val")

    def augments(config, level):
        return any(section.p for section in config.augment[level].values())

    on = {name: (augments(config, "in_task"), augments(config, "task")) for name, config in configs.items()}
    assert on == dict.fromkeys(configs, (True, True)) | {
        "none": (False, False),
        "in_task": (True, False),
        "task": (False, True),
    }
    made = {name: (c.kinds.synthetic, c.kinds.superpixel) for name, c in configs.items()}
    assert made == dict.fromkeys(configs, (0.0, 0.0)) | {
        **dict.fromkeys(("synthetic", "tubes", "blobs", "nests", "structures"), (0.5, 0.0)),
        "superpixel": (0.0, 0.5),
        "published": (0.5, 0.0),
    }
    assert (configs["synthetic"].synthesis.texture, configs["published"].synthesis.texture) == (0.3, 0.0)
    assert configs["synthetic"].synthesis.weights.tubes == 0
    assert configs["structures"].synthesis.weights.tubes == 1
    assert configs["nests"].synthesis.weights.to_dict() == {"shapes": 1, "tubes": 0, "blobs": 0, "nests": 1}


def write(workdir, variant, seed, dice, step=5):
    datasets = {name: {"dice": value} for name, value in dice.items()}
    write_json(workdir / f"{variant}_{seed}" / "eval" / "summary.json", {"step": step, "datasets": datasets})


def test_table_has_means_over_seeds_and_paired_intervals(tmp_path):
    dice = np.random.default_rng(0).random(6)
    for variant, more in (("both", 0.0), ("task", 0.1), ("none", -0.05)):
        for seed in (0, 1):
            change = more + (0.02 if seed else -0.02)
            write(tmp_path, variant, seed, {f"d{i}": float(x + change) for i, x in enumerate(dice)})
    rows = {row["variant"]: row for row in which_helps.gather(tmp_path, list(which_helps.VARIANTS), [0, 1])}
    assert set(rows) == {"both", "task", "none"}
    assert rows["both"]["dice"]["mean"] == pytest.approx(dice.mean())
    means = dice[np.random.default_rng(0).integers(6, size=(which_helps.RESAMPLES, 6))].mean(1)
    assert rows["both"]["dice"]["low"] == pytest.approx(np.quantile(means, 0.025))
    assert rows["both"]["dice"]["high"] == pytest.approx(np.quantile(means, 0.975))
    # The same on every dataset, so that the difference is sure although the mean is not.
    assert rows["task"]["minus_both"] == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1})
    assert "minus_both" not in rows["both"]
    text = which_helps.table(list(rows.values()))
    assert "| none | 2 |" in text
    assert "| -5.0 | -5.0 to -5.0 |" in text
    write(tmp_path, "in_task", 0, {"another": 0.5})
    with pytest.raises(UserError, match="differ in datasets"):
        which_helps.gather(tmp_path, list(which_helps.VARIANTS), [0, 1])


def test_nothing_finished_is_said(tmp_path):
    with pytest.raises(UserError, match="holds no finished run"):
        which_helps.gather(tmp_path, ["none"], [0])


def test_a_tiny_comparison_and_what_is_finished_is_not_done_again(tmp_path, monkeypatch):
    data_dir, workdir = tmp_path / "data", tmp_path / "runs"
    build_discs(data_dir, "train_discs", "train_open", count=10)
    build_discs(data_dir, "val_discs", "val", count=8, seed=1)
    build_discs(data_dir, "test_discs", "test", count=8, seed=2)
    which_helps.run(workdir, ["none"], [0], 2, str(data_dir), tiny_config())
    (row,) = which_helps.gather(workdir, ["none", "both"], [0])
    assert (row["variant"], row["datasets"], row["steps"]) == ("none", 1, 2)  # the val dataset alone
    assert 0 <= row["dice"]["mean"] <= 1
    begun = []
    monkeypatch.setattr(which_helps, "train_and_evaluate", lambda config, directory: begun.append(directory.name))
    which_helps.run(workdir, ["none", "superpixel"], [0], 2, str(data_dir), tiny_config())
    assert begun == ["superpixel_0"]
    now = iter([0, 59, 61])
    monkeypatch.setattr(which_helps.time, "monotonic", lambda: next(now))
    which_helps.run(workdir, ["task", "both"], [0], 2, str(data_dir), tiny_config(), minutes=1)
    assert begun == ["superpixel_0", "task_0"]
