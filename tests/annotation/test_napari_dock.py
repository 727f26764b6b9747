"""The dock widget in a real napari, on a screen that nobody needs to see: `xvfb-run` or QT_QPA_PLATFORM=xcb."""

import importlib.metadata
import importlib.util
import os
import time
from pathlib import Path

import numpy as np
import pytest

import universeg_jax
from tests.annotation.fixtures import volume_project
from universeg_jax.annotation.session import Session
from universeg_jax.errors import UserError
from universeg_jax.reports.files import LockedError

MANIFEST = Path(universeg_jax.__file__).parent / "napari.yaml"
READY = importlib.util.find_spec("napari") is not None and importlib.util.find_spec("qtpy") is not None
pytestmark = [
    pytest.mark.skipif(not READY, reason="napari is not installed: pip install -e '.[napari]' pyqt6"),
    pytest.mark.skipif(not os.environ.get("DISPLAY"), reason="there is no screen: run under xvfb-run"),
]
SIZE = 24


@pytest.fixture(scope="module")
def window():
    """One for all tests: the progress bars of napari go on to look for windows that were closed."""
    import napari

    viewer = napari.Viewer(show=False)
    yield viewer
    viewer.close()


@pytest.fixture
def viewer(window):
    yield window
    window.window.remove_dock_widget("all")
    window.layers.clear()


def make_widget(viewer):
    from universeg_jax.annotation.napari_dock import AnnotateWidget

    widget = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(widget, name="annotate")
    return widget


def wait(widget, seconds=120):
    """Until the worker's result is on the screen."""
    from qtpy.QtWidgets import QApplication

    end = time.time() + seconds
    while widget.busy:
        assert time.time() < end, "the worker does not end"
        QApplication.processEvents()
        time.sleep(0.01)


def press(widget, text):
    assert widget.buttons[text].isEnabled()
    widget.buttons[text].click()
    wait(widget)


def open_images(viewer, count=4):
    """Open image layers of bright discs; returns the true labels."""
    rng, truth = np.random.default_rng(0), []
    for i in range(count):
        rows, columns = np.mgrid[:SIZE, :SIZE]
        label = ((rows - 10 - i) ** 2 + (columns - 12) ** 2 < 20).astype(np.int32)
        viewer.add_image((60 * rng.random((SIZE, SIZE)) + 120 * label).astype(np.uint8), name=f"case{i}")
        truth.append(label)
    return truth


def label_of(viewer):
    from universeg_jax.annotation.napari_screen import LABEL

    return viewer.layers[LABEL]


def test_manifest_names_things_that_exist():
    from npe2 import PluginManifest

    manifest = PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    assert [each.display_name for each in manifest.contributions.widgets] == ["annotate"]
    declared = importlib.metadata.entry_points(group="napari.manifest", name="universeg_jax")
    assert [each.value for each in declared] in (["universeg_jax:napari.yaml"], [])  # [] where it is not installed


def test_paint_two_predict_a_third_correct_accept_close_and_reopen(viewer, checkpoint, tmp_path):
    truth = dict(enumerate(open_images(viewer)))
    widget = make_widget(viewer)
    press(widget, "Predict")
    assert "open a project first" in widget.state.text()
    widget.labels.setText("disc")
    widget.make(tmp_path / "project", checkpoint=str(checkpoint))
    press(widget, "Predict")
    assert "nothing is labelled yet" in widget.state.text()
    for _ in range(2):
        label = label_of(viewer)
        label.data = np.where(truth[int(widget.unit[-1])] > 0, 1, 0)  # painted
        press(widget, "Accept and next")
    third = widget.unit
    assert widget.session.status()["labelled"] == 2
    label = label_of(viewer)
    label.data_setitem((np.array([0, 0]), np.array([0, 1])), 1)  # a stroke
    before = label.data.copy()
    press(widget, "Predict")
    assert label_of(viewer).data[0, :2].tolist() == [1, 1]  # stays
    assert before.shape == label_of(viewer).data.shape
    corrected = truth[int(third[-1])]
    label_of(viewer).data = corrected
    press(widget, "Accept and next")
    press(widget, "Undo")
    assert widget.session.status()["labelled"] == 2
    press(widget, "Redo")
    with pytest.raises(LockedError):  # another process
        Session(tmp_path / "project")
    press(widget, "Sort by doubt")
    assert "expected Dice" in widget.queue.item(0).text()
    widget.close_session()
    again = make_widget(viewer)
    again.open(tmp_path / "project")
    assert len(again.session.labelled()) == 3
    for unit in again.session.labelled():
        np.testing.assert_array_equal(again.session.mask(unit), truth[int(unit[-1])])
        again.show_unit(unit)
        np.testing.assert_array_equal(label_of(viewer).data, truth[int(unit[-1])])
        press(again, "Predict")
        assert "is accepted, and Predict would cover it" in again.state.text()
    again.close_session()


