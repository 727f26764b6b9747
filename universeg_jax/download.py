"""Downloads of single files: checked, limited in size, continued after a break, and never half in place."""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from universeg_jax.errors import UserError

BLOCK = 1 << 20  # bytes read at a time
TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS, WAIT = 3, 1.0  # tries, and seconds after the first one
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
BROKEN = (OSError, http.client.HTTPException)  # what a connection that ends early raises; URLError is an OSError


class DownloadError(UserError):
    """A file that could not be downloaded, or that is not what was expected; nothing of it is in place."""


class _Broken(Exception):
    """The connection ended before the file did."""


def cache_folder() -> Path:
    """Where this program keeps what it downloads and compiles: $UNIVERSEG_CACHE, else in the user's cache folder."""
    if chosen := os.environ.get("UNIVERSEG_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "universeg_jax"


def download(url: str, target: Path, checksum: str, limit: int | None = None) -> None:
    """Downloads `url` to `target`, which appears only whole and with the right `checksum` ("sha256:…" or "md5:…").

    `limit`: bytes. A download that broke off goes on where it ended. The caller locks the folder. Raises DownloadError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    for attempt in range(ATTEMPTS):
        try:
            _transfer(url, part, limit)
            break
        except (*BROKEN, _Broken) as error:
            if attempt == ATTEMPTS - 1 or (isinstance(error, urllib.error.HTTPError) and error.code < 500):
                kept = part.stat().st_size if part.exists() else 0
                kept_text = f"; {kept:,} bytes are kept, and the next try goes on there" if kept else ""
                what = str(error) or type(error).__name__
                raise DownloadError(f"{url} cannot be downloaded: {what}{kept_text}") from error
            time.sleep(WAIT * (attempt + 1))
    kind, _, expected = checksum.partition(":")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected.lower():
        part.unlink()
        raise DownloadError(f"{url}: its {kind} is {found}, not {expected}; it was removed, try again")
    part.replace(target)


def read_small(url: str, limit: int = 4096) -> bytes | None:
    """The first bytes of a small file; None where the server has none. Raises DownloadError."""
    try:
        with _open(url, {}) as remote:
            return remote.read(limit)
    except urllib.error.HTTPError as error:
        if error.code in (403, 404, 410):
            return None
        raise DownloadError(f"{url} cannot be downloaded: {error}") from error
    except BROKEN as error:
        raise DownloadError(f"{url} cannot be downloaded: {error or type(error).__name__}") from error


def _transfer(url: str, part: Path, limit: int | None) -> None:
    """Downloads what `part` lacks. Raises _Broken where the server sends less than it announced."""
    held = part.stat().st_size if part.exists() else 0
    try:
        remote = _open(url, {"Range": f"bytes={held}-"} if held else {})
    except urllib.error.HTTPError as error:
        if held and error.code == 416:  # nothing is left, or the file has changed: the checksum tells
            return
        raise
    with remote:
        follows = remote.status == 206 and (remote.headers.get("Content-Range") or "").startswith(f"bytes {held}-")
        held = held if follows else 0
        length = remote.headers.get("Content-Length")
        total = held + int(length) if length and length.isdecimal() else None
        _check_size(url, part, total or 0, limit)
        with part.open("ab" if held else "wb") as file:
            for block in _blocks(remote, part, held, total):
                held += len(block)
                _check_size(url, part, held, limit)
                file.write(block)
    if total is not None and held < total:
        raise _Broken(f"it ended after {held:,} of {total:,} bytes")


def _blocks(remote: Any, part: Path, held: int, total: int | None) -> Iterator[bytes]:
    bar = {"total": total, "initial": held, "unit": "B", "unit_scale": True, "leave": False, "delay": 2}
    with tqdm(desc=part.name.removesuffix(".part"), **bar) as progress:
        while block := remote.read1(BLOCK):
            yield block
            progress.update(len(block))


def _check_size(url: str, part: Path, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        part.unlink(missing_ok=True)
        raise DownloadError(f"{url}: {size:,} bytes or more; at most {limit:,} are taken")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses that may be asked for themselves, and none from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        if req.type == "https" and urllib.parse.urlsplit(newurl).scheme != "https":
            raise DownloadError(f"{req.full_url} leads to {newurl}, which is not https: refused")
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: dict[str, str]) -> Any:
    check_address(url)
    opener = urllib.request.build_opener(_Redirects)
    return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)


def check_address(url: str) -> None:
    """Raises DownloadError unless an address is https, or http on this machine."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOCAL_HOSTS):
        raise DownloadError(f"{url}: only https addresses are asked")
