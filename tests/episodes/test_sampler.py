"""Episodes: pure functions of (seed, i) that never show the query's subject in its support."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures import build_discs, memory_dataset
from universeg_jax.data.builder import build
from universeg_jax.data.dataset import DatasetMeta, open_dataset
from universeg_jax.data.tasks import FIRST, task_table
from universeg_jax.episodes.sampler import (
    PAINTED,
    REAL,
    SUPERPIXEL,
    SYNTHETIC,
    batches,
    make_sampler,
    sample_others,
    task_name,
)
from universeg_jax.errors import UserError
from universeg_jax.readers.cases import Example


@st.composite
def task_tables(draw):
    """Training datasets with random subjects, labels and groups."""
    datasets = []
    for name in draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True)):
        count = draw(st.integers(3, 30))
        subjects = [f"s{draw(st.integers(0, 9))}" for _ in range(count)]
        labels = [draw(st.integers(1, 3)) for _ in range(count)]
        datasets.append(memory_dataset(name, "train_open", subjects, labels, group=draw(st.sampled_from(["", "g"]))))
    return datasets


def check_no_leak(datasets, seed, support_size, replacement, **how):
    tasks = task_table(datasets)
    if not any(not task.unusable for task in tasks):
        return
    sampler = make_sampler(datasets, tasks, seed=seed, support_size=support_size, replacement=replacement, **how)
    by_name = {d.meta.name: d for d in datasets}
    for i in range(20):
        draw = sampler.select(i)
        task = sampler.tasks[draw.task]
        subject = by_name[task.dataset].index.subject
        assert subject[draw.query[0]] not in {subject[row] for row, _ in draw.support}
        assert len(draw.support) == support_size
        train = set(task.side(FIRST).rows.tolist())
        assert {row for row, _ in (draw.query, *draw.support)} <= train
        assert draw == sampler.select(i)
        others = [row for row in train if subject[row] != subject[draw.query[0]]]
        if not replacement and support_size <= len(others):
            assert len({row for row, _ in draw.support}) == support_size


ways = st.fixed_dictionaries(
    {
        "draw": st.sampled_from(["datasets", "tasks"]),
        "label_union": st.sampled_from([0.0, 0.5]),
        "all_labels": st.sampled_from([0.0, 0.5]),
    }
)


@settings(max_examples=100)
@given(
    datasets=task_tables(), seed=st.integers(0, 9), support_size=st.integers(1, 8), replacement=st.booleans(), how=ways
)
def test_the_query_subject_is_never_in_its_support(datasets, seed, support_size, replacement, how):
    check_no_leak(datasets, seed, support_size, replacement, **how)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(
    datasets=task_tables(), seed=st.integers(0, 9), support_size=st.integers(1, 8), replacement=st.booleans(), how=ways
)
def test_the_query_subject_is_never_in_its_support_on_many_tables(datasets, seed, support_size, replacement, how):
    check_no_leak(datasets, seed, support_size, replacement, **how)


def test_other_subjects_are_sampled_uniformly():
    subjects = np.array([0, 0, 1, 2, 2, 2])
    chosen = sample_others(np.random.default_rng(0), subjects, 2, 50_000, replacement=True)
    counts = np.bincount(chosen, minlength=6)
    assert counts[2] == 0
    np.testing.assert_allclose(counts[[0, 1, 3, 4, 5]] / 50_000, 0.2, atol=4 * np.sqrt(0.16 / 50_000))


def test_tasks_are_sampled_level_by_level():
    one = memory_dataset("one", subjects=[f"s{i}" for i in range(30)], labels=[1] * 30)
    three = memory_dataset("three", subjects=[f"s{i % 10}" for i in range(30)], labels=[i // 10 + 1 for i in range(30)])
    sampler = make_sampler([one, three], task_table([one, three]), seed=0, support_size=1)
    names = [sampler.tasks[sampler.select(i).task].dataset for i in range(4000)]
    assert abs(names.count("one") / 4000 - 0.5) < 4 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize(
    ("how", "shares"),
    [
        ({"draw": "datasets"}, [1 / 2, 1 / 6, 1 / 6, 1 / 6]),
        ({"draw": "tasks"}, [1 / 4] * 4),
    ],
)
def test_tasks_are_sampled_with_the_probabilities_of_config_draw(how, shares):
    one = memory_dataset("one", subjects=[f"s{i}" for i in range(40)], labels=[1] * 40)
    three = memory_dataset("three", subjects=[f"s{i % 10}" for i in range(30)], labels=[i // 10 + 1 for i in range(30)])
    sampler = make_sampler([one, three], task_table([one, three]), seed=0, support_size=1, **how)
    drawn = np.bincount([sampler.select(i).task for i in range(4000)], minlength=4) / 4000
    for found, p in zip(drawn, shares, strict=True):
        assert abs(found - p) < 4 * np.sqrt(p * (1 - p) / 4000)


def many_labels(case):
    """Labels 1, 2, 3 in stripes of their own, 2 on every other image alone; and a max-slice of label 1."""
    masks = np.zeros((3, 16, 16), np.uint8)
    for i in range(3):
        masks[i, 5 * i : 5 * i + 3 + case % 3] = 1
    labels = (1, 2, 3) if case % 2 else (1, 3)
    image = np.full((16, 16), case, np.uint8)
    shown = masks[[label - 1 for label in labels]]
    return [
        Example(image, shown, labels, f"s{case}", f"n{case}"),
        Example(image, shown[:1], (1,), f"s{case}", f"m{case}", slicing="max"),
    ]


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    build(DatasetMeta("stripes", "train_open", {1: "a", 2: "b", 3: "c"}, 16), list(range(20)), many_labels, path)
    return open_dataset(path, "stripes")


def test_labels_are_united_with_their_probability_and_nothing_else_changes(stripes):
    table, count = task_table([stripes]), 1500
    common = {"seed": 5, "support_size": 2}
    plain = [make_sampler([stripes], table, **common).select(i) for i in range(count)]
    sampler = make_sampler([stripes], table, **common, label_union=0.3, all_labels=0.2)
    drawn = [sampler.select(i) for i in range(count)]
    assert [draw._replace(labels=()) for draw in drawn] == plain
    assert drawn == [pickle.loads(pickle.dumps(sampler)).select(i) for i in range(count)]
    of_max = [draw for draw in drawn if sampler.tasks[draw.task].slicing == "max"]
    assert of_max
    assert not any(draw.labels for draw in of_max)  # other labels were not looked for on a max-slice
    drawn = [draw for draw in drawn if sampler.tasks[draw.task].slicing == "image"]
    for draw in drawn:
        assert not draw.labels or sampler.tasks[draw.task].label in draw.labels
    # Of a family of three a union is of two or of all three labels, one as often as the other.
    for size, p in ((0, 0.5), (2, 0.15), (3, 0.35)):
        share = sum(len(draw.labels) == size for draw in drawn) / len(drawn)
        assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / len(drawn))
    certain = make_sampler([stripes], table, **common, label_union=0.7, all_labels=0.1 + 0.2 - 1e-16)
    assert all(certain.select(i).labels for i in range(200) if certain.tasks[certain.select(i).task].slicing == "image")


def test_a_united_label_is_the_union_of_its_labels(stripes, monkeypatch):
    sampler = make_sampler([stripes], task_table([stripes]), seed=1, support_size=4, label_union=1.0)
    drawn = [i for i in range(40) if sampler.select(i).labels]
    episodes = {}
    for i in drawn:
        draw, episode = sampler.select(i), sampler(i).episode
        episodes[i] = episode
        pairs = [(episode.query_image, episode.query_label)]
        pairs += zip(episode.support_images, episode.support_labels, strict=True)
        for (row, _), (image, label) in zip((draw.query, *draw.support), pairs, strict=True):
            example = stripes[row]
            wanted = [m for m, i in zip(example["masks"], example["labels"], strict=True) if i in draw.labels]
            np.testing.assert_array_equal(label[..., 0], np.any(wanted, axis=0))
            np.testing.assert_array_equal(image[..., 0], example["image"])
    assert {len(sampler.select(i).labels) for i in drawn} == {2, 3}
    monkeypatch.setattr("universeg_jax.data.dataset._table", lambda *args: None)  # from the records it is the same
    for i in drawn:
        for array, expected in zip(sampler(i).episode, episodes[i], strict=True):
            np.testing.assert_array_equal(array, expected)


def test_an_episode_is_named_by_its_task(stripes):
    sampler = make_sampler(
        [stripes], task_table([stripes]), seed=1, support_size=1, synthetic=0.3, superpixel=0.3, all_labels=1.0
    )
    names = {task_name(sampler, i) for i in range(200)}
    assert {"synthetic", "superpixels of stripes/axis0/max/label1", "stripes/axis0/image/label2+1+3"} <= names
    assert "stripes/axis0/max/label1" in names
    assert "stripes/axis0/image/label2" not in names


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    return build_discs(tmp_path_factory.mktemp("data"), "discs", "train_open")


def stack(stream):
    leaves = [(b.index, b.kind, b.task, *b.episode) for b in stream]
    return [np.concatenate(leaf) for leaf in zip(*leaves, strict=True)]


def test_workers_hosts_and_resuming_change_nothing(discs):
    sampler = make_sampler([discs], task_table([discs]), seed=3, support_size=4, synthetic=0.3, superpixel=0.3)
    common = {"batch_size": 4, "first_step": 0, "last_step": 6}
    expected = stack(batches(sampler, **common, threads=1))
    assert expected[0].tolist() == list(range(24))
    assert set(expected[1].tolist()) == {REAL, SYNTHETIC, SUPERPIXEL}
    for threads in (2, 4):
        for actual, wanted in zip(stack(batches(sampler, **common, threads=threads)), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)
    hosts = [stack(batches(sampler, **common, process_index=i, process_count=2)) for i in range(2)]
    for i, host in enumerate(hosts):
        for actual, wanted in zip(host, expected, strict=True):
            np.testing.assert_array_equal(actual, wanted[i::2])
    resumed = stack(batches(pickle.loads(pickle.dumps(sampler)), batch_size=4, first_step=4, last_step=6))
    for actual, wanted in zip(resumed, expected, strict=True):
        np.testing.assert_array_equal(actual, wanted[16:])


def test_an_episode_holds_the_selected_examples(discs):
    sampler = make_sampler([discs], task_table([discs]), seed=1, support_size=3)
    batch, draw = sampler(5), sampler.select(5)
    for (row, position), image, label in zip(
        (draw.query, *draw.support),
        (batch.episode.query_image, *batch.episode.support_images),
        (batch.episode.query_label, *batch.episode.support_labels),
        strict=True,
    ):
        np.testing.assert_array_equal(image[..., 0], discs[row]["image"])
        np.testing.assert_array_equal(label[..., 0], discs[row]["masks"][position])
    assert {x.dtype for x in batch.episode} == {np.dtype("uint8")}


def test_kinds_occur_with_their_probability():
    """Within 4σ; the weight of a kind changes no episode of the others."""
    dataset = memory_dataset("d", subjects=["a", "b", "c", "d"], labels=[1] * 4)
    table, count = task_table([dataset]), 4000

    def kinds_and_draws(**weights):
        sampler = make_sampler([dataset], table, seed=7, support_size=2, **weights)
        kinds = [sampler.kind(i) for i in range(count)]
        draws = [sampler.select(i) for i in range(count)]
        assert kinds == [draw.kind for draw in draws]
        return np.array(kinds), draws

    kinds, draws = kinds_and_draws(synthetic=0.2, superpixel=0.3, painted=0.1)
    for kind, p in ((REAL, 0.4), (SYNTHETIC, 0.2), (SUPERPIXEL, 0.3), (PAINTED, 0.1)):
        assert abs((kinds == kind).mean() - p) < 4 * np.sqrt(p * (1 - p) / count)
    two, before = kinds_and_draws(synthetic=0.2)
    np.testing.assert_array_equal(two == SYNTHETIC, kinds == SYNTHETIC)
    for old, new in zip(before, draws, strict=True):
        assert old == new or new.kind == SUPERPIXEL or (new.kind == PAINTED and old == new._replace(kind=REAL))
    kinds, _ = kinds_and_draws(synthetic=0.1, superpixel=0.7 + 0.2 - 1e-16)
    assert set(kinds) == {SYNTHETIC, SUPERPIXEL}
    nearly = {"synthetic": 0.1, "superpixel": 0.7, "painted": 0.2 - 1e-12}  # their sum is 1 but for rounding
    sampler = make_sampler([dataset], table, seed=7, support_size=2, **nearly)
    assert sampler._kind(SimpleNamespace(random=lambda: 1 - 2**-53)) == PAINTED


def test_a_superpixel_episode_has_one_image_of_the_train_side(discs):
    table = task_table([discs])
    sampler = make_sampler([discs], table, seed=1, support_size=3, superpixel=1.0)
    train = set(table[0].side(FIRST).rows.tolist())
    seen = set()
    for i in range(60):
        batch, draw = sampler(i), sampler.select(i)
        seen.add(draw.query[0])
        np.testing.assert_array_equal(batch.episode.query_image[..., 0], discs[draw.query[0]]["image"])
        assert not batch.episode.query_label.any()  # what somebody labelled is not looked at
        assert not batch.episode.support_images.any()
        assert (batch.kind, batch.task) == (SUPERPIXEL, 0)
    assert seen == train


def test_a_painted_episode_is_a_real_one_with_all_its_labels(stripes):
    """Stripe k has code k + 1 unless it is the label, whose code is 1; image 0, 2, … has no second stripe."""
    common = {"seed": 2, "support_size": 4, "label_union": 0.3}
    real, painted = (make_sampler([stripes], task_table([stripes]), **common, painted=p) for p in (0.0, 1.0))
    seen = set()
    for i in range(40):
        draw, (_, _, task, episode) = real.select(i), real(i)
        assert painted.select(i) == draw._replace(kind=PAINTED)
        coded = painted(i)
        assert (coded.kind, coded.task) == (PAINTED, task)
        assert coded.episode.query_label.dtype == coded.episode.support_labels.dtype == np.uint8
        np.testing.assert_array_equal(coded.episode.query_image, episode.query_image)
        np.testing.assert_array_equal(coded.episode.support_images, episode.support_images)
        np.testing.assert_array_equal(coded.episode.query_label == 1, episode.query_label == 1)
        np.testing.assert_array_equal(coded.episode.support_labels == 1, episode.support_labels == 1)
        slicing = real.tasks[draw.task].slicing
        target = set(draw.labels or (real.tasks[draw.task].label,))
        for (row, _), codes in zip(
            (draw.query, *draw.support), (coded.episode.query_label, *coded.episode.support_labels), strict=True
        ):
            case = int(stripes[row]["subject"].decode()[1:])
            there = {1} if slicing == "max" else {1, 2, 3} if case % 2 else {1, 3}
            assert set(np.unique(codes)) == {0, 1} | {label + 1 for label in there - target}
            for label in there - target:
                stripe = np.zeros((16, 16, 1), bool)
                stripe[5 * (label - 1) : 5 * (label - 1) + 3 + case % 3] = True
                np.testing.assert_array_equal(codes == label + 1, stripe)
            seen.add((slicing, len(target)))
    assert len(seen) >= 3


def test_a_task_that_is_not_for_training_is_refused():
    dataset = memory_dataset("d", "val", ["a", "b", "c", "d"], [1] * 4)
    with pytest.raises(UserError, match="must never be in a training episode"):
        make_sampler([dataset], task_table([dataset]), seed=0, support_size=2)


def test_datasets_of_different_sizes_are_refused():
    datasets = [memory_dataset(n, subjects=["a", "b", "c"], labels=[1] * 3, size=s) for n, s in (("x", 16), ("y", 32))]
    with pytest.raises(UserError, match="different sizes"):
        make_sampler(datasets, task_table(datasets), seed=0, support_size=1)
