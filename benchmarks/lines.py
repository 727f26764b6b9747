"""The output of every benchmark: one JSON object per line."""

import json
import os
from pathlib import Path
from typing import Any


def write_line(row: dict[str, Any], out: str | Path | None) -> None:
    """Prints a row, and appends it to the file `out` if given: on disk when this returns, so a kill loses none."""
    line = json.dumps(row)
    print(line, flush=True)
    if out:
        with Path(out).open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
