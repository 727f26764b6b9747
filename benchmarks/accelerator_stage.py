"""What the stages of `benchmarks.accelerator` share: their clock, their lines, what they compile, and tiny sizes."""

import argparse
import functools
import gzip
import json
import os
import statistics
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.kit import CHECKPOINT, die_with_parent
from benchmarks.lines import write_line
from universeg_jax.model.factory import param_shapes

RESULTS, FILE_MB = "results.jsonl", 16
COMPILED = "/jax/core/compile/backend_compile_duration"
LIGHT = ("noise", "flip_intensities")  # augmentation that compiles in a second
OVERRUN = 1.0  # seconds after its box at which a stage is cut, before the run would end it without a word
COMPILING = 0.5  # share of a box that may pass before measuring begins beside compilation
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


class Stage:
    """One stage in a process of its own: it writes lines at once and looks at the clock before each part."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.name, self.args = name, args
        self.started, self.until = time.time(), args.until or time.time() + 3600
        self.programs, self.compile_seconds, self.failed = 0, 0.0, 0
        self.names: set[str] = set()
        self.running: list[str] = []  # parts
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, seconds: float, **_: Any) -> None:
        if event == COMPILED:
            self.programs, self.compile_seconds = self.programs + 1, self.compile_seconds + seconds

    def left(self) -> float:
        """Seconds of the stage's box."""
        return self.until - time.time()

    def line(self, **row: Any) -> dict[str, Any]:
        row = {"stage": self.name, "at": round(time.time() - self.started, 1), **row}
        write_line(row, self.args.out / RESULTS)
        return row

    def compile(self, name: str, function: Callable, *inputs: Any, quick: bool = False) -> tuple[Any, dict[str, Any]]:
        """The compiled function, ahead of its first call and once only; and what is known of it.

        `quick` is for a program that is called once: compiled sooner, and slower.
        """
        assert name not in self.names, f"{name} is compiled twice"
        self.names.add(name)
        started = time.perf_counter()
        options = {"xla_backend_optimization_level": 0} if quick else None
        compiled = jax.jit(function).lower(*inputs).compile(compiler_options=options)
        seconds, memory = time.perf_counter() - started, compiled.memory_analysis()
        sizes = (memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes)
        return compiled, {"compile_seconds": round(seconds, 2), "memory_mb": round(sum(sizes) / 2**20, 1)}

    def part(self, name: str, needed: float, function: Callable, *inputs: Any) -> Any:
        """function(*inputs), or None with a line that says why: no time left, or what went wrong."""
        if self.left() < needed:
            self.line(skipped=name, seconds_left=round(self.left(), 1), seconds_needed=round(needed, 1))
            return None
        self.running.append(name)
        try:
            return function(*inputs)
        except Exception as error:  # the other parts still tell something; the line and the exit status say so
            self.failed += 1
            self.line(failed=name, error=f"{type(error).__name__}: {str(error)[:600]}")
            return None
        finally:
            self.running.remove(name)

    def wait_for(self, programs: Iterable[Future]) -> None:
        """Waits until all are compiled, or for half of the time that is left; the line says which.

        What is timed after the latter is timed beside compilation, which may disturb it.
        """
        began = time.time()
        self.running.append("compilation")
        done, pending = wait(programs, COMPILING * self.left())
        self.running.remove("compilation")
        self.line(compiled=len(done), still_compiling=len(pending), seconds=round(time.time() - began, 1))

    def result(self, program: Future) -> Any:
        """What was compiled, if it is in time. Raises TimeoutError."""
        try:
            return program.result(max(self.left(), 0.0))
        except TimeoutError:
            raise TimeoutError("is still being compiled") from None

    def end(self, **row: Any) -> None:
        """The line that says what was compiled; exits with status 1 where a part failed."""
        compiled = {"programs_compiled": self.programs, "compile_seconds": round(self.compile_seconds, 1)}
        self.line(**row, **compiled, failed=self.failed)
        os._exit(min(self.failed, 1))  # not held up by what is compiled still

    def cut_when_over(self) -> None:
        """From a thread of its own, ends a stage that overruns its box and says what it was doing."""

        def cut() -> None:
            self.failed += 1
            self.end(cut=list(self.running), seconds_over=round(-self.left(), 1))

        timer = threading.Timer(self.left() + OVERRUN, cut)
        timer.daemon = True
        timer.start()


