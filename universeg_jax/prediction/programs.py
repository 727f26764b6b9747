"""Programs of a prediction that later processes need not trace again.

JAX keeps what it compiles, but finds it only after tracing the model, which takes seconds. On a CPU the traced program
(StableHLO) is kept beside it, under a name that follows from all that it depends on: the function, the shapes of its
inputs, the source of this package, and the versions of JAX and flax.
"""

import contextlib
import functools
import hashlib
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from jax import export

import universeg_jax
from universeg_jax.reports.waiting import say_if_compiling
from universeg_jax.startup import compiler_options

DIGEST = 32  # bytes of the SHA-256 before a kept program
WORTH_KEEPING = 0.5  # seconds that tracing took
SOURCES = ("model/*.py", "prediction/forward.py", "prediction/predictor.py", "episode.py", "weights/backbone/*")


class Program:
    """A compiled function of arrays. Thread-safe.

    `identity` names the function and everything that it closes over. `waiting` is what to tell a user who waits for the
    compiler, and how long that usually takes.
    """

    def __init__(self, function: Callable[..., Any], identity: str, waiting: tuple[str, str] | None = None) -> None:
        self.identity, self.waiting, self._function = identity, waiting, function
        self._jit = jax.jit(function, compiler_options=compiler_options())
        self._compiled: dict[Any, Any] = {}
        self._lock = threading.Lock()

    def __call__(self, *inputs: Any) -> Any:
        if jax.default_backend() != "cpu":
            return self._jit(*inputs)
        leaves, structure = jax.tree.flatten(inputs)
        if any(isinstance(x, jax.core.Tracer) for x in leaves):  # vmap and grad know no kept program
            return self._function(*inputs)
        key = _key(leaves, structure)
        if key not in self._compiled:
            with self._lock:
                if key not in self._compiled:
                    return self._first(key, inputs)
        return self._compiled[key](*inputs)

    def _first(self, key: Any, inputs: Any) -> Any:
        """Finds or makes the program for inputs of a kind, and runs it."""
        file = self._file(key)
        kept = _read(file) if file else None
        with say_if_compiling(*self.waiting) if self.waiting and not kept else contextlib.nullcontext():
            run = self._jit
            if file:
                # Compiled from the same bytes, whether they were kept or not, so that JAX finds it in its own cache.
                program = export.deserialize(bytearray(kept or self._trace(file, inputs)))
                run = jax.jit(program.call, compiler_options=compiler_options())
            found = run(*inputs)
        self._compiled[key] = run
        return found

    def _trace(self, file: Path, inputs: Any) -> bytes:
        start = time.perf_counter()
        traced = bytes(export.export(self._jit)(*jax.tree.map(_abstract, inputs)).serialize())
        if time.perf_counter() - start >= WORTH_KEEPING:
            _write(file, traced)
        return traced

    def _file(self, key: Any) -> Path | None:
        """Where the traced program lies; None where nothing is kept, or not in a folder of this machine."""
        folder = str(getattr(jax.config, "jax_compilation_cache_dir", None) or "")
        if not folder or "://" in folder or not getattr(jax.config, "jax_enable_compilation_cache", True):
            return None
        described = (jax.__version__, flax.__version__, _sources(), self.identity, str(key))
        return Path(folder) / f"universeg-{hashlib.sha256(repr(described).encode()).hexdigest()}.stablehlo"


def _key(leaves: Any, structure: Any) -> Any:
    """Names a program of a function: structure, shapes and dtypes of its inputs, and the precision of JAX."""
    flags = getattr(jax.config, "jax_enable_x64", None), getattr(jax.config, "jax_default_matmul_precision", None)
    return structure, tuple((x.shape, x.dtype.name) for x in map(_abstract, leaves)), flags


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype))


def _read(file: Path) -> bytes | None:
    """A kept program; None where there is none, or it is damaged or cannot be read."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _warn(file, error)
        return None
    digest, kept = content[:DIGEST], content[DIGEST:]
    return kept if hashlib.sha256(kept).digest() == digest else None


def _write(file: Path, kept: bytes) -> None:
    """Writes a program whole or, where the folder cannot be written, warns."""
    temporary = file.with_name(f".tmp.{uuid.uuid4().hex}")  # several processes may write the same
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(hashlib.sha256(kept).digest() + kept)
        temporary.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        _warn(file, error)


def _warn(file: Path, error: OSError) -> None:
    warnings.warn(f"{file}: {error.strerror or error}; programs start more slowly", stacklevel=2)


@functools.cache
def _sources() -> str:
    """SHA-256 of the files that programs are traced from."""
    root, found = Path(universeg_jax.__file__).parent, hashlib.sha256()
    for part in SOURCES:
        for file in sorted(root.glob(part)):
            found.update(file.read_bytes())
    return found.hexdigest()
