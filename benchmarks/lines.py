"""What every benchmark says: a JSON object a line."""

import json
import os
from pathlib import Path
from typing import Any


def write_line(row: dict[str, Any], out: str | Path | None) -> None:
    """Printed at once, and appended to `out` if there is one, on disk before this returns: a kill loses no line."""
    line = json.dumps(row)
    print(line, flush=True)
    if out:
        with Path(out).open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
