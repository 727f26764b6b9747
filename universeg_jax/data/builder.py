"""The one TFDS builder that every source goes through, and how its datasets are opened again.

A dataset lies in <data_dir>/<name>/<version>/ as an ordinary TFDS dataset (array_record; `tfds.builder_from_directory`
opens it anywhere), with one split "examples" ("all" is reserved by TFDS) in the order of its cases. Beside the records
lie `index.npz`, what a task table needs without decoding a picture, and `build_report.json`, what was dropped and why.

A build works in the hidden folder <data_dir>/.<name>.building, which a lock holds, and ends with two renames: the
previous dataset to .<name>.previous, the new one to its place. Whenever it dies, one of the two can be opened.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer
from tqdm import tqdm

from universeg_jax.data import ROLES
from universeg_jax.data.images import ImageError
from universeg_jax.errors import UserError

tfds.disable_progress_bar()  # ours spans reading and preprocessing, which is where the time goes

VERSION = "1.0.0"  # raise it when the same files would give other records
SPLIT = "examples"
SLICINGS = ("image", "mid", "max")
SECONDS_TO_START = 2.0  # of worker processes: a folder that is built sooner is built without them


class BuildError(UserError):
    """A dataset that cannot be built or opened; says what is wrong and what to do."""


@dataclass(frozen=True)
class Example:
    """One picture with the binary masks of all labels that were drawn on it."""

    image: np.ndarray  # uint8 [size, size]
    masks: np.ndarray  # uint8 0/1 [L, size, size]
    labels: tuple[int, ...]  # id of each mask
    subject: str
    name: str
    subset: str = ""
    modality: str = ""
    axis: int = 0
    slicing: str = "image"  # one of SLICINGS


@dataclass(frozen=True)
class DatasetMeta:
    """What is known of a whole dataset."""

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
    """Columns over the examples and, in `mask_*`, over all their masks; codes point into the string tables."""

    subject: np.ndarray  # int32 [N]
    subset: np.ndarray  # int16 [N]
    modality: np.ndarray  # int16 [N]
    axis: np.ndarray  # int8 [N]
    slicing: np.ndarray  # int8 [N]
    mask_row: np.ndarray  # int32 [M], row of the example
    mask_position: np.ndarray  # int16 [M], which of the example's masks
    mask_label: np.ndarray  # int32 [M]
    mask_area: np.ndarray  # int32 [M], pixels
    subjects: tuple[str, ...]
    subsets: tuple[str, ...]
    modalities: tuple[str, ...]
    slicings: tuple[str, ...]


@dataclass(frozen=True)
class BuildReport:
    """What a build did; build_report.json beside the dataset."""

    dataset: str
    role: str
    examples: int
    subjects: int
    labels: int  # that occur
    labels_never_seen: dict[str, str]  # id → name
    dropped: dict[str, str]  # case → what is wrong with its file
    dropped_by_problem: dict[str, int]
    ignored: tuple[str, ...]  # files of types that are not read
    input_digest: str  # of what it was built from, to build nothing twice
    fingerprint: str  # sha256 of all that was built


@dataclass(frozen=True)
class Dataset:
    """A built dataset: dataset[row] reads one example at random access. Picklable."""

    meta: DatasetMeta
    index: Index
    fingerprint: str  # sha256 of all that was built
    directory: str

    def __len__(self) -> int:
        return len(self.index.subject)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """{"image": uint8 [size, size], "masks": uint8 [L, size, size], "labels": int32 [L], …}; Text is bytes."""
        return _source(self.directory, self.fingerprint)[row]


@functools.lru_cache(maxsize=1024)
def _source(directory: str, fingerprint: str) -> Any:
    """One open reader a process and dataset."""
    if _read_json(Path(directory) / "build_report.json")["fingerprint"] != fingerprint:
        raise BuildError(f"{directory} was built again since it was opened; open it again")
    return tfds.builder_from_directory(directory).as_data_source(split=SPLIT)


def open_dataset(data_dir: str | Path, name: str) -> Dataset:
    """A built dataset; raises BuildError naming those that are there."""
    directory = _directory(Path(data_dir), name)
    if directory is None:
        built = ", ".join(list_datasets(data_dir)) or "none"
        raise BuildError(f"dataset {name!r} is not built in {data_dir}; there: {built}. `universeg build` makes one")
    with np.load(directory / "index.npz") as arrays:
        index = Index(**{k: tuple(v.tolist()) if v.dtype.kind == "U" else v for k, v in arrays.items()})
    meta = _read_json(directory / "metadata.json")
    meta["labels"] = {int(i): label for i, label in meta["labels"].items()}
    fingerprint = _read_json(directory / "build_report.json")["fingerprint"]
    return Dataset(DatasetMeta(**meta), index, fingerprint, str(directory.resolve()))


def list_datasets(data_dir: str | Path) -> list[str]:
    """Names of the datasets built in a folder, sorted."""
    data_dir = Path(data_dir)
    names = {path.name.removeprefix(".").removesuffix(".previous") for path in data_dir.glob("*")}
    return sorted(name for name in names if _directory(data_dir, name))


def read_report(data_dir: str | Path, name: str) -> BuildReport | None:
    """The report of a dataset, None where it is not built or was built by a version with another report."""
    directory = _directory(Path(data_dir), name)
    report = _read_json(directory / "build_report.json") if directory else {}
    if report.keys() != {column.name for column in dataclasses.fields(BuildReport)}:
        return None
    return BuildReport(**{**report, "ignored": tuple(report["ignored"])})


def _directory(data_dir: Path, name: str) -> Path | None:
    """Where a dataset lies; in .<name>.previous after a build that died between its two renames."""
    for place in (data_dir / name, data_dir / f".{name}.previous"):
        if (place / VERSION / "build_report.json").exists():
            return place / VERSION
    return None


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def worker_pool(workers: int) -> contextlib.AbstractContextManager[Executor | None]:
    """Processes for `build`, to be shared by several; None for fewer than 2 workers.

    Spawned: a fork of a process with JAX's threads can hang. So a script that calls this needs `if __name__ ==
    "__main__":` around what it does.
    """
    return ProcessPoolExecutor(workers, get_context("spawn")) if workers > 1 else contextlib.nullcontext()


def build(
    meta: DatasetMeta,
    cases: Sequence[Any],
    make_examples: Callable[[Any], list[Example]],
    data_dir: str | Path,
    workers: int | Executor | None = 1,
    input_digest: str = "",
    ignored: tuple[str, ...] = (),
) -> BuildReport:
    """Builds <data_dir>/<name>/<version>/ and returns its report.

    make_examples(case) runs in `workers` processes (a number, or what `worker_pool` gives) and must be picklable then.
    A case that raises ImageError is dropped, counted and listed in the report by str(case); every other exception ends
    the build. Examples are written as they come, in the order of the cases: memory grows with the index, not with the
    pixels. The dataset appears whole or not at all, and a previous one stays usable until then. The same input gives
    the same bytes.
    """
    if isinstance(workers, int) and workers > 1:
        with worker_pool(workers) as pool:
            return build(meta, cases, make_examples, data_dir, pool, input_digest, ignored)
    pool = workers if isinstance(workers, Executor) else None
    data_dir = Path(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    with _workshop(data_dir, meta.name) as workshop:
        log = _Log()
        examples = _examples(meta, cases, make_examples, pool, log)
        builder = _builder_class(meta, examples)(data_dir=workshop)
        try:
            # TFDS announces downloads; there are none.
            with contextlib.redirect_stdout(io.StringIO()), _deterministic_records():
                builder.download_and_prepare(file_format="array_record")
        except RuntimeError as error:
            if "Failed to finalize writing" in str(error):  # so TFDS reports a full disk, among others
                raise BuildError(f"{meta.name} cannot be written in {data_dir}: {error}") from error
            raise
        built = Path(builder.data_dir)
        index = log.index()
        np.savez(built / "index.npz", **{name: np.asarray(value) for name, value in vars(index).items()})
        fingerprint = _fingerprint(built)
        if len(tfds.builder_from_directory(built).as_data_source(split=SPLIT)) != len(index.subject):
            raise BuildError(f"{meta.name}: the records just written in {data_dir} cannot be read; is the disk full?")
        seen = set(index.mask_label.tolist())
        report = BuildReport(
            dataset=meta.name,
            role=meta.role,
            examples=len(index.subject),
            subjects=len(index.subjects),
            labels=len(seen),
            labels_never_seen={str(i): name for i, name in meta.labels.items() if i not in seen},
            dropped={case: f"{problem} ({detail})" if detail else problem for case, problem, detail in log.dropped},
            dropped_by_problem=dict(Counter(problem for _, problem, _ in log.dropped)),
            ignored=ignored,
            input_digest=input_digest,
            fingerprint=fingerprint,
        )
        (built / "build_report.json").write_text(json.dumps(vars(report), indent=2) + "\n", encoding="utf-8")
        _swap(data_dir, meta.name, built.parent)
    return report


@dataclass
class _Log:
    """What passed by while it was written, in columns; the index is made of it."""

    examples: list[tuple[str, str, str, int, int]] = field(default_factory=list)
    masks: list[tuple[int, int, int, int]] = field(default_factory=list)
    dropped: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, e: Example) -> None:
        row = len(self.examples)
        self.examples.append((e.subject, e.subset, e.modality, e.axis, SLICINGS.index(e.slicing)))
        areas = e.masks.sum((1, 2), dtype=np.int64).tolist()
        self.masks += [(row, at, *of_mask) for at, of_mask in enumerate(zip(e.labels, areas, strict=True))]

    def index(self) -> Index:
        subjects, subsets, modalities, axis, slicing = zip(*self.examples, strict=True)
        subject, subjects = _codes(subjects, np.int32)
        subset, subsets = _codes(subsets, np.int16)
        modality, modalities = _codes(modalities, np.int16)
        row, position, label, area = np.array(self.masks, np.int64).reshape((-1, 4)).T
        return Index(
            subject, subset, modality, np.array(axis, np.int8), np.array(slicing, np.int8),
            row.astype(np.int32), position.astype(np.int16), label.astype(np.int32), area.astype(np.int32),
            subjects, subsets, modalities, SLICINGS,
        )  # fmt: skip


def _codes(values: Sequence[str], dtype: type) -> tuple[np.ndarray, tuple[str, ...]]:
    table = tuple(sorted(set(values)))
    code = {value: i for i, value in enumerate(table)}
    return np.array([code[value] for value in values], dtype), table


def _examples(
    meta: DatasetMeta,
    cases: Sequence[Any],
    make_examples: Callable[[Any], list[Example]],
    pool: Executor | None,
    log: _Log,
) -> Iterator[Example]:
    """Checked examples in the order of the cases; what is dropped goes to the log."""
    attempt = functools.partial(_attempt, make_examples, meta)
    started = time.perf_counter()
    first = [attempt(case) for case in cases[:1]]
    if pool and (time.perf_counter() - started) * len(cases) > SECONDS_TO_START:
        rest = _map_in_order(pool, attempt, cases[1:])
    else:
        rest = map(attempt, cases[1:])
    results = tqdm(itertools.chain(first, rest), f"build {meta.name}", len(cases), unit="case", leave=False, delay=2)
    for case, result in zip(cases, results, strict=True):
        if isinstance(result, ImageError):
            # Without the folder, so that the report does not depend on where the files lie.
            log.dropped.append((str(case), result.problem, result.detail))
            continue
        for example in result:
            log.add(example)
            yield example
    if not log.examples:
        reasons = "; ".join(f"{case}: {problem}" for case, problem, _ in log.dropped[:3]) or "no cases were found"
        raise BuildError(f"{meta.name}: no example is left of {len(cases)} cases ({reasons})")


def _attempt(make_examples: Callable[[Any], list[Example]], meta: DatasetMeta, case: Any) -> list[Example] | ImageError:
    try:
        examples = make_examples(case)
    except ImageError as error:
        return error
    for example in examples:
        _check(meta, example)
    return examples


def _check(meta: DatasetMeta, example: Example) -> None:
    where = f"{meta.name}, example {example.name!r}"
    square, count = (meta.size, meta.size), len(example.labels)
    for array, shape, name in ((example.image, square, "image"), (example.masks, (count, *square), "masks")):
        if array.dtype != np.uint8 or array.shape != shape:
            raise BuildError(f"{where}: {name} is {array.dtype} {array.shape}; it must be uint8 {shape}")
    if example.masks.size and example.masks.max() > 1:
        raise BuildError(f"{where}: masks hold {example.masks.max()}; they must be 0 or 1")
    if len(set(example.labels)) < count or not set(example.labels) <= set(meta.labels):
        raise BuildError(f"{where}: label ids {example.labels} must differ and have names; names: {meta.labels}")
    if example.slicing not in SLICINGS:
        raise BuildError(f"{where}: slicing {example.slicing!r}; choose one of {', '.join(SLICINGS)}")


def _map_in_order(pool: Executor, function: Callable, cases: Sequence[Any], chunk: int = 8) -> Iterator[Any]:
    """As pool.map, but only a few results wait in memory where the writer is slower than the processes."""
    waiting: deque = deque()
    remaining = iter(cases)
    try:
        while True:
            while len(waiting) < 16 and (some := list(itertools.islice(remaining, chunk))):
                waiting.append(pool.submit(_map_list, function, some))
            if not waiting:
                return
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise BuildError("a worker process died, perhaps for lack of memory; try fewer --workers") from error
    finally:
        for future in waiting:
            future.cancel()


def _map_list(function: Callable, cases: list[Any]) -> list[Any]:
    return [function(case) for case in cases]


def _builder_class(meta: DatasetMeta, examples: Iterator[Example]) -> type[tfds.core.GeneratorBasedBuilder]:
    """A builder of this one dataset, kept out of TFDS's global registry."""

    def info(self) -> tfds.core.DatasetInfo:
        picture = (meta.size, meta.size)
        features = {
            "image": tfds.features.Tensor(shape=picture, dtype=np.uint8, encoding="bytes"),
            "masks": tfds.features.Tensor(shape=(None, *picture), dtype=np.uint8, encoding="bytes"),
            "labels": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "axis": tfds.features.Scalar(dtype=np.int32),
            **{name: tfds.features.Text() for name in ("subject", "name", "subset", "modality", "slicing")},
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{meta.name}: {meta.modality}. Labels: {', '.join(meta.labels.values())}.",
            features=tfds.features.FeaturesDict(features),
            citation=meta.citation,
            license=meta.licence,
            metadata=tfds.core.MetadataDict(dataclasses.asdict(meta)),
            disable_shuffling=True,
        )

    def generate(self):
        for row, example in enumerate(examples):
            yield row, {**vars(example), "labels": np.asarray(example.labels, np.int32)}

    members = {
        "__module__": __name__,
        "name": meta.name,
        "VERSION": tfds.core.Version(VERSION),
        "_info": info,
        "_split_generators": lambda self, _: {SPLIT: self._generate_examples()},
        "_generate_examples": generate,
    }
    with tfds.core.registered.skip_registration():
        return type(meta.name, (tfds.core.GeneratorBasedBuilder,), members)


def _deterministic_records() -> contextlib.AbstractContextManager:
    """TFDS writes the fields of a record in an order that differs between processes; here they are sorted."""

    def serialize(self, example):
        return self.get_tf_example(example).SerializeToString(deterministic=True)

    return mock.patch.object(example_serializer.ExampleSerializer, "serialize_example", serialize)


def _fingerprint(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        with path.open("rb") as file:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@contextlib.contextmanager
def _workshop(data_dir: Path, name: str) -> Iterator[Path]:
    """The hidden folder that a dataset is built in, for one process at a time; what a dead one left is cleared."""
    target = data_dir / name
    if target.exists() and not (target.is_dir() and all((p / "build_report.json").exists() for p in target.iterdir())):
        raise BuildError(f"{target} exists and is no built dataset: it is left alone; take another name or data_dir")
    workshop = data_dir / f".{name}.building"
    workshop.mkdir(exist_ok=True)
    with (workshop / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))  # else its holder has just removed it
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            raise BuildError(f"{name} is being built in {data_dir} by another process; wait for it")
        try:
            _mend(data_dir, name)
            for leftover in workshop.iterdir():
                if leftover.is_dir():
                    shutil.rmtree(leftover)
            yield workshop
        finally:
            shutil.rmtree(workshop, ignore_errors=True)  # what cannot be removed must not hide what went wrong


def _swap(data_dir: Path, name: str, built: Path) -> None:
    """Puts the new dataset in the old one's place by two renames."""
    target, previous = data_dir / name, data_dir / f".{name}.previous"
    if target.exists():
        os.replace(target, previous)
    try:
        os.replace(built, target)
    except OSError:
        _mend(data_dir, name)
        raise
    _mend(data_dir, name)


def _mend(data_dir: Path, name: str) -> None:
    """Ends a swap, back or forth: the previous dataset goes where it is the only one, else it is removed."""
    target, previous = data_dir / name, data_dir / f".{name}.previous"
    if previous.exists() and not target.exists():
        os.replace(previous, target)
    elif previous.exists():
        shutil.rmtree(previous)
