"""A researcher's own folder: images/ and labels/ with the same file names, and an optional meta.json.

A file's subject is its name before the last "_" (the whole name where there is none), unless meta.json says
`"subjects_identifiable": false`; then every picture is its own subject. meta.json may name the labels, {"1": "liver"},
and say modality, licence and citation. Id 0 is the background. Hidden files and inner folders are passed over; files of
other types too, but those are named in `Folder.ignored`.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from universeg_jax.data.builder import Example
from universeg_jax.data.images import (
    EXTENSIONS,
    ImageError,
    preprocess_image,
    preprocess_mask,
    quantize,
    read_image,
    read_label,
)
from universeg_jax.errors import UserError


class FolderError(UserError):
    """A folder that cannot be read as images and labels; says which file and what to do."""


@dataclass(frozen=True)
class Case:
    """One picture of a folder and all that is needed to make an example of it."""

    image: str
    label: str
    subject: str
    name: str
    modality: str
    size: int
    ids: tuple[int, ...]  # that may occur; () = any

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Folder:
    """A folder's cases and what its meta.json says."""

    cases: tuple[Case, ...]
    labels: dict[int, str]
    modality: str
    licence: str
    citation: str
    subjects_identifiable: bool
    ignored: tuple[str, ...]  # files of other types, such as "images/notes.txt"


def read_folder(path: str | Path, size: int = 128) -> Folder:
    """The cases of a folder in the natural order of their names (p2 before p10). Raises FolderError.

    Where meta.json names no labels, the ids that occur are used: every label file is read for that.
    """
    path = Path(path)
    images, labels = _files(path / "images"), _files(path / "labels")
    for name in natural_order(labels.keys() - images.keys()):
        raise FolderError(f"{labels[name]} has no image {path}/images/{name}.*; add it or remove the label")
    for name in natural_order(images.keys() - labels.keys()):
        raise FolderError(f"{images[name]} has no label {path}/labels/{name}.*; add it or remove the image")
    meta = _read_meta(path / "meta.json")
    names = {int(i): str(label) for i, label in meta["labels"].items() if int(i)}
    cases = tuple(
        Case(
            image=str(images[name]),
            label=str(labels[name]),
            subject=name.rpartition("_")[0] or name if meta["subjects_identifiable"] else name,
            name=name,
            modality=str(meta["modality"]),
            size=size,
            ids=tuple(names),
        )
        for name in images
    )
    return Folder(
        cases,
        labels=names or {i: f"label {i}" for i in _ids_that_occur(path, cases)},
        modality=str(meta["modality"]),
        licence=str(meta["licence"]),
        citation=str(meta["citation"]),
        subjects_identifiable=meta["subjects_identifiable"],
        ignored=tuple(f"{part}/{name}" for part in ("images", "labels") for name in _other_files(path / part)),
    )


def make_examples(case: Case) -> list[Example]:
    """One example of a 2D picture; a class that does not occur in it has no mask. Raises ImageError, FolderError."""
    image, label = read_pair(case)
    ids = [int(i) for i in np.unique(label) if i]
    masks = np.zeros((len(ids), case.size, case.size), np.uint8)
    for mask, i in zip(masks, ids, strict=True):
        mask[:] = preprocess_mask(label == i, case.size)
    picture = quantize(preprocess_image(image, case.size))
    return [Example(picture, masks, tuple(ids), case.subject, case.name, modality=case.modality)]


