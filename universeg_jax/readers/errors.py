"""Errors about a user's files: one line that names the file, and the same words for the same fault."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from universeg_jax.errors import UserError

NOISY_LOGGERS = ("nibabel.global", "pydicom", "tifffile")  # they report every odd header field


class FolderError(UserError):
    """A folder that cannot be read as images and labels; names the file and the remedy."""


class ImageError(UserError):
    """A file that cannot be used: "<path>: <problem> (<detail>)".

    `problem` is the same text for every file with this fault, so that faults can be counted by it. `detail` may come
    from a damaged file: whatever it holds, the message is one printable line. `path` may be any object that prints as
    the name of the file or record.
    """

    def __init__(self, path: Any, problem: str, detail: str = ""):
        detail = " ".join("".join(c if c.isprintable() else " " for c in detail).split())
        super().__init__(str(path), problem, detail)  # as args, so that the error can be pickled
        self.path, self.problem, self.detail = str(path), problem, detail

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" + (f" ({self.detail})" if self.detail else "")


@contextlib.contextmanager
def as_image_errors(path: Path) -> Iterator[None]:
    """Turns any exception of a file library into an ImageError and silences the library's warnings."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"), silence():
            warnings.simplefilter("ignore")  # about odd header fields; the values that matter are checked
            yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes libraries raise almost anything
        message = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
        message = message.replace(f"{path.parent}{os.sep}", "")  # reports must not depend on where files lie
        raise ImageError(path, "cannot be read", message[-160:]) from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Silences the logs of file libraries."""
    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
