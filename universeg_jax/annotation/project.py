"""An annotation project: a folder with its settings and the images to be labelled.

    project.json    settings, and what is known of each image (this module)
    meta.json       names of the labels, for the commands that read the folder as a support folder
    images/         what is to be labelled: images, stacks and volumes
    labels/         accepted labels of whole images and volumes; with images/ a support folder
    slices/         accepted slices of volumes that are not finished: slices/<volume>/<slice>.png
    predictions/    what the network says
    history/        every accepted label by its SHA-256, and journal.jsonl (journal.py)

What is labelled is a *unit*: an image, named "p1", a slice, "scan/12" (numbered as in the file), or a whole volume,
"scan".
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from universeg_jax.annotation.policy import check_policy
from universeg_jax.errors import UserError
from universeg_jax.readers.dicom import read_dicom_image
from universeg_jax.readers.dicom_files import is_dicom_file
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.file_names import extension
from universeg_jax.readers.folder import PROJECT, case_files
from universeg_jax.readers.images import check_image, read_image
from universeg_jax.readers.preprocess import WINDOWS, Window
from universeg_jax.readers.volume_files import is_volume, mask_extension, read_volume, voxels_of
from universeg_jax.readers.volumes import AXES, Volume, slice_axis
from universeg_jax.reports.files import atomic_write, read_json, write_json
from universeg_jax.reports.overlay import COLOURS

VERSION = 1
DEFAULT_ORDER = "doubt"  # measured best, docs/annotate.md
MAX_ID = 65535
IGNORE = "ignore"  # name of the label, as in nnU-Net, of pixels that are neither a structure nor background


@dataclass(frozen=True)
class Label:
    """A class of the project."""

    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Item:
    """An image or volume of images/."""

    name: str
    file: str  # in images/
    axis: int | None = None  # of a volume: its slices are labelled along it
    slices: int = 0  # of a volume
    turned: bool = False  # of a volume: its canonical slices run against those of its file

    @property
    def volume(self) -> bool:
        return self.axis is not None

    def units(self) -> list[str]:
        """The image, or the slices of the volume."""
        return [f"{self.name}/{k}" for k in range(self.slices)] if self.volume else [self.name]

    def canonical(self, k: int) -> int:
        """The index along the canonical axis of slice `k` of the file; and back."""
        return self.slices - 1 - k if self.turned else k


@dataclass(frozen=True)
class Project:
    """The settings of a project. Paths are those of this module's head."""

    path: Path
    labels: dict[int, Label]
    order: str = DEFAULT_ORDER  # one of policy.POLICIES
    checkpoint: str = "small"
    support: str = ""  # folder of examples from elsewhere
    support_size: int = 16  # examples that the network sees at once
    window: Window = "auto"  # of volumes
    items: dict[str, Item] = field(default_factory=dict)

    @property
    def ignored(self) -> int | None:
        """The id of pixels without a label: that of the label named "ignore"."""
        return next((i for i, label in self.labels.items() if label.name.lower() == IGNORE), None)

    @property
    def structures(self) -> dict[int, Label]:
        """The labels that the network predicts."""
        return {i: label for i, label in self.labels.items() if i != self.ignored}

    def image_file(self, item: Item) -> Path:
        return self.path / "images" / item.file

    def label_file(self, unit: str) -> Path:
        """Where the accepted label of a unit lies."""
        item, k = self.find(unit)
        if k is not None:
            return self.path / "slices" / item.name / f"{k}.png"
        return self.path / "labels" / f"{item.name}{self._kind(item)}"

    def prediction_file(self, unit: str) -> Path:
        item, k = self.find(unit)
        folder = self.path / "predictions"
        return folder / item.name / f"{k}.png" if k is not None else folder / f"{item.name}{self._kind(item)}"

    def _kind(self, item: Item) -> str:
        return mask_extension(item.file) if item.volume else ".png"

    def find(self, unit: str) -> tuple[Item, int | None]:
        """(item, slice or None for the whole) of a unit. Raises UserError for an unknown one."""
        if unit in self.items:
            return self.items[unit], None
        name, _, number = unit.rpartition("/")
        item = self.items.get(name)
        if item is None or not item.volume:
            known = ", ".join(list(self.items)[:5]) + (", …" if len(self.items) > 5 else "")
            raise UserError(f"{self.path}: no image {unit!r}; its images are {known}")
        if not number.isdecimal() or int(number) >= item.slices or str(int(number)) != number:
            raise UserError(f"{unit}: the slices of {name} are {name}/0 to {name}/{item.slices - 1}")
        return item, int(number)


