"""A researcher's own folder: images/ and labels/ with the same names, and an optional meta.json (see meta.py).

It holds images, DICOM files of one frame among them, or volumes: NIfTI, NRRD, MetaImage, multi-page TIFF, or a folder
of DICOM files for each series. A case's subject is its name before the last "_" (the whole name where there is none),
unless meta.json says otherwise. Id 0 is the background. Hidden files and other inner folders are skipped; files of
other types are skipped and named in `Folder.ignored`. An image without a label, a label without an image and two files
with one name make a faulty case: a build drops and counts it, a support set is refused. Folders of nnU-Net and of the
Medical Segmentation Decathlon are recognised (layouts.py).
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from universeg_jax.readers.cases import Case, check_inside, may_be_case, read_pair
from universeg_jax.readers.errors import FolderError, ImageError
from universeg_jax.readers.file_names import IMAGE_EXTENSIONS, READABLE_EXTENSIONS, extension, natural_order, stem
from universeg_jax.readers.images import read_label
from universeg_jax.readers.label_values import MIXED_NOTE, one_class
from universeg_jax.readers.labels import LabelFile
from universeg_jax.readers.layouts import is_dataset_json, read_dataset_json
from universeg_jax.readers.meta import Folder, read_meta, subject_rule
from universeg_jax.readers.notes import Notes, collect, note
from universeg_jax.readers.volume_files import is_volume, read_label_volume, voxels_of

T = TypeVar("T")
OBJECTS = ((1, ()),)  # every value above 0 is class 1
MANY_IDS = 20  # from which on ids without names probably number objects
INSTANCES_NOTE = (
    "{} ids without names: each is taken for a class of its own; if they number objects, such as cells, write "
    '"instances": true into meta.json and they become one class'
)


def read_folder(path: str | Path, size: int = 128) -> Folder[Case]:
    """Reads the cases of a folder in the natural order of their names (p2 before p10).

    Where meta.json names no labels, every label file is read to find the ids that occur. Raises FolderError, also
    where no image has a label.
    """
    path = Path(path)
    if is_dataset_json(path):
        return read_dataset_json(path, size)
    images, labels = _files(path / "images"), _files(path / "labels")
    faults = {name: _fault(images.get(name, []), labels.get(name, []), name) for name in images | labels}
    if not images.keys() & labels.keys():
        name = next(iter(images))
        raise FolderError(f"{images[name][0]}: {' ('.join(faults[name])}); no image of this folder has one")
    meta = read_meta(path)
    subject = subject_rule(path, meta, lambda name: name.rpartition("_")[0] or name)
    cases = tuple(
        Case(
            image=str((images.get(name) or labels[name])[0]),
            labels=tuple(LabelFile(str(file), OBJECTS if meta.instances else ()) for file in labels.get(name, ())),
            subject=name if faults[name][0] else subject(name),
            name=name,
            size=size,
            ids=() if meta.instances else tuple(meta.labels),
            modality=meta.modality,
            volume=is_volume((images.get(name) or labels[name])[0]),
            axes=meta.axes,
            window=meta.window,
            root=str(path),
            fault=faults[name],
        )
        for name in natural_order(faults)
    )
    names, notes = meta.labels, Notes()
    if meta.instances:
        names = {1: meta.labels.get(1, "object")}
    elif not names:
        cases, names, notes = _find_ids(path, cases)
    return Folder(
        cases,
        labels=names,
        modality=meta.modality,
        licence=meta.licence,
        citation=meta.citation,
        subjects_identifiable=meta.subjects_identifiable,
        ignored=tuple(f"{part}/{name}" for part in ("images", "labels") for name in _other_files(path / part)),
        notes=notes,
        named=bool(meta.labels) or meta.instances,
    )


def read_support(
    path: str | Path, label: int | None = None, unusable: dict[str, str] | None = None
) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Reads a support folder: (images float32 [H, W], label maps int32 [H, W], names).

    With `label` the label maps hold that id alone, as 1. Raises FolderError, also where `label` never occurs, and
    ImageError for a file that cannot be used, unless `unusable` is given: then it gets the case's name and the reason.
    """
    folder = read_folder(path)
    for case in folder.cases:
        if case.volume:
            raise FolderError(f"{case.image} is a volume; a support set holds images: save the slices that you label")
    pairs = read_each(folder.cases, read_pair, unusable)
    names, images, labels = list(pairs), [image for image, _ in pairs.values()], [ids for _, ids in pairs.values()]
    if label is not None:
        occurring = sorted({int(i) for ids in labels for i in np.unique(ids)} - {0})
        if label not in occurring:
            raise FolderError(f"{path}: label {label} never occurs; the ids there are {occurring}")
        labels = [(ids == label).astype(np.int32) for ids in labels]
    return images, labels, names


