"""MetaImage, .mha and .mhd (https://itk.org/Wiki/MetaIO/Documentation), as ITK reads and writes it.

Like ITK it leaves DistanceUnits alone.
"""

import re
import zlib
from pathlib import Path

import numpy as np

from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.raw_voxels import AT_END, Header, plain_name, read_start

LOCAL = "LOCAL"  # for ElementDataFile: the voxels follow the header
TYPES = {
    "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4",
    "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip
# Names of one field, of which the last one that a header has counts.
ORIGIN = ("Origin", "Position", "Offset")
DIRECTION = ("Orientation", "Rotation", "TransformMatrix")
SPACING = ("ElementSize", "ElementSpacing")
KEPT = (*DIRECTION, *ORIGIN, "CenterOfRotation", "AnatomicalOrientation", *SPACING, "DistanceUnits")


def read_header(path: Path) -> Header:
    """Reads the header of a file. Raises ImageError."""
    head = read_start(path)
    fields, end = parse(head)
    count = int(fields["NDims"])
    size = tuple(map(int, fields["DimSize"].split()))
    kind = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in TYPES or len(size) != count:
        raise ImageError(path, "cannot be read", f"its header says {fields.get('ElementType')} of {size}")
    if fields.get("ObjectType", "Image") != "Image":
        raise ImageError(path, "cannot be read", f"it holds no image: ObjectType = {fields['ObjectType']}")
    channels = int(fields.get("ElementNumberOfChannels", 1))
    big = any(_is_true(fields, name) for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"))
    direction = _numbers(fields, DIRECTION, np.eye(count).ravel()).reshape(count, count).T
    encoding = "zlib" if _is_true(fields, "CompressedData") else "raw" if _is_true(fields, "BinaryData") else "text"
    skipped = int(fields.get("HeaderSize", 0))
    local = end if fields["ElementDataFile"] == LOCAL else 0
    return Header(
        shape=(channels, *size) if channels > 1 else size,
        dtype=np.dtype((">" if big else "<") + TYPES[kind]),
        steps=direction * _numbers(fields, SPACING, np.ones(count)),
        origin=_numbers(fields, ORIGIN, np.zeros(count)),
        encoding=encoding,
        start=AT_END if skipped < 0 else skipped or local,
        channel_axis=0 if channels > 1 else None,
        geometry={name: fields[name] for name in KEPT if name in fields},
    )


def parse(head: bytes) -> tuple[dict[str, str], int]:
    """({field: value} up to ElementDataFile, the byte after that line). Raises ValueError without that line."""
    fields, end = {}, 0
    for line in head.splitlines(keepends=True):
        end += len(line)
        name, _, value = line.decode("utf-8", "replace").partition("=")
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            return fields, end
    raise ValueError("it is damaged: its header has no ElementDataFile")


def write(path: Path, data: np.ndarray, like: Header) -> None:
    """Writes a mask [*like.size], compressed, with the geometry of `like` in the very digits of its file."""
    kinds = {code: name for name, code in reversed(TYPES.items())}
    packed = zlib.compress(np.asarray(data, data.dtype.newbyteorder("<")).tobytes(order="F"))
    fields = {
        "ObjectType": "Image",
        "NDims": len(like.size),
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": True,
        "CompressedDataSize": len(packed),
        **like.geometry,
        "DimSize": " ".join(map(str, like.size)),
        "ElementType": "MET_" + kinds[data.dtype.str[1:]],
        "ElementDataFile": LOCAL,
    }
    text = "".join(f"{name} = {value}\n" for name, value in fields.items())
    path.write_bytes(text.encode() + packed)


def voxel_file(head: bytes) -> str:
    """The file of voxels that a header names; "" where it names none, a list or a numbered pattern."""
    found = re.search(rb"^[ \t]*ElementDataFile[ \t]*=[ \t]*([^\r\n]*)", head, re.MULTILINE)
    return plain_name(found[1]) if found else ""


def _numbers(fields: dict[str, str], names: tuple[str, ...], default: np.ndarray) -> np.ndarray:
    given = [fields[name] for name in names if name in fields]
    return np.array(given[-1].split(), float) if given else default


def _is_true(fields: dict[str, str], name: str) -> bool:
    return fields.get(name, "F")[:1] in "Tt1"
