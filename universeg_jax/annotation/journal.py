"""The journal of a project: one line for every accept, undo, redo and lock, appended and on disk before it counts.

A line says for each unit which label it had before and has after, by the SHA-256 of a file in history/. What a project
holds is the sum of its lines; files in labels/ and slices/ follow from it. A line that was cut short by a kill or a
full disk never counted, and is removed.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from universeg_jax.errors import UserError

ACCEPT, UNDO, REDO, LOCK, UNLOCK = "accept", "undo", "redo", "lock", "unlock"


@dataclass(frozen=True)
class Mark:
    """An accepted label and the image on which it was drawn."""

    label: str  # SHA-256 of its file
    image: str  # SHA-256 of the image's file
    size: int  # bytes of the image's file
    modified: int  # nanoseconds; while size and time stay, the image counts as unchanged


@dataclass(frozen=True)
class Change:
    """A unit's label before and after; None is no label."""

    unit: str
    before: Mark | None
    after: Mark | None

    def reversed(self) -> "Change":
        return Change(self.unit, self.after, self.before)


@dataclass(frozen=True)
class Entry:
    """A line of the journal."""

    kind: str
    changes: tuple[Change, ...] = ()
    locks: tuple[str, ...] = ()  # of LOCK and UNLOCK: units, or ids of labels as "#1"
    at: float = field(default_factory=time.time)


class Journal:
    """The lines of a journal, and their sum."""

    def __init__(self, file: Path):
        """Reads a journal, or begins one. Raises UserError where a line is damaged."""
        self.file = file
        self.marks: dict[str, Mark] = {}  # unit → its label now
        self.done: list[tuple[Change, ...]] = []  # what undo takes back, oldest first
        self.undone: list[tuple[Change, ...]] = []  # what redo brings back, newest last
        self.locks: set[str] = set()
        self.last: Entry | None = None
        self.length = 0  # lines
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            sync_folder(file.parent)
        data = file.read_bytes()
        complete = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                self._add(_parse(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{file}: line {number} is damaged ({error}); restore the file from a backup, or remove this "
                    "line and all after it: labels/ keeps every accepted label"
                ) from error
        if len(complete) < len(data):
            os.truncate(file, len(complete))

    def append(self, entry: Entry) -> None:
        """Adds a line; it is on disk when this returns. An OSError leaves the journal as it was."""
        self._check(entry)
        line = (json.dumps(asdict(entry)) + "\n").encode()
        size = self.file.stat().st_size
        try:
            with self.file.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            os.truncate(self.file, size)
            raise
        self._add(entry)

    def _check(self, entry: Entry) -> None:
        """Raises ValueError where an entry does not fit what is there."""
        if entry.kind == UNDO and (not self.done or entry.changes != reversed_changes(self.done[-1])):
            raise ValueError("undoes something else than the last accept")
        if entry.kind == REDO and (not self.undone or entry.changes != self.undone[-1]):
            raise ValueError("redoes something else than was undone")
        for change in entry.changes:
            if self.marks.get(change.unit) != change.before:
                raise ValueError(f"{change.unit} had another label before")

    def _add(self, entry: Entry) -> None:
        self._check(entry)
        if entry.kind == ACCEPT:
            self.done.append(entry.changes)
            self.undone.clear()
        elif entry.kind == UNDO:
            self.undone.append(self.done.pop())
        elif entry.kind == REDO:
            self.done.append(self.undone.pop())
        elif entry.kind == LOCK:
            self.locks |= set(entry.locks)
        elif entry.kind == UNLOCK:
            self.locks -= set(entry.locks)
        else:
            raise ValueError(f"unknown kind {entry.kind!r}")
        for change in entry.changes:
            if change.after is None:
                self.marks.pop(change.unit, None)
            else:
                self.marks[change.unit] = change.after
        self.last = entry
        self.length += 1

    def labels(self) -> set[str]:
        """The SHA-256 of every label that a line names."""
        changes = [change for step in (*self.done, *self.undone) for change in step]
        return {mark.label for change in changes for mark in (change.before, change.after) if mark}


def reversed_changes(changes: Iterable[Change]) -> tuple[Change, ...]:
    return tuple(change.reversed() for change in changes)


def _parse(values: Mapping[str, Any]) -> Entry:
    changes = tuple(
        Change(str(each["unit"]), *(Mark(**each[side]) if each[side] else None for side in ("before", "after")))
        for each in values["changes"]
    )
    return Entry(str(values["kind"]), changes, tuple(map(str, values["locks"])), float(values["at"]))


def sync_folder(path: Path) -> None:
    """Has the names in a folder on disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
