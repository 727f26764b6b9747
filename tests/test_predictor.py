"""Prediction from files of any size, by library and by command."""

import jax
import numpy as np
import pytest
from PIL import Image

from tests.fixtures import tiny_config, write_folder
from universeg_jax import Predictor, checkpoints
from universeg_jax.cli import main
from universeg_jax.configuration import to_dict
from universeg_jax.errors import UserError
from universeg_jax.model import build_model, init_params
from universeg_jax.predictor import combine, support_draws


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Parameters alone, as packaged or converted weights are."""
    path = tmp_path_factory.mktemp("weights") / "tiny"
    config = tiny_config()
    checkpoints.write_params(
        path, init_params(build_model(config.model), 0), {"config": to_dict(config), "lineage": {}}
    )
    return path


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor.from_checkpoint(checkpoint)


def test_logits_are_the_models_own(predictor):
    rng = np.random.default_rng(0)
    query, images = rng.random((2, 16, 16, 1), np.float32), rng.random((2, 3, 16, 16, 1), np.float32)
    labels = (images > 0.5).astype(np.float32)
    model = build_model(predictor.config.model, form="plain")
    expected = model.apply({"params": predictor.params}, query, images, labels)
    np.testing.assert_allclose(predictor.logits(query, images, labels), expected, atol=1e-5)
    np.testing.assert_allclose(predictor(query, images, labels), jax.nn.sigmoid(expected), atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 33), (200, 90), (16, 16, 3)])
def test_a_mask_has_its_querys_geometry(predictor, shape):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (30, 40)) for _ in range(3)]
    labels = [(image > 128).astype(int) * 7 for image in images]
    prediction = predictor.segment(rng.integers(0, 255, shape, np.uint8), images, labels)
    assert prediction.mask.shape == prediction.probabilities.shape == prediction.uncertainty.shape == shape[:2]
    assert prediction.mask.dtype == np.uint8
    np.testing.assert_array_equal(prediction.mask, 7 * (prediction.probabilities >= 0.5))
    assert prediction.labels == (7,)
    assert 0 <= prediction.uncertainty.min() <= prediction.uncertainty.max() <= 1


def test_intensities_and_colour_channels_do_not_matter(predictor):
    rng = np.random.default_rng(1)
    images = [rng.random((24, 24)) for _ in range(3)]
    labels = [image > 0.5 for image in images]
    query = rng.random((24, 24))
    first = predictor.segment(query, images, labels)
    scaled = predictor.segment(1000 * query - 300, [9 * image + 2 for image in images], labels)
    grey = predictor.segment(np.stack([query] * 3, -1), images, labels)
    for other in (scaled, grey):
        np.testing.assert_allclose(other.probabilities, first.probabilities, atol=1e-4)


def test_support_draws():
    np.testing.assert_array_equal(support_draws(3, 8, 5, 0), [[0, 1, 2]])
    draws = support_draws(20, 8, 5, 0)
    assert draws.shape == (5, 8)
    assert all(len(set(draw)) == 8 for draw in draws.tolist())
    assert len({tuple(draw) for draw in draws.tolist()}) == 5


def test_the_most_probable_label_above_a_half_wins():
    probabilities = np.array([[[0.6, 0.7, 0.2]], [[0.8, 0.6, 0.4]]], np.float32)
    prediction = combine(probabilities, (3, 300))
    np.testing.assert_array_equal(prediction.mask, [[300, 3, 0]])
    assert prediction.mask.dtype == np.uint16
    p = np.array([0.8, 0.7, 0.4])
    np.testing.assert_allclose(prediction.uncertainty[0], -(p * np.log2(p) + (1 - p) * np.log2(1 - p)), rtol=1e-5)


@pytest.mark.parametrize(
    ("images", "labels", "word"),
    [
        ([], [], "0 support images"),
        ([np.eye(4)], [np.zeros((4, 4))], "every support label is empty"),
        ([np.eye(4)], [np.eye(5)], "support 0"),
    ],
)
def test_a_wrong_support_is_named(predictor, images, labels, word):
    with pytest.raises(UserError, match=word):
        predictor.segment(np.eye(4), images, labels)


def test_no_support_size_of_zero(predictor):
    with pytest.raises(UserError, match="support_size=0"):
        predictor.segment(np.eye(8), [np.eye(8)], [np.eye(8)], support_size=0)


def test_the_command_writes_a_mask_for_every_query(checkpoint, tmp_path, capsys):
    support = write_folder(tmp_path / "support", count=4, ids=(1, 2))
    queries = write_folder(tmp_path / "new", count=3, shape=(31, 17)) / "images"
    arguments = ["predict", "--checkpoint", str(checkpoint), "--support", str(support), "--queries", str(queries)]
    assert main([*arguments, "--out", str(tmp_path / "masks")]) == 0
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == ["p0_0.png", "p1_0.png", "p2_0.png"]
    mask = np.asarray(Image.open(tmp_path / "masks" / "p0_0.png"))
    assert mask.shape == (31, 17)
    assert set(np.unique(mask)) <= {0, 1, 2}
    (queries / "p1_0.png").write_bytes(b"broken")
    assert main([*arguments, "--out", str(tmp_path / "again")]) == 1
    assert len(list((tmp_path / "again").iterdir())) == 2
    assert "p1_0.png" in capsys.readouterr().err
    before = (queries / "p0_0.png").read_bytes()
    assert main([*arguments, "--out", str(queries)]) == 1
    assert "would overwrite" in capsys.readouterr().err
    assert (queries / "p0_0.png").read_bytes() == before
    assert main([*arguments, "--out", str(tmp_path / "x"), "--label", "9"]) == 1
    assert "label 9 never occurs" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_path_that_is_no_checkpoint_says_what_would_be(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "absent"):
        assert main(["checkpoint", str(path)]) == 1
        assert "workdir of train.py" in capsys.readouterr().err
    (tmp_path / "checkpoints").mkdir()
    assert main(["checkpoint", str(tmp_path)]) == 1
    assert "is empty" in capsys.readouterr().err


def test_the_checkpoint_command_prints_config_and_lineage(checkpoint, capsys):
    assert main(["checkpoint", str(checkpoint)]) == 0
    assert '"image_size": 16' in capsys.readouterr().out
