"""Ways to keep labels other than one label file beside each image: polygons in JSON, and a folder of masks per class.

    labels/liver/x.png       the mask of one class of images/x.*; everything above 0 belongs to it
    labels/x.json            LabelMe or QuPath GeoJSON of images/x.*; LabelMe's may also lie in images/
    *.json                   COCO, in the folder itself, labels/, annotations/ or images/

Each becomes `LabelFile`s with classes, which every reader knows. Ids are those of meta.json where it names the class,
else COCO's own, else 1, 2, … in the order of the names.
"""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from universeg_jax.readers.cases import may_be_case
from universeg_jax.readers.errors import FolderError
from universeg_jax.readers.file_names import natural_order, stem
from universeg_jax.readers.label_names import ids_of_names
from universeg_jax.readers.labels import LabelFile
from universeg_jax.readers.ome_zarr import is_ome_zarr
from universeg_jax.readers.polygons import JSON_EXTENSIONS, PolygonFile, read_polygons

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


def find_labels(path: Path, images: Iterable[str], named: Mapping[int, str]) -> FoundLabels | None:
    """The labels of a folder without label files of the ordinary kind; None where it keeps them in no way known here.

    `images`: the names of its cases; `named`: the labels of meta.json. Raises FolderError and ImageError.
    """
    inner = _visible(path / "labels")
    if any((file.is_file() and may_be_case(file)) or is_ome_zarr(file) for file in inner):
        return None
    cases = set(images)
    return _class_folders(inner, cases, dict(named)) or _json_labels(path, cases, dict(named))


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


def _json_labels(path: Path, cases: set[str], named: dict[int, str]) -> FoundLabels | None:
    folders = (path / "labels", path / "annotations", path, path / "images")
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
    if kinds == ["COCO"]:  # it may describe images that are not here
        files = {name: labels for name, labels in files.items() if name in cases}
    if not files:
        raise FolderError(f"{found[0][0]}: names no image of {path / 'images'}; the names must be the same")
    names = {i: name for name, i in ids.items()}
    return FoundLabels(files, names, f"{kinds[0]} polygons")


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
