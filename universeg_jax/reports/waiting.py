"""Words for a wait that has no progress to show, such as XLA's compiling."""

import contextlib
import sys
import threading
from collections.abc import Iterator

from tqdm import tqdm

COMPILING = "compiling {what} for this machine: {usual} on two cores, and kept for later processes"


@contextlib.contextmanager
def say_if_slow(message: str, seconds: float = 5.0) -> Iterator[None]:
    """Prints `message` on stderr, above any bar, if what is inside takes longer than `seconds`."""
    timer = threading.Timer(seconds, lambda: tqdm.write(message, file=sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def say_if_compiling(what: str, usual: str) -> contextlib.AbstractContextManager[None]:
    """`say_if_slow` with what is compiled, and how long that usually takes."""
    return say_if_slow(COMPILING.format(what=what, usual=usual))
