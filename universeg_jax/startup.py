"""Process-wide settings of JAX: the compilation cache, determinism, several hosts, and SIGTERM."""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from universeg_jax.download import cache_folder

# For programs that run once or twice: they compile much faster and run slower.
jit_for_once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def compiler_options() -> dict[str, Any] | None:
    """Options for a program that runs often: on a CPU, less effort, which takes 60 % of the time and costs no speed.

    A level that XLA_FLAGS sets is left alone. Asks JAX for its backend, so call it after `join_hosts`.
    """
    chosen = "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
    return None if chosen or jax.default_backend() != "cpu" else {"xla_backend_optimization_level": 1}


class Interrupted(Exception):
    """A SIGTERM arrived during work that can be repeated."""


def use_compilation_cache() -> None:
    """Keeps compiled programs in `cache_folder()` for later processes.

    JAX_COMPILATION_CACHE_DIR chooses another folder; JAX_ENABLE_COMPILATION_CACHE=0 disables the cache.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))


def make_deterministic() -> None:
    """Makes a GPU give the same bits each time, at some cost in speed; a CPU always does."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def join_hosts(coordinator: str = "", process_count: int | None = None, process_index: int | None = None) -> None:
    """Joins the other processes that train together.

    TPU pods, Slurm, Open MPI and Kubernetes need no arguments; elsewhere give the address host:port of process 0, the
    number of processes and the index of this one. A host that is silent for 30 s ends the others.
    """
    jax.distributed.initialize(
        coordinator_address=coordinator or None,
        num_processes=process_count,
        process_id=process_index,
        heartbeat_timeout_seconds=30,
        initialization_timeout=300,
    )


def wait_for_all_hosts(what: str) -> None:
    """Returns once every host has called it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def when_to_stop() -> Iterator[tuple[Callable[[int], bool], Callable[[], None]]]:
    """Yields two functions that report a SIGTERM, which clusters send before they take a machine.

    The first tells whether to save and stop at a step; every host gets the same answer. The second raises Interrupted
    after the signal, for long work between two steps. With several hosts it never does, since JAX then holds the signal
    until they agree on a step.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point, lambda: None
        return
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Interrupted

    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield lambda step: stop.is_set(), check
    finally:
        signal.signal(signal.SIGTERM, before)
