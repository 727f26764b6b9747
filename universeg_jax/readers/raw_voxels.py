"""Voxels as NRRD and MetaImage store them after a text header: plain, compressed or as text.

Nothing is read that the header does not announce, so that a small file cannot unpack into a large array.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from universeg_jax.readers.errors import ImageError

BLOCK = 1 << 20  # bytes read at a time
ZLIB_OR_GZIP = 47  # for zlib: its own format or gzip's, whichever the data begin with
AT_END = -1  # for `Header.start`: the voxels are the last bytes of the file


@dataclass(frozen=True)
class Header:
    """What a file says of its voxels.

    `shape` [fastest axis first] includes the axis of channels, of which `steps` [n, n] (a column per axis of space,
    mm) and `origin` [n] know nothing; both are in LPS. `geometry` are the fields of the header that say so, as text.
    """

    shape: tuple[int, ...]
    dtype: np.dtype  # with its byte order
    steps: np.ndarray
    origin: np.ndarray
    encoding: str  # raw, zlib or text
    start: int  # byte of the file of voxels at which they begin
    channel_axis: int | None = None
    geometry: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels along the axes of space."""
        return tuple(n for axis, n in enumerate(self.shape) if axis != self.channel_axis)

    @property
    def channels(self) -> int:
        return 1 if self.channel_axis is None else self.shape[self.channel_axis]


def read_voxels(path: Path, header: Header) -> np.ndarray:
    """Reads the voxels of a file, [*size, channels] in the machine's byte order. Raises ImageError."""
    count = int(np.prod(header.shape))
    with path.open("rb") as file:
        size = count * header.dtype.itemsize
        file.seek(header.start if header.start != AT_END else max(path.stat().st_size - size, 0))
        if header.encoding == "text":
            values = np.array(file.read().split(), float if header.dtype.kind == "f" else header.dtype)
        else:
            held = file.read(size) if header.encoding == "raw" else _unpack(file, size)
            values = np.frombuffer(held[: len(held) // header.dtype.itemsize * header.dtype.itemsize], header.dtype)
    if len(values) < count:
        raise ImageError(path, "cannot be read", f"it is cut short: it holds {len(values):,} of {count:,} values")
    native = values[:count].astype(header.dtype.newbyteorder("="), copy=False)
    data = native.reshape(header.shape, order="F")
    return data[..., None] if header.channel_axis is None else np.moveaxis(data, header.channel_axis, -1)


def _unpack(file: BinaryIO, size: int) -> bytes:
    """At most `size` bytes of what zlib or gzip has packed, also in several parts one after another."""
    unpacked, parts = bytearray(), zlib.decompressobj(ZLIB_OR_GZIP)
    while len(unpacked) < size and (packed := parts.unused_data or file.read(BLOCK)):
        if parts.eof:
            parts = zlib.decompressobj(ZLIB_OR_GZIP)
        unpacked += parts.decompress(packed, size - len(unpacked))
    return bytes(unpacked)


def read_start(path: Path, limit: int = 1 << 20) -> bytes:
    """The bytes in which a text header lies."""
    with path.open("rb") as file:
        return file.read(limit)


def plain_name(name: bytes) -> str:
    """The file of voxels that a header names; "" for a list or a numbered pattern of files."""
    text = name.strip().decode("utf-8", "replace").removeprefix("./")
    return "" if text.startswith("LIST") or "%" in text else text
