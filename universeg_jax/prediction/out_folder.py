"""The folder of masks: its record of masks and queries, and what must not be overwritten.

predictions.csv has a line for each label of each mask; predict.json holds the support set, weights and options that all
masks of the folder share.
"""

import csv
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from universeg_jax.checkpoints.packaged import params_hash
from universeg_jax.errors import UserError
from universeg_jax.prediction.predictor import Segmenter
from universeg_jax.reports.files import atomic_write, read_json, write_json

COLUMNS = ("query", "mask", "label", "size", "unit", "confidence", "warnings")
TABLE, SETTINGS = "predictions.csv", "predict.json"


def check_outputs(outputs: Mapping[Path, Sequence[Path]]) -> None:
    """Raises UserError if an output (query → files to write) is a query, or belongs to two queries."""
    queries = {query.resolve() for query in outputs}
    owners: dict[str, Path] = {}  # by name in one case, in which Windows and macOS take two names for one
    for query, files in outputs.items():
        for file in files:
            if file.resolve() in queries:
                raise UserError(f"{file} would overwrite a query; use another --out")
            if str(file).casefold() in owners:
                raise UserError(f"{owners[str(file).casefold()]} and {query} would both become {file}; rename one")
            owners[str(file).casefold()] = query


def open_out(
    out: Path, segmenter: Segmenter, axis: int | None, outputs: Mapping[Path, Sequence[Path]], overwrite: bool
) -> dict[str, str]:
    """Makes the folder and returns mask → query as recorded by earlier runs.

    Raises UserError before any prediction if the folder cannot be written, or, without `overwrite`, if it holds masks
    of other settings or if an output exists that is not a mask of the same query.
    """
    settings = {
        "support": segmenter.support.digest(),
        "weights": params_hash(segmenter.predictor.params),
        "options": {**asdict(segmenter.options), "axis": axis},
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); use another --out") from error
    is_ours = (out / SETTINGS).exists()
    is_different = is_ours and read_json(out / SETTINGS) != settings
    if is_different and not overwrite:
        raise UserError(
            f"{out} holds masks of another support set, other weights or options; use another --out, or --overwrite"
        )
    if is_different:  # predictions.csv covers one setting only
        (out / TABLE).unlink(missing_ok=True)
    recorded = read_recorded(out)
    for query, files in outputs.items():
        for file in (f for f in files if f.exists() and not overwrite):
            owner = recorded.get(escape_name(file.name), query_id(query) if is_ours else "")
            if owner != query_id(query):
                problem = f"is the mask of {owner}, not of {query}" if owner else "exists, and no earlier run wrote it"
                raise UserError(f"{file} {problem}; use another --out, or --overwrite")
    write_json(out / SETTINGS, settings)
    return recorded


def escape_name(name: object) -> str:
    """A file name as predictions.csv spells it, with bytes that are not UTF-8 escaped."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def query_id(query: Path) -> str:
    """The absolute path of a query as predictions.csv spells it."""
    return escape_name(query.absolute())


def read_recorded(out: Path) -> dict[str, str]:
    """Mask → query in predictions.csv. Removes a last line that was cut short when a run was killed."""
    path = out / TABLE
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)
    return {row["mask"]: row["query"] for row in _read_rows(path)}


def remove_rows(out: Path, masks: set[str]) -> None:
    """Removes the lines of masks that will be written again."""
    path = out / TABLE
    rows = _read_rows(path)
    kept = [row for row in rows if row["mask"] not in masks]
    if len(kept) < len(rows):
        with atomic_write(path) as temporary:
            append_rows(temporary, kept)


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    is_new = not path.exists() or not path.stat().st_size
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
