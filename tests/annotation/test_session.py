"""A session on disk: accept, undo, redo, locks, and what goes wrong around it."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.annotation.fixtures import image_project, volume_project, write_mask
from universeg_jax.annotation import journal as journals
from universeg_jax.annotation import store as stores
from universeg_jax.annotation.project import create, read_project
from universeg_jax.annotation.session import Session
from universeg_jax.errors import UserError
from universeg_jax.prediction.support import read_support_folder
from universeg_jax.readers.images import read_label
from universeg_jax.readers.volume_files import read_label_volume
from universeg_jax.reports.files import LockedError

ROOT = Path(__file__).parents[2]


def masks_on_disk(path: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted((path / "labels").iterdir())}


def test_accepted_labels_make_a_support_folder(tmp_path):
    path, truth = image_project(tmp_path)
    with Session(path) as session:
        assert session.left() == list(truth)
        for name in ("p1_0", "p3_0"):
            session.accept(name, truth[name])
        assert session.labelled() == ["p1_0", "p3_0"]
        np.testing.assert_array_equal(session.mask("p3_0"), truth["p3_0"])
        assert session.mask("p0_0") is None
    support = read_support_folder(path)
    assert support.names == ("p1_0", "p3_0")
    assert support.labels == (1,)


def test_undo_and_redo_go_any_number_of_steps_after_a_restart_too(tmp_path):
    path, truth = image_project(tmp_path, count=3)
    states = [masks_on_disk(path)]
    with Session(path) as session:
        for name in truth:
            session.accept(name, truth[name])
            states.append(masks_on_disk(path))
        session.accept("p1_0", 1 - truth["p1_0"])
        states.append(masks_on_disk(path))
    for state in states[-2::-1]:
        with Session(path) as session:
            session.undo()
        assert masks_on_disk(path) == state
    with Session(path) as session, pytest.raises(UserError, match="nothing is left to undo"):
        session.undo()
    for state in states[1:]:
        with Session(path) as session:
            session.redo()
        assert masks_on_disk(path) == state
    with Session(path) as session:
        with pytest.raises(UserError, match="nothing is left to redo"):
            session.redo()
        session.undo()
        session.accept("p0_0", 1 - truth["p0_0"])
        with pytest.raises(UserError, match="nothing is left to redo"):
            session.redo()


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["accept", "undo", "redo", "forget", "reopen"]), max_size=14), st.randoms())
def test_disk_follows_a_model_of_the_loop(actions, random):
    """Any sequence of actions, against two stacks of dicts."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path, truth = image_project(Path(folder), count=2)
        past, now, future = [], {}, []
        session = Session(path)
        for action in actions:
            name = random.choice(list(truth))
            if action == "reopen":
                session.close()
                session = Session(path)
            elif action == "accept":
                mask = (np.indices(truth[name].shape)[0] < random.randrange(1, 20)).astype(np.int32)
                session.accept(name, mask)
                past, now, future = [*past, now], {**now, name: mask}, []
            elif action == "forget" and name in now:
                session.forget(name)
                past, now, future = [*past, now], {n: m for n, m in now.items() if n != name}, []
            elif action == "undo" and past:
                session.undo()
                future, now, past = [now, *future], past[-1], past[:-1]
            elif action == "redo" and future:
                session.redo()
                past, now, future = [*past, now], future[0], future[1:]
            assert {f.stem for f in (path / "labels").iterdir()} == set(now)
            for each, mask in now.items():
                np.testing.assert_array_equal(read_label(path / "labels" / f"{each}.png"), mask)
        session.close()


def test_slices_of_a_volume_become_the_whole_with_the_last(tmp_path):
    path, truth = volume_project(tmp_path)
    with Session(path) as session:
        assert session.left() == [f"scan0/{k}" for k in range(5)]
        for k in (3, 0, 4, 2):
            session.accept(f"scan0/{k}", _plane(session, truth["scan0"], k))
        assert sorted(f.name for f in (path / "slices/scan0").iterdir()) == ["0.png", "2.png", "3.png", "4.png"]
        assert not any((path / "labels").iterdir())
        session.accept("scan0/1", _plane(session, truth["scan0"], 1))
        assert session.left() == []
        assert not any((path / "slices").iterdir())
        stored = read_label_volume(path / "labels/scan0.nii.gz")
        np.testing.assert_array_equal(stored.file_data(), truth["scan0"])
        np.testing.assert_array_equal(session.mask("scan0/1"), _plane(session, truth["scan0"], 1))
        session.undo()
        assert session.left() == ["scan0/1"]
        np.testing.assert_array_equal(session.mask("scan0/3"), _plane(session, truth["scan0"], 3))
        session.redo()
        session.accept("scan0/2", 0 * _plane(session, truth["scan0"], 2))  # a slice of a finished volume
        expected = truth["scan0"].copy()
        expected[..., 2] = 0
        np.testing.assert_array_equal(read_label_volume(path / "labels/scan0.nii.gz").file_data(), expected)
    assert read_support_folder(path).labels == (1,)


