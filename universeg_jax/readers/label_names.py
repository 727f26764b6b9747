"""Names of classes that label files state themselves, and one id for each name over all files of a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.labels import LabelFile
from universeg_jax.readers.segments import read_snap_names, segment_names


def ids_of_names(names: Sequence[str], labels: dict[int, str]) -> dict[str, int]:
    """Name → id: as meta.json names it (`labels`), whatever the case of its letters; else the lowest free ids."""
    known = {name.casefold().strip(): i for i, name in labels.items()}
    ids = {name: known[name.casefold().strip()] for name in names if name.casefold().strip() in known}
    free = (i for i in range(1, len(names) + len(known) + 1) if i not in known.values())
    return {name: ids[name] if name in ids else next(free) for name in names}


def with_segment_names(
    labels: Sequence[Sequence[LabelFile]], named: Mapping[int, str]
) -> tuple[list[tuple[LabelFile, ...]], dict[int, str]]:
    """(label files of each case, id → name) with the names in the files; {} where no file names its segments.

    Programs number segments anew in every file. Where files disagree on the number of a name, and where `named` has the
    name, as meta.json does, the name decides: the files' values then stand for the ids of their names.
    """
    names_of: dict[str, dict[int, str]] = {}
    for file in (file for files in labels for file in files):
        try:
            names_of[file.path] = segment_names(file.path) if Path(file.path).is_file() else {}
        except ImageError:
            names_of[file.path] = {}  # the reader meets the error again, and names the case
    pairs = {pair for names in names_of.values() for pair in names.items()}
    agrees = len(pairs) == len({value for value, _ in pairs}) == len({name for _, name in pairs})
    if not pairs or (agrees and all(named.get(value, name) == name for value, name in pairs)):
        return [tuple(files) for files in labels], dict(sorted(pairs))
    ids = ids_of_names(sorted({name for _, name in pairs}), dict(named))
    renamed = [tuple(_by_name(file, names_of[file.path], ids) for file in files) for files in labels]
    return renamed, {i: name for name, i in sorted(ids.items(), key=lambda pair: pair[1])}


def _by_name(file: LabelFile, names: Mapping[int, str], ids: Mapping[str, int]) -> LabelFile:
    """The file with the ids of the names of its values."""
    classes: dict[int, tuple[int, ...]] = {}
    for value, name in names.items():
        classes[ids[name]] = (*classes.get(ids[name], ()), value)
    return replace(file, classes=tuple(classes.items())) if classes else file


def snap_names(path: Path) -> tuple[dict[int, str], str]:
    """(id → name, file) of an ITK-SNAP label description in a folder or its labels/; ({}, "") without one."""
    for folder in (path, path / "labels"):
        for file in sorted((*folder.glob("*.txt"), *folder.glob("*.label"))):
            if names := read_snap_names(file):
                return names, str(file.relative_to(path))
    return {}, ""