def start(name: str, doc: str, parts: bool = False) -> Stage:
    """Reads the flags that all stages take."""
    die_with_parent()  # no stage outlives the run
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="in place of the kit's")
    parser.add_argument("--data_dir", type=Path, help="the unpacked datasets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--until", type=float, default=0.0, help="seconds since the epoch at which the stage must end")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to rehearse on a CPU")
    parser.add_argument("--profile", action="store_true")
    if parts:
        parser.add_argument("--part", default="", help="of what runs in a process of its own")
    args = parser.parse_args()
    args.checkpoint = args.checkpoint or args.kit / CHECKPOINT
    stage = Stage(name, args)
    stage.cut_when_over()
    return stage


def shrink(config: ConfigDict) -> ConfigDict:
    """A config that trains in seconds on a CPU; its model is left as it is."""
    config.update({"image_size": 32, "support_size": 3, "batch_size": 2, "read_threads": 2})
    config.eval.update({"support_size": 2, "max_cases": 1, "batch_size": 4})
    config.kinds.superpixel = 0.0
    config.optimizer.name = "adam"
    config.synthesis.weights = {"shapes": 1.0, "tubes": 0.0, "blobs": 0.0, "nests": 0.0}
    config.synthesis.warp_scales = (16, 32, 64)
    config.superpixel.cells = (3, 6)
    without(config, [name for level in ("task", "in_task") for name in config.augment[level] if name not in LIGHT])
    return config


def drawn_params(model: Any) -> Any:
    """Parameters as large as usual ones, from the host: what initialises them would have to be compiled."""
    rng = np.random.default_rng(0)

    def draw(x: Any) -> np.ndarray:
        scale = np.sqrt(2 / np.prod(x.shape[:-1])) if len(x.shape) > 1 else 0.1
        return (scale * rng.standard_normal(x.shape)).astype(np.float32)

    return jax.tree.map(draw, param_shapes(model))


def without(config: ConfigDict, names: list[str]) -> None:
    """Turns these operations of augmentation off."""
    for level in ("task", "in_task"):
        for name in config.augment[level]:
            if name in names and "p" in config.augment[level][name]:
                config.augment[level][name].p = 0.0


def seconds_of(
    run: Callable[[], Any], ready: Callable[[Any], Any] = jax.block_until_ready, seconds: float = 0.6, rounds: int = 5
) -> tuple[float, float, float]:
    """(median, least, most) seconds of a call, over rounds of so many calls that one takes a share of `seconds`.

    `run` dispatches and returns what `ready` takes; within a round nothing waits, as in a loop of training.
    """
    ready(run())
    started = time.perf_counter()
    ready(run())
    calls = max(1, int(seconds / rounds / max(time.perf_counter() - started, 1e-6)))
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(calls):
            last = run()
        ready(last)
        times.append((time.perf_counter() - started) / calls)
    return statistics.median(times), min(times), max(times)


@contextmanager
def profiled(stage: Stage) -> Iterator[None]:
    """With --profile a trace of what is inside goes to OUT/profile-STAGE.tar.gz, its longest kernels to a line."""
    if not stage.args.profile:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            yield
        for trace in Path(folder).rglob("*.trace.json.gz"):
            stage.line(kernels=longest_kernels(trace))
        packed = stage.args.out / f"profile-{stage.name}.tar.gz"
        with tarfile.open(packed, "w:gz") as tar:
            tar.add(folder, arcname="profile")
        if packed.stat().st_size > FILE_MB * 1e6:
            stage.line(skipped=packed.name, bytes=packed.stat().st_size)
            packed.unlink()


def longest_kernels(trace: Path, count: int = 25) -> list[tuple[str, float, int]]:
    """(name, milliseconds, calls) of what a device did longest; of the host's threads where there is no device."""
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    device = {pid for pid, name in names.items() if "/device:" in name} or set(names)
    total: dict[str, list[float]] = {}
    for event in events:
        if event.get("ph") == "X" and event["pid"] in device:
            entry = total.setdefault(event["name"][:120], [0.0, 0])
            entry[0] += event.get("dur", 0.0) / 1e3
            entry[1] += 1
    ordered = sorted(total.items(), key=lambda item: -item[1][0])[:count]
    return [(name, round(milliseconds, 3), int(calls)) for name, (milliseconds, calls) in ordered]


@functools.cache
def about_device() -> dict[str, Any]:
    device = jax.devices()[0]
    about = {"device": device.device_kind, "devices": jax.device_count(), "jax": jax.__version__}
    return {**about, "platform": " ".join(device.client.platform_version.split())}
