"""What a server does with a project, without HTTP: predictions by one worker, labels, what is next.

Names are MONAI Label's: an image has a "final" label where one was accepted, and an "original" one where it was
predicted. The unit is a whole image or volume.
"""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from PIL import Image

from universeg_jax import __version__
from universeg_jax.annotation import POLICIES
from universeg_jax.annotation.assistant import Assistant
from universeg_jax.annotation.label_files import read_label_for
from universeg_jax.annotation.project import Item, read_file
from universeg_jax.annotation.rest import predict_volume, write_prediction
from universeg_jax.annotation.session import Session
from universeg_jax.annotation.store import digest
from universeg_jax.errors import UserError
from universeg_jax.readers.file_names import extension
from universeg_jax.readers.volume_files import mask_extension, write_like
from universeg_jax.readers.volumes import Volume
from universeg_jax.serving.uploads import NotFound

MODEL = "universeg"
FINAL, ORIGINAL = "final", "original"
MAX_WAITING = 256  # predictions
HANDED_OUT = 600  # seconds for which an image is not given to a second client while others are left
EXPLAINED = {
    "order": "as the names sort",
    "random": "at random",
    "diverse": "what differs most from all that is labelled",
    "doubt": "diverse first, then what the network is least certain of",
}
NO_TRAINING = "nothing needs training: every submitted label helps with the next prediction"


class Busy(UserError):
    """Too many predictions wait."""


class Found(NamedTuple):
    """A predicted mask."""

    ids: np.ndarray  # that occur, 0 among them
    name: str  # of its file
    content: bytes  # of its file


