"""A researcher's own folder: images/ and labels/ with the same names, and an optional meta.json (see meta.py).

It holds images, DICOM files of one frame among them, or volumes: NIfTI, NRRD, MetaImage, multi-page TIFF, or a folder
of DICOM files for each series. A case's subject is its name before the last "_" (the whole name where there is none),
unless meta.json says otherwise. Id 0 is the background. Hidden files and other inner folders are skipped; files of
other types are skipped and named in `Folder.ignored`. An image without a label, a label without an image and two files
with one name make a faulty case: a build drops and counts it, a support set is refused. Of a project of `universeg
annotate` only the labelled images are cases. Folders of nnU-Net and of the
Medical Segmentation Decathlon are recognised (layouts.py).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from universeg_jax.readers.cases import (
    Case,
    LabelMap,
    check_inside,
    ids_of,
    ignored_in,
    mask_of,
    may_be_case,
    read_pair,
)
from universeg_jax.readers.dicom_files import nested_series, sorted_files
from universeg_jax.readers.errors import FolderError, ImageError
from universeg_jax.readers.file_names import IMAGE_EXTENSIONS, READABLE_EXTENSIONS, extension, natural_order, stem
from universeg_jax.readers.images import read_label
from universeg_jax.readers.label_formats import COCO, OBJECT, OBJECTS, FoundLabels, composed, find_labels, pair_labels
from universeg_jax.readers.label_names import snap_names, with_segment_names
from universeg_jax.readers.label_values import MIXED_NOTE, doubts_of_ids, one_class, rim_ids
from universeg_jax.readers.labels import LabelFile
from universeg_jax.readers.layouts import is_dataset_json, read_dataset_json
from universeg_jax.readers.meta import Folder, Meta, read_meta, subject_rule
from universeg_jax.readers.notes import collect, note
from universeg_jax.readers.ome_zarr import is_ome_zarr, zarr_stem
from universeg_jax.readers.palettes import check_palettes
from universeg_jax.readers.volume_files import is_volume, read_label_volume, voxels_of

T = TypeVar("T")
Files = dict[str, list[Path]]  # case → its files
PROJECT = "project.json"  # in a folder of `universeg annotate`, whose images without a label are yet to be labelled


def read_folder(path: str | Path, size: int = 128, ignore: Sequence[int] = ()) -> Folder[Case]:
    """Reads the cases of a folder in the natural order of their names (p2 before p10).

    Where meta.json names no labels, every label file is read to find the ids that occur. `ignore`: ids of pixels
    without a label, beside those that the folder itself names. Raises FolderError, also where no image has a label.
    """
    path = Path(path)
    if is_dataset_json(path):
        return read_dataset_json(path, size, ignore)
    with collect() as notes:
        meta, images = read_meta(path), case_files(path / "images")
        meta = replace(meta, ignore=tuple(dict.fromkeys((*meta.ignore, *ignore))))
        if (path / PROJECT).is_file():
            labelled = case_files(path / "labels")
            images = {name: files for name, files in images.items() if name in labelled}
        images, labels, found = _pairs(path, images, meta)
        if found and ignore:
            raise FolderError(f"{path}: its labels are {found.taken}, where no id can be ignored; leave it out")
        if found and meta.ignore:
            note(path / "meta.json", f'"ignore" has no effect, since the labels are {found.taken}')
        for part in ("images", *(() if found else ("labels",))):
            _name_inner_folders(path / part, images if part == "images" else labels)
    colours = tuple((i, *colour) for i, colour in meta.colours.items())
    objects = OBJECTS if meta.instances else ()
    faults = {name: _fault(images.get(name, []), labels.get(name, []), name) for name in images | labels}
    if not images.keys() & labels.keys():
        name = next(iter(images))
        raise FolderError(f"{images[name][0]}: {' ('.join(faults[name])}); no image of this folder has one")
    subject = subject_rule(path, meta, lambda name: name.rpartition("_")[0] or name)
    cases = tuple(
        Case(
            image=str((images.get(name) or labels[name])[0]),
            labels=found.files.get(name, ())
            if found
            else tuple(LabelFile(str(file), objects, meta.ignore, colours=colours) for file in labels.get(name, ())),
            subject=name if faults[name][0] else subject(name),
            name=name,
            size=size,
            ids=() if colours or objects else tuple(meta.labels),
            modality=meta.modality,
            volume=is_volume((images.get(name) or labels[name])[0]),
            axes=meta.axes,
            window=meta.window,
            root=str(path),
            fault=faults[name],
        )
        for name in natural_order(faults)
    )
    with collect() as notes_on_values:
        cases, names, taken, named = _label_names(path, cases, meta, found)
        names = {i: name for i, name in names.items() if found or i not in meta.ignore}
    notes.update(notes_on_values)
    return Folder(
        cases,
        labels=names,
        taken=taken,
        modality=meta.modality,
        licence=meta.licence,
        citation=meta.citation,
        subjects_identifiable=meta.subjects_identifiable,
        ignored=(*_unused(path, cases), *_strangers(path, images)),
        notes=notes,
        named=named,
    )


def _pairs(path: Path, images: Files, meta: Meta) -> tuple[Files, Files, FoundLabels | None]:
    """Name → files of images and of labels, and how the labels are kept where that is not one file for each image."""
    if found := find_labels(path, images, meta):
        everything = not found.taken.startswith(COCO)  # a COCO file may describe images that are not here
        labels = {n: [Path(files[0].path)] for n, files in found.files.items() if everything or n in images}
        return images, labels, found
    labels = case_files(path / "labels")
    return (images, labels, None) if images.keys() & labels.keys() else pair_labels(images, labels, meta)


def _unused(path: Path, cases: tuple[Case, ...]) -> Iterator[str]:
    """Files of images/ and labels/ that are neither."""
    used = {Path(file.path) for case in cases for file in case.labels}
    for part in ("images", "labels"):
        yield from (f"{part}/{name}" for name in _other_files(path / part) if path / part / name not in used)


def _name_inner_folders(folder: Path, used: Files) -> None:
    """A note on folders with images that are not read; folders of DICOM series are, and those of masks by class."""
    read = [file for files in used.values() for file in files]
    names = natural_order(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    for name in names:
        inner = folder / name
        if not any(file.is_relative_to(inner) for file in read) and any(map(may_be_case, inner.iterdir())):
            note(inner, f"is not read: put its files into {folder.name}/ itself")


def _label_names(
    path: Path, cases: tuple[Case, ...], meta: Meta, found: FoundLabels | None
) -> tuple[tuple[Case, ...], dict[int, str], str, bool]:
    """(cases, id → name, what the labels were taken for, whether the ids have names).

    By meta.json, the label files and the ids that occur.
    """
    if found:
        return cases, meta.labels | found.names, found.taken, True
    if meta.instances:
        return cases, {1: meta.labels.get(1, OBJECT)}, "numbered objects of one class", True
    if meta.colours:
        return cases, {i: meta.labels.get(i, f"label {i}") for i in meta.colours if i}, "colours of meta.json", True
    check_palettes(file.path for case in cases if not case.volume for file in case.labels)
    labels, names = with_segment_names([case.labels for case in cases], meta.labels)
    if names:
        cases = tuple(replace(case, labels=files) for case, files in zip(cases, labels, strict=True))
        return cases, meta.labels | names, "ids with the names of the segments in the label files", True
    if meta.labels:
        return cases, meta.labels, "", True
    snap, file = snap_names(path)
    cases, ids = _find_ids(path, cases, snap)
    taken = f"ids with the names of {file}" if snap else ""
    return cases, {i: snap.get(i, f"label {i}") for i in ids}, taken, bool(snap)


def read_support(
    path: str | Path, label: int | None = None, unusable: dict[str, str] | None = None
) -> tuple[list[np.ndarray], list[LabelMap], list[str]]:
    """Reads a support folder: (images float32 [H, W], label maps int32 [H, W], names), as `read_examples`."""
    return read_examples(path, read_folder(path).cases, label, unusable)[:3]


def read_examples(
    path: str | Path, cases: Sequence[Case], label: int | None = None, unusable: dict[str, str] | None = None
) -> tuple[list[np.ndarray], list[LabelMap], list[str], list[np.ndarray | None]]:
    """Reads the cases of a support folder: (images float32 [H, W], label maps int32 [H, W], names, `ignored_in`).

    Where classes of an image overlap, its label map is a dict of the bool mask of each id. With `label` the label maps
    hold that id alone, as 1. Raises FolderError, also where `label` never occurs, and
    ImageError for a file that cannot be used, unless `unusable` is given: then it gets the case's name and the reason.
    """
    for case in cases:
        if case.volume:
            raise FolderError(f"{case.image} is a volume; a support set holds images: save the slices that you label")

    def read(case: Case) -> tuple[np.ndarray, LabelMap, np.ndarray | None]:
        image, ids = read_pair(case)
        return image, ids, ignored_in(case, image)

    found = read_each(cases, read, unusable)
    names, images, labels = list(found), [each[0] for each in found.values()], [each[1] for each in found.values()]
    if label is not None:
        occurring = sorted(set().union(*map(ids_of, labels)))
        if label not in occurring:
            raise FolderError(f"{path}: label {label} never occurs; the ids there are {occurring}")
        labels = [mask_of(ids, label, image.shape).astype(np.int32) for ids, image in zip(labels, images, strict=True)]
    return images, labels, names, [each[2] for each in found.values()]


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
    names = _names(path) if path.is_dir() else []  # a folder with one COCO file needs no labels/
    voxels = {voxels_of(path / name) for name in names}
    return natural_order(name for name in names if not may_be_case(path / name) and path / name not in voxels)


def _strangers(path: Path, images: dict[str, list[Path]]) -> list[str]:
    """Files among the slices of DICOM series that are no slices."""
    series = [each for files in images.values() for each in files if each.is_dir() and not is_ome_zarr(each)]
    return [str((each / name).relative_to(path)) for each in series for name in sorted_files(each)[1]]


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


def case_files(path: Path) -> Files:
    """Case → its files or DICOM folders; more than one is a fault."""
    if not path.is_dir():
        raise FolderError(f"{path} is missing; a folder needs images/ and labels/ with the same file names")
    files: Files = {}
    for name in natural_order(each.name for each in path.iterdir() if not each.name.startswith(".")):
        if is_ome_zarr(path / name):
            files.setdefault(composed(zarr_stem(name)), []).append(path / name)
        elif (path / name).is_dir():
            for series in nested_series(path / name):
                inner = series.relative_to(path / name).parts
                is_only = len(nested_series(path / name)) == 1
                files.setdefault(composed(name if is_only else "_".join((name, *inner))), []).append(series)
        elif may_be_case(path / name):
            files.setdefault(composed(stem(name)), []).append(path / name)
    if not files:
        others = f"; there are only {', '.join(_other_files(path)[:3])}" if _other_files(path) else ""
        raise FolderError(f"{path} holds no images ({', '.join(READABLE_EXTENSIONS)}){others}")
    return files


def _find_ids(
    path: Path, cases: tuple[Case, ...], names: Mapping[int, str]
) -> tuple[tuple[Case, ...], tuple[int, ...]]:
    """(cases, ids) by the ids that occur in the label files, all of which are read.

    Masks of which some mark the structure with 1 and others with 255 become one class, unless `names` has both.
    """
    occurring, rims = _occurring_ids(path, cases)
    values = one_class(occurring)
    if values and not names.keys() >= set(values):
        note(path / "labels", MIXED_NOTE)
        classes = ((1, values),)
        cases = tuple(
            replace(case, labels=tuple(replace(file, classes=classes) for file in case.labels)) for case in cases
        )
        return cases, (1,)
    ids = tuple(sorted(set().union(*occurring)))
    for doubt in () if names else doubts_of_ids(occurring, rims):
        note(path / "labels", doubt)
    return cases, ids


def _occurring_ids(path: Path, cases: Iterable[Case]) -> tuple[list[set[int]], list[set[int]]]:
    """(ids above 0, those that are rims) of each label file that can be read. Raises FolderError without any id."""
    occurring: list[set[int]] = []
    rims: list[set[int]] = []
    problems = []
    for case in cases:
        try:
            check_inside(case)
            for file in case.labels:
                volume = read_label_volume(file.path, file.ignored).data if case.volume else None
                label = read_label(file.path, ignored=file.ignored) if volume is None else volume
                occurring.append(set(np.unique(label).tolist()) - {0, *file.ignored})
                rims.append(rim_ids(np.where(np.isin(label, file.ignored), 0, label)))
        except ImageError as error:
            problems.append(str(error))  # the build meets the error again, then drops and counts the case
    if not any(occurring):
        empty = f"{path}/labels: every label is empty; mark what is to be segmented with ids above 0"
        raise FolderError(problems[0] if problems else empty)
    return occurring, rims
