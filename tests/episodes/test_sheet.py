"""Contact sheets: twelve tasks of eight subjects, or a row for each operation beside the image it was done to."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import tiny_config
from universeg_jax import cli
from universeg_jax.configuration import ConfigError, load_config
from universeg_jax.episodes import augment, sheet
from universeg_jax.errors import UserError

CONFIG = """
from tests.fixtures import tiny_config

def get_config(seed="0"):
    return tiny_config({data!r}, seed=int(seed))
"""


@pytest.fixture
def config_file(tmp_path, data_dir):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG.format(data=str(data_dir)))
    return path


def test_superpixel_sheet_by_the_command(config_file, tmp_path, capsys):
    out = tmp_path / "deep" / "sheet.png"
    assert cli.main(["sheet", "--kind=superpixel", f"--config={config_file}:1", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    width, height = Image.open(out).size
    assert height / width == pytest.approx(sheet.TASKS / sheet.SUBJECTS, rel=0.05)
    pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert ((pixels[..., 2] - pixels[..., 0]) > 60).sum() > 500  # outlines, which alone are blue


def test_task_rows_are_the_episodes_of_training(data_dir):
    config = tiny_config(data_dir, support_size=sheet.SUBJECTS - 1)
    rows = sheet.task_rows("superpixel", config)
    assert len(rows) == sheet.TASKS
    assert rows[3].title == "3: superpixels\ntrain_discs"
    assert {row.images.shape for row in rows} == {row.labels.shape for row in rows} == {(sheet.SUBJECTS, 16, 16)}
    assert all(0 < row.labels.mean() < 1 for row in rows)
    later = sheet.task_rows("superpixel", config, first=2)
    np.testing.assert_array_equal(later[0].images, rows[2].images)
    assert config.kinds.real == 1.0  # the caller's config is left alone
    painted = sheet.task_rows("painted", config)
    assert painted[0].title == "0: painted\ntrain_discs"
    assert all(0 < row.labels.mean() < 1 for row in painted)


def test_every_operation_has_a_row_that_starts_with_the_image(data_dir):
    config = tiny_config(data_dir, image_size=32, augment=augment.get_config())
    config.augment.task.flip_labels.p = 0.125
    rows = {row.title: row for row in sheet.augment_rows(config)}
    ops = [f"{level} {op}\np {config.augment[level][op].p:g}" for level in sheet.LEVELS for op in config.augment[level]]
    assert list(rows) == [*ops, "in_task, all", "task, all", "both, all"]
    image, label = (x[..., 0] for x in sheet.example(config, 0))
    assert 0 < label.mean() < 1
    for title, row in rows.items():
        np.testing.assert_array_equal(row.images[0], image)
        np.testing.assert_array_equal(row.labels[0], label)
        assert row.images.shape == row.labels.shape == (sheet.SUBJECTS, 32, 32)
        assert (row.images[1:] != image).any() or (row.labels[1:] != label).any(), title
    np.testing.assert_array_equal(rows["task flip_labels\np 0.125"].labels[1], 1 - label)
    np.testing.assert_array_equal(rows["task flip_horizontal\np 0.5"].labels[5], label[:, ::-1])
    assert config.augment.task.affine.p == 0.5  # the caller's config is left alone


def test_without_data_a_synthetic_image_is_augmented(tmp_path):
    image, label = sheet.example(tiny_config(tmp_path, image_size=64, support_size=1), 0)
    assert image.shape == label.shape == (64, 64, 1)
    assert 0 < label.mean() < 1


def test_missing_config_and_data_are_named(tmp_path, capsys):
    assert cli.main(["sheet", "--kind=synthetic", "--config=nowhere.py", "--out", str(tmp_path / "x.png")]) == 1
    assert "there is no Python file nowhere.py" in capsys.readouterr().err
    with pytest.raises(UserError, match="no dataset of roles"):
        sheet.task_rows("superpixel", tiny_config(tmp_path))
    with pytest.raises(ConfigError, match="96"):
        load_config(f"{Path(__file__).parents[2]}/configs/small.py:96")


def test_configs_load_as_train_py_loads_them():
    config = load_config(f"{Path(__file__).parents[2]}/configs/small.py:128")
    assert config.image_size == 128
