"""Writes and reads JSON, JSON lines and CSV atomically, and locks folders against a second process."""

import contextlib
import csv
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from universeg_jax.errors import UserError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that replaces it on success and is removed on failure.

    Readers see the old file or the new one, never a part. The new file is on disk when this returns. The temporary
    name is hidden and keeps the suffix of `path`, by which some writers choose the format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp.{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:  # Windows writes no file out that is open for reading alone
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Raises UserError, with the reason, if a folder that may not exist yet cannot be written to; makes none."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({there}: {error.strerror}); choose another folder") from error


class JsonLines:
    """An append-only file with one JSON object per line, each with a "step", that survives a kill.

    Opening drops the lines from `resume_step` on, and an incomplete last line. The resumed run writes them again, so
    that the file holds every step once.
    """

    def __init__(self, path: Path, resume_step: int):
        kept = [row for row in read_json_lines(path) if row["step"] < resume_step]
        with atomic_write(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines; [] without a file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]  # the text after the last newline is incomplete


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


class LockedError(UserError):
    """Another process uses the folder."""


@contextlib.contextmanager
def lock(workdir: Path | None, name: str = ".lock") -> Iterator[None]:
    """Locks a folder until the block or the process ends; None locks nothing. Raises LockedError."""
    if workdir is None:
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / name).open("wb") as file:
        if not lock_file(file):
            raise LockedError(f"another process works in {workdir}; wait for it, or choose another folder")
        yield


def lock_file(file: IO[Any]) -> bool:
    """Locks an open file until it is closed or the process ends; False where another process holds the lock."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # the first byte, which need not exist
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows with the columns of the first one, atomically."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
