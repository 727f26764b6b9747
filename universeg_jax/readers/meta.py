"""What a folder says of itself: meta.json, and whose picture each case is.

All fields may be left out:

    labels                  {"1": "liver"}; without it the ids that occur
    modality, licence, citation
    subjects_identifiable   false: every case is its own subject, and reports say so
    subjects                how a case's name gives its subject: a pattern with one group, "^(patient[0-9]+)", or
                            the name of a CSV file in the folder with the columns case and subject
    axes                    of volumes: of "sagittal", "coronal", "axial", "in-plane" (the planes that were acquired)
    window                  "ct", "mr", "none" or [low, high]; without it by the words of the modality, of volumes and
                            DICOM files only
"""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from universeg_jax.readers.cases import Case, FolderError
from universeg_jax.readers.volumes import AXIS_NAMES, WINDOWS


@dataclass(frozen=True)
class Meta:
    """A folder's meta.json, checked."""

    labels: dict[int, str]
    modality: str
    licence: str
    citation: str
    subjects_identifiable: bool
    subjects: str
    axes: tuple[int, ...]
    window: str | tuple[float, float]


@dataclass(frozen=True)
class Folder:
    """The cases of a folder or source and what is known of all of them."""

    cases: tuple[Case, ...]
    labels: dict[int, str]
    modality: str
    licence: str
    citation: str
    subjects_identifiable: bool
    ignored: tuple[str, ...]  # what lies there and is not read, such as "images/notes.txt"


def read_meta(path: Path) -> Meta:
    """Of a folder; fields that are not known are left alone. Raises FolderError."""
    file = path / "meta.json"
    read = read_json_object(file) if file.exists() else {}
    labels, known = read.get("labels", {}), read.get("subjects_identifiable", True)
    if not isinstance(labels, dict) or not all(re.fullmatch("[0-9]{1,9}", i) for i in labels):
        raise FolderError(f'{file}: "labels" must map ids to names, such as {{"1": "liver"}}')
    if not isinstance(known, bool):
        raise FolderError(f'{file}: "subjects_identifiable" is {known!r}; write true or false')
    return Meta(
        labels={int(i): str(name) for i, name in labels.items() if int(i)},
        modality=str(read.get("modality", "")),
        licence=str(read.get("licence", "")),
        citation=str(read.get("citation", "")),
        subjects_identifiable=known,
        subjects=_text(file, read, "subjects"),
        axes=_axes(file, read.get("axes", [])),
        window=_window(file, read.get("window", "auto")),
    )


def read_json_object(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{file} is not JSON in UTF-8: {error}") from error
    if not isinstance(read, dict):
        raise FolderError(f'{file}: must be an object, such as {{"labels": {{"1": "liver"}}}}')
    return read


def subject_rule(path: Path, meta: Meta, default: Callable[[str], str]) -> Callable[[str], str]:
    """Case name → subject: by image, by meta's pattern or table, else `default`. Raises FolderError."""
    file, rule = path / "meta.json", meta.subjects
    if not meta.subjects_identifiable:
        return lambda name: name
    if not rule:
        return default
    if rule.lower().endswith(".csv"):
        table = _subject_table(path, rule)
        return lambda name: _look_up(table, name, path / rule)
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise FolderError(f'{file}: "subjects" is {rule!r}, which is no pattern: {error}') from error
    if pattern.groups != 1:
        raise FolderError(f'{file}: "subjects" is {rule!r}; it needs one group (…) around the subject')

    def match(name: str) -> str:
        found = pattern.search(name)
        if not found or not found[1]:
            raise FolderError(f'{file}: "subjects" {rule!r} does not match the case {name!r}')
        return found[1]

    return match


def _subject_table(path: Path, name: str) -> dict[str, str]:
    file = path / name
    if not file.resolve().is_relative_to(path.resolve()):
        raise FolderError(f'{path / "meta.json"}: "subjects" is {name!r}; the table must lie in the folder')
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FolderError(f"{file}: cannot be read as the table of subjects: {error}") from error
    if not rows or not {"case", "subject"} <= rows[0].keys():
        raise FolderError(f"{file}: the table of subjects needs the columns case and subject")
    table: dict[str, str] = {}
    for row in rows:
        if row["case"] and table.setdefault(row["case"], row["subject"]) != row["subject"]:
            raise FolderError(f"{file}: the case {row['case']!r} has two subjects")
    return table


def _look_up(table: dict[str, str], name: str, file: Path) -> str:
    if not table.get(name):
        raise FolderError(f"{file}: the case {name!r} has no subject; add a line")
    return table[name]


def _text(file: Path, read: dict[str, Any], field: str) -> str:
    value = read.get(field, "")
    if not isinstance(value, str):
        raise FolderError(f'{file}: "{field}" is {value!r}; write a text')
    return value


def _axes(file: Path, value: Any) -> tuple[int, ...]:
    names = [value] if isinstance(value, str | int) else value
    known = {name: axis for axis, name in enumerate(AXIS_NAMES)} | {axis: axis for axis in range(len(AXIS_NAMES))}
    if not isinstance(names, list) or not all(isinstance(name, str | int) and name in known for name in names):
        raise FolderError(f'{file}: "axes" is {value!r}; a list of {", ".join(AXIS_NAMES)}')
    return tuple(sorted({known[name] for name in names}))


def _window(file: Path, value: Any) -> str | tuple[float, float]:
    if value in ("auto", *WINDOWS):
        return value
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) != 2 or not value[0] < value[1]:
        raise FolderError(f'{file}: "window" is {value!r}; write one of {", ".join(WINDOWS)} or [low, high]')
    return (float(value[0]), float(value[1]))
