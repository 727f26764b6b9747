"""Staging: a dataset appears as a whole or not at all.

A build works in the hidden folder <data_dir>/.<name>.building under a lock and ends with two renames: the previous
dataset to .<name>.previous, the new one to its place. Whenever it dies, one of the two can be opened.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from universeg_jax.data.dataset import BuildError
from universeg_jax.reports.files import lock_file


@contextlib.contextmanager
def open_staging(data_dir: Path, name: str) -> Iterator[Path]:
    """Yields the hidden folder that a dataset is built in, to one process at a time, without a dead build's remains."""
    target = data_dir / name
    if target.exists() and not (target.is_dir() and all((p / "build_report.json").exists() for p in target.iterdir())):
        raise BuildError(f"{target} exists and is no built dataset: it is left alone; take another name or data_dir")
    staging = data_dir / f".{name}.building"
    staging.mkdir(exist_ok=True)
    with (staging / "lock").open("wb") as lock:
        try:
            # Where the file is another one by now, its holder has just removed it.
            held = lock_file(lock) and os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))
        except FileNotFoundError:
            held = False
        if not held:
            raise BuildError(f"{name} is being built in {data_dir} by another process; wait for it")
        try:
            _finish_swap(data_dir, name)
            for leftover in staging.iterdir():
                if leftover.is_dir():
                    shutil.rmtree(leftover)
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # a failure to remove it must not hide the original error


def swap(data_dir: Path, name: str, built: Path) -> None:
    """Puts the new dataset in the old one's place by two renames."""
    target, previous = data_dir / name, data_dir / f".{name}.previous"
    if target.exists():
        os.replace(target, previous)
    try:
        os.replace(built, target)
    except OSError:
        _finish_swap(data_dir, name)
        raise
    _finish_swap(data_dir, name)


def _finish_swap(data_dir: Path, name: str) -> None:
    """Ends an interrupted swap: the previous dataset is restored where it is the only one, else removed."""
    target, previous = data_dir / name, data_dir / f".{name}.previous"
    if previous.exists() and not target.exists():
        os.replace(previous, target)
    elif previous.exists():
        shutil.rmtree(previous)


def fingerprint_of(directory: Path) -> str:
    """sha256 of the names and contents of the files of a directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        with path.open("rb") as file:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
