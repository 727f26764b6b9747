"""The project behind a page: made of the first images that are uploaded, then seen one image or slice at a time.

Accepted masks lie in the project (session.py), so a reloaded page shows them again.
"""

import functools
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from universeg_jax.annotation.assistant import Assistant
from universeg_jax.annotation.canvas import Scale, grey_of, overlay
from universeg_jax.annotation.label_files import read_label_for
from universeg_jax.annotation.layers import to_slices
from universeg_jax.annotation.project import Label, create, parse_labels, read_file
from universeg_jax.annotation.rest import predict_rest, predict_volume, write_prediction
from universeg_jax.annotation.session import Session
from universeg_jax.annotation.store import stamp
from universeg_jax.errors import UserError
from universeg_jax.prediction.corrections import UNSAID
from universeg_jax.prediction.predictor import Predictor, make_prediction
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.folder import PROJECT, FolderError, case_files
from universeg_jax.readers.preprocess import window_limits
from universeg_jax.readers.slices import guess_window
from universeg_jax.readers.volumes import Volume
from universeg_jax.reports.overlay import COLOURS, to_display

MAX_EFFECTS = 6  # examples whose effect is shown


@dataclass(frozen=True, eq=False)
class Shown:
    """An image or slice as the page shows it."""

    unit: str
    grey: np.ndarray  # uint8 [H, W]
    mask: np.ndarray  # int32 [H, W]: what is accepted, else what is predicted, else 0
    uncertainty: np.ndarray | None  # float [H, W] in [0, 1], of a prediction
    source: str  # of the mask, in words
    scale: Scale  # height and width of a pixel


