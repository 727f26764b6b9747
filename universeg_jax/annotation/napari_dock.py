"""The dock widget *UniverSeg: annotate* of napari: a session (session.py) on the layers of a viewer.

The widget shows one image or volume of a project at a time, in three layers of its own: the image, the label, which
napari's brush, fill and eraser change, and the uncertainty of the prediction. What the network computes runs in a
thread with napari's progress bar, and the label cannot be painted meanwhile. Accepted labels are on disk at once.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Image
from napari.qt.threading import thread_worker
from napari.utils.notifications import show_warning
from qtpy.QtCore import QSize
from qtpy.QtGui import QIcon, QImage, QPixmap
from qtpy.QtWidgets import (
    QFileDialog,
    QGridLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QPushButton,
    QWidget,
)

from universeg_jax.annotation import layers, project, rest
from universeg_jax.annotation.assistant import Assistant
from universeg_jax.annotation.napari_screen import OWN, Screen
from universeg_jax.annotation.session import Session
from universeg_jax.errors import UserError

THUMBNAIL = 64  # pixels
QUEUE = 200  # images of the list


class AnnotateWidget(QWidget):
    """Choose or make a project; then predict, correct, accept, next."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.session: Session | None = None
        self.assistant: Assistant | None = None
        self.screen = Screen(napari_viewer)
        self.skipped: list[str] = []
        self.busy = False
        self.gone = False  # the window was closed
        self.labels = QLineEdit()
        self.labels.setPlaceholderText("labels of a new project: liver, or 1=liver, 2=tumour")
        self.state = QLabel("Open a project, or make one from the open image layers.")
        self.state.setWordWrap(True)
        self.queue = QListWidget()
        self.queue.setIconSize(QSize(THUMBNAIL, THUMBNAIL))
        self.queue.itemClicked.connect(lambda item: self.guarded(lambda: self.show_unit(item.data(256))))
        self.buttons = self._build()
        self.destroyed.connect(_closer(self.__dict__))

    def _build(self) -> dict[str, QPushButton]:
        actions: list[tuple[str, Callable[[], None], str]] = [
            ("Open project", self.choose_project, "a folder that `universeg annotate new` or this widget made"),
            ("New project", self.choose_new_project, "copies the open image layers into a new folder"),
            ("Predict", self.predict, "from all accepted labels; pixels that you changed stay and guide the rest"),
            ("Accept and next", self.accept, "writes the label to disk and shows what to label next"),
            ("Skip", self.skip, "shows what to label next"),
            ("Undo", lambda: self.step("undo"), "takes the last accepted label back"),
            ("Redo", lambda: self.step("redo"), "accepts it again"),
            ("Complete volume", self.complete, "predicts all other slices from the accepted ones"),
            ("Sort by doubt", self.sort, "the image on top is the one that the network is least certain of"),
        ]
        grid, buttons = QGridLayout(self), {}
        grid.addWidget(self.labels, 0, 0, 1, 2)
        for i, (text, action, tip) in enumerate(actions):
            button = buttons[text] = QPushButton(text)
            button.setToolTip(tip)
            button.clicked.connect(lambda _=False, action=action: self.guarded(action))
            grid.addWidget(button, 1 + i // 2, i % 2)
        grid.addWidget(self.state, 7, 0, 1, 2)
        grid.addWidget(self.queue, 8, 0, 1, 2)
        return buttons

    # Projects

    def choose_project(self) -> None:
        if folder := QFileDialog.getExistingDirectory(self, "Open a project"):
            self.open(Path(folder))

    def choose_new_project(self) -> None:
        project.parse_labels(self.labels.text())  # before a folder is asked for
        folder, _ = QFileDialog.getSaveFileName(self, "Folder of the new project")
        if folder:
            self.make(Path(folder))

    def make(self, folder: Path, checkpoint: str = "small") -> None:
        """Makes a project of the open image layers and opens it. Raises UserError."""
        labels = project.parse_labels(self.labels.text())
        found = [
            layers.OpenLayer(each.name, each.data[0] if each.multiscale else each.data, tuple(each.scale), each.rgb)
            for each in self.viewer.layers
            if isinstance(each, Image) and each.name not in OWN
        ]
        with tempfile.TemporaryDirectory() as scratch:
            layers.write_layers(found, Path(scratch))
            volumes = any(each.data.ndim - each.rgb == 3 for each in found)
            axis = 2 if volumes else None
            _, unusable = project.create(folder, Path(scratch), labels, checkpoint=checkpoint, axis=axis)
        for reason in unusable.values():
            show_warning(f"left out: {reason}")
        for each in found:
            self.viewer.layers[each.name].visible = False
        self.open(folder)

    def open(self, folder: Path) -> None:
        """Opens a project, instead of the one before, and shows the first image that is left. Raises UserError."""
        session = Session(folder)
        self.close_session()
        self.session, self.assistant, self.skipped = session, None, []
        if session.problems:
            show_warning(next(iter(session.problems.values())))
        self.show_unit((session.left() or session.units())[0])

    def close_session(self) -> None:
        """Frees the project for other processes."""
        if self.session:
            self.session.close()
        self.session, self.assistant, self.screen.name = None, None, ""

    def opened(self) -> Session:
        if self.session is None:
            raise UserError("open a project first, or make one from the open image layers")
        return self.session

    # What is on the screen

    @property
    def unit(self) -> str:
        """The image, or the slice on the screen."""
        name = self.screen.name
        item, _ = self.opened().project.find(name)
        return f"{name}/{int(self.viewer.dims.current_step[0])}" if item.volume else name

    def show_unit(self, unit: str, mask: np.ndarray | None = None, uncertainty: np.ndarray | None = None) -> None:
        """Shows an image or slice; `mask` and `uncertainty` are a prediction of it, where there is one."""
        session = self.opened()
        item, k = session.project.find(unit)
        if self.screen.name != item.name:
            self.screen.show(layers.view_of(session, item.name), session.project.labels)
        if k is not None:
            self.viewer.dims.set_current_step(0, k)
        if mask is not None:
            self.screen.put(slice(None) if k is None else k, mask, uncertainty)
        self.refresh()

    def refresh(self) -> None:
        """Brings the list and the line of text up to date."""
        session = self.opened()
        done, left = len(session.labelled()), len(session.left())
        here = "accepted" if self.screen.name and session.is_labelled(self.unit) else "not accepted yet"
        self.state.setText(f"{session.project.path.name}: {done} done, {left} left. {self.unit}: {here}.")
        self.fill({})

    def fill(self, expected: dict[str, float]) -> None:
        """Fills the list with what is left, least certain first where `expected` Dice is known; then what is done."""
        session = self.opened()
        names = list(dict.fromkeys(session.project.find(unit)[0].name for unit in [*session.left(), *session.units()]))
        names.sort(key=lambda name: expected.get(name, 2.0))
        self.queue.clear()
        for name in names[:QUEUE]:
            units = session.project.items[name].units()
            done = sum(map(session.is_labelled, units))
            mark = f"{done} of {len(units)} slices" if len(units) > 1 else "accepted" if done else "left"
            if name in expected:
                mark += f", expected Dice {100 * expected[name]:.0f}"
            entry = QListWidgetItem(f"{name}: {mark}")
            first = next((unit for unit in units if not session.is_labelled(unit)), units[0])
            entry.setData(256, first)
            if self.assistant is not None and len(units) == 1:
                entry.setIcon(_icon(self.assistant.views.image(name)))
            self.queue.addItem(entry)

    # What the buttons do

    def predict(self) -> None:
        unit = self.unit
        if self.opened().is_labelled(unit):
            raise UserError(f"{unit} is accepted, and Predict would cover it: correct it by hand, or press Undo")
        _, k = self.opened().project.find(unit)
        corrections = self.screen.corrections(slice(None) if k is None else k)

        def done(prediction: Any) -> None:
            if prediction is None:
                raise UserError("nothing is labelled yet: paint a first example and accept it")
            self.show_unit(unit, prediction.mask, prediction.uncertainty)

        self.work("predict", lambda: self.helper().predict(unit, corrections=corrections), done)

    def accept(self) -> None:
        session, unit = self.opened(), self.unit
        labels = self.screen.label().data
        _, k = session.project.find(unit)
        session.accept(unit, labels if k is None else labels[k])
        self.screen.keep(slice(None) if k is None else k)
        self.next()

    def skip(self) -> None:
        self.skipped.append(self.unit)
        self.next()

    def next(self) -> None:
        """Shows what to label next, with its prediction."""
        session = self.opened()
        if not [unit for unit in session.left() if unit not in self.skipped]:
            self.skipped = []
            if not session.left():
                self.refresh()
                self.state.setText(f"{session.project.path.name}: everything is labelled.")
                return

        def compute() -> tuple[str, Any]:
            helper = self.helper()
            unit = helper.next(skipped=self.skipped)
            return unit, helper.predict(unit)

        def done(found: tuple[str, Any]) -> None:
            unit, prediction = found
            self.show_unit(unit, *(() if prediction is None else (prediction.mask, prediction.uncertainty)))

        self.work("next", compute, done)

    def step(self, kind: str) -> None:
        """Undo or redo."""
        units = getattr(self.opened(), kind)()
        self.screen.name = ""  # shows the labels as they are now
        self.show_unit(units[0])

    def complete(self) -> None:
        """Predicts the slices of the volume that are not accepted."""
        session, name = self.opened(), self.screen.name
        item = session.project.items[name]
        if not item.volume:
            raise UserError(f"{name} is an image; only volumes can be completed")

        def compute() -> np.ndarray:
            helper = self.helper()
            mask = rest.predict_volume(helper, item)
            rest.write_prediction(helper, name, mask)
            return layers.to_slices(session, name, mask)

        def done(mask: np.ndarray) -> None:
            if self.screen.name == name:
                left = [k for k, unit in enumerate(item.units()) if not session.is_labelled(unit)]
                self.screen.put(left, mask[left], None)
                self.refresh()

        self.work(f"complete {name}", compute, done)

    def sort(self) -> None:
        """Sorts the list by the Dice that the network expects; of volumes, by the mean of at most five slices."""
        session = self.opened()

        def compute() -> dict[str, float]:
            helper, found = self.helper(), {}
            for name in dict.fromkeys(session.project.find(unit)[0].name for unit in session.left()):
                left = [u for u in session.project.items[name].units() if not session.is_labelled(u)]
                some = [left[i] for i in sorted(set(np.linspace(0, len(left) - 1, 5).round().astype(int)))]
                found[name] = float(np.mean([helper.expected(unit) for unit in some]))
            return found

        self.work("sort by doubt", compute, self.fill)

    # Threads and errors

    def helper(self) -> Assistant:
        """The network, loaded when it is first needed; for threads."""
        if self.assistant is None:
            from universeg_jax.prediction.predictor import Predictor

            session = self.opened()
            self.assistant = Assistant(session, Predictor.from_checkpoint(session.project.checkpoint))
        return self.assistant

    def work(self, what: str, compute: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Runs `compute` in a thread, and `done` with its result afterwards, unless the project was closed."""
        session = self.opened()

        def run() -> tuple[Any, Exception | None]:
            try:
                return compute(), None
            except Exception as error:  # told in the window's own thread; here Qt would abort
                return None, error

        def finished(found: tuple[Any, Exception | None]) -> None:
            result, error = found
            if self.gone:
                return
            self._set_busy(False)
            if self.session is not session:
                return
            if error is None:
                self.guarded(lambda: done(result))
            elif isinstance(error, UserError):
                self.tell(error)
            else:
                raise error

        self._set_busy(True)
        worker = thread_worker(run, progress={"total": 0, "desc": f"UniverSeg: {what}"})()
        worker.returned.connect(finished)
        worker.start()

    def _set_busy(self, busy: bool) -> None:
        self.busy = busy
        for button in self.buttons.values():
            button.setEnabled(not busy)
        self.queue.setEnabled(not busy)
        self.screen.set_editable(not busy)

    def guarded(self, act: Callable[[], None]) -> None:
        """Runs what a button does; what the user can mend is told, everything else is raised."""
        try:
            act()
        except UserError as error:
            self.tell(error)

    def tell(self, error: UserError) -> None:
        self.state.setText(str(error))
        show_warning(str(error))


def _closer(state: dict[str, Any]) -> Callable[..., None]:
    """Frees the project when the widget is destroyed, and can no longer be called itself."""

    def close(*_: Any) -> None:
        state["gone"] = True
        if state["session"]:
            state["session"].close()
            state["session"] = None

    return close


def _icon(image: np.ndarray) -> QIcon:
    grey = np.ascontiguousarray(np.round(255 * np.clip(image, 0, 1)).astype(np.uint8))
    height, width = grey.shape
    return QIcon(QPixmap.fromImage(QImage(grey.data, width, height, width, QImage.Format.Format_Grayscale8).copy()))
