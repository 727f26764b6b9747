"""Segment files: queries in any supported format, masks in the query's own format and geometry, and predictions.csv.

A mask is written whole or not at all, an input is never overwritten, and rerunning a stopped job resumes it. With
several jobs, only the first process writes predictions.csv.
"""

import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from tqdm import tqdm

from universeg_jax.errors import UserError
from universeg_jax.prediction.dicom_seg import require_highdicom, write_dicom_seg
from universeg_jax.prediction.out_folder import (
    COLUMNS,
    TABLE,
    append_rows,
    check_outputs,
    escape_name,
    open_out,
    query_id,
    remove_rows,
)
from universeg_jax.prediction.predictor import Segmenter
from universeg_jax.prediction.result import Prediction
from universeg_jax.prediction.warnings import DECIMALS
from universeg_jax.prediction.workers import in_processes
from universeg_jax.readers.dicom import read_dicom_image
from universeg_jax.readers.dicom_files import is_dicom_file, nested_series, sorted_files
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.file_names import (
    DICOM_EXTENSIONS,
    IMAGE_EXTENSIONS,
    VOLUME_EXTENSIONS,
    extension,
    natural_order,
    stem,
)
from universeg_jax.readers.images import check_image, is_turned, read_image
from universeg_jax.readers.notes import Notes, collect, note
from universeg_jax.readers.ome_zarr import is_ome_zarr
from universeg_jax.readers.slices import plane
from universeg_jax.readers.volume_files import is_dicom, is_volume, mask_extension, read_volume, write_like
from universeg_jax.readers.volumes import Volume, slice_axis
from universeg_jax.reports.files import atomic_write
from universeg_jax.reports.overlay import OVERLAY, colours_text, draw_outlines, enlarge, to_display, with_legend

SUPPORTED = (*IMAGE_EXTENSIONS, *VOLUME_EXTENSIONS, *DICOM_EXTENSIONS)
VOLUME_UNITS = ((100.0, 1e-3, "ml"), (1e-4, 1.0, "mm3"), (0.0, 1e9, "um3"))  # from so many mm³ on, per mm³
MAX_PNG_ID = 65535  # a PNG has 16 bits
Rows = list[dict[str, Any]]  # of predictions.csv


def find_queries(queries: Iterable[str | Path]) -> list[Path]:
    """Lists files, and the images and volumes in folders; a folder of one DICOM series is one volume.

    DICOM series are found at any depth. Files that are passed over are named on stderr. Raises UserError.
    """
    files: list[Path] = []
    for path in dict.fromkeys(map(Path, queries)):
        if not path.exists():
            raise UserError(f"{path} does not exist")
        found = [path] if path.is_file() or _is_series(path) else _in_folder(path)
        for series in (each for each in found if each.is_dir() and not is_ome_zarr(each)):
            _name_skipped(series, sorted_files(series)[1], "not a DICOM image")
        files += found
    if not files:
        raise UserError(
            f"no images or volumes ({', '.join(SUPPORTED)}, DICOM folders) in {', '.join(map(str, queries))}"
        )
    return [*dict.fromkeys(files)]


def _in_folder(path: Path) -> list[Path]:
    entries = {f.name: f for f in path.iterdir() if not f.name.startswith(".")}
    found: list[Path] = []
    for name in natural_order(entries):
        entry = entries[name]
        if is_ome_zarr(entry):
            found.append(entry)
        elif entry.is_dir():
            found += (series := nested_series(entry))
            if not series and any(entry.iterdir()):
                _name_skipped(path, [f"{name}/"], "give it as a query of its own")
        elif entry.is_file() and name.upper() != "DICOMDIR" and (extension(entry) in SUPPORTED or is_dicom_file(entry)):
            found.append(entry)
    others = natural_order(name for name, entry in entries.items() if entry.is_file() and entry not in found)
    _name_skipped(path, others, "not a supported format")
    return found


def _name_skipped(path: Path, names: Sequence[str], why: str) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        print(f"{path}: skipped {', '.join(names[:3])}{more}: {why}", file=sys.stderr)


def _is_series(path: Path) -> bool:
    """Distinguishes a DICOM series from a folder of queries that includes single DICOM images."""
    return is_volume(path) and not any(extension(f) in (*IMAGE_EXTENSIONS, *VOLUME_EXTENSIONS) for f in path.iterdir())


def mask_files(
    query: Path,
    out: Path,
    labels: Sequence[int],
    overlap: bool,
    dicom_seg: bool = False,
    queries: Collection[Path] = (),
) -> list[Path]:
    """The masks to write for a query: one file, or one per label if labels may overlap. A DICOM-SEG holds them all.

    Of two series in `queries` with the same folder name, the names have their parents' too.
    """
    name = _name(query, [each for each in queries if each.is_dir()])
    volume = is_volume(query)
    if volume and dicom_seg and is_dicom(query):
        return [out / f"{name}.dcm"]
    kind = mask_extension(query) if volume else ".png" if max(labels) <= MAX_PNG_ID else ".tif"
    names = [f"{name}_{label}" for label in labels] if overlap and len(labels) > 1 else [name]
    return [out / (each + kind) for each in names]


