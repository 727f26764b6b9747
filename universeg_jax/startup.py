"""What a process settles with JAX: where compiled programs are kept, determinism, and the other hosts of a run."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import jax
from jax.experimental import multihost_utils

CACHE = "~/.cache/universeg_jax"


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


def when_to_stop() -> Callable[[int], bool]:
    """step → whether to save and end there because of a SIGTERM, as before a preemption; every host hears the same."""
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point  # JAX holds the signal then, and agrees on the step
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return lambda step: stop.is_set()
