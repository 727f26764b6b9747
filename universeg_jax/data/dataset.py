"""The files of a built dataset, and opening it.

A dataset lies in <data_dir>/<name>/<version>/ as an ordinary TFDS dataset (array_record; `tfds.builder_from_directory`
opens it anywhere), with one split "examples" ("all" is reserved by TFDS) in the order of its cases. Beside the records
lie `index.npz`, all that a task table needs, so that no image is decoded for it; `build_report.json`, what was dropped
and why; and the pixel table (`images.u8`, and `masks.bits` with 8 pixels a byte), which is mapped into memory: an
episode is then a gather of slices. Where the pixel table is missing the records are read.
"""

import dataclasses
import functools
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from universeg_jax.data import ROLES
from universeg_jax.errors import UserError

VERSION = "1.0.0"  # increase it when the same files would give other records
SPLIT = "examples"
SLICINGS = ("image", "mid", "max")
IMAGE_TABLE, MASK_TABLE = "images.u8", "masks.bits"
DAMAGE = (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error)  # raised by damaged files
GLIBC_KEEPS = 31 << 20  # bytes, just below the largest mmap threshold that glibc adapts to


class BuildError(UserError):
    """A dataset that cannot be built or opened; names the fault and the remedy."""


@dataclass(frozen=True)
class DatasetMeta:
    """The description of a dataset."""

    name: str
    role: str  # one of ROLES
    labels: dict[int, str]
    size: int  # pixels
    source_group: str = ""  # datasets that share cases or a source; "" = none
    modality: str = ""
    licence: str = ""
    citation: str = ""
    subjects_identifiable: bool = True

    def __post_init__(self):
        if self.role not in ROLES:
            raise BuildError(f"{self.name}: role {self.role!r}; choose one of {', '.join(ROLES)}")
        if not self.name.isidentifier() or self.name != self.name.lower():
            raise BuildError(f"dataset name {self.name!r}: use lower-case letters, digits and _ only, a letter first")
        if self.size < 8:
            raise BuildError(f"{self.name}: size {self.size} pixels; at least 8 are needed")


@dataclass(frozen=True)
class Index:
    """Columns over the examples and, in `mask_*`, over all their masks; codes index the string tables."""

    subject: np.ndarray  # int32 [N]
    subset: np.ndarray  # int16 [N]
    modality: np.ndarray  # int16 [N]
    axis: np.ndarray  # int8 [N]
    slicing: np.ndarray  # int8 [N]
    mask_row: np.ndarray  # int32 [M], row of the example
    mask_position: np.ndarray  # int16 [M], position among the example's masks
    mask_label: np.ndarray  # int32 [M]
    mask_area: np.ndarray  # int32 [M], pixels
    subjects: tuple[str, ...]
    subsets: tuple[str, ...]
    modalities: tuple[str, ...]
    slicings: tuple[str, ...]


@dataclass(frozen=True)
class BuildReport:
    """The outcome of a build; build_report.json beside the records."""

    dataset: str
    role: str
    examples: int
    subjects: int
    labels: int  # number that occur
    labels_never_seen: dict[str, str]  # id → name
    dropped: dict[str, str]  # case → the fault of its file
    dropped_by_problem: dict[str, int]
    ignored: tuple[str, ...]  # files of types that are not read
    notes: tuple[str, ...]  # how files were understood that can be understood in two ways
    input_digest: str  # of the files and options; a build with the same digest is skipped
    fingerprint: str  # sha256 of the built files


