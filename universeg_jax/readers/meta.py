"""meta.json: what a folder says about itself, and the subject of each case.

All fields may be left out:

    labels                  {"1": "liver"}; without it the ids that occur
    modality, licence, citation
    subjects_identifiable   false: every case is its own subject, and reports say so
    subjects                how a case's name gives its subject: a pattern with one group, "^(patient[0-9]+)", or
                            the name of a CSV file in the folder with the columns case and subject
    colours                 {"1": [255, 0, 0]}: labels are images in these colours, black is background
    axes                    of volumes, a list of "sagittal", "coronal", "axial", "in-plane" (the acquired planes)
    instances               true: labels number objects of one class, such as cells, and every value above 0 is id 1
    ignore                  [255]: values of pixels that have no label, because nobody marked them or because nobody
                            can, as along a border; or name them "ignore" in labels
    window                  "ct", "mr", "none" or [low, high] for volumes and DICOM files; without it chosen by the
                            modality
"""

import csv
import difflib
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from universeg_jax.readers.colours import Colour, parse_colours
from universeg_jax.readers.errors import FolderError
from universeg_jax.readers.notes import Notes, note
from universeg_jax.readers.preprocess import WINDOWS, Window
from universeg_jax.readers.volumes import AXIS_NAMES

AnyCase = TypeVar("AnyCase")


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
    window: Window
    colours: dict[int, Colour]
    instances: bool
    ignore: tuple[int, ...]


@dataclass(frozen=True)
class Folder(Generic[AnyCase]):
    """The cases of a folder or source and what is known about all of them."""

    cases: tuple[AnyCase, ...]
    labels: dict[int, str]
    modality: str
    licence: str
    citation: str
    subjects_identifiable: bool
    ignored: tuple[str, ...]  # files that are not read, such as "images/notes.txt"
    taken: str = ""  # what the labels were taken for, where they are no label files of ids
    notes: Notes = field(default_factory=Notes)  # on labels that can be understood in two ways
    named: bool = True  # False where the ids were found in the files and have no names


def read_meta(path: Path) -> Meta:
    """Reads a folder's meta.json; unknown fields are ignored, with a note where misspelt. Raises FolderError."""
    file = path / "meta.json"
    contents = read_json_object(file) if file.exists() else {}
    for name in contents.keys() - {*FIELDS, "colors"}:
        if similar := difflib.get_close_matches(name.casefold(), FIELDS, 1, 0.75):
            note(file, f'"{name}" is ignored; did you mean "{similar[0]}"?')
    fields = {}
    for name, (default, parse, remedy) in FIELDS.items():
        value = contents.get(name, contents.get("colors", default) if name == "colours" else default)
        try:
            fields[name] = parse(value)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise FolderError(f'{file}: "{name}" is {value!r}; {remedy}') from error
    named = tuple(i for i, name in fields["labels"].items() if name.lower() == "ignore")  # as in nnU-Net
    fields["ignore"] = tuple(dict.fromkeys((*fields["ignore"], *named)))
    fields["labels"] = {i: name for i, name in fields["labels"].items() if i not in named}
    return Meta(**fields)


def read_json_object(file: Path) -> dict[str, Any]:
    """Reads a JSON object in UTF-8, or in UTF-16 with a byte order mark. Raises FolderError."""
    try:
        contents = json.loads(decode_text(file.read_bytes()), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{file} is not JSON in UTF-8: {error}") from error
    if not isinstance(contents, dict):
        raise FolderError(f'{file}: must be an object, such as {{"labels": {{"1": "liver"}}}}')
    return contents


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ValueError for a key that occurs twice, of which JSON would keep the last."""
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"the key {twice[0]!r} occurs twice in an object")
    return dict(pairs)


def decode_text(data: bytes) -> str:
    """Text as editors save it: UTF-8, with or without a byte order mark, or UTF-16 with one. Raises ValueError."""
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


def subject_rule(path: Path, meta: Meta, default: Callable[[str], str]) -> Callable[[str], str]:
    """Returns the function case name → subject: by meta's pattern or table, else `default`. Raises FolderError."""
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
        matched = pattern.search(name)
        if not matched or not matched[1]:
            raise FolderError(f'{file}: "subjects" {rule!r} does not match the case {name!r}')
        return matched[1]

    return match


def _subject_table(path: Path, name: str) -> dict[str, str]:
    file = path / name
    if not file.resolve().is_relative_to(path.resolve()):
        raise FolderError(f'{path / "meta.json"}: "subjects" is {name!r}; the table must lie in the folder')
    try:
        rows = list(csv.DictReader(io.StringIO(decode_text(file.read_bytes()), newline="")))
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


def _labels(value: Any) -> dict[int, str]:
    if not isinstance(value, dict) or not all(re.fullmatch("[0-9]{1,9}", i) for i in value):
        raise ValueError
    return {int(i): str(name) for i, name in value.items() if int(i)}


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _axes(value: Any) -> tuple[int, ...]:
    axis_of = {name: axis for axis, name in enumerate(AXIS_NAMES)} | {axis: axis for axis in range(len(AXIS_NAMES))}
    names = [value] if isinstance(value, str | int) else value
    if not isinstance(names, list):
        raise ValueError
    return tuple(sorted({axis_of[name] for name in names}))


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(i) is int and i > 0 for i in value):
        raise ValueError
    return tuple(value)


def _window(value: Any) -> Window:
    if isinstance(value, str) and value in WINDOWS:
        return value
    if not isinstance(value, list) or any(isinstance(v, bool | str) for v in value):
        raise ValueError
    low, high = map(float, value)
    if not low < high:
        raise ValueError
    return low, high


# Field → (default, parser, remedy where the parser fails).
FIELDS: dict[str, tuple[Any, Callable[[Any], Any], str]] = {
    "labels": ({}, _labels, 'it must map ids to names, such as {"1": "liver"}'),
    "modality": ("", str, ""),
    "licence": ("", str, ""),
    "citation": ("", str, ""),
    "subjects_identifiable": (True, _boolean, "write true or false"),
    "subjects": ("", _text, "write a text"),
    "axes": ([], _axes, f"write a list of {', '.join(AXIS_NAMES)}"),
    "colours": ({}, parse_colours, 'map ids to colours, such as {"1": [255, 0, 0], "2": "#00ff00"}, each once'),
    "instances": (False, _boolean, "write true or false"),
    "ignore": ([], _ids, "write a list of ids above 0, such as [255]"),
    "window": ("auto", _window, f"write one of {', '.join(WINDOWS)} or [low, high]"),
}
