"""Prediction in several processes of this machine."""

import functools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict

from universeg_jax.prediction.options import Options
from universeg_jax.prediction.predictor import Predictor, Segmenter
from universeg_jax.prediction.support import Support
from universeg_jax.startup import use_compilation_cache

Result = TypeVar("Result")
_SEGMENTER: list[Segmenter] = []  # of this worker process


def in_processes(
    predict: Callable[..., Result], segmenter: Segmenter, work: Iterable[Sequence[Any]], jobs: int
) -> Iterator[Result]:
    """Yields predict(segmenter, *arguments) for each element of `work`, in the order of completion.

    Submits a few elements at a time. Each process loads the parameters and the support set and compiles by itself.
    """
    predictor = segmenter.predictor
    parts = (jax.device_get(predictor.params), predictor.config.to_json(), segmenter.support, segmenter.options)
    start = functools.partial(_start_worker, *parts)
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), start)
    waiting: set[Future[Result]] = set()
    try:
        for arguments in work:
            waiting.add(pool.submit(_predict, predict, arguments))
            if len(waiting) >= 2 * jobs:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(params: Any, config: str, support: Support, options: Options) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; workers finish their file
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a worker
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    use_compilation_cache()
    _SEGMENTER.append(Predictor(params, ConfigDict(json.loads(config))).segmenter(support, options))


def _exit_with(parent: BaseProcess) -> None:
    """Exits with the parent process, so that no orphan keeps writing."""
    parent.join()
    os._exit(1)


def _predict(predict: Callable[..., Result], arguments: Sequence[Any]) -> Result:
    return predict(_SEGMENTER[0], *arguments)