@dataclass(frozen=True)
class Dataset:
    """A built dataset: dataset[row] reads one example at random access. Picklable."""

    meta: DatasetMeta
    index: Index
    fingerprint: str  # sha256 of the built files
    directory: str

    def __len__(self) -> int:
        return len(self.index.subject)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """{"image": uint8 [size, size], "masks": uint8 [L, size, size], "labels": int32 [L], …}; Text is bytes."""
        return _source(self.directory, self.fingerprint)[row]

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(images, masks), both uint8 [n, size, size]: for each row its image and the mask at that position.

        Reads the pixel table, or the records where there is none.
        """
        table = _table(self.directory, self.fingerprint, self.meta.size)
        if table is None:
            return self.gather_records(rows, positions)
        images, packed = table
        places = np.searchsorted(self.index.mask_row, rows) + positions  # masks lie in the order of the index
        area = self.meta.size**2
        masks = np.unpackbits(packed[places], axis=1, count=area)
        return images[rows], masks.reshape(-1, self.meta.size, self.meta.size)

    def gather_union(self, rows: np.ndarray, labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Like `gather`, with the union of these labels as each mask; every row must have one of them."""
        index, rows = self.index, np.asarray(rows)
        first, last = (np.searchsorted(index.mask_row, rows, side) for side in ("left", "right"))
        entries = np.repeat(np.arange(len(rows)), last - first)
        places = np.arange(len(entries)) + np.repeat(first - np.cumsum(last - first) + (last - first), last - first)
        wanted = np.isin(index.mask_label[places], labels)
        entries, places = entries[wanted], places[wanted]
        starts = np.searchsorted(entries, np.arange(len(rows)))
        table = _table(self.directory, self.fingerprint, self.meta.size)
        if table is None:
            images, masks = self.gather_records(rows[entries], index.mask_position[places])
            return images[starts], np.bitwise_or.reduceat(masks, starts)
        images, packed = table
        masks = np.unpackbits(np.bitwise_or.reduceat(packed[places], starts), axis=1, count=self.meta.size**2)
        return images[rows], masks.reshape(-1, self.meta.size, self.meta.size)

    def gather_maps(self, rows: np.ndarray) -> np.ndarray:
        """uint8 [n, size, size]: for each row the labels of its pixels, numbered from 1 in the order of their ids.

        Where labels overlap the one with the smaller mask counts. The numbers go round after 254.
        """
        index, numbers = self.index, {label: 1 + i % 254 for i, label in enumerate(sorted(self.meta.labels))}
        distinct, which = np.unique(rows, return_inverse=True)
        maps = np.zeros((len(distinct), self.meta.size, self.meta.size), np.uint8)
        for row, numbered in zip(distinct, maps, strict=True):
            places = np.arange(*np.searchsorted(index.mask_row, [row, row + 1]))
            places = places[np.argsort(-index.mask_area[places], kind="stable")]
            _, masks = self.gather(np.full(len(places), row), index.mask_position[places])
            for label, mask in zip(index.mask_label[places].tolist(), masks, strict=True):
                numbered[mask > 0] = numbers[label]
        return maps[which]

    def gather_records(self, rows: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Like `gather`, from the records; each is read once, although sampling with replacement repeats some."""
        pixels = np.zeros((2, len(rows), self.meta.size, self.meta.size), np.uint8)
        distinct, which = np.unique(rows, return_inverse=True)
        for k, row in enumerate(distinct):
            example = self[int(row)]
            for i in np.flatnonzero(which == k):
                pixels[:, i] = example["image"], example["masks"][positions[i]]
        return pixels[0], pixels[1]


@functools.lru_cache(maxsize=1024)
def _source(directory: str, fingerprint: str) -> Any:
    """One open reader per process and dataset."""
    _check_unchanged(directory, fingerprint)
    return tfds.builder_from_directory(directory).as_data_source(split=SPLIT)


@functools.lru_cache(maxsize=1024)
def _table(directory: str, fingerprint: str, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(images uint8 [N, size, size], masks uint8 [M, bytes]), mapped once per process; None where they are missing."""
    _check_unchanged(directory, fingerprint)
    paths = [Path(directory) / name for name in (IMAGE_TABLE, MASK_TABLE)]
    if not all(path.exists() for path in paths):
        return None
    # Allocating and freeing one such block makes glibc keep blocks of this size for the next episode. If it returned
    # them to the system, faulting in their pages anew would take three times as long as the gather itself.
    np.zeros(GLIBC_KEEPS, np.uint8)
    images, masks = (np.fromfile(p, np.uint8) if not p.stat().st_size else np.memmap(p, np.uint8, "r") for p in paths)
    return np.asarray(images).reshape(-1, size, size), np.asarray(masks).reshape(-1, -(-(size**2) // 8))


def open_dataset(data_dir: str | Path, name: str) -> Dataset:
    """Opens a built dataset. Raises BuildError where it is not built, naming those that are, or is damaged."""
    directory = _directory(Path(data_dir), name)
    if directory is None:
        built = ", ".join(list_datasets(data_dir)) or "none"
        raise BuildError(f"dataset {name!r} is not built in {data_dir}; there: {built}. `universeg build` makes one")
    try:
        with np.load(directory / "index.npz") as arrays:
            columns: dict[str, Any] = {k: tuple(v.tolist()) if v.dtype.kind == "U" else v for k, v in arrays.items()}
        index = Index(**columns)
        fields = _read_json(directory / "metadata.json")
        meta = DatasetMeta(**{**fields, "labels": {int(i): label for i, label in fields["labels"].items()}})
        fingerprint = _read_json(directory / "build_report.json")["fingerprint"]
    except DAMAGE as error:
        raise BuildError(
            f"{directory} is damaged ({type(error).__name__}: {error}); build it again with --overwrite"
        ) from error
    return Dataset(meta, index, fingerprint, str(directory.resolve()))


def list_datasets(data_dir: str | Path) -> list[str]:
    """Lists the datasets built in a folder, sorted by name."""
    data_dir = Path(data_dir)
    names = {path.name.removeprefix(".").removesuffix(".previous") for path in data_dir.glob("*")}
    return sorted(name for name in names if _directory(data_dir, name))


def read_report(data_dir: str | Path, name: str) -> BuildReport | None:
    """The report of a dataset; None where it is not built, is damaged or has the fields of another version."""
    directory = _directory(Path(data_dir), name)
    try:
        report = _read_json(directory / "build_report.json") if directory else {}
    except DAMAGE:
        return None  # the caller builds it again
    if report.keys() != {column.name for column in dataclasses.fields(BuildReport)}:
        return None
    return BuildReport(**{**report, "ignored": tuple(report["ignored"]), "notes": tuple(report["notes"])})


def _check_unchanged(directory: str, fingerprint: str) -> None:
    if _read_json(Path(directory) / "build_report.json")["fingerprint"] != fingerprint:
        raise BuildError(f"{directory} was built again since it was opened; open it again")


def _directory(data_dir: Path, name: str) -> Path | None:
    """The directory of a dataset, .<name>.previous after a build that died between its two renames."""
    for place in (data_dir / name, data_dir / f".{name}.previous"):
        if (place / VERSION / "build_report.json").exists():
            return place / VERSION
    return None


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