class Workspace:
    """A project that many tabs of a page look at; one thread at a time."""

    def __init__(self, path: Path, predictor: Predictor, checkpoint: str = "small"):
        self.path, self.predictor, self.checkpoint = path, predictor, checkpoint
        self.session: Session | None = None
        self._assistant: Assistant | None = None
        self._completed: dict[str, tuple[int, np.ndarray]] = {}  # volume → (session's version, ids of its slices)
        self._limits = functools.lru_cache(8)(self._find_limits)
        if (path / PROJECT).is_file():
            self._open()

    def _open(self) -> None:
        self.session = Session(self.path)
        self._assistant = Assistant(self.session, self.predictor)

    def close(self) -> None:
        if self.session:
            self.session.close()

    def opened(self) -> tuple[Session, Assistant]:
        """Raises UserError before the first upload."""
        if self.session is None or self._assistant is None:
            raise UserError("there is no image yet: add some")
        return self.session, self._assistant

    @property
    def labels(self) -> dict[int, Label]:
        return self.session.project.labels if self.session else {}

    def colours(self) -> dict[int, tuple[int, int, int]]:
        """Id → colour. Raises UserError where the editor could not tell two labels apart."""
        colours = {i: label.colour for i, label in self.labels.items()}
        if len(set(colours.values())) < len(colours):
            raise UserError(
                f"{self.path}: two labels have one colour, and the page tells labels by their colours: give each its "
                f"own in {self.path / PROJECT}"
            )
        return colours

    def add(self, images: Sequence[Path], masks: Sequence[Path], labels: str = "") -> str:
        """Adds images, and accepts masks of the same names: the first image without a mask, or the first at all.

        The files are moved away. All are checked before anything changes. The first images make the project; then
        `labels` names its labels (`parse_labels`). Raises UserError.
        """
        with tempfile.TemporaryDirectory(prefix="universeg_upload_") as scratch:
            given, marked = (_gather(paths, Path(scratch) / str(i)) for i, paths in enumerate((images, masks)))
            try:
                ids = {name: self._check_mask(name, file, given) for name, file in marked.items()}
                for name, file in given.items():
                    self._check_image(name, isinstance(read_file(file), Volume))
            except ImageError as error:
                raise UserError(str(ImageError(Path(error.path).name, error.problem, error.detail))) from error
            if self.session is None:
                self._create(Path(scratch) / "0", labels, ids)
            else:
                for name, file in given.items():
                    self.session.add_image(name, file)
        session, _ = self.opened()
        for name, mask in ids.items():
            session.accept(name, mask)
        first = next((n for n in given if n not in ids), next(iter([*given, *ids])))
        return session.project.items[first].units()[0]

    def _check_image(self, name: str, volume: bool) -> None:
        items = self.session.project.items if self.session else {}
        if name in items:
            raise UserError(f"{name}: the project has an image of this name; choose another")
        if any(item.volume != volume for item in items.values()):
            kinds = ("a volume", "images") if volume else ("an image", "volumes")
            raise UserError(f"{name} is {kinds[0]}, and the project holds {kinds[1]}: make a project of each kind")

    def _check_mask(self, name: str, file: Path, given: dict[str, Path]) -> np.ndarray:
        """The ids of a mask, which fits its image."""
        known = self.session.project.items if self.session else {}
        if name not in given and name not in known:
            raise UserError(f"the mask {file.name} has no image: an image and its mask need the same file name")
        content = read_file(given[name]) if name in given else self.opened()[0].image(name)
        ids = read_label_for(content, file, name)
        if ids.shape != content.shape:
            sizes = ["x".join(map(str, shape)) for shape in (content.shape, ids.shape)]
            raise UserError(f"{name}: the image has {sizes[0]} pixels, its mask {sizes[1]}: they must be equal")
        return ids

    def _create(self, images: Path, labels: str, masks: dict[str, np.ndarray]) -> None:
        if not images.is_dir():
            raise UserError("there are no images yet: choose images, and masks with the same file names")
        ids = sorted({int(i) for mask in masks.values() for i in np.unique(mask)} - {0})
        if labels.strip():
            named = parse_labels(labels)
        elif set(ids) <= {1, 255}:  # how programs save a mask
            named = {1: "structure"}
        else:
            named = {i: f"label {i}" for i in ids}
        if missing := sorted(set(ids) - set(named) - ({1, 255} if len(named) == 1 else set())):
            raise UserError(f"the masks hold {missing[0]}, which has no name: name all ids, as 1=liver,2=tumour")
        if len(named) > len(COLOURS):
            raise UserError(f"the page shows at most {len(COLOURS)} labels, and these are {len(named)}: use napari")
        create(self.path, images, named, checkpoint=self.checkpoint)
        self._open()

    def first(self) -> str:
        """The image or slice that a page shows first: the first that is left, or the first at all; "" before any."""
        if self.session is None:
            return ""
        return (self.session.left() or self.session.units())[0]

    def show(self, unit: str, corrections: np.ndarray | None = None) -> Shown:
        """The image or slice with its accepted or predicted mask. Raises UserError.

        `corrections`, int32 [H, W] as in `Assistant.predict`, guide the prediction.
        """
        session, assistant = self.opened()
        grey, scale = self.grey(unit)
        accepted = session.mask(unit)
        if accepted is not None:
            return Shown(unit, grey, accepted.astype(np.int32), None, "the mask that you accepted", scale)
        item, k = session.project.find(unit)
        if item.name in self._completed and k is not None and corrections is None:
            version, slices = self._completed[item.name]
            since = "" if version == session.version else ", which you changed labels after"
            return Shown(unit, grey, slices[k], None, f"the mask of the completed volume{since}", scale)
        prediction = assistant.predict(unit, corrections=corrections)
        if prediction is None:
            drawn = np.zeros(grey.shape, np.int32) if corrections is None else np.maximum(corrections, 0)
            return Shown(unit, grey, drawn, None, "no examples yet: draw the structure and accept it", scale)
        count = np.count_nonzero(self.examples(unit) >= 0)
        source = f"predicted from {count} example{'s' if count > 1 else ''}"
        if corrections is not None and assistant.can_be_guided:
            source += f" and {np.count_nonzero(corrections != UNSAID)} pixels that you corrected"
        return Shown(unit, grey, prediction.mask.astype(np.int32), prediction.uncertainty, source, scale)

    def grey(self, unit: str) -> tuple[np.ndarray, Scale]:
        """(uint8 [H, W], height and width of a pixel) of an image or slice."""
        session, _ = self.opened()
        item, k = session.project.find(unit)
        image = session.image(unit)
        assert isinstance(image, np.ndarray)
        if k is None:
            return to_display(image), (1.0, 1.0)
        volume = session.image(item.name)
        assert isinstance(volume, Volume)
        columns, rows = (volume.spacing[a] for a in range(3) if a != item.axis)
        return grey_of(image, self._limits(item.name, stamp(session.project.image_file(item)))), (rows, columns)

    def _find_limits(self, name: str, _: tuple[int, int]) -> tuple[float, float]:
        session, _assistant = self.opened()
        volume, window = session.image(name), session.project.window
        assert isinstance(volume, Volume)
        return window_limits(volume.data, guess_window(volume) if window == "auto" else window)

    def examples(self, unit: str) -> np.ndarray:
        """Rows of the pool that a prediction is made from, the most alike first; -1 is padding."""
        _, assistant = self.opened()
        if (pool := assistant.pool()) is None:
            return np.array([], int)
        return assistant.rows_for(pool, unit, np.array([r for r, n in enumerate(pool.units) if n != unit], int))

    def example_overlays(self, unit: str) -> list[tuple[np.ndarray, str]]:
        """(overlay, caption) of the examples for an image or slice, as the network sees them."""
        _, assistant = self.opened()
        pool, shown = assistant.pool(), []
        for row in self.examples(unit):
            if pool is None or row < 0:
                continue
            ids = np.zeros(pool.support.images[row].shape, np.int32)
            for label, mask in zip(pool.support.labels, pool.support.masks[:, row], strict=True):
                ids[mask > 0] = label
            grey = np.round(255 * pool.support.images[row]).astype(np.uint8)
            shown.append((overlay(grey, ids, self.colours()), pool.units[row] or pool.support.names[row]))
        return shown

    def effects(self, unit: str) -> list[tuple[np.ndarray, str]]:
        """(overlay, caption) of the prediction with the first 1, 2, … examples; the last MAX_EFFECTS of them.

        The first caption counts marked pixels, the others the pixels (Δ) that one more example changes.
        """
        session, assistant = self.opened()
        pool = assistant.pool()
        if pool is None or session.is_labelled(unit):
            return []
        rows = [row for row in self.examples(unit) if row >= 0]
        (grey, scale), before, shown = self.grey(unit), None, []
        for count in range(max(1, len(rows) - MAX_EFFECTS + 1), len(rows) + 1):
            found = assistant.probabilities(unit, rows[:count], pool)
            if found is None:
                continue
            mask = make_prediction(assistant.views.restored(unit, found), pool.support.labels).mask
            pixels = f"{np.count_nonzero(mask)}" if before is None else f"Δ {np.count_nonzero(mask != before)}"
            name = pool.units[rows[count - 1]] or pool.support.names[rows[count - 1]]
            caption = f"{pixels}: {'' if before is None else '+ '}{name}"
            shown.append((overlay(grey, mask, self.colours(), scale), caption))
            before = mask
        return shown

    def check_predicted(self, unit: str) -> None:
        """Raises UserError for an accepted image or slice, whose mask no prediction may cover."""
        if self.opened()[0].is_labelled(unit):
            raise UserError(f"{unit} is accepted, and a prediction would cover it: correct it by hand, or press Undo")

    def accept(self, unit: str, mask: np.ndarray) -> None:
        """Accepts the mask of an image or slice, on disk on return. Raises UserError."""
        session, _ = self.opened()
        if not mask.any() and not session.labelled():
            raise UserError(f"the mask of {unit} is empty, and so are all examples: draw the structure first")
        session.accept(unit, mask)

    def next(self, skipped: Sequence[str] = ()) -> str:
        """What to label next, or "" where nothing else is left."""
        session, assistant = self.opened()
        if not set(session.left()) - set(skipped):
            return ""
        return assistant.next(skipped=skipped)

    def complete(self, unit: str) -> None:
        """Predicts the slices of a unit's volume that are not accepted, and writes them to predictions/."""
        session, assistant = self.opened()
        item, _ = session.project.find(unit)
        if not item.volume:
            raise UserError(f"{unit} is an image; only volumes can be completed")
        if assistant.pool() is None:
            raise UserError("nothing is labelled yet: draw a first slice and accept it")
        mask = predict_volume(assistant, item)
        write_prediction(assistant, item.name, mask)
        self._completed[item.name] = session.version, to_slices(session, item.name, mask)

    def predict_rest(self, folder: Path) -> Path:
        """Predicts all that is left; a zip, in `folder`, of labels/ (accepted), predictions/ and the labels' names."""
        session, assistant = self.opened()
        if session.left():
            predict_rest(assistant)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            for part in ("labels", "predictions"):
                shutil.copytree(self.path / part, Path(scratch) / part)
            shutil.copy(self.path / "meta.json", scratch)
            return Path(shutil.make_archive(str(folder / self.path.resolve().name), "zip", scratch))


def _gather(files: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Moves files into a new folder: name → file. Raises UserError for two of one name."""
    if not files:
        return {}
    folder.mkdir()
    for file in files:
        name = re.sub(r"[^\w.() -]+", "_", file.name).lstrip(". ") or "image"
        if (folder / name).exists():
            raise UserError(f"two files are named {name}: rename one of them")
        shutil.move(file, folder / name)
    try:
        found: dict[str, Any] = case_files(folder)
    except FolderError as error:
        raise UserError(f"{files[0].name} is no image: choose PNG, TIFF, NIfTI, NRRD, MetaImage or DICOM") from error
    for name, each in found.items():
        if len(each) > 1:
            raise UserError(f"two files are named {name}: rename one of them")
    if lost := {file.name for file in folder.iterdir()} - {each[0].name for each in found.values()}:
        raise UserError(f"{min(lost)} is no image: choose PNG, TIFF, NIfTI, NRRD, MetaImage or DICOM")
    return {name: each[0] for name, each in found.items()}
