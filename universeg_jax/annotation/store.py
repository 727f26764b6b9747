"""Labels of a project on disk: encoding, the history of accepted labels, and the files that follow from the journal.

A change is made in this order, so that a kill at any instant leaves the state before or after it and no half file:

1. The new labels are written to history/, under their SHA-256.
2. Copies for labels/ and slices/ are written under hidden names.
3. The journal gets its line. From here on the change counts.
4. The copies get their names, and labels that are taken back are removed.

A kill between 3 and 4 is made good when the project is opened again.
"""

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from universeg_jax.annotation.journal import Change, Entry, Journal, Mark, sync_folder
from universeg_jax.annotation.project import Item, Project, read_file
from universeg_jax.errors import UserError
from universeg_jax.readers.file_names import extension
from universeg_jax.readers.images import read_label
from universeg_jax.readers.segments import on_grid_of
from universeg_jax.readers.volume_files import read_label_volume, write_like
from universeg_jax.readers.volumes import Volume

HIDDEN = ".tmp."  # how names of unfinished files begin, here and in reports/files.py


def digest(file: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files of a folder."""
    found = hashlib.sha256()
    for each in sorted(file.rglob("*")) if file.is_dir() else [file]:
        if each.is_file():
            found.update(str(each.relative_to(file)).encode() if file.is_dir() else b"")
            with each.open("rb") as opened:
                found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()


def stamp(file: Path) -> tuple[int, int]:
    """(bytes, nanoseconds of the last change) of a file, or of all files of a folder together."""
    files = [each for each in file.rglob("*") if each.is_file()] if file.is_dir() else [file]
    states = [each.stat() for each in files]
    return sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)


class Store:
    """The labels of one project."""

    def __init__(self, project: Project):
        self.project = project
        self.history = project.path / "history"
        self._digest = functools.lru_cache(1000)(lambda file, state: digest(file))

    def mark(self, item: Item, label: str) -> Mark:
        """The mark of a label that is drawn on the image as it is now."""
        file = self.project.image_file(item)
        return Mark(label, self._digest(file, stamp(file)), *stamp(file))

    def put(self, unit: str, mask: np.ndarray, image: np.ndarray | Volume) -> str:
        """Adds a label to the history, ids [H, W] or [X, Y, Z] in canonical axes, and returns its SHA-256."""
        item, k = self.project.find(unit)
        kind = extension(self.project.label_file(unit))
        ids = mask.astype(np.uint8 if mask.max(initial=0) < 256 else np.uint16)
        temporary = self.history / f"{HIDDEN}label{kind}"
        try:
            if k is None and isinstance(image, Volume):
                write_like(temporary, ids, self.project.image_file(item), image)
            else:
                Image.fromarray(ids).save(temporary, format="PNG")
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            name = digest(temporary)
            temporary.replace(self.history / f"{name}{kind}")
            sync_folder(self.history)
            return name
        finally:
            temporary.unlink(missing_ok=True)

    def get(self, unit: str, mark: Mark) -> np.ndarray:
        """The label of a unit: int32 ids [H, W], or [X, Y, Z] in canonical axes. Raises UserError if it is damaged."""
        file = self._kept(unit, mark)
        item, k = self.project.find(unit)
        if k is None and item.volume:
            volume = read_file(self.project.image_file(item))
            return on_grid_of(read_label_volume(file), volume).data
        return read_label(file)

    def _kept(self, unit: str, mark: Mark) -> Path:
        file = self.history / f"{mark.label}{extension(self.project.label_file(unit))}"
        if not file.is_file():
            raise UserError(f"{file} is missing: the accepted label of {unit}; restore it from a backup")
        return file

    def carry_out(self, changes: Iterable[Change], count: Callable[[], None]) -> None:
        """Makes labels/ and slices/ follow changes that count once `count` returns; an error before then undoes all."""
        changes = tuple(changes)
        prepared = [(self.project.label_file(change.unit), self._prepare(change)) for change in changes]
        try:
            count()
        except BaseException:
            for _, temporary in prepared:
                if temporary:
                    temporary.unlink(missing_ok=True)
            raise
        for file, temporary in prepared:
            if temporary:
                temporary.replace(file)
            else:
                file.unlink(missing_ok=True)
        for folder in {file.parent for file, _ in prepared}:
            if folder.is_dir():
                sync_folder(folder)
                sync_folder(folder.parent)
                if folder.parent.name == "slices" and not any(folder.iterdir()):
                    folder.rmdir()

    def _prepare(self, change: Change) -> Path | None:
        if change.after is None:
            return None
        file = self.project.label_file(change.unit)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{HIDDEN}{file.name}")
        try:
            shutil.copyfile(self._kept(change.unit, change.after), temporary)
            with temporary.open("rb") as opened:
                os.fsync(opened.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def make_good(self, journal: Journal) -> None:
        """Finishes what a kill has left of the last line, and removes unfinished files."""
        for folder in (self.history, *(self.project.path / part for part in ("labels", "slices", "predictions"))):
            for file in folder.rglob(f"{HIDDEN}*") if folder.is_dir() else ():
                file.unlink(missing_ok=True)
        last = journal.last or Entry("")
        pending = [change for change in last.changes if self.lies(change.unit) != _label(change.after)]
        pending = [change for change in pending if self.lies(change.unit) == _label(change.before)]
        if pending:
            self.carry_out(pending, lambda: None)

    def lies(self, unit: str) -> str:
        """SHA-256 of the file in labels/ or slices/; "" where there is none."""
        file = self.project.label_file(unit)
        return digest(file) if file.exists() else ""

    def problems(self, marks: Mapping[str, Mark]) -> dict[str, str]:
        """Unit → what is wrong: labels edited outside, images that vanished or changed."""
        found: dict[str, str] = {}
        for unit, mark in marks.items():
            try:
                item, _ = self.project.find(unit)
            except UserError:
                found[unit] = f"{unit} was accepted, and project.json no longer names its image; restore project.json"
                continue
            file, image = self.project.label_file(unit), self.project.image_file(item)
            again = f"accept it again with `universeg annotate accept {self.project.path} {unit} MASK`"
            if not image.exists():
                found[unit] = (
                    f"{image} vanished after its label was accepted: put it back, or `universeg annotate forget`"
                )
            elif stamp(image) != (mark.size, mark.modified) and digest(image) != mark.image:
                found[unit] = f"{image} has changed since its label was accepted: put the old image back, or {again}"
            elif self.lies(unit) != mark.label:
                what = "was edited outside" if file.exists() else "was removed"
                found[unit] = (
                    f"{file} {what} since it was accepted: {again}, or bring the accepted one back with `universeg "
                    f"annotate restore {self.project.path} {unit}`"
                )
        return found | self._strangers(marks)

    def _strangers(self, marks: Mapping[str, Mark]) -> dict[str, str]:
        """Labels in labels/ that nobody accepted."""
        folder, found = self.project.path / "labels", {}
        known = {self.project.label_file(unit).name for unit in self.project.items if unit in marks}
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.name not in known and not file.name.startswith("."):
                name = next(
                    (n for n, i in self.project.items.items() if self.project.label_file(n).name == file.name), ""
                )
                remedy = (
                    f"accept it with `universeg annotate accept {self.project.path} {name} {file}`, or " if name else ""
                )
                found[name or file.name] = f"{file} was not accepted here: {remedy}move it out of labels/"
        return found


def _label(mark: Mark | None) -> str:
    return mark.label if mark else ""