def _plane(session: Session, ids: np.ndarray, k: int) -> np.ndarray:
    """Slice k, numbered as in the file, of ids in the axes of the file, as the session shows slices."""
    item = session.project.items["scan0"]
    assert item.turned
    return ids[..., k].T[::-1, ::-1]


def test_a_volume_with_one_slice_is_done_after_it(tmp_path):
    path, _ = volume_project(tmp_path, shape=(12, 14, 1))
    with Session(path) as session:
        session.accept("scan0/0", np.ones((14, 12), int))
        assert session.left() == []
        assert session.mask("scan0").shape == (12, 14, 1)


def test_a_second_process_is_refused_until_the_first_dies(tmp_path):
    path, _ = image_project(tmp_path)
    code = "import sys, time; from universeg_jax.annotation.session import Session as S; s = S(sys.argv[1]);"
    command = [sys.executable, "-c", f"{code} print(1, flush=True); time.sleep(60)", str(path)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline()
        with pytest.raises(LockedError, match="another process works in"):
            Session(path)
    finally:
        child.kill()
        child.wait()
    Session(path).close()


def test_locked_images_and_labels_stay(tmp_path):
    path, truth = image_project(tmp_path, labels={1: "a", 2: "b"})
    with Session(path) as session:
        session.accept("p0_0", truth["p0_0"])
        session.lock(["p0_0"])
        for change in (lambda: session.accept("p0_0", truth["p1_0"]), session.undo, lambda: session.forget("p0_0")):
            with pytest.raises(UserError, match="p0_0 is locked"):
                change()
    with Session(path) as session:
        assert session.locks == (["p0_0"], [])
        session.lock(["p0_0"], unlock=True)
        session.lock(labels=[1])
        new = np.full_like(truth["p0_0"], 2)
        new[0, 0] = 1  # neither may the locked label grow
        session.accept("p0_0", new)
        np.testing.assert_array_equal(session.mask("p0_0") == 1, truth["p0_0"] == 1)
        assert session.mask("p0_0")[0, 1] == 2
        assert session.mask("p0_0")[0, 0] == 0


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    path, truth = image_project(tmp_path)
    with Session(path) as session:
        session.accept("p0_0", truth["p0_0"])
        before = masks_on_disk(path), (path / "history/journal.jsonl").read_bytes()
        full = OSError(errno.ENOSPC, "No space left on device")

        def fail(*_, **__):
            raise full

        for owner, name in ((Image.Image, "save"), (stores.shutil, "copyfile"), (journals.os, "fsync")):
            with monkeypatch.context() as patched:
                patched.setattr(owner, name, fail)
                with pytest.raises(UserError, match="p0_0 was not accepted: No space left on device"):
                    session.accept("p0_0", 1 - truth["p0_0"])
            assert (masks_on_disk(path), (path / "history/journal.jsonl").read_bytes()) == before
            assert not list(path.rglob(".tmp*"))
            np.testing.assert_array_equal(session.mask("p0_0"), truth["p0_0"])
        session.accept("p0_0", 1 - truth["p0_0"])
    with Session(path) as session:
        np.testing.assert_array_equal(session.mask("p0_0"), 1 - truth["p0_0"])


def test_labels_edited_outside_are_named_and_both_remain(tmp_path):
    path, truth = image_project(tmp_path)
    with Session(path) as session:
        for name in ("p0_0", "p1_0"):
            session.accept(name, truth[name])
    file = write_mask(path / "labels/p0_0.png", 1 - truth["p0_0"])
    with Session(path) as session:
        assert list(session.problems) == ["p0_0"]
        for change in (session.undo, lambda: session.accept("p2_0", truth["p2_0"]), session.check_sound):
            with pytest.raises(UserError, match=r"p0_0\.png was edited outside since it was accepted: accept it again"):
                change()
        session.restore("p0_0")
        assert session.problems == {}
        np.testing.assert_array_equal(read_label(file), truth["p0_0"])
        file.unlink()  # while the session is open
        with pytest.raises(UserError, match="was removed since it was accepted"):
            session.accept("p0_0", truth["p0_0"])
    write_mask(file, 1 - truth["p0_0"])
    with Session(path) as session:
        session.accept("p0_0", read_label(file))
        np.testing.assert_array_equal(session.mask("p0_0"), 1 - truth["p0_0"])
        session.undo()
        np.testing.assert_array_equal(session.mask("p0_0"), truth["p0_0"])


def test_a_label_that_nobody_accepted_is_named(tmp_path):
    path, truth = image_project(tmp_path)
    file = write_mask(path / "labels/p0_0.png", truth["p0_0"])
    with Session(path) as session:
        with pytest.raises(UserError, match=r"p0_0\.png was not accepted here: accept it with"):
            session.check_sound()
        session.accept("p0_0", read_label(file))
        session.check_sound()


def test_images_that_vanished_or_changed_are_named(tmp_path):
    path, truth = image_project(tmp_path)
    with Session(path) as session:
        for name in ("p0_0", "p1_0"):
            session.accept(name, truth[name])
    os.utime(path / "images/p0_0.png")  # the same content
    Session(path).check_sound()
    image = path / "images/p0_0.png"
    shutil.move(image, tmp_path / "kept.png")
    (path / "images/p4_0.png").unlink()  # without a label
    with Session(path) as session:
        assert session.left() == ["p2_0", "p3_0"]
        with pytest.raises(UserError, match="vanished after its label was accepted: put it back, or"):
            session.check_sound()
    shutil.copy(path / "images/p1_0.png", image)
    with Session(path) as session:
        with pytest.raises(UserError, match="has changed since its label was accepted: put the old image back, or"):
            session.check_sound()
        session.accept("p0_0", truth["p1_0"])
        session.check_sound()
        session.undo()  # the old label belongs to the old image
    with Session(path) as session, pytest.raises(UserError, match="has changed since its label was accepted"):
        session.check_sound()
    shutil.copy(tmp_path / "kept.png", image)
    with Session(path) as session:
        session.check_sound()
        session.forget("p0_0")
        assert "p0_0" in session.left()


@pytest.mark.parametrize(
    ("unit", "mask", "message"),
    [
        ("p0_0", np.ones((30, 20)), "the image has 20x30 pixels, the label 30x20"),
        ("p0_0", np.ones((20, 30, 4)), "the image has 20x30 pixels, the label 20x30x4"),
        ("p0_0", np.full((20, 30), 7), "label 7 is not one of the project's, 1 \\(disc\\), 3 \\(ring\\)"),
        ("p0_0", np.full((20, 30), 0.5), "p0_0"),
        ("p9_9", np.ones((20, 30)), "no image 'p9_9'; its images are p0_0, "),
        ("p0_0/1", np.ones((20, 30)), "no image 'p0_0/1'"),
        ("../p0_0", np.ones((20, 30)), "no image"),
    ],
)
def test_a_label_that_does_not_fit_is_refused(tmp_path, unit, mask, message):
    path, _ = image_project(tmp_path, labels={1: "disc", 3: "ring"})
    with Session(path) as session, pytest.raises(UserError, match=message):
        session.accept(unit, mask)


def test_a_mask_of_white_means_the_only_label(tmp_path):
    path, truth = image_project(tmp_path, labels={4: "disc"})
    with Session(path) as session:
        session.accept("p0_0", 255 * truth["p0_0"])
        np.testing.assert_array_equal(session.mask("p0_0"), 4 * truth["p0_0"])


def test_a_project_that_cannot_be_read_is_named(tmp_path):
    path, _ = image_project(tmp_path)
    file = path / "project.json"
    values = json.loads(file.read_text())
    for text, message in (
        (json.dumps({**values, "version": 9}), "version 9, and this program reads version 1"),
        ("{", "is damaged"),
        (json.dumps({k: v for k, v in values.items() if k != "labels"}), "a field is missing or wrong"),
        (json.dumps({**values, "order": "best"}), "order 'best': choose one of"),
        (json.dumps({**values, "items": {"a": {"name": "a", "file": "../a.png"}}}), "a field is missing or wrong"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            Session(path)
    with pytest.raises(UserError, match="is no project: make one with"):
        Session(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_images_that_are_added_later_join(tmp_path):
    path, truth = image_project(tmp_path, count=2)
    shutil.copy(path / "images/p0_0.png", path / "images/q.png")
    with Session(path) as session:
        assert session.left() == [*truth, "q"]
    assert "q" in read_project(path).items


def test_a_project_is_made_whole_or_not_at_all(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="no image can be used"):
        create(tmp_path / "project", tmp_path / "images", {1: "x"})
    assert [f.name for f in tmp_path.iterdir()] == ["images"]
    write_mask(tmp_path / "images/b.png", np.eye(9))
    _, unusable = create(tmp_path / "project", tmp_path / "images", {1: "x"}, link=True)
    assert list(unusable) == ["a"]
    assert (tmp_path / "project/images/b.png").stat().st_ino == (tmp_path / "images/b.png").stat().st_ino
    with pytest.raises(UserError, match="exists; choose another name"):
        create(tmp_path / "project", tmp_path / "images", {1: "x"})
    with pytest.raises(UserError, match="ids are whole numbers from 1"):
        create(tmp_path / "other", tmp_path / "images", {0: "x"})


def test_a_mask_of_255_is_the_structure_unless_255_is_to_ignore(tmp_path):
    for ignored, expected in ((9, {0, 1}), (255, {0, 255})):
        path, truth = image_project(tmp_path / str(ignored), labels={1: "disc", ignored: "ignore"})
        with Session(path) as session:
            session.accept("p0_0", 255 * truth["p0_0"])
            assert set(np.unique(session.mask("p0_0"))) == expected
