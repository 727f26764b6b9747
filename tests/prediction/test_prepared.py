"""Keys of a support set: computed once, and the same predictions as without them."""

import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from tests.fixtures import disc_examples, random_params, tiny_config
from tests.model.test_recognition import pixels_of_cells
from universeg_jax.model import pretrained
from universeg_jax.model.factory import build_model, param_shapes
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.prediction.prepared import AT_A_TIME, PreparedKeys


@pytest.mark.parametrize(("count", "times"), [(3, 2), (20, 5)])
def test_keys_of_an_image_are_computed_once(count, times):
    images, calls = np.arange(count, dtype=np.float32).reshape((-1, 1, 1, 1)), []

    def compute(part):
        calls.append(part[:, 0, 0, 0].tolist())
        return part + 1, part[:, 0] * 2

    keys = PreparedKeys(compute, images)
    for rows in ([2, 1], [1, 2, 0], range(count), [0]):
        first, second = keys.of(np.array(rows))
        np.testing.assert_array_equal(first[np.array(rows)], images[np.array(rows)] + 1)
        np.testing.assert_array_equal(second[np.array(rows)], images[np.array(rows), 0] * 2)
    assert {len(call) for call in calls} == {AT_A_TIME}  # one shape, compiled once
    assert {x for call in calls for x in call} == set(range(count))
    assert len(calls) == times


def test_keys_are_held_without_a_copy_for_every_query():
    images = np.arange(20, dtype=np.float32).reshape((-1, 1, 1, 1))
    keys = PreparedKeys(lambda part: (part + 1,), images)
    (first,) = keys.of(np.array([3]))
    (second,) = keys.of(np.array([17]))
    assert np.shares_memory(first, second)
    np.testing.assert_array_equal(second[[3, 17]], images[[3, 17]] + 1)


def test_an_accelerator_gets_keys_computed_since_its_last_copy(monkeypatch):
    images = np.arange(20, dtype=np.float32).reshape((-1, 1, 1, 1))
    keys = PreparedKeys(lambda part: (part + 1,), images)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (first,) = keys.of(np.array([3]))
    assert isinstance(first, jax.Array)
    assert keys.of(np.array([3]))[0] is first
    (second,) = keys.of(np.array([3, 17]))
    np.testing.assert_array_equal(second[np.array([3, 17])], images[[3, 17]] + 1)


@pytest.mark.parametrize("failing", ["compute", "copy"])
def test_keys_that_could_not_be_had_are_asked_for_again(monkeypatch, failing):
    images, broken = np.arange(40, dtype=np.float32).reshape((-1, 1, 1, 1)), []

    def compute(part):
        if broken and part[0] >= 16:
            raise MemoryError
        return (part + 1,)

    def put(arrays):
        raise MemoryError

    keys = PreparedKeys(compute, images)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    keys.of(np.arange(8))
    broken.append(True)
    with monkeypatch.context() as patch:
        if failing == "copy":
            patch.setattr(jax, "device_put", put)
        asked = np.arange(8, 16) if failing == "copy" else np.arange(8, 24)
        with pytest.raises(MemoryError):
            keys.of(asked)
    broken.clear()
    for rows in (np.arange(8, 16), np.arange(8, 24)):
        np.testing.assert_array_equal(keys.of(rows)[0][rows], images[rows] + 1)


def test_threads_that_ask_at_once_get_finite_keys():
    images, calls = np.arange(64, dtype=np.float32).reshape((-1, 1, 1, 1)), []

    def compute(part):
        calls.append(part[:, 0, 0, 0].tolist())
        time.sleep(0.001)
        return (part + 1,)

    keys = PreparedKeys(compute, images)
    rows = [np.random.default_rng(i).permutation(64)[:16] for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for asked, (found,) in zip(rows, pool.map(keys.of, rows), strict=True):
            np.testing.assert_array_equal(found[asked], images[asked] + 1)
    assert sum(len(set(call)) for call in calls) == len(set(np.concatenate(rows)))  # each once


FIELDS = {"keys": "lite0", "key_heads": 2, "key_columns": True, "key_probe": True}


@pytest.fixture(params=[FIELDS, {"matching": 2}, {**FIELDS, "matching": 2}], ids=["keys", "matching", "both"])
def predictor(monkeypatch, request):
    monkeypatch.setattr(pretrained, "features", pixels_of_cells)
    config = tiny_config()
    config.model.update(request.param)
    return Predictor(random_params(param_shapes(build_model(config.model))), config)


@pytest.mark.parametrize("flips", [False, True])
def test_prepared_keys_change_no_prediction(predictor, monkeypatch, flips):
    examples = disc_examples(5)
    images = [example.image for example in examples[1:]]
    labels = [example.masks[0] * 3 for example in examples[1:]]
    labels[0][:4] = 1  # a second label
    labels[1][:, -3:] = 255  # without a label
    options = {"flips": flips, "ignore": 255, "support_size": 3, "ensemble": 2}
    prepared = predictor.for_support(images, labels, **options)
    found = prepared(examples[0].image).probabilities
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")  # whose program takes all samples and labels at once
        in_batches = predictor.for_support(images, labels, **options)(examples[0].image).probabilities
    predictor.has_keys = False  # then the model computes them with each query
    expected = predictor.for_support(images, labels, **options)(examples[0].image).probabilities
    assert found.shape == (2, 16, 16)
    np.testing.assert_allclose(found, expected, atol=5e-4)
    np.testing.assert_allclose(in_batches, found, atol=5e-5)
    computed = []
    monkeypatch.setattr(predictor.forward, "_support_keys", lambda *args: computed.append(args))
    prepared(examples[1].image)
    assert not computed
    assert np.isfinite(jax.tree.leaves(prepared.keys_of(np.arange(4)))[0]).all()
