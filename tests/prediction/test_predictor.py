"""Prediction from Python: geometry, labels, support samples, flips and errors."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from universeg_jax.cli import main
from universeg_jax.episode import resize
from universeg_jax.errors import UserError
from universeg_jax.model.factory import build_model
from universeg_jax.prediction import predictor as predictor_module
from universeg_jax.prediction.forward import exclusive_probabilities
from universeg_jax.prediction.options import Options
from universeg_jax.prediction.predictor import make_prediction
from universeg_jax.prediction.selection import select_examples
from universeg_jax.prediction.support import make_support
from universeg_jax.readers.preprocess import preprocess_image
from universeg_jax.readers.volumes import make_volume


def test_logits_are_the_models_own(predictor):
    rng = np.random.default_rng(0)
    query, images = rng.random((2, 16, 16, 1), np.float32), rng.random((2, 3, 16, 16, 1), np.float32)
    labels = (images > 0.5).astype(np.float32)
    model = build_model(predictor.config.model, form="plain")
    expected = model.apply({"params": predictor.params}, query, images, labels)
    np.testing.assert_allclose(predictor.logits(query, images, labels), expected, atol=1e-5)
    np.testing.assert_allclose(predictor(query, images, labels), jax.nn.sigmoid(expected), atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 33), (200, 90), (16, 16, 3)])
def test_a_mask_has_the_geometry_of_its_query(predictor, shape):
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


def test_a_prepared_support_equals_the_model(predictor):
    """Two labels and three support samples in one batched pass, against the model called for each."""
    rng = np.random.default_rng(2)
    images = [rng.random((128, 128), np.float32) for _ in range(7)]
    labels = [1 * (image > 0.4) + 4 * (image > 0.7) for image in images]
    query = rng.random((128, 128), np.float32)
    support = make_support(images, labels)
    assert support.labels == (1, 5)
    segment = predictor.segmenter(support, Options(support_size=4, ensemble=3, choose="random", seed=5))
    expected = 0
    for rows in select_examples(support, query, None, 4, 3, "random", 5):
        stack, masks = (resize(jnp.asarray(x, jnp.float32)[..., None], 16) for x in (support.images, support.masks))
        at_size = preprocess_image(query, 128)[None, ..., None]
        logits = [predictor.logits(resize(at_size, 16), stack[rows][None], (m[rows][None] >= 0.5) * 1.0) for m in masks]
        expected += exclusive_probabilities(jnp.stack([resize(x, 128)[0, ..., 0] for x in logits])) / 3
    prediction = segment(query)
    np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-5)
    batch = segment.probabilities(np.stack([preprocess_image(query, 128)] * 11))
    np.testing.assert_allclose(batch, np.repeat(np.asarray(expected)[None], 11, 0), atol=1e-5)


def test_images_get_16_examples_and_slices_8(predictor):
    """The defaults of docs/predict.md; a number that is given counts for both."""
    images = np.random.default_rng(0).random((20, 16, 16))
    support = make_support(images, images > 0.5)
    slices = replace(support, positions=np.linspace(0, 1, 20, dtype=np.float32))
    for each, size in ((support, 16), (slices, 8)):
        assert predictor.segmenter(each).options.support_size == size
        assert predictor.segmenter(each, Options(support_size=5)).options.support_size == 5


def test_padding_of_a_support_changes_nothing(predictor):
    rng = np.random.default_rng(4)
    images = rng.random((6, 128, 128), np.float32)
    segment = predictor.segmenter(make_support(images, [1 * (x > 0.4) + 4 * (x > 0.7) for x in images]))
    rows = np.array([[[4, 0, 2]], [[1, 2, 3]]])
    padded = np.concatenate([rows, np.full((2, 1, 5), -1)], -1)
    np.testing.assert_allclose(segment.by_rows(images[:2], padded), segment.by_rows(images[:2], rows), atol=1e-6)


def test_flips_of_query_and_support_are_averaged(predictor):
    rng = np.random.default_rng(3)
    images = [rng.random((128, 128), np.float32) for _ in range(3)]
    labels = [image > 0.5 for image in images]
    query = rng.random((128, 128), np.float32)
    expected = 0
    for axes in ((), (0,), (1,), (0, 1)):
        turned = [np.flip(x, axes) for x in (query, *images, *labels)]
        expected += np.flip(predictor.segment(turned[0], turned[1:4], turned[4:]).probabilities, axes) / 4
    np.testing.assert_allclose(predictor.segment(query, images, labels, flips=True).probabilities, expected, atol=1e-5)


def test_exclusive_labels(predictor):
    """One label gives the sigmoid; of several, the largest logit above 0 wins."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 40)) * 3)
    np.testing.assert_allclose(exclusive_probabilities(logits[:1]), jax.nn.sigmoid(logits[:1]), atol=1e-6)
    prediction = make_prediction(np.asarray(exclusive_probabilities(logits)), (3, 7, 300))
    best = np.asarray([3, 7, 300])[np.argmax(logits, 0)]
    np.testing.assert_array_equal(prediction.mask, np.where(logits.max(0) >= 0, best, 0))
    assert prediction.mask.dtype == np.uint16
    assert 0 <= prediction.uncertainty.min() <= prediction.uncertainty.max() <= 1


