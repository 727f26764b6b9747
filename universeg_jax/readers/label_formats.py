"""Ways to keep labels other than one label file beside each image: polygons in JSON, and a mask for each class.

    labels/liver/x.png       the mask of one class of images/x.*; everything above 0 belongs to it
    labels/x/liver.png       the same; where no name occurs in two folders, each mask is an object of one class
    labels/x_liver.png       the same (label_pairs.py)
    labels/x.json            LabelMe or QuPath GeoJSON of images/x.*; LabelMe's may also lie in images/
    *.json                   COCO, in the folder itself, labels/, annotations/ or images/

Each becomes `LabelFile`s with classes, which every reader knows. Ids are those of meta.json where it names the class,
else COCO's own, else 1, 2, … in the order of the names. With "instances" of meta.json every shape and mask is an object
of one class.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from universeg_jax.readers.cases import may_be_case
from universeg_jax.readers.errors import FolderError
from universeg_jax.readers.file_names import natural_order, stem
from universeg_jax.readers.label_names import ids_of_names
from universeg_jax.readers.label_pairs import Pairs, pair_names
from universeg_jax.readers.labels import LabelFile
from universeg_jax.readers.meta import Meta
from universeg_jax.readers.notes import note
from universeg_jax.readers.ome_zarr import is_ome_zarr
from universeg_jax.readers.polygons import JSON_EXTENSIONS, PolygonFile, read_polygons

OBJECTS = ((1, ()),)  # every value above 0 is class 1
OBJECT = "object"
COCO = "COCO polygons"
NO_LABELS = ("meta.json", "dataset.json", "splits.json")


@dataclass(frozen=True)
class FoundLabels:
    """The labels of a folder: case name → files, the names of the ids, and what they were taken for."""

    files: dict[str, tuple[LabelFile, ...]]
    names: dict[int, str]
    taken: str


def composed(name: str) -> str:
    """A name in one spelling of its accents: macOS writes ü as u and ¨, other systems as one character."""
    return unicodedata.normalize("NFC", name)


def find_labels(
    path: Path, images: Mapping[str, list[Path]], meta: Meta, labels: Path | None = None
) -> FoundLabels | None:
    """The labels of a folder without label files of the ordinary kind; None where it keeps them in no way known here.

    `images`: case → its files. `labels`: the folder of labels (default: labels/ in `path`). A COCO file may describe
    images that are not among `images`. Raises FolderError and ImageError.
    """
    labels = labels or path / "labels"
    inner = _visible(labels)
    if any((file.is_file() and may_be_case(file)) or is_ome_zarr(file) for file in inner):
        return None
    cases = set(images)
    files = {name for name, paths in images.items() if not paths[0].is_dir()}  # a DICOM series has a label per slice
    found = (
        _class_folders(inner, cases, meta.labels)
        or _case_folders(inner, files, meta)
        or _json_labels(path, labels, cases, meta.labels)
    )
    return _as_objects(found) if found and meta.instances else found


def pair_labels(
    images: dict[str, list[Path]], labels: dict[str, list[Path]], meta: Meta
) -> tuple[dict[str, list[Path]], dict[str, list[Path]], FoundLabels | None]:
    """(images, labels) by case, and the labels of several classes, where names differ in words (label_pairs.py)."""
    names, pairs = pair_names(images, labels)
    if not names:
        return images, labels, None
    first = next(iter(next(iter(pairs.values())).values()))
    images = {names[name]: files for name, files in images.items()}
    if len({word for words in pairs.values() for word in words}) == 1:
        note(first, "its name and that of its image differ in a word; they are taken for a pair")
        return images, {case: [*words.values()] for case, words in pairs.items()}, None
    found = _masks_by_name(pairs, meta, "labels/<image>_<class>")
    return images, {case: [*words.values()][:1] for case, words in pairs.items()}, found


def _as_objects(found: FoundLabels) -> FoundLabels:
    files = {case: tuple(replace(label, classes=OBJECTS) for label in labels) for case, labels in found.files.items()}
    return FoundLabels(files, {1: OBJECT}, f"{found.taken}, all of one class")


def _visible(folder: Path) -> list[Path]:
    names = [f.name for f in folder.iterdir() if not f.name.startswith(".")] if folder.is_dir() else []
    return [folder / name for name in natural_order(names)]


def _class_folders(inner: list[Path], cases: set[str], named: dict[int, str]) -> FoundLabels | None:
    masks = {
        folder.name: [file for file in _visible(folder) if file.is_file() and may_be_case(file)]
        for folder in inner
        if folder.is_dir() and composed(folder.name) not in cases
    }
    masks = {name: files for name, files in masks.items() if any(composed(stem(file)) in cases for file in files)}
    if not masks:
        return None
    ids = ids_of_names(list(masks), named)
    files: dict[str, tuple[LabelFile, ...]] = {}
    for name, of_class in masks.items():
        if len({stem(file) for file in of_class}) < len(of_class):
            raise FolderError(f"{of_class[0].parent}: two masks have one name; keep one of them")
        for file in of_class:
            case = composed(stem(file))
            files[case] = (*files.get(case, ()), LabelFile(str(file), ((ids[name], ()),)))
    return FoundLabels(files, {i: name for name, i in ids.items()}, "a folder of masks for each class")


def _case_folders(inner: list[Path], cases: set[str], meta: Meta) -> FoundLabels | None:
    masks: Pairs = {}
    for folder in inner:
        files = [file for file in _visible(folder) if file.is_file() and may_be_case(file)] if folder.is_dir() else []
        if files and composed(folder.name) in cases:
            masks[composed(folder.name)] = {stem(file): file for file in files}
            if len(masks[composed(folder.name)]) < len(files):
                raise FolderError(f"{folder}: two masks have one name; keep one of them")
    return _masks_by_name(masks, meta, "labels/<image>/<class>") if masks else None


def _masks_by_name(masks: Pairs, meta: Meta, pattern: str) -> FoundLabels:
    """The masks of each case by name: of classes where a name occurs in two cases, else of objects of one class."""
    counts = Counter(name for of_case in masks.values() for name in of_case)
    if meta.instances or (len(masks) > 1 and max(counts.values()) == 1):
        files = {case: tuple(LabelFile(str(f), OBJECTS) for f in of_case.values()) for case, of_case in masks.items()}
        return FoundLabels(files, {1: meta.labels.get(1, OBJECT)}, f"masks {pattern}, each of an object of one class")
    if all(re.fullmatch("[^0-9]*[0-9]+", name) for name in counts) and len(counts) > 1:
        example = next(iter(next(iter(masks.values())).values()))
        raise FolderError(
            f'{example}: a mask with a number; where masks number objects write "instances": true into meta.json, '
            "where they are classes name the files after them, such as liver"
        )
    ids = ids_of_names(natural_order(counts), meta.labels)
    files = {
        case: tuple(LabelFile(str(file), ((ids[name], ()),)) for name, file in of_case.items())
        for case, of_case in masks.items()
    }
    return FoundLabels(files, {i: name for name, i in ids.items()}, f"masks {pattern}, one for each class")


def _json_labels(path: Path, labels: Path, cases: set[str], named: dict[int, str]) -> FoundLabels | None:
    folders = dict.fromkeys((labels, path / "annotations", path, path / "images"))
    found: list[tuple[Path, PolygonFile]] = []
    for file in (file for folder in folders for file in _visible(folder) if file.is_file()):
        if file.suffix.lower() in JSON_EXTENSIONS and file.name not in NO_LABELS and (read := read_polygons(file)):
            found.append((file, read))
    if not found:
        return None
    kinds = sorted({read.kind for _, read in found})
    if len(kinds) > 1:
        raise FolderError(f"{path}: labels of several kinds, {' and '.join(kinds)}; keep one of them")
    ids = _polygon_ids([read for _, read in found], named)
    files: dict[str, tuple[LabelFile, ...]] = {}
    for file, read in found:
        for image in read.images:
            name = composed(stem(image.image.replace("\\", "/").rpartition("/")[2] if read.kind == "COCO" else file))
            if name in files:
                raise FolderError(f"{file}: the image {name} has labels in two files or entries; keep one of them")
            key = image.image if read.kind == "COCO" else ""
            classes = sorted({shape.name for shape in image.shapes}) or list(ids)[:1]
            files[name] = tuple(LabelFile(str(file), ((ids[each], ()),), part=(key, each)) for each in classes)
    if not files.keys() & cases:
        raise FolderError(f"{found[0][0]}: names no image of {path / 'images'}; the names must be the same")
    names = {i: name for name, i in ids.items()}
    return FoundLabels(files, names, COCO if kinds == ["COCO"] else f"{kinds[0]} polygons")


def _polygon_ids(files: list[PolygonFile], named: dict[int, str]) -> dict[str, int]:
    """Name → id. Raises FolderError where there is no class, or files number one class differently."""
    names = sorted({name for file in files for name in file.names})
    if not names:
        raise FolderError("no file of polygons names a class; label at least one object")
    own = {(name, i) for file in files for name, i in zip(file.names, file.ids, strict=False)}
    is_numbered = all(file.ids for file in files) and len(own) == len({i for _, i in own}) == len(names)
    if is_numbered and not {name.casefold() for name in named.values()} & {name.casefold() for name in names}:
        return dict(sorted(own, key=lambda pair: pair[1]))
    return ids_of_names(names, named)
