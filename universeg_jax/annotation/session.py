"""The annotation loop without a screen: what is labelled, and the ways to change it. No network is needed.

with Session(path) as session:
    unit = session.left()[0]
    session.accept(unit, mask)  # on disk when this returns
    session.undo()

A session holds the project's lock, which dies with its process. Its methods may be called from several threads.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from universeg_jax.annotation.journal import (
    ACCEPT,
    LOCK,
    REDO,
    UNDO,
    UNLOCK,
    Change,
    Entry,
    Journal,
    Mark,
    reversed_changes,
)
from universeg_jax.annotation.project import Item, Project, add_image, read_file, read_project
from universeg_jax.annotation.store import Store, stamp
from universeg_jax.errors import UserError
from universeg_jax.readers.file_names import natural_order
from universeg_jax.readers.labels import check_ids
from universeg_jax.readers.slices import from_planes, plane
from universeg_jax.readers.volumes import Volume
from universeg_jax.reports import files

HELD = 4  # images and volumes in memory
P = ParamSpec("P")
T = TypeVar("T")


def _alone(method: "Callable[Concatenate[Session, P], T]") -> "Callable[Concatenate[Session, P], T]":
    """Lets one thread at a time in."""

    @functools.wraps(method)
    def locked(self: "Session", *args: P.args, **kwargs: P.kwargs) -> T:
        with self._thread_lock:
            return method(self, *args, **kwargs)

    return locked


class Session:
    """A project that is open in this process.

    Raises UserError where the project cannot be read, and LockedError where another process has it open.
    """

    def __init__(self, path: str | Path):
        self._thread_lock = threading.RLock()
        self._exit = contextlib.ExitStack()
        path = Path(path)
        read_project(path)  # before a lock makes a file in a folder that is no project
        self._exit.enter_context(files.lock(path))
        try:
            self.project: Project = read_project(path)
            self._store = Store(self.project)
            self._journal = Journal(path / "history" / "journal.jsonl")
            self._store.make_good(self._journal)
            self.problems = self._store.problems(self._journal.marks)
        except BaseException:
            self._exit.close()
            raise
        self._read = functools.lru_cache(HELD)(lambda file, state: read_file(file))  # read again when the file changes

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the project free for other processes."""
        self._exit.close()

    def alone(self) -> Any:
        """A lock that keeps other threads from changing the session."""
        return self._thread_lock

    @_alone
    def add_image(self, name: str, file: Path) -> None:
        """Copies an image or volume into the project, whole or not at all. Raises UserError."""
        self.project = add_image(self.project, name, file)
        self._store.project = self.project

    @property
    def version(self) -> int:
        """A number that grows with every change."""
        return self._journal.length

    def units(self) -> list[str]:
        """All images and slices, in their natural order."""
        return [unit for name in natural_order(self.project.items) for unit in self.project.items[name].units()]

    def is_labelled(self, unit: str) -> bool:
        return unit in self._journal.marks or self.project.find(unit)[0].name in self._journal.marks

    @_alone
    def labelled(self) -> list[str]:
        """The labelled images and slices, in their natural order."""
        return [unit for unit in self.units() if self.is_labelled(unit)]

    @_alone
    def left(self) -> list[str]:
        """The images and slices without a label, in their natural order; those whose file is missing left out."""
        missing = {n for n, item in self.project.items.items() if not self.project.image_file(item).exists()}
        return [u for u in self.units() if not self.is_labelled(u) and self.project.find(u)[0].name not in missing]

    def mark_of(self, unit: str) -> Mark | None:
        """What identifies the accepted label of a unit, or of the volume that it is a slice of."""
        return self._journal.marks.get(unit) or self._journal.marks.get(self.project.find(unit)[0].name)

    @_alone
    def image(self, unit: str) -> np.ndarray | Volume:
        """The image, float32 [H, W] (of a slice as `plane` cuts it), or the whole volume. Raises ImageError."""
        item, k = self.project.find(unit)
        content = self._read(file := self.project.image_file(item), stamp(file) if file.exists() else None)
        if k is None:
            return content
        return plane(content.data, int(item.axis or 0), item.canonical(k))

    @_alone
    def mask(self, unit: str) -> np.ndarray | None:
        """The accepted label: int32 ids [H, W], or [X, Y, Z] of a whole volume; None where there is none."""
        item, k = self.project.find(unit)
        if unit in self._journal.marks:
            return self._store.get(unit, self._journal.marks[unit])
        if k is None or item.name not in self._journal.marks:
            return None
        return plane(self._store.get(item.name, self._journal.marks[item.name]), int(item.axis or 0), item.canonical(k))

    @_alone
    def slices(self, name: str) -> dict[int, np.ndarray]:
        """The accepted slices of a volume, int32 [rows, columns] by number."""
        item, _ = self.project.find(name)
        numbers = [k for k, unit in enumerate(item.units()) if self.is_labelled(unit)]
        return {k: mask for k in numbers if (mask := self.mask(f"{name}/{k}")) is not None}

    @_alone
    def accept(self, unit: str, mask: np.ndarray) -> None:
        """Accepts a label, ids [H, W] of an image or slice or [X, Y, Z] of a whole volume; it is on disk on return.

        Locked labels stay as they are. Raises UserError for a label that does not fit its image, a locked unit and a
        full disk; nothing has changed then.
        """
        self._check_others(unit)
        item, k = self.project.find(unit)
        self._check_unlocked(item)
        mask = self._checked(unit, mask)
        target, ids, gone = unit, mask, tuple[str, ...]()
        if k is not None:
            target, ids = self._with_slice(item, k, mask)
        if item.volume and target == item.name:  # the whole volume replaces its slices
            gone = tuple(each for each in item.units() if each in self._journal.marks)
        with self._full_disk(unit):
            mark = self._store.mark(item, self._store.put(target, ids, self.image(target)))
            changes = [Change(target, self._journal.marks.get(target), mark)]
            changes += [Change(each, self._journal.marks[each], None) for each in gone]
            self._carry_out(ACCEPT, tuple(changes))

    def _with_slice(self, item: Item, k: int, mask: np.ndarray) -> tuple[str, np.ndarray]:
        """The unit and the ids to store for a slice: the volume, where it has a label or no other slice is left."""
        axis = int(item.axis or 0)
        if item.name in self._journal.marks:
            whole = self._store.get(item.name, self._journal.marks[item.name])
            np.moveaxis(whole, axis, 0)[item.canonical(k)] = mask[::-1, ::-1].T
            return item.name, whole
        known = self.slices(item.name) | {k: mask}
        if len(known) < item.slices:
            return f"{item.name}/{k}", mask
        return item.name, from_planes(np.stack([known[item.canonical(i)] for i in range(item.slices)]), axis)

    def _checked(self, unit: str, mask: np.ndarray) -> np.ndarray:
        """int32 ids that fit the image and the project."""
        mask, shape = check_ids(np.asarray(mask), unit), self.image(unit).shape
        if mask.shape != shape:
            sizes = ["x".join(map(str, each)) for each in (shape, mask.shape)]
            raise UserError(f"{unit}: the image has {sizes[0]} pixels, the label {sizes[1]}: they must be equal")
        known = self.known_slices(unit, mask)
        if not known:
            raise UserError(f"{unit}: all of it is to be ignored; label a part of it, or skip it")
        item, k = self.project.find(unit)
        if item.volume and k is None and len(known) < item.slices:
            raise UserError(
                f"{unit}: {item.slices - len(known)} of its {item.slices} slices are to be ignored as a whole; accept "
                f"the others alone, with --slices {','.join(map(str, known))}"
            )
        ids = set(np.unique(mask).tolist()) - {0}
        structures, ignored = self.project.structures, {self.project.ignored}
        if len(structures) == 1 and len(ids) == 1 and ids <= {1, 255} - ignored:  # how programs save a mask
            return np.where(mask > 0, next(iter(structures)), 0).astype(np.int32)
        if unknown := sorted(ids - set(self.project.labels)):
            names = ", ".join(f"{i} ({label.name})" for i, label in self.project.labels.items())
            raise UserError(
                f"{unit}: label {unknown[0]} is not one of the project's, {names}; correct the mask, or add it to "
                f"{self.project.path / 'project.json'}"
            )
        return self._keep_locked(unit, mask)

    def known_slices(self, unit: str, mask: np.ndarray) -> list[int]:
        """The slices, numbered as in the file, that a label of a whole volume says anything of; of a unit, [0]."""
        item, k = self.project.find(unit)
        planes = np.moveaxis(mask, int(item.axis or 0), 0) if item.volume and k is None else mask[None]
        if self.project.ignored is None:
            return list(range(len(planes)))
        known = np.flatnonzero((planes != self.project.ignored).any((1, 2)))
        return sorted(item.canonical(int(i)) if len(planes) > 1 else 0 for i in known)

    def _keep_locked(self, unit: str, mask: np.ndarray) -> np.ndarray:
        locked = [int(lock[1:]) for lock in self._journal.locks if lock.startswith("#")]
        old = self.mask(unit) if locked else None
        if old is None:
            return mask
        return np.where(np.isin(old, locked) | np.isin(mask, locked), np.where(np.isin(old, locked), old, 0), mask)

    def _carry_out(self, kind: str, changes: tuple[Change, ...]) -> None:
        for change in changes:
            if change.unit not in self.problems and self._store.lies(change.unit) != (
                change.before.label if change.before else ""
            ):
                self.problems = self._store.problems(self._journal.marks)
                file = self.project.label_file(change.unit)
                raise UserError(self.problems.get(change.unit, f"{file} was put there outside: move it away first"))
        self._store.carry_out(changes, lambda: self._journal.append(Entry(kind, changes)))
        for change in changes:
            self.problems.pop(change.unit, None)

    @contextlib.contextmanager
    def _full_disk(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{what} was not accepted: {error.strerror or error}; all that was accepted before is there: free some "
                "space and accept it again"
            ) from error

    @_alone
    def forget(self, unit: str) -> None:
        """Takes the label of an image, slice or whole volume away; `undo` brings it back. Raises UserError."""
        self._check_others(unit)
        item, k = self.project.find(unit)
        self._check_unlocked(item)
        units = [unit] if k is not None or not item.volume else [item.name, *item.units()]
        changes = tuple(Change(u, self._journal.marks[u], None) for u in units if u in self._journal.marks)
        if not changes:
            raise UserError(f"{unit} has no label of its own that could be forgotten")
        with self._full_disk(unit):
            self._carry_out(ACCEPT, changes)

    @_alone
    def restore(self, unit: str) -> None:
        """Brings the accepted label back into labels/ where it was edited or removed outside. Raises UserError."""
        mark = self._journal.marks.get(unit)
        if mark is None:
            raise UserError(f"{unit} has no accepted label to restore")
        with self._full_disk(unit):
            self._store.carry_out([Change(unit, mark, mark)], lambda: None)
        self.problems = self._store.problems(self._journal.marks)

    @_alone
    def undo(self) -> list[str]:
        """Takes back the last accept, of any earlier process too; the units that it changed. Raises UserError."""
        if not self._journal.done:
            raise UserError(f"{self.project.path}: nothing is left to undo")
        return self._step(UNDO, reversed_changes(self._journal.done[-1]))

    @_alone
    def redo(self) -> list[str]:
        """Brings back what `undo` took back last, unless something was accepted since. Raises UserError."""
        if not self._journal.undone:
            raise UserError(f"{self.project.path}: nothing is left to redo")
        return self._step(REDO, self._journal.undone[-1])

    def _step(self, kind: str, changes: tuple[Change, ...]) -> list[str]:
        for change in changes:
            self._check_others(None)
            self._check_unlocked(self.project.find(change.unit)[0])
        with self._full_disk(kind):
            self._carry_out(kind, changes)
        return [change.unit for change in changes]

    @_alone
    def lock(self, units: Sequence[str] = (), labels: Sequence[int] = (), unlock: bool = False) -> None:
        """Locks images against every change, or labels in all images: their pixels then stay. Raises UserError."""
        names = [self.project.find(unit)[0].name for unit in units]
        if unknown := sorted(set(labels) - set(self.project.labels)):
            raise UserError(f"label {unknown[0]} is not one of the project's")
        with self._full_disk("the lock"):
            locks = (*names, *(f"#{i}" for i in labels))
            self._journal.append(Entry(UNLOCK if unlock else LOCK, locks=locks))

    @property
    def locks(self) -> tuple[list[str], list[int]]:
        """(locked images, ids of locked labels)."""
        locks = sorted(self._journal.locks)
        return [each for each in locks if each[0] != "#"], [int(each[1:]) for each in locks if each[0] == "#"]

    def check_sound(self) -> None:
        """Raises UserError where labels were edited outside, or images vanished or changed."""
        self._check_others(None)

    def _check_others(self, unit: str | None) -> None:
        others = [text for each, text in self.problems.items() if unit is None or self._name(each) != self._name(unit)]
        if others:
            more = f" (and {len(others) - 1} more: `universeg annotate status`)" if len(others) > 1 else ""
            raise UserError(f"{others[0]}{more}")

    def _name(self, unit: str) -> str:
        return unit if unit in self.project.items else unit.rpartition("/")[0] or unit

    def _check_unlocked(self, item: Item) -> None:
        if item.name in self._journal.locks:
            raise UserError(f"{item.name} is locked: `universeg annotate unlock {self.project.path} {item.name}` first")

    def status(self) -> dict[str, Any]:
        """{"labelled", "left", "undo", "redo", "locked", "problems"}: counts, names and messages."""
        locked_images, locked_labels = self.locks
        return {
            "labelled": len(self.labelled()),
            "left": len(self.left()),
            "undo": len(self._journal.done),
            "redo": len(self._journal.undone),
            "locked": [*locked_images, *(f"label {i}" for i in locked_labels)],
            "problems": dict(self.problems),
        }
