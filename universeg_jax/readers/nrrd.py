"""NRRD (https://teem.sourceforge.net/nrrd/format.html) as ITK reads it: one image, in LPS.

pynrrd would parse the header, but reads voxels without a limit and follows names of other files.
"""

import gzip
import re
from pathlib import Path

import numpy as np

from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.raw_voxels import AT_END, Header, read_start

TYPES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
CODES = {name: code for code, names in TYPES.items() for name in names.split(", ")}
ENCODINGS = {"raw": "raw", "gzip": "zlib", "gz": "zlib", "ascii": "text", "text": "text", "txt": "text"}
SPACES = {  # signs that turn a space into LPS
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1, -1, 1)),
}
DOMAINS = ("domain", "space", "time", "???", "none")  # kinds of axes that are no channels
PER_AXIS = ("sizes", "kinds", "spacings", "axis mins", "axis maxs", "thicknesses", "centerings", "units", "labels")
KEPT = ("space", "space dimension", "space units", "space origin", "measurement frame")
TOKEN = re.compile(r'\([^)]*\)|"[^"]*"|\S+')
ALIASES = {name.replace(" ", ""): name for name in ("axis mins", "axis maxs", "byte skip", "line skip", "data file")}


def read_header(path: Path) -> Header:
    """Reads the header of a file. Raises ImageError."""
    head = read_start(path)
    fields, end = parse(path, head)
    shape, count = tuple(map(int, fields["sizes"].split())), int(fields["dimension"])
    kind, encoding = fields["type"].lower(), fields["encoding"].lower()
    if kind not in CODES or encoding not in ENCODINGS or len(shape) != count:
        known = f"type {kind}, encoding {encoding} of {shape}; save it with encoding raw or gzip"
        raise ImageError(path, "cannot be read", known)
    if int(fields.get("line skip", 0)):
        raise ImageError(path, "cannot be read", "its header asks to skip lines")
    dtype = np.dtype(CODES[kind])
    if dtype.itemsize > 1 and ENCODINGS[encoding] != "text":
        dtype = np.dtype({"little": "<", "big": ">"}[fields["endian"].lower()] + CODES[kind])
    axes = {name: TOKEN.findall(fields[name]) for name in (*PER_AXIS, "space directions") if name in fields}
    if any(len(tokens) != count for tokens in axes.values()):
        raise ImageError(path, "cannot be read", f"a field of its header has not {count} values, one per axis")
    channel = _channel_axis(path, axes, count)
    axes = {name: [t for axis, t in enumerate(tokens) if axis != channel] for name, tokens in axes.items()}
    steps, origin = _geometry(path, fields, axes)
    skipped = int(fields.get("byte skip", 0))
    return Header(
        shape=shape,
        dtype=dtype,
        steps=steps,
        origin=origin,
        encoding=ENCODINGS[encoding],
        start=AT_END if skipped < 0 else end + skipped,
        channel_axis=channel,
        geometry={
            **{name: fields[name] for name in KEPT if name in fields},
            **{name: " ".join(tokens) for name, tokens in axes.items()},
        },
    )


def parse(path: Path, head: bytes) -> tuple[dict[str, str], int]:
    """({field in lower case: value}, the byte at which voxels begin); keys with := are left out. Raises ImageError."""
    if not head.startswith(b"NRRD"):
        raise ImageError(path, "cannot be read", "it does not begin with NRRD")
    blank = re.search(rb"\r?\n\r?\n", head)
    start, end = blank.span() if blank else (len(head), len(head))
    fields = {}
    for line in head[:start].decode("utf-8", "replace").splitlines()[1:]:
        name, separator, value = line.partition(":")
        if separator and not line.startswith("#") and not value.startswith("="):
            fields[ALIASES.get(name.strip().lower(), name.strip().lower())] = value.strip()
    if "data file" in fields:
        return fields, 0
    if blank is None:
        raise ImageError(path, "cannot be read", "its header has no end")
    return fields, end


def _channel_axis(path: Path, axes: dict[str, list[str]], count: int) -> int | None:
    """The axis that is none of space: by its kind, or because it alone has no direction."""
    kinds = axes.get("kinds", ["???"] * count)
    directions = axes.get("space directions", ["()"] * count)
    found = [
        axis
        for axis, (kind, direction) in enumerate(zip(kinds, directions, strict=True))
        if kind.lower() not in DOMAINS or direction.lower() == "none"
    ]
    if len(found) > 1:
        raise ImageError(path, "has several channels or times", "on more than one axis; save each as a file of its own")
    return found[0] if found else None


def _geometry(path: Path, fields: dict[str, str], axes: dict[str, list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [n, n] and origin [n] in LPS."""
    count = len(axes["sizes"])
    if "space directions" not in axes:
        spacings = np.array(axes.get("spacings", ["nan"] * count), float)
        steps = np.diag(np.where(np.isfinite(spacings), spacings, 1))
        if "space" in fields or "space dimension" in fields:
            return steps, _vector(fields.get("space origin", ""), count)
        return steps, _corner(axes, spacings)
    vectors = [_vector(token, count) for token in axes["space directions"]]
    steps, origin = np.stack(vectors, 1), _vector(fields.get("space origin", ""), count)
    signs = np.array(SPACES.get(fields.get("space", "").lower(), (1,) * count), float)
    if len(signs) != count or not np.isfinite(steps).all():
        raise ImageError(path, "cannot be read", f"its space is no space of its {count} axes")
    return signs[:, None] * steps, signs * origin


def _vector(token: str, count: int) -> np.ndarray:
    """[count] of "(1,0,0)"; zeros of ""; NaN where the file has another number of values."""
    numbers = [float(word) for word in token.strip("() ").split(",") if word.strip()]
    return np.array(numbers or [0.0] * count) if len(numbers) in (0, count) else np.full(count, np.nan)


def _corner(axes: dict[str, list[str]], spacings: np.ndarray) -> np.ndarray:
    """The centre of the first voxel where a header gives the least value of each axis; else 0."""
    mins = np.array(axes.get("axis mins", ["nan"] * len(spacings)), float)
    if not np.isfinite(mins + spacings).all():
        return np.zeros(len(spacings))
    on_nodes = [kind == "node" for kind in axes.get("centerings", ["cell"] * len(spacings))]
    return mins + np.where(on_nodes, 0, spacings / 2)


def write(path: Path, data: np.ndarray, like: Header) -> None:
    """Writes a mask [*like.size], compressed, with the geometry of `like` in the very digits of its file."""
    kind = TYPES[data.dtype.str[1:]].split(", ")[-1]
    fields = {
        "type": kind if data.dtype.kind == "f" else kind.removesuffix("_t"),
        "dimension": len(like.size),
        **{name: text for name, text in like.geometry.items() if name in ("space", "space dimension")},
        "sizes": " ".join(map(str, like.size)),
        **{name: text for name, text in like.geometry.items() if name not in ("space", "space dimension", "sizes")},
        "endian": "little",
        "encoding": "gzip",
    }
    text = "NRRD0005\n" + "".join(f"{name}: {value}\n" for name, value in fields.items())
    held = np.asarray(data, data.dtype.newbyteorder("<")).tobytes(order="F")
    path.write_bytes(text.encode() + b"\n" + gzip.compress(held, mtime=0))
