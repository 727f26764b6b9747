"""The one TFDS builder that every source goes through: cases → examples → records, index, table of pixels, report.

Whatever is built here is read by `dataset.py`.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
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

from universeg_jax.data.dataset import (
    IMAGE_TABLE,
    MASK_TABLE,
    SLICINGS,
    SPLIT,
    VERSION,
    BuildError,
    BuildReport,
    DatasetMeta,
    Index,
)
from universeg_jax.data.staging import fingerprint_of, open_workshop, swap
from universeg_jax.readers.cases import Example
from universeg_jax.readers.errors import ImageError

tfds.disable_progress_bar()  # ours spans reading and preprocessing, which is where the time goes

TEXTS = ("subject", "name", "subset", "modality", "slicing")
SECONDS_TO_START = 2.0  # of worker processes: a folder that is built sooner is built without them


@dataclass(frozen=True)
class Fleet:
    """Workers of a Beam pipeline: Beam's own options, or so many processes of this machine where there are none."""

    options: tuple[str, ...]
    processes: int


def worker_pool(workers: int | Fleet) -> contextlib.AbstractContextManager[Executor | Fleet | None]:
    """Processes for `build`, to be shared by several; None for fewer than 2 workers. A fleet is left as it is.

    Spawned: a fork of a process with JAX's threads can hang. So a script that calls this needs `if __name__ ==
    "__main__":` around what it does.
    """
    if isinstance(workers, Fleet):
        return contextlib.nullcontext(workers)
    return ProcessPoolExecutor(workers, get_context("spawn")) if workers > 1 else contextlib.nullcontext()


def build(
    meta: DatasetMeta,
    cases: Sequence[Any],
    make_examples: Callable[[Any], list[Example]],
    data_dir: str | Path,
    workers: int | Executor | Fleet | None = 1,
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
    with open_workshop(data_dir, meta.name) as workshop:
        log, table = _Log(), _Table(workshop)
        if isinstance(workers, Fleet):
            builder = _prepare_by_beam(meta, cases, make_examples, workshop, workers, log, table)
        else:
            examples = _examples(meta, cases, make_examples, pool, log, table)
            keyed = ((row, _features(example)) for row, example in enumerate(examples))
            builder = _prepare(meta, keyed, workshop)
        built = Path(builder.data_dir)
        table.finish(built)
        index = log.index()
        np.savez(built / "index.npz", **{name: np.asarray(value) for name, value in vars(index).items()})
        fingerprint = fingerprint_of(built)
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
        swap(data_dir, meta.name, built.parent)
    return report


def _prepare(meta: DatasetMeta, keyed: Any, workshop: Path, download_config: Any = None) -> Any:
    """Writes the records of (key, features), or of a Beam transform that gives them; returns TFDS's builder."""
    builder = _builder_class(meta, keyed)(data_dir=workshop)
    try:
        # TFDS announces downloads; there are none.
        with contextlib.redirect_stdout(io.StringIO()), _deterministic_records():
            builder.download_and_prepare(file_format="array_record", download_config=download_config)
    except RuntimeError as error:
        if "Failed to finalize writing" in str(error):  # so TFDS reports a full disk, among others
            raise BuildError(f"{meta.name} cannot be written in {workshop.parent}: {error}") from error
        raise
    return builder


def _prepare_by_beam(
    meta: DatasetMeta,
    cases: Sequence[Any],
    make_examples: Callable[[Any], list[Example]],
    workshop: Path,
    workers: Fleet,
    log: "_Log",
    table: "_Table",
) -> Any:
    try:
        from universeg_jax.data import beam
    except ModuleNotFoundError as error:
        raise BuildError(f"--beam needs Apache Beam ({error}); pip install 'universeg_jax[beam]'") from error
    dropped, attempt = workshop / "dropped", functools.partial(_attempt, make_examples, meta)
    transform = beam.Examples(cases, attempt, _features, dropped)
    options = beam.pipeline_options(workers.options, workers.processes)
    try:
        builder = _prepare(meta, transform, workshop, tfds.download.DownloadConfig(beam_options=options))
    except RuntimeError as error:
        if "total number of generated examples is 0" in str(error):
            reasons = "build it without --beam to see the reasons"
            raise BuildError(f"{meta.name}: no example is left of {len(cases)} cases; {reasons}") from error
        raise
    log.dropped += beam.read_failures(dropped, cases)
    for record in tfds.builder_from_directory(builder.data_dir).as_data_source(split=SPLIT):
        text = {name: record[name].decode() for name in TEXTS}
        example = Example(
            record["image"], record["masks"], tuple(record["labels"].tolist()), axis=record["axis"], **text
        )
        log.add(example)
        table.add(example)
    return builder


def _features(example: Example) -> dict[str, Any]:
    return {**vars(example), "labels": np.asarray(example.labels, np.int32)}


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


class _Table:
    """The pixels of all examples in two files, which `Dataset.gather` maps into memory."""

    def __init__(self, directory: Path):
        self.paths = [directory / name for name in (IMAGE_TABLE, MASK_TABLE)]
        self.files = [path.open("wb") for path in self.paths]

    def add(self, e: Example) -> None:
        self.files[0].write(np.ascontiguousarray(e.image))
        self.files[1].write(np.packbits(e.masks.reshape(len(e.masks), e.image.size), axis=1))

    def finish(self, directory: Path) -> None:
        for path, file in zip(self.paths, self.files, strict=True):
            file.close()
            os.replace(path, directory / path.name)


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
    table: "_Table",
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
            table.add(example)
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


def _builder_class(meta: DatasetMeta, keyed: Any) -> type[tfds.core.GeneratorBasedBuilder]:
    """A builder of this one dataset, kept out of TFDS's global registry."""

    def info(self) -> tfds.core.DatasetInfo:
        picture = (meta.size, meta.size)
        features = {
            "image": tfds.features.Tensor(shape=picture, dtype=np.uint8, encoding="bytes"),
            "masks": tfds.features.Tensor(shape=(None, *picture), dtype=np.uint8, encoding="bytes"),
            "labels": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "axis": tfds.features.Scalar(dtype=np.int32),
            **{name: tfds.features.Text() for name in TEXTS},
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

    members = {
        "__module__": __name__,
        "name": meta.name,
        "VERSION": tfds.core.Version(VERSION),
        "_info": info,
        "_split_generators": lambda self, _: {SPLIT: self._generate_examples()},
        "_generate_examples": lambda self: keyed,
    }
    with tfds.core.registered.skip_registration():
        return type(meta.name, (tfds.core.GeneratorBasedBuilder,), members)


class DeterministicSerializer(example_serializer.ExampleSerializer):
    """TFDS writes the fields of a record in an order that differs between processes; here they are sorted."""

    def serialize_example(self, example):
        return self.get_tf_example(example).SerializeToString(deterministic=True)


def _deterministic_records() -> contextlib.AbstractContextManager:
    """The class itself is replaced, not its method: so workers of Beam, which get it pickled, have it too."""
    return mock.patch.object(example_serializer, "ExampleSerializer", DeterministicSerializer)
