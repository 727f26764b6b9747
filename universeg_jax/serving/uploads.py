"""Uploaded files, and sessions: images that a client sends for predictions without adding them to the project."""

import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from universeg_jax.errors import UserError
from universeg_jax.readers.file_names import DICOM_EXTENSIONS, READABLE_EXTENSIONS, extension, stem

EXPIRY, MAX_EXPIRY = 3600, 86400  # seconds without use
MAX_SESSIONS = 200
MAX_FILES = 2000  # of one DICOM series
LABEL_EXTENSIONS = (".png", ".tif", ".tiff", ".nii", ".nii.gz", ".nrrd", ".mha")
SINGLE = tuple(kind for kind in READABLE_EXTENSIONS if kind != ".mhd")  # whose voxels lie in another file
CHUNK = 1 << 20  # bytes


class NotFound(UserError):
    """A session, image or label that does not exist."""


def check_kind(name: str, kinds: Sequence[str]) -> str:
    """The extension of an uploaded file. Raises UserError for one that is not read, archives among them."""
    kind = extension(Path(name.replace("\\", "/")).name)
    if kind not in kinds:
        raise UserError(f"a file that ends in {kind or 'nothing'!r} is not read here; upload one of {', '.join(kinds)}")
    return kind


def check_name(name: str) -> str:
    """A name for an image of the project. Raises UserError for anything that could be a path."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}", name) or ".." in name:
        raise UserError(f"the name {name[:100]!r}: use up to 100 letters, digits, _ - and . and begin with none of - .")
    return name


@contextmanager
def saved(source: IO[bytes], name: str, kinds: Sequence[str]) -> Iterator[Path]:
    """An upload as a file of a folder of its own, which is removed at the end."""
    kind = check_kind(name, kinds)
    with TemporaryDirectory(prefix="universeg_upload_") as folder:
        file = Path(folder) / f"upload{kind}"
        with file.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)
        yield file


@dataclass
class Upload:
    """A session: a file, or a folder with the files of a DICOM series."""

    name: str
    path: Path
    created: float
    used: float
    expiry: int

    def info(self) -> dict[str, Any]:
        """What a client is told; no path of this machine."""
        return {
            "name": self.name,
            "image": self.name,
            "meta": {},
            "create_ts": int(self.created),
            "last_access_ts": int(self.used),
            "expiry": self.expiry,
        }


class Uploads:
    """The sessions of a server, in a folder that is removed with it. Thread-safe."""

    def __init__(self, folder: Path):
        self._folder, self._held, self._lock = folder, dict[str, Upload](), threading.Lock()

    def add(self, files: Sequence[tuple[str, IO[bytes]]], expiry: int = 0) -> tuple[str, Upload]:
        """(id that nobody can guess, session) of one image or volume, or of a DICOM series. Raises UserError."""
        if not files or len(files) > MAX_FILES:
            raise UserError(f"{len(files)} files: upload one image or volume, or up to {MAX_FILES} files of a series")
        kinds = [check_kind(name, DICOM_EXTENSIONS if len(files) > 1 else SINGLE) for name, _ in files]
        now = time.time()
        with self._lock:
            self._sweep(now)
            if len(self._held) >= MAX_SESSIONS:
                raise UserError(f"{MAX_SESSIONS} sessions are open: delete one, or wait until one expires")
            identity = secrets.token_urlsafe(24)
            place = self._folder / identity
            place.mkdir()
            name = stem(Path(files[0][0].replace("\\", "/")).name)
            path = place if len(files) > 1 else place / f"image{kinds[0]}"
            self._held[identity] = Upload(name, path, now, now, min(expiry, MAX_EXPIRY) if expiry > 0 else EXPIRY)
        for number, ((_, source), kind) in enumerate(zip(files, kinds, strict=True)):
            with (path / f"{number}{kind}" if len(files) > 1 else path).open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK)
        return identity, self._held[identity]

    def get(self, identity: str, use: bool = True) -> Upload:
        """Raises NotFound for a session that never was, or has expired."""
        with self._lock:
            now = time.time()
            self._sweep(now)
            if identity not in self._held:
                raise NotFound("no such session; it may have expired: upload the image again")
            if use:
                self._held[identity].used = now
            return self._held[identity]

    def remove(self, identity: str) -> Upload:
        upload = self.get(identity)
        with self._lock:
            self._held.pop(identity, None)
            shutil.rmtree(self._folder / identity, ignore_errors=True)
        return upload

    def _sweep(self, now: float) -> None:
        for identity in [i for i, upload in self._held.items() if upload.used + upload.expiry < now]:
            del self._held[identity]
            shutil.rmtree(self._folder / identity, ignore_errors=True)