def test_a_volume_is_labelled_slice_by_slice_and_completed(viewer, checkpoint, tmp_path):
    path, _ = volume_project(tmp_path, checkpoint=str(checkpoint))
    widget = make_widget(viewer)
    widget.open(path)
    stack = np.stack([np.zeros_like(widget.session.image(unit)) for unit in widget.session.units()]).astype(np.int32)
    stack[:, 3:8, 4:9] = 1
    for k in (0, 3):
        widget.show_unit(f"scan0/{k}")
        label = label_of(viewer)
        label.data = np.where(np.arange(len(stack))[:, None, None] == k, stack, label.data)
        press(widget, "Accept and next")
    press(widget, "Complete volume")
    shown = label_of(viewer).data
    np.testing.assert_array_equal(shown[[0, 3]], stack[[0, 3]])
    assert (path / "predictions" / "scan0.nii.gz").is_file()
    assert sorted(widget.session.slices("scan0")) == [0, 3]  # a completion is no accepted label
    widget.close_session()


def test_a_removed_layer_a_wrong_shape_and_a_closed_window_lose_nothing(viewer, checkpoint, tmp_path):
    truth = open_images(viewer, 3)
    widget = make_widget(viewer)
    widget.labels.setText("disc")
    widget.make(tmp_path / "project", checkpoint=str(checkpoint))
    label_of(viewer).data = truth[int(widget.unit[-1])]
    press(widget, "Accept and next")
    viewer.layers.remove(label_of(viewer))
    press(widget, "Accept and next")
    assert "is gone: click case" in widget.state.text()
    widget.show_unit(widget.session.left()[0])
    label_of(viewer).data = np.zeros((SIZE, SIZE + 1), np.int32)
    press(widget, "Accept and next")
    assert "they must be equal" in widget.state.text()
    widget.show_unit(widget.session.labelled()[0])  # another image, whose label is shown anew
    widget.show_unit(widget.session.left()[0])
    widget.buttons["Predict"].click()
    widget.close_session()  # in the middle of a prediction
    wait(widget)
    with Session(tmp_path / "project") as session:
        assert len(session.labelled()) == 1


def test_layers_that_no_project_can_take_are_named(viewer, tmp_path):
    viewer.add_image(np.zeros((2, 3, 8, 8)), name="movie")
    widget = make_widget(viewer)
    widget.labels.setText("cell")
    with pytest.raises(UserError, match="layer movie: an image of 4 axes"):
        widget.make(tmp_path / "project")
    assert not (tmp_path / "project").exists()


def test_sample_data_are_layers(viewer):
    from universeg_jax.annotation.napari_sample import SUBJECTS, make_sample, subjects

    sample = make_sample()
    for data, options, kind in sample:
        viewer._add_layer_from_data(data, options, kind)
    assert len(viewer.layers) == SUBJECTS
    for image, label in subjects():
        assert set(np.unique(label)) == {0, 1}
        assert image[label > 0].mean() > image[label == 0].mean() + 30
