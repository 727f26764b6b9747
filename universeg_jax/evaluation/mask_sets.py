"""What the files of two folders of masks mean: the true labels, in every way in which labels are kept, and predictions.

The labels are a folder of mask files, of folders of masks for each class, or of polygons; or a whole dataset with
labels/ inside. Its meta.json counts: names, colours, "instances" and "ignore"; for nnU-Net's labelsTr its dataset.json.
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from universeg_jax.errors import UserError
from universeg_jax.readers.cases import LabelMap, label_map, read_image_values
from universeg_jax.readers.dicom_files import is_seg
from universeg_jax.readers.file_names import TIFF_EXTENSIONS, VOLUME_EXTENSIONS, extension, natural_order, stem
from universeg_jax.readers.folder import list_images
from universeg_jax.readers.label_formats import OBJECTS, find_labels, pair_labels
from universeg_jax.readers.label_names import with_segment_names
from universeg_jax.readers.label_values import MASK_VALUES, MIXED_NOTE, doubts_of_ids, rim_ids
from universeg_jax.readers.labels import LabelFile, class_masks, ignored_mask
from universeg_jax.readers.layouts import read_classes
from universeg_jax.readers.meta import Meta, read_json_object, read_meta, subject_rule
from universeg_jax.readers.notes import note
from universeg_jax.readers.palettes import check_palettes
from universeg_jax.readers.segments import on_grid_of
from universeg_jax.readers.volume_files import is_volume, read_label_volume
from universeg_jax.readers.volumes import Volume, check_same_grid
from universeg_jax.reports.overlay import is_overlay

NNUNET = "ids of dataset.json"
Classes = tuple[tuple[int, tuple[int, ...]], ...]  # as in LabelFile
Files = dict[str, tuple[LabelFile, ...]]  # name → what its files mean


@dataclass(frozen=True)
class MaskSet:
    """The masks of a folder by name, in natural order."""

    files: Files
    known: tuple[int, ...] = ()  # ids that its files may hold; () = any
    taken: str = ""  # what they were taken for, where they are no files of ids
    root: Path = Path()  # where its meta.json lies
    meta: Meta | None = None
    named: bool = False  # the files name their ids themselves

    def paths(self) -> list[Path]:
        """All files, each once."""
        return [*dict.fromkeys(Path(file.path) for files in self.files.values() for file in files)]

    def subject_of(self, default: Callable[[str], str]) -> Callable[[str], str]:
        """The rule name → subject of meta.json, else `default`; a case of nnU-Net is a subject."""
        if self.taken == NNUNET:
            return lambda name: name
        return subject_rule(self.root, self.meta, default) if self.meta else default


@dataclass(frozen=True)
class Pair:
    """A predicted and a true label map on one grid, with its spacing and unit; `void` is not to be scored."""

    prediction: LabelMap
    truth: LabelMap
    shape: tuple[int, ...]
    spacing: Sequence[float]
    unit: str
    void: np.ndarray | None = None


def read_sets(predictions: Path, labels: Path) -> tuple[MaskSet, MaskSet]:
    """(predictions, labels), whose names are the same. Raises UserError, also for labels without a prediction."""
    predicted = {name: [file] for name, file in find_masks(predictions).items()}
    truth, predicted = _read_truth(labels, predicted)
    files: Files = {}
    objects = OBJECTS if truth.meta and truth.meta.instances else ()
    for name, label in truth.files.items():
        whole = tuple(LabelFile(str(file), objects or _classes_of(label)) for file in predicted.pop(name, []))
        files[name] = whole or _mask_per_id(predicted, name)
    if objects:
        note(predictions, "objects of one class, as meta.json of the labels says: every value above 0 is id 1")
    if missing := [name for name, found in files.items() if not found]:
        shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise UserError(f"{predictions} lacks masks for {len(missing)} of {len(truth.files)} labels: {shown}")
    files |= {name: (LabelFile(str(found[0])),) for name, found in predicted.items()}
    names = truth.meta.labels if truth.meta else {}
    renamed, segments = with_segment_names([*truth.files.values(), *files.values()], names)
    count = len(truth.files)
    truth = replace(truth, files=dict(zip(truth.files, renamed[:count], strict=True)), named=bool(segments))
    return _as_one_class(MaskSet(dict(zip(files, renamed[count:], strict=True))), truth)


def find_masks(folder: Path) -> dict[str, Path]:
    """The images and volumes of a folder by name without the extension, in natural order. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    files = [f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")]
    volumes = [f for f in files if extension(f) in VOLUME_EXTENSIONS or is_seg(f)]
    found: dict[str, Path] = {}
    for file in (f for f in (*list_images(folder), *volumes) if not is_overlay(f)):
        name = unicodedata.normalize("NFC", stem(file))  # macOS writes ü as u and ¨
        if name in found:
            raise UserError(f"{found[name]} and {file} have the same name; keep one of them")
        found[name] = file
    if not found:
        raise UserError(f"{folder} holds no masks: neither images nor {', '.join(VOLUME_EXTENSIONS)} nor DICOM-SEG")
    return {name: found[name] for name in natural_order(found)}


def _read_truth(folder: Path, predicted: dict[str, list[Path]]) -> tuple[MaskSet, dict[str, list[Path]]]:
    """(labels, predictions by the names of the labels)."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    is_dataset = any((folder / part).is_dir() for part in ("labels", "images"))  # a COCO file needs no labels/
    labels = folder / "labels" if is_dataset else folder
    root = labels.parent if labels.name.startswith("labels") else labels
    meta = read_meta(root)
    if found := find_labels(root, predicted, meta, labels):
        return MaskSet(_sorted(found.files), taken=found.taken, root=root, meta=meta), predicted
    files = {name: [file] for name, file in find_masks(labels).items()}
    if not files.keys() & predicted.keys():
        predicted, files, found = pair_labels(predicted, files, meta)
        if found:
            return MaskSet(_sorted(found.files), taken=found.taken, root=root, meta=meta), predicted
    classes: Classes = OBJECTS if meta.instances else ()
    ignored, known, taken = meta.ignore, tuple(meta.labels), ""
    if (root / "dataset.json").is_file() and labels.name in ("labelsTr", "labelsTs"):
        spec = root / "dataset.json"
        names, regions, ignored = read_classes(spec, read_json_object(spec))
        classes, known, taken = regions or tuple((i, (i,)) for i in names), (), NNUNET
    elif meta.colours:
        taken = "colours of meta.json"
    elif not meta.instances:
        check_palettes(file for paths in files.values() for file in paths)
    colours = tuple((i, *colour) for i, colour in meta.colours.items())
    known = () if classes or colours else known
    sets = {n: tuple(LabelFile(str(f), classes, ignored, None, colours) for f in paths) for n, paths in files.items()}
    return MaskSet(_sorted(sets), known, taken, root, meta), predicted


def _sorted(files: Files) -> Files:
    return {name: files[name] for name in natural_order(files)}


def _classes_of(label: Iterable[LabelFile]) -> Classes:
    """The regions of nnU-Net, which its predictions hold as its labels do; else () for the values as ids."""
    classes = [file.classes for file in label if any(len(values) > 1 for _, values in file.classes)]
    return classes[0] if len(classes) == 1 else ()


def _mask_per_id(predicted: dict[str, list[Path]], name: str) -> tuple[LabelFile, ...]:
    """<name>_1.png, <name>_2.png, …, as `predict` writes masks that overlap; () where there are none."""
    found = [other for other in predicted if other.rpartition("_")[0] == name and other.rpartition("_")[2].isdecimal()]
    return tuple(LabelFile(str(predicted.pop(o)[0]), ((int(o.rpartition("_")[2]), ()),)) for o in found)


def _as_one_class(predicted: MaskSet, truth: MaskSet) -> tuple[MaskSet, MaskSet]:
    """Both with one id where masks of one class hold 1 in some files and 255 in others."""
    is_plain = not any(file.classes or file.colours for files in truth.files.values() for file in files)
    values = set().union(*_occurring(truth)) if is_plain and len(truth.known) < 2 else {0}
    if not values <= set(MASK_VALUES):
        return predicted, truth
    sets = [*_occurring(truth), *_occurring(predicted)]
    values = set().union(*sets)
    is_said = values <= set(truth.known) if truth.known else len(values) < 2
    if is_said or not values <= set(MASK_VALUES) or any(len(each) > 1 for each in sets):
        return predicted, truth
    only = (truth.known or (1,))[0]
    listed = " and ".join(map(str, sorted(values)))
    note("masks", f"{listed} mean the only id that meta.json names, {only}" if truth.known else MIXED_NOTE)
    classes = ((only, tuple(sorted(values))),)

    def merged(masks: MaskSet) -> MaskSet:
        files = {name: tuple(replace(each, classes=classes) for each in found) for name, found in masks.files.items()}
        return replace(masks, files=files, known=())

    return merged(predicted), merged(truth)


def _values(file: LabelFile) -> np.ndarray:
    return read_label_volume(file.path, file.ignored).data if is_volume(file.path) else read_image_values(file, (0, 0))


def _occurring(masks: MaskSet) -> list[set[int]]:
    """The values above 0 of each file of ids."""
    found = []
    for file in (file for files in masks.files.values() for file in files):
        values = _values(file)
        found.append(set(np.unique(values).tolist()) - {0, *file.ignored})
    return found


def read_pair(name: str, predictions: MaskSet, labels: MaskSet) -> Pair:
    """Reads a pair on one grid. Raises UserError for different sizes, ImageError for files that are no masks."""
    ours, theirs = predictions.files[name], labels.files[name]
    first, true_first = Path(ours[0].path), Path(theirs[0].path)
    if theirs[0].part is None and is_volume(first) != is_volume(true_first):
        raise UserError(
            f"{first} and {true_first}: one is a volume and the other an image; give two images or two volumes"
        )
    if theirs[0].part is None and is_volume(true_first):
        return _read_volumes(ours, theirs, labels.known)
    (height, width) = read_image_values(ours[0], (0, 0)).shape
    shape = (height, width)

    def read(file: LabelFile) -> np.ndarray:
        values = read_image_values(file, shape)
        if values.shape != shape:
            sizes = [f"{each[1]}x{each[0]}" for each in (shape, values.shape)]
            raise UserError(f"{first} is {sizes[0]}, its label {file.path} {sizes[1]}; resize one of them")
        return values

    prediction, truth = _maps(shape, ours, (), read), _maps(shape, theirs, labels.known, read)
    return Pair(prediction, truth, shape, (1.0, 1.0), "pixels", ignored_mask(theirs, read))


def _read_volumes(ours: Sequence[LabelFile], theirs: Sequence[LabelFile], known: tuple[int, ...]) -> Pair:
    truth = read_label_volume(theirs[0].path, theirs[0].ignored)

    def read(file: LabelFile) -> np.ndarray:
        if file.path == theirs[0].path:
            return truth.data
        volume: Volume = on_grid_of(read_label_volume(file.path, file.ignored), truth)
        check_same_grid(truth, volume)
        return volume.data

    maps = _maps(truth.shape, ours, (), read), _maps(truth.shape, theirs, known, read)
    # The pages of a TIFF have no spacing.
    unit = "pixels" if extension(theirs[0].path) in TIFF_EXTENSIONS else "mm"
    return Pair(*maps, truth.shape, truth.spacing, unit, ignored_mask(theirs, read))


def _maps(
    shape: tuple[int, ...], files: Sequence[LabelFile], known: tuple[int, ...], read: Callable[[LabelFile], np.ndarray]
) -> LabelMap:
    return label_map(shape, lambda: class_masks(files, known, read))


def class_ids(labels: MaskSet) -> list[int]:
    """The ids that occur in the labels, without the background; a note where they may be no classes of their own.

    Raises UserError where there is none.
    """
    files = [file for of_case in labels.files.values() for file in of_case]
    occurring, rims = zip(*map(_ids_of, files), strict=True)
    found = set().union(*occurring)
    if not found:
        raise UserError(f"every label in {labels.paths()[0].parent} is empty; 0 is the background")
    if len(labels.known) == 1 and len(found) == 1 and found <= set(MASK_VALUES):  # as `class_masks` reads them
        return list(labels.known)
    is_plain = not (labels.known or labels.named or any(file.classes or file.colours for file in files))
    for doubt in doubts_of_ids(occurring, rims) if is_plain else ():
        note(labels.paths()[0].parent, doubt)
    return sorted(found)


def _ids_of(file: LabelFile) -> tuple[set[int], set[int]]:
    """(ids that occur in a file, those of them that are only rims)"""
    if file.part is not None:
        return {i for i, _ in file.classes}, set()
    values = _values(file)
    occurring = set(np.unique(values).tolist()) - {0, *file.ignored}
    if not file.classes:
        return occurring, rim_ids(np.where(np.isin(values, file.ignored), 0, values))
    return {i for i, of_class in file.classes if occurring & set(of_class) or (occurring and not of_class)}, set()
