"""Keys that an evaluation computes once per support image change no score."""

import jax
import numpy as np
import pytest

from tests.fixtures import build_discs, tiny_config
from universeg_jax.data.tasks import dataset_tasks
from universeg_jax.evaluation import support_keys
from universeg_jax.evaluation.cases import Settings, gather_episodes, query_cases
from universeg_jax.evaluation.runner import evaluate
from universeg_jax.evaluation.scoring import ModelMethod, model_method, scorer
from universeg_jax.evaluation.support_keys import SupportKeys
from universeg_jax.model.factory import build_model, init_params


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return build_discs(tmp_path_factory.mktemp("data"), "discs", "test", count=20)


@pytest.fixture(scope="module")
def method_and_params():
    config = tiny_config()
    config.model.update({"keys": "lite0", "key_columns": True, "key_probe": True, "matching": 1})
    model = build_model(config.model)
    params = jax.tree.map(lambda x: x + 0.02, init_params(model, 0))  # what the keys say enters from zero
    return model_method(model, config.image_size), params


def _episode(dataset, settings):
    cases = query_cases(dataset_tasks(dataset)[0])[:3]
    return gather_episodes(cases, {"discs": dataset}, settings, 4, len(cases))[0]


def test_scores_are_those_of_keys_computed_for_every_case(dataset, method_and_params):
    method, params = method_and_params
    settings = Settings(support_sizes=(4,), ensembles=(1, 2))
    episode = _episode(dataset, settings)
    keys = SupportKeys(method, params).of(episode.support_images)
    assert {k.shape[:3] for k in jax.tree.leaves(keys)} == {(3, 2, 4)}
    assert [k is None for k in keys] == [False, True, False, False, False, False]  # light
    run = scorer(method, settings)
    given, computed = (jax.device_get(run(params, episode, k)) for k in (keys, ()))
    for name in given:
        np.testing.assert_allclose(given[name], computed[name], atol=1e-3, err_msg=name)
    other = jax.tree.map(lambda k: np.roll(k, 1, axis=2), keys)  # of other images
    assert np.any(jax.device_get(run(params, episode, other))["masks"] != given["masks"])


def test_an_image_is_computed_once_and_few_are_held(dataset, method_and_params, monkeypatch):
    method, params = method_and_params
    images = _episode(dataset, Settings(ensembles=(2,))).support_images
    keys = SupportKeys(method, params)
    seen, compute = [], keys._compute
    monkeypatch.setattr(keys, "_compute", lambda x: (seen.extend(i.tobytes() for i in x), compute(x))[1])
    first = keys.of(images)
    distinct = {image.tobytes() for image in np.asarray(images).reshape((-1, *images.shape[3:]))}
    assert len(distinct) < images[..., 0, 0, 0].size  # examples of several cases and draws
    assert set(seen) == distinct
    assert len(seen) == -(-len(distinct) // support_keys.AT_A_TIME) * support_keys.AT_A_TIME
    seen.clear()
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(keys.of(images[:, :, ::-1])), strict=True):
        np.testing.assert_array_equal(a[:, :, ::-1], b)
    assert seen == []
    monkeypatch.setattr(support_keys, "HELD", 2)
    keys.of(images[:1, :1, :1])
    assert len(keys._held) == 2


def test_methods_without_keys_flips_and_accelerators_have_none(dataset, method_and_params, monkeypatch):
    method, params = method_and_params
    images = _episode(dataset, Settings(ensembles=(2,))).support_images
    config = tiny_config()
    assert SupportKeys(model_method(build_model(config.model), 128), {}).of(images) == ()
    assert SupportKeys(lambda params, episode: episode.query_label, None).of(images) == ()
    assert SupportKeys(method, params, flips=True).of(images) == ()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert SupportKeys(method, params).of(images) == ()


def test_an_evaluation_uses_them(dataset, method_and_params, monkeypatch):
    method, params = method_and_params
    tasks, settings = dataset_tasks(dataset)[:1], Settings(support_sizes=(2,), max_cases=2)
    rows = evaluate({"model": (method, params)}, [dataset], tasks, settings, progress=False)
    monkeypatch.setattr(ModelMethod, "has_keys", False)
    plain = evaluate({"model": (method, params)}, [dataset], tasks, settings, progress=False)
    assert [row["dice"] for row in rows] == pytest.approx([row["dice"] for row in plain], abs=1e-3)