def test_overlapping_labels():
    probabilities = np.array([[[0.6, 0.7, 0.2]], [[0.8, 0.6, 0.4]]], np.float32)
    prediction = make_prediction(probabilities, (3, 300), overlap=True)
    np.testing.assert_array_equal(prediction.mask, [[[1, 1, 0]], [[1, 1, 0]]])
    p = np.array([0.6, 0.6, 0.4])  # the less certain one of the two
    np.testing.assert_allclose(prediction.uncertainty[0], -(p * np.log2(p) + (1 - p) * np.log2(1 - p)), rtol=1e-5)
    np.testing.assert_array_equal(prediction.of(300)[0], [[True, True, False]])
    with pytest.raises(UserError, match="label 9 is not in this prediction; its labels are 3, 300"):
        prediction.of(9)


def test_confidence_is_the_expected_dice():
    prediction = make_prediction(np.array([[[0.9, 0.6, 0.2, 0.0]]], np.float32), (2,))
    np.testing.assert_allclose(prediction.confidence(2), 2 * 1.5 / (1.7 + 2), rtol=1e-5)
    assert make_prediction(np.full((1, 2, 2), 0.1, np.float32), (2,)).confidence(2) == 0


def test_smoothing_blurs_across_the_slices_of_a_volume(predictor):
    """A Gaussian in millimetres across the slices, and none within the plane."""
    rng = np.random.default_rng(5)
    images = rng.random((3, 20, 20))
    support = make_support(images, images > 0.5)
    volume = make_volume(rng.random((12, 12, 9)).astype(np.float32), np.diag([1, 1, 2.5, 1]))
    plain = predictor.segmenter(support)(volume).probabilities
    smooth = predictor.segmenter(support, Options(smooth=5.0))(volume).probabilities
    expected = gaussian_filter1d(plain, 2.0, axis=2, mode="nearest")  # 5 mm are two slices
    assert np.abs(expected - plain).max() > 0.01
    np.testing.assert_allclose(smooth, expected, atol=1e-5)
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(UserError, match="smooth="):
            Options(smooth=wrong)


def test_a_loaded_predictor_keeps_compiled_programs_for_later_processes(checkpoint, monkeypatch):
    calls = []
    monkeypatch.setattr(predictor_module, "use_compilation_cache", lambda: calls.append(1))
    predictor_module.Predictor.from_checkpoint(checkpoint)
    assert calls == [1]


def test_threads_share_a_predictor(predictor):
    rng = np.random.default_rng(4)
    queries = rng.random((8, 40, 30))
    segment = predictor.for_support(queries[:3], queries[:3] > 0.5)
    alone = [segment(query).probabilities for query in queries]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda query: segment(query).probabilities, queries))
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ("images", "labels", "word"),
    [
        ([], [], "0 support images"),
        ([np.eye(4)], [np.zeros((4, 4))], "every support label is empty"),
        ([np.eye(4)], [np.eye(5)], "support 0"),
        ([np.eye(4)], [np.eye(4) / 2], "support 0: values are not class ids"),
    ],
)
def test_a_wrong_support_is_named(predictor, images, labels, word):
    with pytest.raises(UserError, match=word):
        predictor.segment(np.eye(4), images, labels)


@pytest.mark.parametrize(("options", "word"), [({"support_size": 0}, "support_size=0"), ({"choose": "x"}, "nearest")])
def test_wrong_options_are_named(predictor, options, word):
    with pytest.raises(UserError, match=word):
        predictor.segment(np.eye(8), [np.eye(8)], [np.eye(8)], **options)


def test_a_path_without_a_checkpoint_is_refused_with_the_remedy(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "absent"):
        assert main(["checkpoint", str(path)]) == 1
        assert "workdir of train.py" in capsys.readouterr().err
    (tmp_path / "checkpoints").mkdir()
    assert main(["checkpoint", str(tmp_path)]) == 1
    assert "is empty" in capsys.readouterr().err


def test_the_checkpoint_command_prints_config_and_lineage(checkpoint, capsys):
    assert main(["checkpoint", str(checkpoint)]) == 0
    assert '"image_size": 16' in capsys.readouterr().out