def create(
    path: Path,
    images: Path,
    labels: Mapping[int, str],
    order: str = DEFAULT_ORDER,
    checkpoint: str = "small",
    support: Path | None = None,
    support_size: int = 16,
    window: Window = "auto",
    axis: int | None = None,
    link: bool = False,
    progress: bool = False,
) -> tuple[Project, dict[str, str]]:
    """Makes a project of the images of a folder, whole or not at all: (the project, unusable image → reason).

    `link` makes hard links to the images instead of copies (links out of a folder are never read). `axis`: label all
    volumes along it; default: across their acquired planes. Raises UserError if `path` holds anything, or no image can
    be used.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists; choose another name for the project")
    check_labels(labels)
    project = Project(
        path,
        {i: Label(name, COLOURS[n % len(COLOURS)]) for n, (i, name) in enumerate(sorted(labels.items()))},
        check_policy(order),
        checkpoint,
        str(support.resolve()) if support else "",
        support_size,
        window,
    )
    if support_size < 1:
        raise UserError(f"support_size={support_size}: use at least 1")
    temporary = path.with_name(f".tmp.{path.name}")  # renamed at the end, so that a killed `new` leaves no half project
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for part in ("images", "labels", "slices", "predictions", "history"):
            (temporary / part).mkdir(parents=True)
        items, unusable = _take_images(images, temporary / "images", axis, link, progress)
        write_project(replace(project, path=temporary, items=items))
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"{path} cannot be made: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return replace(project, items=items), unusable


def _take_images(
    source: Path, target: Path, axis: int | None, link: bool, progress: bool
) -> tuple[dict[str, Item], dict[str, str]]:
    items: dict[str, Item] = {}
    unusable: dict[str, str] = {}
    files = case_files(source if not (source / "images").is_dir() else source / "images")
    for name, found in tqdm(files.items(), "read", unit="image", disable=not progress or len(files) < 20, leave=False):
        try:
            if len(found) > 1:
                raise ImageError(found[0], "two files of one name", " and ".join(each.name for each in found))
            items[name] = make_item(name, found[0], axis)
        except ImageError as error:
            unusable[name] = str(error)
            continue
        for file in filter(None, (found[0], voxels_of(found[0]) if found[0].is_file() else None)):
            place = target / (name if file.is_dir() else file.name)
            copy = os.link if link else shutil.copyfile
            if file.is_dir():
                shutil.copytree(file, place, copy_function=copy)
            else:
                copy(file, place)
    if not items:
        raise UserError(f"{source}: no image can be used: {next(iter(unusable.values()))}")
    if len({item.volume for item in items.values()}) > 1:
        image = next(item.file for item in items.values() if not item.volume)
        raise UserError(f"{source}: {image} is an image among volumes: make a project of each kind")
    return items, unusable


def make_item(name: str, file: Path, axis: int | None = None) -> Item:
    """Describes an image or volume, which is read. Raises ImageError."""
    inside = name if file.is_dir() else file.name
    content = read_file(file)
    if not isinstance(content, Volume):
        return Item(name, inside)
    axis = slice_axis(content) if axis is None else axis
    turned = content.axes[content.axes[:, 0] == axis, 1][0] < 0
    return Item(name, inside, axis, content.shape[axis], bool(turned))


def read_file(file: Path) -> Any:
    """An image, float32 [H, W], or a `Volume`. Raises ImageError."""
    if is_volume(file):
        return read_volume(file)
    return check_image(read_dicom_image(file), file) if is_dicom_file(file) else read_image(file)


def add_image(project: Project, name: str, file: Path) -> Project:
    """Copies an image or volume into images/ under another name, whole or not at all. Raises UserError."""
    if name in project.items:
        raise UserError(f"{name}: the project has an image of this name; choose another")
    item = make_item(name, file)
    if any(each.volume != item.volume for each in project.items.values()):
        raise UserError(f"{name}: the project holds {'images' if item.volume else 'volumes'}; this is none")
    place = project.path / "images" / f"{name}{extension(file)}"
    with atomic_write(place) as temporary:
        shutil.copyfile(file, temporary)
    added = replace(project, items=project.items | {name: replace(item, file=place.name)})
    write_project(added)
    return added


def parse_labels(text: str) -> dict[int, str]:
    """ "1=liver, 2=tumour", "liver, tumour" or "1, 2" → {id: name}. Raises UserError."""
    found: dict[int, str] = {}
    for number, part in enumerate(filter(None, (p.strip() for p in text.split(","))), 1):
        left, equals, name = (p.strip() for p in part.partition("="))
        if not equals and not left.isdecimal():
            left, name = str(number), left
        if not left.isdecimal() or not int(left) or int(left) in found:
            raise UserError(f"labels {text!r}: write them as 1=liver,2=tumour, each number above 0 and once")
        found[int(left)] = name or f"label {int(left)}"
    if not found:
        raise UserError("name what is to be labelled, such as liver, or 1=liver,2=tumour")
    return found


def check_labels(labels: Mapping[int, str]) -> None:
    """Raises UserError for label ids that cannot be stored."""
    if not labels:
        raise UserError("a project needs at least one label: give --labels, such as 1=liver,2=tumour")
    ignored = [i for i, name in labels.items() if name.lower() == IGNORE]
    if len(ignored) > 1 or len(ignored) == len(labels):
        raise UserError(f'"{IGNORE}" is for pixels without a label, one id beside those of structures')
    if wrong := [i for i in labels if not 0 < i <= MAX_ID]:
        raise UserError(f"label {wrong[0]}: ids are whole numbers from 1 to {MAX_ID}; 0 is the background")


def write_project(project: Project) -> None:
    """Writes project.json, and what other commands need to know of the labels into meta.json, both atomically."""
    values = asdict(project) | {"version": VERSION}
    del values["path"]
    write_json(project.path / PROJECT, {"version": VERSION, **values})
    meta = project.path / "meta.json"
    others = read_json(meta) if meta.exists() else {}
    ignored = {} if project.ignored is None else {"ignore": [project.ignored]}
    write_json(meta, others | {"labels": {str(i): s.name for i, s in project.structures.items()}} | ignored)


def read_project(path: Path) -> Project:
    """Reads a project; images added to images/ since are taken in. Raises UserError."""
    file = path / PROJECT
    if not file.is_file():
        raise UserError(f"{path} is no project: make one with `universeg annotate new {path} --images DIR`")
    try:
        values = read_json(file)
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}; correct it, or restore it from a backup") from error
    version = values.get("version") if isinstance(values, dict) else None
    if version != VERSION:
        raise UserError(
            f"{file}: version {version!r}, and this program reads version {VERSION}: open the project with the program "
            "that made it; its labels/ are plain files that every version reads"
        )
    try:
        project = _parse(path, values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: a field is missing or wrong ({error}); correct it") from error
    check_labels({i: label.name for i, label in project.labels.items()})
    check_policy(project.order)
    new = {name: make_item(name, file) for name, file in _new_files(project)}
    if not new:
        return project
    project = replace(project, items=project.items | new)
    write_project(project)
    return project


def _parse(path: Path, values: dict[str, Any]) -> Project:
    red_green_blue = {int(i): tuple(map(int, label["colour"])) for i, label in values["labels"].items()}
    if any(len(colour) != 3 for colour in red_green_blue.values()):
        raise ValueError("a colour has three numbers")
    window = values["window"]
    if isinstance(window, list):
        window = (float(window[0]), float(window[1]))
    elif window not in WINDOWS:
        raise ValueError(f"window {window!r}")
    return Project(
        path,
        {int(i): Label(str(label["name"]), red_green_blue[int(i)]) for i, label in values["labels"].items()},  # type: ignore[arg-type]
        str(values["order"]),
        str(values["checkpoint"]),
        str(values["support"]),
        max(1, int(values["support_size"])),
        window,
        {name: _item(name, fields) for name, fields in values["items"].items()},
    )


def _item(name: str, fields: dict[str, Any]) -> Item:
    item = Item(**fields)
    if item.name != name or Path(item.file).name != item.file or item.axis not in (None, *AXES):
        raise ValueError(f"items: {json.dumps(fields)}")
    return item


def _new_files(project: Project) -> Iterator[tuple[str, Path]]:
    """Files in images/ that the project does not know; of two with one name neither."""
    folder = project.path / "images"
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    known = {item.file for item in project.items.values()}
    for name, found in case_files(folder).items():
        if name not in project.items and len(found) == 1 and found[0].name not in known:
            yield name, found[0]