class Desk:
    """One project that many clients work on. Thread-safe."""

    def __init__(self, session: Session, assistant: Assistant):
        self.session, self.assistant = session, assistant
        self._worker = ThreadPoolExecutor(1, "predict")
        self._waiting = 0
        self._lock = threading.Lock()
        self._given: dict[str, tuple[str, float]] = {}  # image → (client, when)
        self._found: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def close(self) -> None:
        self._worker.shutdown(cancel_futures=True)

    def queue(self, function: Any, *args: Any) -> Future[Any]:
        """Has the worker call a function after all that wait. Raises Busy."""
        with self._lock:
            if self._waiting >= MAX_WAITING:
                raise Busy(f"{MAX_WAITING} predictions wait: try again later")
            self._waiting += 1
        future = self._worker.submit(function, *args)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: Future[Any]) -> None:
        with self._lock:
            self._waiting -= 1

    def labels(self) -> dict[str, int]:
        """Name → id, by id."""
        return {label.name: i for i, label in sorted(self.session.project.labels.items())}

    def info(self) -> dict[str, Any]:
        project = self.session.project
        volumes = any(item.volume for item in project.items.values())
        model = {
            "type": "segmentation",
            "labels": {label.name: i for i, label in sorted(project.structures.items())},
            "dimension": 3 if volumes else 2,
            "description": f"UniverSeg ({Path(project.checkpoint).name}) with the submitted labels as its examples",
            "config": {},
        }
        order = sorted(POLICIES, key=lambda name: name != project.order)  # the project's first
        return {
            "name": project.path.resolve().name,
            "description": "universeg serve",
            "version": __version__,
            "labels": list(self.labels()),
            "models": {MODEL: model},
            "trainers": {},
            "strategies": {name: {"description": EXPLAINED[name]} for name in order},
            "scoring": {},
            "train_stats": {},
            "datastore": self.stats(),
        }

    def stats(self) -> dict[str, Any]:
        objects = self.objects()
        tags = {tag: sum(tag in each["labels"] for each in objects.values()) for tag in (FINAL, ORIGINAL)}
        return {
            "total": len(objects),
            "completed": tags[FINAL],
            "label_tags": {tag: count for tag, count in tags.items() if count},
        }

    def objects(self) -> dict[str, dict[str, Any]]:
        """Image → its file and labels."""
        project = self.session.project
        found = {}
        for name, item in project.items.items():
            files = {FINAL: project.label_file(name), ORIGINAL: project.prediction_file(name)}
            here = [tag for tag, file in files.items() if (self._is_done(item) if tag == FINAL else file.exists())]
            labels = {tag: {"ext": extension(files[tag]), "info": {"name": files[tag].name}} for tag in here}
            image = {"ext": extension(self._file_name(item)), "info": {"name": self._file_name(item)}}
            found[name] = {"image": image, "labels": labels}
        return found

    def _is_done(self, item: Item) -> bool:
        return self.session.is_labelled(item.name)

    def _file_name(self, item: Item) -> str:
        return f"{item.name}.nii.gz" if self.session.project.image_file(item).is_dir() else item.file

    def item(self, name: str) -> Item:
        """Raises NotFound."""
        if name not in self.session.project.items:
            raise NotFound("no image of this name")
        return self.session.project.items[name]

    def image(self, name: str, folder: Path) -> tuple[Path, str]:
        """(file, its name) of an image; a DICOM series becomes a NIfTI in `folder`. Raises NotFound."""
        item = self.item(name)
        file = self.session.project.image_file(item)
        if not file.exists():
            raise NotFound("the file of this image has vanished")
        if file.is_file():
            return file, self._file_name(item)
        volume = self.session.image(name)
        assert isinstance(volume, Volume)
        made = folder / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(volume.file_data(), volume.file_affine()), made)
        return made, made.name

    def label(self, name: str, tag: str) -> Path:
        """The file of an accepted ("final") or predicted ("original") label. Raises NotFound."""
        self.item(name)
        project = self.session.project
        files = {FINAL: project.label_file(name), ORIGINAL: project.prediction_file(name)}
        if tag not in files or not files[tag].is_file():
            raise NotFound(f"{name} has no label with the tag {tag[:50]!r}")
        return files[tag]

    def accept(self, name: str, file: Path, label_info: Any = None) -> None:
        """Accepts an uploaded label. Raises UserError for one that does not fit.

        `label_info`: [{"name", "idx"}], as Slicer numbers its segments, which need not be the project's ids.
        """
        item = self.item(name)
        numbers = self._numbers(label_info)
        ids = read_label_for(self.session.image(name), file, name)
        if numbers:
            table = np.zeros(max(max(numbers), int(ids.max())) + 1, np.int32)
            unknown = set(np.unique(ids).tolist()) - {0} - set(numbers)
            if unknown:
                raise UserError(f"{name}: value {min(unknown)} of the label is not in label_info")
            table[list(numbers)] = list(numbers.values())
            ids = table[ids]
        self.session.accept(item.name, ids)

    def _numbers(self, label_info: Any) -> dict[int, int]:
        """Value of the file → id of the project, by the names of its segments."""
        if not label_info:
            return {}
        known = self.labels()
        try:
            numbers = {int(each["idx"]): str(each["name"]) for each in label_info}
        except (TypeError, KeyError, ValueError) as error:
            raise UserError('label_info must be a list such as [{"name": "liver", "idx": 1}]') from error
        if any(not 0 < i < 65536 for i in numbers):
            raise UserError("label_info: idx must lie from 1 to 65535")
        if unknown := [name for name in numbers.values() if name not in known]:
            raise UserError(f"the project has no label {unknown[0][:100]!r}; it has {', '.join(known)}")
        return {i: known[name] for i, name in numbers.items()}

    def next(self, strategy: str, client: str) -> dict[str, Any]:
        """What to label next, {} where nothing is left. Two clients get different images while there are several."""
        if strategy not in POLICIES:
            raise NotFound(f"no strategy {strategy[:50]!r}; there are {', '.join(POLICIES)}")
        now, project = time.time(), self.session.project
        self._given = {name: given for name, given in self._given.items() if now - given[1] < HANDED_OUT}
        left = list(dict.fromkeys(project.find(unit)[0].name for unit in self.session.left()))
        if not left:
            return {}
        others = {name for name, (who, _) in self._given.items() if who != client}
        skipped = [unit for name in others for unit in project.items[name].units()] if set(left) - others else []
        item = project.find(self.assistant.next(strategy, skipped))[0]
        self._given[item.name] = client, now
        result = {"id": item.name, "name": self._file_name(item)}
        file = project.image_file(item)
        return result | ({"checksum": f"SHA256:{digest(file)}"} if file.is_file() else {})

    def predict(self, name: str) -> "Found":
        """The prediction of an image or a whole volume, which goes to predictions/ too. Raises UserError."""
        item = self.item(name)
        if self.assistant.pool() is None:
            raise UserError("nothing is labelled yet: submit a label first")
        version = self.session.version
        if self._found[0] != version:
            self._found = version, {}
        file = self.session.project.prediction_file(name)
        if name not in self._found[1] or not file.exists():
            if item.volume:
                mask = predict_volume(self.assistant, item)
            else:
                prediction = self.assistant.predict(name)
                if prediction is None:
                    raise UserError("nothing else is labelled yet: submit a label of another image first")
                mask = prediction.mask
            write_prediction(self.assistant, name, mask)
            self._found[1][name] = np.unique(mask)
        return Found(self._found[1][name], f"{name}{extension(file)}", file.read_bytes())

    def predict_file(self, source: Path) -> "Found":
        """The prediction of a file that is not of the project. Raises UserError."""
        content = read_file(source)
        mask = self.assistant.predict_other(content)
        if mask is None:
            raise UserError("nothing is labelled yet: submit a label first")
        ids = mask.astype(np.uint8 if mask.max(initial=0) < 256 else np.uint16)
        with TemporaryDirectory(prefix="universeg_mask_") as folder:
            if isinstance(content, Volume):
                file = Path(folder) / f"label{mask_extension(source)}"
                write_like(file, ids, source, content)
            else:
                file = Path(folder) / "label.png"
                Image.fromarray(ids).save(file)
            return Found(np.unique(ids), file.name, file.read_bytes())

    def result(self, ids: np.ndarray) -> dict[str, Any]:
        """The parameters beside a mask. Names that occur: Slicer gives the n-th name to the n-th value there is."""
        return {"label_names": {name: i for name, i in self.labels().items() if i in ids}}
