"""Predictions from what is accepted: their examples, what is next, and the rest of a project."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from tests.annotation.fixtures import image_project, volume_project
from tests.fixtures import block_volume, write_nifti
from universeg_jax.annotation.assistant import Assistant, _expected
from universeg_jax.annotation.rest import predict_rest, predict_volume
from universeg_jax.annotation.session import Session
from universeg_jax.annotation.views import Views
from universeg_jax.commands.annotate import accept_file
from universeg_jax.errors import UserError
from universeg_jax.prediction.corrections import UNSAID
from universeg_jax.prediction.support import read_support_folder
from universeg_jax.readers.images import read_image, read_label
from universeg_jax.readers.slices import mask_slices, plane, volume_slices
from universeg_jax.readers.volume_files import read_label_volume
from universeg_jax.readers.volumes import Volume


def test_a_prediction_is_that_of_the_predictor_from_all_other_labels(tmp_path, predictor):
    path, truth = image_project(tmp_path)
    with Session(path) as session:
        assistant = Assistant(session, predictor)
        assert assistant.predict("p4_0") is None
        for name in ("p0_0", "p1_0", "p4_0"):
            session.accept(name, truth[name])
        images = {name: read_image(path / f"images/{name}.png") for name in truth}
        expected = predictor.segment(images["p4_0"], [images["p0_0"], images["p1_0"]], [truth["p0_0"], truth["p1_0"]])
        found = assistant.predict("p4_0")  # it is labelled, and no example of itself
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
        np.testing.assert_array_equal(found.mask, expected.mask)
        session.undo()
        session.undo()
        first = predictor.segment(images["p4_0"], [images["p0_0"]], [truth["p0_0"]])
        np.testing.assert_allclose(assistant.predict("p4_0").probabilities, first.probabilities, atol=1e-5)


def test_corrections_of_an_image_guide_its_prediction_and_stay(tmp_path, predictor):
    path, truth = image_project(tmp_path, labels={1: "disc", 2: "rare", 255: "ignore"})
    with Session(path) as session:
        assistant = Assistant(session, predictor)
        said = np.full(truth["p4_0"].shape, UNSAID, np.int32)
        said[3:9, 5:12] = 1
        assert assistant.predict("p4_0", corrections=said) is None  # no example yet
        for name in ("p0_0", "p1_0"):
            session.accept(name, truth[name])
        images = {name: read_image(path / f"images/{name}.png") for name in truth}
        segment = predictor.for_support([images["p0_0"], images["p1_0"]], [truth["p0_0"], truth["p1_0"]])
        expected, found = segment(images["p4_0"], said), assistant.predict("p4_0", corrections=said)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
        np.testing.assert_array_equal(found.mask, expected.mask)
        more = said.copy()
        more[0], more[-1] = 2, 255  # a label without an example, and what is to be ignored
        found = assistant.predict("p4_0", corrections=more)
        np.testing.assert_array_equal(found.mask[more != UNSAID], more[more != UNSAID])
        plain = assistant.predict("p4_0")
        only = np.where(more == 255, more, UNSAID)  # guides nothing
        found = assistant.predict("p4_0", corrections=only)
        np.testing.assert_array_equal(found.mask, np.where(only == 255, 255, plain.mask))


def test_corrections_of_a_slice_lie_as_its_label_would(tmp_path, predictor):
    path, truth = volume_project(tmp_path, shape=(30, 44, 6))
    with Session(path) as session:
        views = Views(session)
        label = plane(truth["scan0"][..., ::-1], 2, session.project.items["scan0"].canonical(4))
        strokes = views.strokes("scan0/4", label.astype(np.int32), (1,))
        session.accept("scan0/4", label)
        mask = views.masks("scan0/4", (1,))
        assert (strokes.masks != mask).sum() < 0.1 * mask.sum()  # which is blurred before it is cut
        image = views.image("scan0/4")
        assert not image[~binary_dilation(strokes.known, iterations=2)].any()  # padding
        assert strokes.known.mean() > 0.3
        assistant, said = Assistant(session, predictor), np.full(label.shape, UNSAID, np.int32)
        said[4:8, 3:9] = 1
        found = assistant.predict("scan0/2", corrections=said)
        assert (found.mask[said == 1] == 1).all()
        assert np.abs(found.probabilities - assistant.predict("scan0/2").probabilities)[said == UNSAID].max() > 1e-4


def test_slices_are_seen_as_in_their_volume(tmp_path):
    path, truth = volume_project(tmp_path, shape=(30, 44, 6))
    with Session(path) as session:
        views, volume = Views(session), session.image("scan0")
        images, positions, origin = volume_slices(volume, 128, 2, every=True)
        assert len(images) == 6
        k = 4
        row = session.project.items["scan0"].canonical(k)
        np.testing.assert_array_equal(views.image(f"scan0/{k}"), images[row])
        assert views.position(f"scan0/{k}") == positions[row]
        label = plane(truth["scan0"][..., ::-1], 2, row)  # the file's last axis runs down
        session.accept(f"scan0/{k}", label)
        marked = Volume(truth["scan0"][..., ::-1].astype(np.int32), volume.affine, volume.axes)
        np.testing.assert_array_equal(views.masks(f"scan0/{k}", (1,))[0], mask_slices(marked, 128, origin, 1)[row])
        restored = views.restored(f"scan0/{k}", views.masks(f"scan0/{k}", (1,)).astype(np.float32))
        assert restored.shape == (1, *label.shape)
        assert ((restored[0] >= 0.5) == label).mean() > 0.98


def test_slices_of_the_same_volume_come_first_and_nearest_first(tmp_path, predictor):
    path, truth = volume_project(tmp_path, shape=(12, 14, 9), count=2, support_size=3)
    with Session(path) as session:
        assistant = Assistant(session, predictor)
        for unit in ("scan0/0", "scan0/7", "scan0/5", "scan1/4"):
            item, k = session.project.find(unit)
            session.accept(unit, plane(truth[item.name][..., ::-1], 2, item.canonical(k)))
        pool = assistant.pool()
        everything = np.arange(len(pool.units))
        rows = assistant.rows_for(pool, "scan0/4", everything)
        assert [pool.units[r] for r in rows if r >= 0] == ["scan0/5", "scan0/7", "scan0/0"]
        rows = assistant.rows_for(pool, "scan1/2", everything)
        assert pool.units[rows[0]] == "scan1/4"
        assert len(rows) == 4  # a power of two
        assert rows[3] == -1


def test_the_rest_is_predicted_and_accepted_slices_stay(tmp_path, predictor):
    path, truth = volume_project(tmp_path, shape=(20, 24, 6), count=2)
    with Session(path) as session:
        assistant = Assistant(session, predictor)
        with pytest.raises(UserError, match="nothing is labelled yet"):
            predict_rest(assistant)
        for k in (1, 4):
            row = session.project.items["scan0"].canonical(k)
            session.accept(f"scan0/{k}", plane(truth["scan0"][..., ::-1], 2, row))
        rows = predict_rest(assistant)
        assert [(row["image"], row["accepted_slices"]) for row in rows] == [("scan0", 2), ("scan1", 0)]
        found = read_label_volume(path / "predictions/scan0.nii.gz").file_data()
        np.testing.assert_array_equal(found[..., [1, 4]], truth["scan0"][..., [1, 4]])
        assert read_label_volume(path / "predictions/scan1.nii.gz").shape == (20, 24, 6)
        assert session.left() == [
            u for u in session.units() if u not in ("scan0/1", "scan0/4")
        ]  # predicted, not accepted


def test_what_is_next_and_the_dice_to_expect(tmp_path, predictor):
    path, truth = image_project(tmp_path, count=6)
    with Session(path) as session:
        assistant = Assistant(session, predictor)
        assert assistant.expected_dice() is None
        assert assistant.next("order") == "p0_0"
        assert assistant.next("order", skipped=["p0_0"]) == "p1_0"
        while session.left():
            unit = assistant.next()
            assert unit in session.left()
            session.accept(unit, truth[unit])
        with pytest.raises(UserError, match="nothing is left to label"):
            assistant.next()
        estimate = assistant.expected_dice()
        assert estimate.count == 6
        assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1


def test_the_dice_to_expect_leaves_all_images_of_a_subject_out(tmp_path, predictor, monkeypatch):
    path, truth = image_project(tmp_path, count=3)
    for name in truth:  # p0_0 and p0_1 are one subject
        (path / f"images/{name}.png").rename(path / f"images/p{int(name[1]) // 2}_{name[1]}.png")
    (path / "project.json").write_text(
        (path / "project.json").read_text().replace("p1_0", "p0_1").replace("p2_0", "p1_2")
    )
    with Session(path) as session:
        assistant = Assistant(session, predictor)
        for unit, mask in zip(session.units(), truth.values(), strict=True):
            session.accept(unit, mask)
        asked = {}
        original = assistant.probabilities

        def probabilities(unit, others, pool):
            asked[unit] = {assistant.pool().units[r] for r in others}
            return original(unit, others, pool)

        monkeypatch.setattr(assistant, "probabilities", probabilities)
        assert assistant.expected_dice().count == 2
        assert asked == {"p0_0": {"p1_2"}, "p0_1": {"p1_2"}, "p1_2": {"p0_0", "p0_1"}}


def test_examples_from_elsewhere_help_from_the_start(tmp_path, predictor):
    from tests.fixtures import write_folder

    elsewhere = write_folder(tmp_path / "elsewhere", 3)
    path, _ = image_project(tmp_path, count=2, support=elsewhere)
    with Session(path) as session:
        assistant = Assistant(session, predictor)
        images = [read_image(f) for f in sorted((elsewhere / "images").iterdir())]
        labels = [read_label(f) for f in sorted((elsewhere / "labels").iterdir())]
        expected = predictor.segment(read_image(path / "images/p0_0.png"), images, labels)
        np.testing.assert_allclose(assistant.predict("p0_0").probabilities, expected.probabilities, atol=1e-5)


def test_examples_from_elsewhere_with_other_labels_are_refused(tmp_path, predictor):
    from tests.fixtures import write_folder

    path, _ = image_project(tmp_path, support=write_folder(tmp_path / "elsewhere", 3, ids=(1, 5)))
    with (
        Session(path) as session,
        pytest.raises(UserError, match="its labels are \\[1, 5\\], those of the project \\[1\\]"),
    ):
        Assistant(session, predictor).predict("p0_0")


def test_an_empty_prediction_is_doubtful_only_where_the_label_is_always_there():
    p = np.full((4, 4), 0.1)
    assert _expected(p, always_present=True) == 0
    assert _expected(p, always_present=False) == pytest.approx(0.9)
    p[0, 0] = 0.8
    assert _expected(p, always_present=True) == pytest.approx(2 * 0.8 / (1 + 0.8 + 15 * 0.1))


IN_PART = {1: "disc", 9: "ignore"}


def test_ignored_pixels_of_accepted_labels_change_nothing(tmp_path, predictor):
    path, truth = image_project(tmp_path, labels=IN_PART)
    void = np.zeros(truth["p1_0"].shape, bool)
    void[: len(void) // 2] = True
    with Session(path) as session:
        assert session.project.ignored == 9
        assistant = Assistant(session, predictor)
        session.accept("p0_0", truth["p0_0"])
        session.accept("p1_0", np.where(void, 9, truth["p1_0"]))
        images = [read_image(path / f"images/p{i}_0.png") for i in (0, 1, 2)]
        labels = [truth["p0_0"], np.where(void, 9, truth["p1_0"])]
        found = assistant.predict("p2_0")
        assert found.labels == (1,)
        in_part = predictor.segment(images[2], images[:2], labels, ignore=9)
        np.testing.assert_allclose(found.probabilities, in_part.probabilities, atol=1e-5)
        as_background = predictor.segment(images[2], images[:2], [truth["p0_0"], np.where(void, 0, truth["p1_0"])])
        assert np.abs(found.probabilities - as_background.probabilities).max() > 1e-3
        with pytest.raises(UserError, match="p2_0: all of it is to be ignored"):
            session.accept("p2_0", np.full(void.shape, 9))
    support = read_support_folder(path)
    assert support.labels == (1,)
    assert support.ignored[1].mean() > 0.2
    assert not support.ignored[0].any()


def test_a_slice_that_is_labelled_in_part_is_completed_around_what_is_labelled(tmp_path, predictor, monkeypatch):
    path, truth = volume_project(tmp_path, shape=(20, 24, 6), labels=IN_PART)
    with Session(path) as session:
        assistant, item = Assistant(session, predictor), session.project.items["scan0"]
        planes = [plane(truth["scan0"][..., ::-1], 2, i) for i in range(6)]
        in_part = planes[3].copy()
        in_part[:, :10] = 9
        session.accept(f"scan0/{item.canonical(3)}", in_part)
        for given in ((), (1, 5)):  # none that is labelled as a whole, then some
            for i in given:
                session.accept(f"scan0/{item.canonical(i)}", planes[i])
            mask = predict_volume(assistant, item)
            assert 9 not in mask
            np.testing.assert_array_equal(plane(mask, 2, 3)[:, 10:], planes[3][:, 10:])
            for i in given:
                np.testing.assert_array_equal(plane(mask, 2, i), planes[i])


def test_slices_of_which_nothing_is_known_are_not_labelled(tmp_path, capsys):
    path, truth = volume_project(tmp_path, shape=(20, 24, 6), labels=IN_PART)
    sparse = np.full_like(truth["scan0"], 9)
    sparse[..., [1, 4]] = truth["scan0"][..., [1, 4]]
    file = write_nifti(tmp_path / "sparse.nii.gz", sparse, (1.0, 1.0, -3.0))
    with Session(path) as session:
        with pytest.raises(UserError, match=r"scan0: 4 of its 6 slices .* with --slices 1,4"):
            session.accept("scan0", sparse[..., ::-1])
        accept_file(session, "scan0", file)
        assert "2 of its 6 slices are labelled" in capsys.readouterr().out
        assert session.labelled() == ["scan0/1", "scan0/4"]
        np.testing.assert_array_equal(session.mask("scan0/4"), plane(truth["scan0"][..., ::-1], 2, 1))


def test_examples_from_elsewhere_keep_their_ignored_pixels_in_a_completion(tmp_path, predictor):
    path, _ = volume_project(tmp_path, shape=(20, 24, 6), support=partly_labelled_volumes(tmp_path / "elsewhere"))
    with Session(path) as session:
        others = Assistant(session, predictor).examples_of_others("scan0")
        assert 0.2 < others.ignored[others.masks.any((0, 2, 3))].mean() < 0.8


def partly_labelled_volumes(folder):
    image, label = block_volume((20, 24, 6), seed=1)
    label = label.copy()
    label[:10] = 255
    write_nifti(folder / "images" / "b.nii.gz", image, (1.0, 1.0, -3.0))
    write_nifti(folder / "labels" / "b.nii.gz", label, (1.0, 1.0, -3.0))
    (folder / "meta.json").write_text('{"ignore": [255]}')
    return folder


@pytest.mark.parametrize(
    ("labels", "reason"),
    [({5: "ignore"}, "beside those of structures"), ({1: "a", 2: "ignore", 3: "Ignore"}, "one id")],
)
def test_one_label_may_be_to_ignore(tmp_path, labels, reason):
    with pytest.raises(UserError, match=reason):
        image_project(tmp_path, labels=labels)