def read_each(cases: Iterable[Case], read: Callable[[Case], T], unusable: dict[str, str] | None) -> dict[str, T]:
    """Maps each case's name to what `read` returns; failures raise ImageError or go to `unusable` where it is given."""
    contents: dict[str, T] = {}
    failures = {} if unusable is None else unusable
    for case in cases:
        try:
            contents[case.name] = read(case)
        except ImageError as error:
            if unusable is None:
                raise
            failures[case.name] = str(error)
    if not contents:
        raise FolderError(f"no case of the folder can be used: {next(iter(failures.values()))}")
    return contents


def list_images(path: str | Path) -> list[Path]:
    """Lists the images directly in a folder in the natural order of their names, without hidden files."""
    path = Path(path)
    return [path / name for name in natural_order(_names(path)) if extension(name) in IMAGE_EXTENSIONS]


def _names(path: Path) -> list[str]:
    return [file.name for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]


def _other_files(path: Path) -> list[str]:
    """Files that are no case and not the voxels of a .mhd header."""
    names = _names(path)
    voxels = {voxels_of(path / name) for name in names}
    return natural_order(name for name in names if not may_be_case(path / name) and path / name not in voxels)


def _fault(images: list[Path], labels: list[Path], name: str) -> tuple[str, str]:
    """(problem, detail) of a case; ("", "") where it has one image and one label."""
    if not labels:
        return "has no label", f"add labels/{name}.* or remove the image"
    if not images:
        return "has no image", f"add images/{name}.* or remove the label"
    for files in (images, labels):
        if len(files) > 1:
            return "two files of one name", f"{' and '.join(file.name for file in files)}; keep one of them"
    return "", ""


def _files(path: Path) -> dict[str, list[Path]]:
    """Case → its files or DICOM folders; more than one is a fault."""
    if not path.is_dir():
        raise FolderError(f"{path} is missing; a folder needs images/ and labels/ with the same file names")
    files: dict[str, list[Path]] = {}
    for name in natural_order(each.name for each in path.iterdir() if not each.name.startswith(".")):
        if may_be_case(path / name):
            files.setdefault(stem(name) if (path / name).is_file() else name, []).append(path / name)
    if not files:
        others = f"; there are only {', '.join(_other_files(path)[:3])}" if _other_files(path) else ""
        raise FolderError(f"{path} holds no images ({', '.join(READABLE_EXTENSIONS)}){others}")
    return files


def _find_ids(path: Path, cases: tuple[Case, ...]) -> tuple[tuple[Case, ...], dict[int, str], Notes]:
    """(cases, id → name, notes) by the ids that occur in the label files, all of which are read."""
    with collect() as notes:
        occurring = _occurring_ids(path, cases)
        if values := one_class(occurring):
            note(path / "labels", MIXED_NOTE)
            classes = ((1, values),)
            cases = tuple(
                replace(case, labels=tuple(replace(file, classes=classes) for file in case.labels)) for case in cases
            )
            return cases, {1: "label 1"}, notes
        ids = sorted(set().union(*occurring))
        if len(ids) >= MANY_IDS:
            note(path / "labels", INSTANCES_NOTE.format(len(ids)))
    return cases, {i: f"label {i}" for i in ids}, notes


def _occurring_ids(path: Path, cases: Iterable[Case]) -> list[set[int]]:
    """The ids above 0 of each label file that can be read. Raises FolderError where there are none."""
    occurring: list[set[int]] = []
    problems = []
    for case in cases:
        try:
            check_inside(case)
            for file in case.labels:
                label = read_label_volume(file.path).data if case.volume else read_label(file.path)
                occurring.append(set(np.unique(label).tolist()) - {0})
        except ImageError as error:
            problems.append(str(error))  # the build meets the error again, then drops and counts the case
    if not any(occurring):
        problem = problems[0] if problems else "every label is empty"
        raise FolderError(f"{path}/labels: {problem}; mark what is to be segmented with ids above 0")
    return occurring
