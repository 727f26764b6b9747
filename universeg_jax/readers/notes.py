"""Notes: how a file was understood where it can be understood in two ways, told once for all files of a folder.

Readers call `note`. A command collects the notes of many files with `collect` and prints `Notes.lines`. Where nobody
collects, a note is a Python warning, so that it is never lost.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any


class Notes:
    """Texts of notes, each with the files that it is about, in the order of their arrival."""

    def __init__(self) -> None:
        self._files: dict[str, dict[str, None]] = {}

    def add(self, path: Any, text: str) -> None:
        """Adds a note about a file, or any object that prints as a name; the same note counts once for each file."""
        self._files.setdefault(text, {})[str(path)] = None

    def update(self, other: "Notes") -> None:
        """Adds all notes of another collection."""
        for file, text in other.pairs():
            self.add(file, text)

    def pairs(self) -> list[tuple[str, str]]:
        """(file, text) of every note."""
        return [(file, text) for text, files in self._files.items() for file in files]

    def texts(self) -> tuple[str, ...]:
        """The texts alone, for notes on one file."""
        return tuple(self._files)

    def __bool__(self) -> bool:
        return bool(self._files)

    def lines(self) -> tuple[str, ...]:
        """One line per text: "labels/p1.png and 3 more: <text>"."""
        return tuple(f"{_subject(list(files))}: {text}" for text, files in self._files.items())


_active: ContextVar[Notes | None] = ContextVar("notes", default=None)


def note(path: Any, text: str) -> None:
    """Tells how `path` was understood; `text` is the same for every file of this kind."""
    notes = _active.get()
    if notes is None:
        warnings.warn(f"{path}: {text}", UserWarning, stacklevel=3)
    else:
        notes.add(path, text)


def warn(lines: Iterable[str]) -> None:
    """Tells collected notes as Python warnings."""
    for line in lines:
        warnings.warn(line, UserWarning, stacklevel=3)


@contextmanager
def collect() -> Iterator[Notes]:
    """Collects the notes of all that is read inside; an outer collection gets them too, at the end."""
    notes = Notes()
    token = _active.set(notes)
    try:
        yield notes
    finally:
        _active.reset(token)
        if (outer := _active.get()) is not None:
            outer.update(notes)


def _subject(files: list[str]) -> str:
    first = Path(files[0])
    name = f"{first.parent.name}/{first.name}" if first.parent.name else first.name
    return name + (f" and {len(files) - 1} more" if len(files) > 1 else "")
