"""A researcher's own folder: images/ and labels/ with the same file names, and an optional meta.json.

A file's subject is its name before the last "_" (the whole name where there is none), unless meta.json says
`"subjects_identifiable": false`; then every picture is its own subject. meta.json may name the labels, {"1": "liver"},
and say modality, licence and citation.
"""

import json
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
        return self.image


@dataclass(frozen=True)
class Folder:
    """A folder's cases and what its meta.json says."""

    cases: tuple[Case, ...]
    labels: dict[int, str]
    modality: str
    licence: str
    citation: str
    subjects_identifiable: bool


def read_folder(path: str | Path, size: int = 128) -> Folder:
    """The cases of a folder in order of their names. Raises FolderError."""
    path = Path(path)
    images, labels = _files(path / "images"), _files(path / "labels")
    for name in sorted(labels.keys() - images.keys()):
        raise FolderError(f"{labels[name]} has no image {path}/images/{name}.*; add it or remove the label")
    for name in sorted(images.keys() - labels.keys()):
        raise FolderError(f"{images[name]} has no label {path}/labels/{name}.*; add it or remove the image")
    meta = _read_meta(path)
    identifiable = bool(meta.get("subjects_identifiable", True))
    modality = str(meta.get("modality", ""))
    names = {int(i): str(label) for i, label in meta.get("labels", {}).items()}
    names.pop(0, None)  # the background is no label
    cases = tuple(
        Case(
            image=str(images[name]),
            label=str(labels[name]),
            subject=name.rpartition("_")[0] or name if identifiable else name,
            name=name,
            modality=modality,
            size=size,
            ids=tuple(names),
        )
        for name in images
    )
    if not names:
        found = {int(i) for case in cases for i in np.unique(read_label(case.label))} - {0}
        names = {i: f"label {i}" for i in sorted(found)}
        if not names:
            raise FolderError(f"{path}/labels: every label is empty; mark what is to be segmented with ids above 0")
    return Folder(cases, names, modality, str(meta.get("licence", "")), str(meta.get("citation", "")), identifiable)


def make_examples(case: Case) -> list[Example]:
    """One example of a 2D picture; a class that does not occur in it has no mask. Raises ImageError."""
    image, label = read_pair(case)
    ids = [int(i) for i in np.unique(label) if i]
    masks = np.zeros((len(ids), case.size, case.size), np.uint8)
    for mask, i in zip(masks, ids, strict=True):
        mask[:] = preprocess_mask(label == i, case.size)
    picture = quantize(preprocess_image(image, case.size))
    return [Example(picture, masks, tuple(ids), case.subject, case.name, modality=case.modality)]


def read_pair(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(image float32 [H, W], label int32 [H, W]) of the same size, with ids that are known."""
    image, label = read_image(case.image), read_label(case.label)
    if image.shape != label.shape:
        raise ImageError(f"{case.image} is {image.shape}, its label {label.shape}; they must have one size")
    unknown = set(np.unique(label).tolist()) - {0, *case.ids}
    if case.ids and unknown:
        raise ImageError(f"{case.label}: ids {sorted(unknown)} are not in meta.json, which names {sorted(case.ids)}")
    return image, label


def read_support(path: str | Path, label: int | None = None) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """(images [H, W], label maps [H, W], names) of a support folder; with `label` that id alone, as 1."""
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
    """Pictures of a folder (not of its folders) in order of their names; hidden files are passed over."""
    path = Path(path)
    return sorted(p for p in path.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))


def _files(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        raise FolderError(f"{path} is missing; a folder needs images/ and labels/ with the same file names")
    files: dict[str, Path] = {}
    for file in list_images(path):
        if file.stem in files:
            raise FolderError(f"{files[file.stem]} and {file} have one name; keep one of them")
        files[file.stem] = file
    if not files:
        raise FolderError(f"{path} holds no pictures ({', '.join(EXTENSIONS)})")
    return files


def _read_meta(path: Path) -> dict[str, Any]:
    file = path / "meta.json"
    if not file.exists():
        return {}
    try:
        meta = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise FolderError(f"{file} is not JSON: {error}") from error
    labels = meta.get("labels", {}) if isinstance(meta, dict) else None
    if not isinstance(labels, dict) or not all(str(i).isdigit() for i in labels):
        raise FolderError(f'{file}: "labels" must map ids to names, such as {{"1": "liver"}}')
    return meta
