"""The one builder for every source: cases → examples → records, index, pixel table and report.

`dataset.py` reads what is built here.
"""

import contextlib
import functools
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from universeg_jax.data.dataset import SLICINGS, SPLIT, BuildError, BuildReport, DatasetMeta
from universeg_jax.data.staging import fingerprint_of, open_staging, swap
from universeg_jax.data.tfds_writer import from_features, to_features, write_records
from universeg_jax.data.writers import IndexWriter, PixelWriter
from universeg_jax.readers.cases import Example
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.label_fit import Fit, shared_mistake
from universeg_jax.readers.notes import Notes

SECONDS_TO_START = 2.0  # of worker processes; a folder that is built faster is built without them


@dataclass(frozen=True)
class BeamOptions:
    """Beam's own pipeline options; without any, `processes` local processes."""

    options: tuple[str, ...]
    processes: int


Workers = int | Executor | BeamOptions


class _Output:
    """Collects the index, the pixel table and the dropped cases while records are written."""

    def __init__(self, staging: Path):
        self.index, self.pixels = IndexWriter(), PixelWriter(staging)
        self.dropped: list[tuple[str, str, str]] = []  # (case, problem, detail)
        self.notes = Notes()
        self.fits: dict[int, list[tuple[str, Fit | None]]] = {}  # label → (example, fit to its image)

    def add(self, example: Example) -> None:
        self.index.add(example)
        self.pixels.add(example)
        self.notes.update(example.notes)
        for label, fit in zip(example.labels, example.fits, strict=False):
            self.fits.setdefault(label, []).append((example.name, fit))

    def all_notes(self) -> Notes:
        """The notes on the files, and what all labels of a class share, such as that they are inverted."""
        for label, fits in sorted(self.fits.items()):
            if mistake := shared_mistake(fits):
                self.notes.add("labels", (f"label {label}: " if len(self.fits) > 1 else "") + mistake[1])
        return self.notes


def worker_pool(workers: Workers) -> contextlib.AbstractContextManager[Workers]:
    """Worker processes to be shared by several calls of `build`; other workers than a number above 1 are left as is.

    Processes are spawned, because a fork of a process with JAX's threads can hang. So a script that calls this needs
    `if __name__ == "__main__":` around its code.
    """
    if isinstance(workers, int) and workers > 1:
        return ProcessPoolExecutor(workers, get_context("spawn"))
    return contextlib.nullcontext(workers)


def build(
    meta: DatasetMeta,
    cases: Sequence[Any],
    make_examples: Callable[[Any], list[Example]],
    data_dir: str | Path,
    workers: Workers = 1,
    input_digest: str = "",
    ignored: tuple[str, ...] = (),
    notes: Notes | None = None,
) -> BuildReport:
    """Builds <data_dir>/<name>/<version>/ and returns its report.

    make_examples(case) runs in `workers` processes (a number, or the result of `worker_pool`) and must then be
    picklable. A case that raises ImageError is dropped, counted and listed in the report by str(case); any other
    exception ends the build. Examples are written in the order of the cases: memory grows with the index, not with the
    pixels. The dataset appears as a whole or not at all, and a previous one stays usable until then. The same input
    gives the same bytes.
    """
    data_dir = Path(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    with worker_pool(workers) as pool, open_staging(data_dir, meta.name) as staging:
        output = _Output(staging)
        output.notes.update(notes or Notes())
        if isinstance(pool, BeamOptions):
            built = _write_by_beam(meta, cases, make_examples, staging, pool, output)
        else:
            examples = _examples(meta, cases, make_examples, pool if isinstance(pool, Executor) else None, output)
            built = write_records(meta, ((row, to_features(e)) for row, e in enumerate(examples)), staging)
        output.pixels.finish(built)
        index = output.index.index()
        np.savez(built / "index.npz", allow_pickle=False, **{k: np.asarray(v) for k, v in vars(index).items()})
        fingerprint = fingerprint_of(built)
        if len(tfds.builder_from_directory(built).as_data_source(split=SPLIT)) != len(index.subject):
            raise BuildError(f"{meta.name}: the records just written in {data_dir} cannot be read; is the disk full?")
        labels = set(index.mask_label.tolist())
        report = BuildReport(
            dataset=meta.name,
            role=meta.role,
            examples=len(index.subject),
            subjects=len(index.subjects),
            labels=len(labels),
            labels_never_seen={str(i): name for i, name in meta.labels.items() if i not in labels},
            dropped={case: f"{problem} ({detail})" if detail else problem for case, problem, detail in output.dropped},
            dropped_by_problem=dict(Counter(problem for _, problem, _ in output.dropped)),
            ignored=ignored,
            notes=output.all_notes().lines(),
            input_digest=input_digest,
            fingerprint=fingerprint,
        )
        (built / "build_report.json").write_text(json.dumps(vars(report), indent=2) + "\n", encoding="utf-8")
        swap(data_dir, meta.name, built.parent)
    return report


def _write_by_beam(
    meta: DatasetMeta,
    cases: Sequence[Any],
    make_examples: Callable[[Any], list[Example]],
    staging: Path,
    workers: BeamOptions,
    output: _Output,
) -> Path:
    try:
        from universeg_jax.data import beam
    except ModuleNotFoundError as error:
        raise BuildError(f"--beam needs Apache Beam ({error}); pip install 'universeg_jax[beam]'") from error
    attempt = functools.partial(_attempt, make_examples, meta)
    transform = beam.MakeExamples(cases, attempt, to_features, staging)
    options = beam.pipeline_options(workers.options, workers.processes)
    try:
        built = write_records(meta, transform, staging, tfds.download.DownloadConfig(beam_options=options))
    except RuntimeError as error:
        if "total number of generated examples is 0" in str(error):
            remedy = "build it without --beam to see the reasons"
            raise BuildError(f"{meta.name}: no example is left of {len(cases)} cases; {remedy}") from error
        raise
    output.dropped += beam.read_failures(staging, cases)
    said, fits = beam.read_notes(staging)
    output.notes.update(said)
    for record in tfds.builder_from_directory(built).as_data_source(split=SPLIT):
        example = from_features(record)
        output.add(replace(example, fits=fits.get(example.name, ())))
    return built


def _examples(
    meta: DatasetMeta,
    cases: Sequence[Any],
    make_examples: Callable[[Any], list[Example]],
    pool: Executor | None,
    output: _Output,
) -> Iterator[Example]:
    """Yields checked examples in the order of the cases, and adds them and the dropped cases to the output."""
    attempt = functools.partial(_attempt, make_examples, meta)
    started = time.perf_counter()
    first = [attempt(case) for case in cases[:1]]
    if pool and (time.perf_counter() - started) * len(cases) > SECONDS_TO_START:
        rest = _map_in_order(pool, attempt, cases[1:])
    else:
        rest = map(attempt, cases[1:])
    results = tqdm(itertools.chain(first, rest), f"build {meta.name}", len(cases), unit="case", leave=False, delay=2)
    empty = True
    for case, result in zip(cases, results, strict=True):
        if isinstance(result, ImageError):
            # Without the path, so that the report does not depend on where the files lie.
            output.dropped.append((str(case), result.problem, result.detail))
            continue
        for example in result:
            empty = False
            output.add(example)
            yield example
    if empty:
        reasons = "; ".join(f"{case}: {problem}" for case, problem, _ in output.dropped[:3]) or "no cases were found"
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
    """Like pool.map, but holds only a few results in memory where the writer is slower than the processes."""
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
