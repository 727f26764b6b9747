"""Names of files: their order and their endings."""

import re
from collections.abc import Iterable
from pathlib import Path


def natural_order(names: Iterable[str]) -> list[str]:
    """Numbers in names by their value: p2 before p10."""
    return sorted(names, key=lambda name: ([(text, int(n or -1)) for text, n in re.findall(r"(\D*)(\d*)", name)], name))


def extension(path: str | Path) -> str:
    """The ending of a file's name in lower case, ".nii.gz" and ".ppm.gz" as one."""
    name = Path(path).name.lower()
    return next((end for end in (".nii.gz", ".ppm.gz") if name.endswith(end)), Path(name).suffix)


def stem(path: str | Path) -> str:
    """A file's name without its ending."""
    name = Path(path).name
    return name[: len(name) - len(extension(name))]
