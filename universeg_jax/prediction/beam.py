"""`universeg predict --beam`: the same per-file function as a Beam pipeline; `pip install 'universeg_jax[beam]'`.

Workers write masks and, in a file of their own in <out>/.parts, a line for each that is whole; the process that started
them makes predictions.csv of these lines at the end, or when it is started again after a kill. They need the queries
and `out` under the same paths. The weights and the support travel with the pipeline.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.utils.shared import Shared

from universeg_jax.data.beam import pipeline_options


class PredictFile(beam.DoFn):
    """A task of predict_files.py → nothing but its masks and a line in a part file."""

    def __init__(self, predict: Callable[..., Any], make_segmenter: Callable[[], Any], parts: Path):
        self.predict, self.make_segmenter, self.parts, self.shared = predict, make_segmenter, str(parts), Shared()

    def setup(self) -> None:
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        self.segmenter = self.shared.acquire(self.make_segmenter)  # one for all threads of a process
        self.part = (Path(self.parts) / f"{uuid.uuid4().hex}.jsonl").open("a")

    def process(self, task: tuple) -> None:
        file, rows = self.predict(self.segmenter, *task)
        self.part.write(json.dumps([str(file), rows]) + "\n")
        self.part.flush()

    def teardown(self) -> None:
        self.part.close()


def _end_with_parent(parent: int) -> None:
    """A killed job leaves nobody at work here who would write when it is started again; others have no such parent."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def run_pipeline(
    predict: Callable[..., Any],
    make_segmenter: Callable[[], Any],
    work: Iterable[tuple],
    parts: Path,
    options: Sequence[str],
    jobs: int,
) -> None:
    """Leaves what was done in `parts`, a line [file, rows or why not] each. Raises OSError where a worker failed."""
    parts.mkdir(exist_ok=True)
    try:
        with beam.Pipeline(options=pipeline_options(options, jobs)) as pipeline:
            tasks = pipeline | beam.Create(list(work)) | beam.Reshuffle()
            _ = tasks | "predict" >> beam.ParDo(PredictFile(predict, make_segmenter, parts))
    except RuntimeError as error:  # with the whole traceback of the worker as its text
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise OSError(lines[-1].strip()) from error
