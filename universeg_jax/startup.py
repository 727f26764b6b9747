"""What a process settles with JAX: where compiled programs are kept, determinism, and the other hosts of a run."""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

CACHE = "~/.cache/universeg_jax"
# For what runs once or twice, where compiling takes most of the time: the program is slower, and compiled much sooner.
jit_for_once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Interrupted(Exception):
    """A SIGTERM came in the middle of what can be done again."""


def use_compilation_cache() -> None:
    """Keeps compiled programs in ~/.cache/universeg_jax, where later processes find them.

    JAX_COMPILATION_CACHE_DIR chooses another place; JAX_ENABLE_COMPILATION_CACHE=0 keeps none.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(CACHE).expanduser()))


def make_deterministic() -> None:
    """A GPU then gives the same bits each time, at some cost in speed. A CPU always does."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def join_hosts(coordinator: str = "", process_count: int | None = None, process_index: int | None = None) -> None:
    """Makes this process one of several that train together.

    Without arguments TPU pods, Slurm, Open MPI and Kubernetes are asked; elsewhere give the address host:port of
    process 0, how many processes there are, and which this one is. A host that is silent for 30 s ends the others.
    """
    jax.distributed.initialize(
        coordinator_address=coordinator or None,
        num_processes=process_count,
        process_id=process_index,
        heartbeat_timeout_seconds=30,
        initialization_timeout=300,
    )


def wait_for_all_hosts(what: str) -> None:
    """Returns once every host has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def when_to_stop() -> Iterator[tuple[Callable[[int], bool], Callable[[], None]]]:
    """Two functions for a SIGTERM, which clusters send before they take a machine.

    The first, of a step, says whether to save and end there; every host hears the same. The second raises Interrupted
    once the signal came, for what takes long between two steps; with several hosts it never does, since JAX holds the
    signal then until they agree on a step.
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