def overlay_file(query: Path, out: Path, queries: Collection[Path] = ()) -> Path:
    return out / f"{_name(query, [each for each in queries if each.is_dir()])}{OVERLAY}"


def _name(query: Path, series: Collection[Path] = ()) -> str:
    """The whole name of a series such as "1.2.840", with its parents' where another of `series` has the same name."""
    if not query.is_dir():
        return stem(query)
    others, parts = [each for each in series if each != query], 1
    while parts < len(query.parts) and any(each.parts[-parts:] == query.parts[-parts:] for each in others):
        parts += 1
    return "_".join(query.parts[-parts:])


def predict_files(
    segmenter: Segmenter,
    queries: Sequence[str | Path],
    out: str | Path,
    axis: int | None = None,
    overlay: bool = False,
    overwrite: bool = False,
    jobs: int = 1,
    dicom_seg: Mapping[int, str] | None = None,
    names: Mapping[int, str] = MappingProxyType({}),
) -> int:
    """Writes <out>/<name>.* for every query, and <out>/predictions.csv; returns 0, or 1 if a file could not be read.

    Keeps masks that an earlier run wrote with the same support set, weights and options, unless `overwrite`. `jobs`:
    processes. `dicom_seg`: label names; a DICOM series then gets a DICOM-SEG. `names`: of the
    labels in overlays. Raises UserError before the first
    prediction if a mask would overwrite an input, the mask of another query or a file of somebody else, or if `out`
    cannot be written or holds masks of other settings; later if the disk is full.
    """
    if jobs < 1:
        raise UserError(f"jobs={jobs}: use at least one process")
    if dicom_seg is not None:
        require_highdicom()
    out, files = Path(out), find_queries(queries)
    labels, overlap = segmenter.support.labels, segmenter.options.overlap
    masks = {file: mask_files(file, out, labels, overlap, dicom_seg is not None, files) for file in files}
    overlays = {file: overlay_file(file, out, files) if overlay else None for file in files}
    outputs = {file: [*masks[file], *filter(None, [overlays[file]])] for file in files}
    check_outputs(outputs)
    recorded = open_out(out, segmenter, axis, outputs, overwrite)
    todo = [
        file
        for file in files
        if overwrite
        or not all(path.exists() for path in outputs[file])
        or escape_name(masks[file][-1].name) not in recorded
    ]
    remove_rows(out, {escape_name(mask.name) for file in todo for mask in masks[file]})
    work = [(file, masks[file], axis, overlays[file], dicom_seg, dict(names)) for file in todo]
    unreadable = _predict_all(segmenter, work, out, jobs)
    print(
        f"{out}: {len(todo) - unreadable} masks written"
        + (f", {len(files) - len(todo)} already there" if len(todo) < len(files) else "")
        + (f", {unreadable} files could not be read" if unreadable else "")
    )
    if overlay:
        print(f"outlines: {colours_text(label_names(labels, names))}")
    return int(unreadable > 0)


def _predict_all(segmenter: Segmenter, work: Sequence[tuple[Any, ...]], out: Path, jobs: int) -> int:
    """Predicts and records each file; returns the number of unreadable ones. Raises UserError if the disk is full."""
    if jobs > 1:
        results = in_processes(_try_file, segmenter, work, jobs)
    else:
        results = (_try_file(segmenter, *arguments) for arguments in work)
    unreadable, all_notes = 0, Notes()
    try:
        for file, rows, notes in tqdm(results, desc="predict", unit="file", total=len(work), disable=len(work) < 4):
            all_notes.update(notes)
            if isinstance(rows, ImageError):
                tqdm.write(f"skipped: {rows}", file=sys.stderr)  # on its own line, not behind the bar
                unreadable += 1
                continue
            append_rows(out / TABLE, rows)
            for warning in dict.fromkeys(each for row in rows for each in _without(row["warnings"], notes.texts())):
                tqdm.write(f"{file}: {warning}", file=sys.stderr)
    except (OSError, BrokenProcessPool) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"stopped: {reason}; finished masks are in {out}: free some space and rerun the same command to resume"
        ) from error
    for line in all_notes.lines():
        print(line, file=sys.stderr)
    return unreadable


def _without(warnings: str, notes: Sequence[str]) -> list[str]:
    """Warnings without the notes, which are printed once for all files of a kind."""
    rest = warnings.removesuffix("; ".join(notes)).removesuffix("; ")
    return rest.split("; ") if rest else []


