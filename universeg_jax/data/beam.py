"""Making examples in a Beam pipeline, through TFDS's Beam support: `pip install 'universeg_jax[beam]'`.

Workers read the cases and write the records; the process that started them then reads the records once, for the index
and the pixel table. Workers need the same files under the same paths, and a shared data_dir.
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from universeg_jax.errors import UserError
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.label_fit import Fit
from universeg_jax.readers.notes import Notes

KEYS_PER_CASE = 1 << 24  # more than the examples of a case; keys sort by case, then by example
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def pipeline_options(options: Sequence[str], processes: int) -> PipelineOptions:
    """Beam's own options; without any, `processes` local processes."""
    local = (
        f"--runner={LOCAL_RUNNER}",
        f"--direct_num_workers={processes}",
        "--direct_running_mode=multi_processing",
    )
    return PipelineOptions([*(options or local)])


class MakeExamples(beam.PTransform):
    """Yields (key, features) of all examples; dropped cases go to files dropped*, and notes to files notes*."""

    def __init__(self, cases: Sequence[Any], attempt: Callable[[Any], Any], to_features: Callable, folder: Path):
        super().__init__()
        self.cases, self.attempt, self.to_features, self.folder = list(cases), attempt, to_features, str(folder)

    def expand(self, pipeline):
        results = (
            pipeline
            | beam.Create(list(enumerate(self.cases)))
            | beam.Reshuffle()
            | "case" >> beam.MapTuple(functools.partial(_numbered, self.attempt))
        )
        _ = (
            results
            | "failures" >> beam.FlatMapTuple(_failures)
            | "drop" >> beam.io.WriteToText(f"{self.folder}/dropped")
        )
        _ = results | "notes" >> beam.FlatMapTuple(_notes) | "note" >> beam.io.WriteToText(f"{self.folder}/notes")
        return results | "examples" >> beam.FlatMapTuple(functools.partial(_keyed, self.to_features))


def read_failures(folder: Path, cases: Sequence[Any]) -> list[tuple[str, str, str]]:
    """Reads (case, problem, detail) in the order of the cases. Raises UserError where a case must end the build."""
    failures = _read_lines(folder, "dropped")
    for _, problem, _, ends_the_build in failures:
        if ends_the_build:
            raise UserError(problem)
    return [(str(cases[number]), problem, detail) for number, problem, detail, _ in failures]


def read_notes(folder: Path) -> tuple[Notes, dict[str, tuple[Fit | None, ...]]]:
    """Reads the notes on the files of all cases, in their order, and the fits of the labels of each example."""
    notes, fits = Notes(), {}
    for _, pairs, of_examples in _read_lines(folder, "notes"):
        for file, text in pairs:
            notes.add(file, text)
        for name, of_labels in of_examples:
            fits[name] = tuple(fit and Fit(*fit) for fit in of_labels)
    return notes, fits


def _read_lines(folder: Path, name: str) -> list[list[Any]]:
    return sorted(json.loads(line) for path in folder.glob(f"{name}*") for line in path.read_text().splitlines())


def _numbered(attempt: Callable[[Any], Any], number: int, case: Any) -> tuple[int, Any]:
    try:
        return number, attempt(case)
    except UserError as error:  # Beam would bury its one line among its own
        return number, error


def _failures(number: int, result: Any) -> Iterator[str]:
    if isinstance(result, ImageError):
        yield json.dumps([number, result.problem, result.detail, False])
    elif isinstance(result, UserError):
        yield json.dumps([number, str(result), "", True])


def _notes(number: int, result: Any) -> Iterator[str]:
    examples = [] if isinstance(result, UserError) else result
    if examples:
        pairs = [pair for example in examples for pair in example.notes.pairs()]
        fits = [(example.name, [fit and astuple(fit) for fit in example.fits]) for example in examples]
        yield json.dumps([number, pairs, fits])


def _keyed(to_features: Callable, number: int, result: Any) -> Iterator[tuple[int, Any]]:
    for position, example in enumerate([] if isinstance(result, UserError) else result):
        yield number * KEYS_PER_CASE + position, to_features(example)
