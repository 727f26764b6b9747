"""A segmenter in other processes of this machine: how one is made there, and what is handed to it."""

import functools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict

from universeg_jax.prediction.predictor import Options, Predictor, Segmenter
from universeg_jax.prediction.support import Support
from universeg_jax.startup import use_compilation_cache

Done = TypeVar("Done")
_WORKER: list[Segmenter] = []  # of a process that in_processes started


def how_to_make(segmenter: Segmenter) -> Callable[[], Segmenter]:
    """A function for another process: programs are compiled there."""
    predictor = segmenter.predictor
    start = (jax.device_get(predictor.params), predictor.config.to_json(), segmenter.support, segmenter.options)
    return functools.partial(_make_segmenter, *start)


def _make_segmenter(params: Any, config: str, support: Support, options: Options) -> Segmenter:
    use_compilation_cache()
    return Predictor(params, ConfigDict(json.loads(config))).segmenter(support, options)


def in_processes(
    predict: Callable[..., Done], make_segmenter: Callable[[], Segmenter], work: Iterable[Sequence[Any]], jobs: int
) -> Iterator[Done]:
    """predict(segmenter, *task) of each task, in the order in which they are done; a few at a time are handed out."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, spawn, _start_worker, (make_segmenter,))
    waiting: set[Future] = set()
    try:
        for task in work:
            waiting.add(pool.submit(_in_worker, predict, task))
            if len(waiting) >= 2 * jobs:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(make_segmenter: Callable[[], Segmenter]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the file at hand is finished
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _WORKER.append(make_segmenter())


def _end_with_parent() -> None:
    """A killed job leaves nobody at work who would write when it is started again."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _in_worker(predict: Callable[..., Done], task: Sequence[Any]) -> Done:
    return predict(_WORKER[0], *task)
