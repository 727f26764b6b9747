"""Weights from elsewhere: https://… and hf://owner/name[/file], by their sha256, kept in the cache.

The sha256 is that of the address (`#sha256=…`), else that of the first download from this address, else that of the
file `<address>.sha256`; without one nothing is downloaded. So an address means the same weights for ever on one
machine, and needs no network after the first time. Only safetensors are taken: other formats can run code.
"""

import hashlib
import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from universeg_jax.checkpoints import packaged
from universeg_jax.checkpoints.packaged import CheckpointError
from universeg_jax.download import cache_folder, check_address, download, read_small
from universeg_jax.reports.files import lock, read_json, write_json

SCHEMES = ("https://", "http://", "hf://")
HUB = "https://huggingface.co"  # or $HF_ENDPOINT
HUB_FILE = "model.safetensors"
MAX_MB = 512  # or $UNIVERSEG_MAX_WEIGHTS_MB
SHA256 = re.compile(r"(?i)\b[0-9a-f]{64}\b")


@dataclass(frozen=True)
class Address:
    url: str
    sha256: str  # "" where the user gave none

    @property
    def name(self) -> str:
        """Of the file."""
        return urllib.parse.unquote(urllib.parse.urlsplit(self.url).path.rpartition("/")[2])


def is_address(path: str | Path) -> bool:
    return str(path).startswith(SCHEMES)


def parse(text: str) -> Address:
    """The address and sha256 that a user gives as a checkpoint. Raises CheckpointError."""
    url, _, fragment = text.partition("#")
    sha256 = fragment.removeprefix("sha256=").lower()
    if fragment and (not fragment.startswith("sha256=") or not SHA256.fullmatch(sha256)):
        raise CheckpointError(f"{text}: after # only sha256= and 64 hexadecimal digits are understood")
    if url.startswith("hf://"):
        owner, name, file = [*url.removeprefix("hf://").split("/", 2), "", ""][:3]
        name, _, revision = name.partition("@")
        if not owner or not name:
            raise CheckpointError(f"{text}: give hf://OWNER/NAME or hf://OWNER/NAME/FILE{packaged.SUFFIX}")
        hub = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        url = f"{hub}/{owner}/{name}/resolve/{revision or 'main'}/{file or HUB_FILE}"
    address = Address(url, sha256)
    if not address.name.endswith(packaged.SUFFIX) or re.search(r'[\\/:*?"<>|]', address.name):
        raise CheckpointError(
            f"{text}: only {packaged.SUFFIX} files are taken from elsewhere, since other formats can run code; "
            f"`universeg checkpoint RUN --package FILE{packaged.SUFFIX}` makes one of a run"
        )
    check_address(address.url)
    return address


def fetch(text: str) -> Path:
    """The file of an address, downloaded if the cache does not hold it. Raises CheckpointError and DownloadError."""
    address = parse(text)
    folder = cache_folder() / "weights"
    pin = folder / f"{hashlib.sha256(address.url.encode()).hexdigest()[:16]}.json"
    sha256 = address.sha256 or (read_json(pin)["sha256"] if pin.exists() else _beside(address))
    target = folder / sha256 / address.name
    with lock(target.parent):
        if target.exists():
            _check_kept(target, sha256)
        else:
            download(address.url, target, f"sha256:{sha256}", _limit())
            _check_format(target, address.url)
    if not pin.exists() or read_json(pin)["sha256"] != sha256:
        write_json(pin, {"url": address.url, "sha256": sha256})
    return target


def _beside(address: Address) -> str:
    """The sha256 that the server keeps beside the file."""
    parts = urllib.parse.urlsplit(address.url)
    url = urllib.parse.urlunsplit(parts._replace(path=parts.path + ".sha256"))
    found = SHA256.search((read_small(url) or b"").decode("ascii", "replace"))
    if found is None:
        raise CheckpointError(
            f"{address.url}: its sha256 is not known, and {url} does not say it; ask its publisher for it and give "
            f"{address.url}#sha256=…"
        )
    return found[0].lower()


def _limit() -> int:
    text = os.environ.get("UNIVERSEG_MAX_WEIGHTS_MB", str(MAX_MB))
    try:
        return int(float(text) * 1e6)
    except ValueError:
        raise CheckpointError(f"UNIVERSEG_MAX_WEIGHTS_MB={text}: a number of megabytes is needed") from None


def _check_kept(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise CheckpointError(f"{path} has changed since it was downloaded: delete it to download it again")


def _check_format(path: Path, url: str) -> None:
    """Deletes a file that holds no weights of this program. Raises CheckpointError."""
    try:
        packaged.read_header(path)
    except CheckpointError as error:
        path.unlink()
        raise CheckpointError(
            f"{url} holds no weights of universeg_jax: {str(error).replace(str(path), path.name)}"
        ) from error
