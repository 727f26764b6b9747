"""The folder of masks: what is in it, of which query, and what must not be overwritten.

predictions.csv has a line for each label of each mask, predict.json the support, weights and options of all of them.
"""

import csv
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from universeg_jax.checkpoints.packaged import params_hash
from universeg_jax.errors import UserError
from universeg_jax.prediction.predictor import Segmenter
from universeg_jax.reports.files import atomic_write, read_json, read_json_lines, write_json

COLUMNS = ("query", "mask", "label", "size", "unit", "confidence", "warnings")
TABLE, SETTINGS = "predictions.csv", "predict.json"
PARTS = ".parts"  # what workers of a pipeline did that predictions.csv does not tell yet
Done = tuple[Path, list[dict[str, Any]] | str]  # a file with its rows, or with why it could not be read


def check_targets(targets: dict[Path, list[Path]]) -> None:
    """Raises UserError where a file to be made (query → files) is a query, or that of two."""
    inputs = {file.resolve() for file in targets}
    seen: dict[Path, Path] = {}
    for file, of_file in targets.items():
        for target in of_file:
            if target.resolve() in inputs:
                raise UserError(f"{target} would overwrite a query; take another --out")
            if target in seen:
                raise UserError(f"{seen[target]} and {file} would both become {target}; rename one")
            seen[target] = file


def open_out(
    out: Path, segmenter: Segmenter, axis: int | None, made: Mapping[Path, list[Path]], overwrite: bool
) -> dict[str, str]:
    """Makes the folder, or refuses it: now, not after an hour. Returns what `told_of` does."""
    record = {
        "support": segmenter.support.digest(),
        "weights": params_hash(segmenter.predictor.params),
        "options": {**asdict(segmenter.options), "axis": axis},
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); take another --out") from error
    settings = out / SETTINGS
    ours = settings.exists()
    other = ours and read_json(settings) != record
    if other and not overwrite:
        raise UserError(
            f"{out} holds masks of another support set, other weights or options; take another --out, or --overwrite"
        )
    if other:  # predictions.csv tells of masks of one setting
        (out / TABLE).unlink(missing_ok=True)
        remove_parts(out)
    told = told_of(out)
    for file, path in ((file, path) for file, paths in made.items() for path in paths if path.exists()):
        query = told.get(as_text(path.name), identity(file) if ours else "")
        if not overwrite and query != identity(file):
            whose = f"is the mask of {query}, not of {file}" if query else "is there, and no earlier call made it"
            raise UserError(f"{path} {whose}; take another --out, or --overwrite")
    write_json(settings, record)
    return told


def as_text(name: object) -> str:
    """A file's name as predictions.csv has it, where bytes that are no UTF-8 are escaped."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def identity(file: Path) -> str:
    """What predictions.csv calls a query."""
    return as_text(file.absolute())


def told_of(out: Path) -> dict[str, str]:
    """Mask → query of predictions.csv, now with what workers left of a pipeline that stopped.

    A last line that a kill cut short is taken away.
    """
    path = out / TABLE
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)
    told = {row["mask"]: row["query"] for row in _rows(path)}
    for _, rows in left_by_workers(out):
        if not isinstance(rows, str) and rows[0]["mask"] not in told:
            append_rows(path, rows)
            told |= {row["mask"]: row["query"] for row in rows}
    remove_parts(out)
    return told


def forget(out: Path, masks: set[str]) -> None:
    """Takes the lines of masks that are made again out of predictions.csv."""
    path = out / TABLE
    rows = _rows(path)
    kept = [row for row in rows if row["mask"] not in masks]
    if len(kept) < len(rows):
        with atomic_write(path) as temporary:
            append_rows(temporary, kept)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    new = not path.exists() or not path.stat().st_size
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def left_by_workers(out: Path) -> Iterator[Done]:
    """Each file once, as workers may be told to do one again."""
    seen = set()
    for part in sorted((out / PARTS).glob("*.jsonl")):
        for file, rows in read_json_lines(part):
            if file not in seen:
                seen.add(file)
                yield Path(file), rows


def remove_parts(out: Path) -> None:
    if (out / PARTS).exists():
        shutil.rmtree(out / PARTS)