def _try_file(segmenter: Segmenter, file: Path, *arguments: Any) -> tuple[Path, Rows | ImageError, Notes]:
    with collect() as notes:
        try:
            return file, predict_file(segmenter, file, *arguments), notes
        except ImageError as error:
            return file, error, notes


def predict_file(
    segmenter: Segmenter,
    file: Path,
    masks: Sequence[Path],
    axis: int | None,
    overlay: Path | None,
    dicom_seg: Mapping[int, str] | None = None,
    names: Mapping[int, str] = MappingProxyType({}),
) -> Rows:
    """Segments one file, writes its masks and returns rows for predictions.csv, one per label. Raises ImageError."""
    with collect() as notes:  # how the query was understood
        query = _read_query(file)
        axis = segmenter.support.axis if axis is None else axis
        prediction = segmenter.volume(query, axis, progress=True) if isinstance(query, Volume) else segmenter(query)
    voxel = float(np.prod(query.spacing)) if isinstance(query, Volume) else 0.0
    if dicom_seg is not None and isinstance(query, Volume) and is_dicom(file):
        by_label = {label: prediction.of(label)[0] for label in prediction.labels}
        with atomic_write(masks[0]) as temporary:
            write_dicom_seg(temporary, by_label, dicom_seg, file, query)
    else:
        _write_masks(masks, prediction, file, query)
    if overlay:
        with atomic_write(overlay) as temporary:
            plot_overlay(query, prediction, axis, names).save(temporary, format="PNG")
    rows = []
    for i, label in enumerate(prediction.labels):
        mask = masks[i if len(masks) > 1 else 0].name
        warnings = [w for w in prediction.warnings if not w.startswith("label ") or w.startswith(f"label {label}:")]
        warnings += notes.texts()
        count = int(prediction.of(label)[0].sum())
        size, unit = volume_size(count * voxel) if voxel else (count, "pixels")
        confidence = round(prediction.confidence(label), DECIMALS)
        values = (query_id(file), escape_name(mask), label, size, unit, confidence, "; ".join(warnings))
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def volume_size(cubic_millimetres: float) -> tuple[float, str]:
    """(size, unit) with three significant digits or more: ml, mm3 below 0.1 ml, um3 below 0.0001 mm3."""
    scale, unit = next(
        ((scale, unit) for least, scale, unit in VOLUME_UNITS if cubic_millimetres >= least), VOLUME_UNITS[-1][1:]
    )
    if not cubic_millimetres:
        return 0.0, "ml"
    size = cubic_millimetres * scale
    return round(size, max(0, 2 - math.floor(math.log10(size)))), unit


def _read_query(file: Path) -> np.ndarray | Volume:
    if is_volume(file):
        return read_volume(file)
    if is_dicom(file):
        return check_image(read_dicom_image(file), file)
    image = read_image(file)
    if is_turned(file):
        note(file, "its EXIF orientation is applied: the mask lies on the upright image, not on the raw pixels")
    return image


def _write_masks(files: Sequence[Path], prediction: Prediction, query_file: Path, query: np.ndarray | Volume) -> None:
    for file, mask in zip(files, prediction.mask if len(files) > 1 else [prediction.mask], strict=True):
        with atomic_write(file) as temporary:
            if isinstance(query, Volume):
                write_like(temporary, mask, query_file, query)
            else:
                write_image_mask(temporary, mask)


def write_image_mask(file: Path, mask: np.ndarray) -> None:
    """Writes ids [H, W] as a PNG, or as a TIFF where 16 bits cannot hold them."""
    if mask.dtype.itemsize <= 2:
        Image.fromarray(mask).save(file, format="PNG")
    else:
        tifffile.imwrite(file, mask, photometric="minisblack")


def plot_overlay(
    query: np.ndarray | Volume,
    prediction: Prediction,
    axis: int | None = None,
    names: Mapping[int, str] = MappingProxyType({}),
) -> Image.Image:
    """The image with the outline of each label in its colour; of a volume the slice with the most foreground.

    A slice is enlarged, with a legend below it; the overlay of an image has the image's own pixels.
    """
    masks = [prediction.of(label)[0] for label in prediction.labels]
    if not isinstance(query, Volume):
        return Image.fromarray(draw_outlines(to_display(query), masks))
    axis = slice_axis(query) if axis is None else axis
    in_plane = tuple(a for a in range(3) if a != axis)
    index = int(np.argmax(np.sum([mask.sum(in_plane) for mask in masks], 0)))
    image, masks = plane(query.data, axis, index), [plane(mask, axis, index) for mask in masks]
    image, masks = enlarge(to_display(image), masks)
    return with_legend(draw_outlines(image, masks), label_names(prediction.labels, names))


def label_names(labels: Sequence[int], names: Mapping[int, str]) -> list[str]:
    return [names.get(label, f"label {label}") for label in labels]