def read_pair(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(image float32 [H, W], label int32 [H, W]) of the same size, with ids that are known.

    Raises ImageError for a file that cannot be used, FolderError where the two do not belong together.
    """
    image, label = read_image(case.image), read_label(case.label)
    if image.shape != label.shape:
        (height, width), (label_height, label_width) = image.shape, label.shape
        raise FolderError(
            f"{case.image} is {width}x{height}, its label {case.label} {label_width}x{label_height} (width x height); "
            "they must have one size"
        )
    unknown = sorted(set(np.unique(label).tolist()) - {0, *case.ids})
    if case.ids and unknown:
        raise FolderError(
            f"{case.label}: ids {unknown} are not in meta.json, which names {sorted(case.ids)}; "
            'add them to its "labels" or correct the file'
        )
    return image, label


def read_support(path: str | Path, label: int | None = None) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """(images float32 [H, W], label maps int32 [H, W], names) of a support folder; with `label` that id alone, as 1.

    Raises FolderError, also where `label` never occurs, and ImageError for a file that cannot be used: of a support set
    nothing is left out.
    """
    folder = read_folder(path)
    pairs = [read_pair(case) for case in folder.cases]
    names = [case.name for case in folder.cases]
    images, labels = [image for image, _ in pairs], [ids for _, ids in pairs]
    if label is not None:
        found = sorted({int(i) for ids in labels for i in np.unique(ids)} - {0})
        if label not in found:
            raise FolderError(f"{path}: label {label} never occurs; the ids there are {found}")
        labels = [(ids == label).astype(np.int32) for ids in labels]
    return images, labels, names


def list_images(path: str | Path) -> list[Path]:
    """Pictures of a folder (not of its folders) in the natural order of their names; hidden files are passed over."""
    path = Path(path)
    return [path / name for name in natural_order(_names(path)) if _is_picture(name)]


def natural_order(names: Iterable[str]) -> list[str]:
    """Numbers in names by their value: p2 before p10."""
    return sorted(names, key=lambda name: ([(text, int(n or -1)) for text, n in re.findall(r"(\D*)(\d*)", name)], name))


def _names(path: Path) -> list[str]:
    return [file.name for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in EXTENSIONS


def _other_files(path: Path) -> list[str]:
    return natural_order(name for name in _names(path) if not _is_picture(name))


def _files(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        raise FolderError(f"{path} is missing; a folder needs images/ and labels/ with the same file names")
    files: dict[str, Path] = {}
    for file in list_images(path):
        if file.stem in files:
            raise FolderError(f"{files[file.stem]} and {file} have one name; keep one of them")
        files[file.stem] = file
    if not files:
        others = f"; there are only {', '.join(_other_files(path)[:3])}" if _other_files(path) else ""
        raise FolderError(f"{path} holds no pictures ({', '.join(EXTENSIONS)}){others}")
    return files


def _ids_that_occur(path: Path, cases: Iterable[Case]) -> list[int]:
    found: set[int] = set()
    unread = []
    for case in cases:
        try:
            found.update(np.unique(read_label(case.label)).tolist())
        except ImageError as error:
            unread.append(str(error))  # whoever reads the case gets it again, and drops and counts it
    if not found - {0}:
        problem = unread[0] if unread else "every label is empty"
        raise FolderError(f"{path}/labels: {problem}; mark what is to be segmented with ids above 0")
    return sorted(found - {0})


def _read_meta(file: Path) -> dict[str, Any]:
    """What meta.json says, complete; its other fields are left alone."""
    meta = {"labels": {}, "modality": "", "licence": "", "citation": "", "subjects_identifiable": True}
    if not file.exists():
        return meta
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FolderError(f"{file} is not JSON in UTF-8: {error}") from error
    if not isinstance(read, dict):
        raise FolderError(f'{file}: must be an object, such as {{"labels": {{"1": "liver"}}}}')
    meta.update(read)
    if not isinstance(meta["labels"], dict) or not all(re.fullmatch("[0-9]{1,9}", i) for i in meta["labels"]):
        raise FolderError(f'{file}: "labels" must map ids to names, such as {{"1": "liver"}}')
    if not isinstance(meta["subjects_identifiable"], bool):
        value = meta["subjects_identifiable"]
        raise FolderError(f'{file}: "subjects_identifiable" is {value!r}; write true or false')
    return meta
