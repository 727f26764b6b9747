"""Files in, masks out: queries in any format that is read, masks in their geometry, a line in predictions.csv each.

A mask appears whole or not at all, an input is never overwritten, and a job that stopped goes on where it was. With
`jobs` several processes do what one does, file by file, with `beam` the workers of a pipeline (predict_fleet.py); the
first process alone writes predictions.csv.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from universeg_jax.errors import UserError
from universeg_jax.prediction.dicom_seg import require_highdicom, write_dicom_seg
from universeg_jax.prediction.out_folder import (
    COLUMNS,
    PARTS,
    TABLE,
    Done,
    append_rows,
    as_text,
    check_targets,
    forget,
    identity,
    left_by_workers,
    open_out,
    remove_parts,
)
from universeg_jax.prediction.predictor import Prediction, Segmenter
from universeg_jax.prediction.workers import how_to_make, in_processes
from universeg_jax.readers.dicom import read_dicom_image
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.file_names import (
    DICOM_EXTENSIONS,
    IMAGE_EXTENSIONS,
    VOLUME_EXTENSIONS,
    extension,
    natural_order,
    stem,
)
from universeg_jax.readers.images import check_image, read_image
from universeg_jax.readers.preprocess import min_max
from universeg_jax.readers.slices import plane
from universeg_jax.readers.volume_files import is_dicom, is_volume, mask_extension, read_volume, write_like
from universeg_jax.readers.volumes import Volume, slice_axis
from universeg_jax.reports.files import atomic_write
from universeg_jax.reports.overlay import COLOURS, outline

READ = (*IMAGE_EXTENSIONS, *VOLUME_EXTENSIONS, *DICOM_EXTENSIONS)


def find_queries(queries: Iterable[str | Path]) -> list[Path]:
    """Files, and the pictures and volumes of folders; a folder of DICOM files is one volume. Raises UserError."""
    files: list[Path] = []
    for path in map(Path, queries):
        if not path.exists():
            raise UserError(f"{path} does not exist")
        if not path.is_dir() or _is_dicom(path):
            files.append(path)
            continue
        inside = [f for f in path.iterdir() if not f.name.startswith(".")]
        found = {f.name: f for f in inside if (_is_dicom(f) if f.is_dir() else extension(f) in READ)}
        files += [found[name] for name in natural_order(found)]
        if others := natural_order(f.name for f in inside if f.is_file() and f.name not in found):
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            print(f"{path}: passed over {', '.join(others[:3])}{more}, which are not read", file=sys.stderr)
    if not files:
        raise UserError(f"no pictures or volumes ({', '.join(READ)}, DICOM folders) in {', '.join(map(str, queries))}")
    return files


def _is_dicom(path: Path) -> bool:
    """Whether a folder is one series, and no folder of queries, of which single DICOM pictures may be some."""
    return is_volume(path) and not any(extension(f) in (*IMAGE_EXTENSIONS, *VOLUME_EXTENSIONS) for f in path.iterdir())


def targets_of(query: Path, out: Path, labels: Sequence[int], overlap: bool, dicom_seg: bool = False) -> list[Path]:
    """Where masks go: one file, or one a label where labels may overlap; a DICOM-SEG holds all of them anyway."""
    volume = is_volume(query)
    name = query.name if query.is_dir() else stem(query)  # of a series "1.2.840" all
    if volume and dicom_seg and is_dicom(query):
        return [out / f"{name}.dcm"]
    kind = mask_extension(query) if volume else ".png"
    names = [f"{name}_{label}" for label in labels] if overlap and len(labels) > 1 else [name]
    return [out / (name + kind) for name in names]


def overlay_of(query: Path, out: Path) -> Path:
    """Where the picture of a mask's outlines goes."""
    return out / f"{query.name if query.is_dir() else stem(query)}_overlay.png"


def predict_files(
    segmenter: Segmenter,
    queries: Sequence[str | Path],
    out: str | Path,
    axis: int | None = None,
    overlay: bool = False,
    overwrite: bool = False,
    jobs: int = 1,
    dicom_seg: Mapping[int, str] | None = None,
    beam: Sequence[str] | None = None,
) -> int:
    """Writes <out>/<name>.* for every query, and <out>/predictions.csv; the exit code says if all were read.

    Masks of an earlier call with the same support, weights and options stay and are not made again. `jobs`: processes.
    `dicom_seg`: names of labels; a DICOM series then has a DICOM-SEG. `beam`: options of a Beam pipeline; without any,
    of `jobs` processes here. Raises UserError before the first prediction where a mask would overwrite an input, or
    without `overwrite` the mask of another query or a file that is not ours, or where `out` cannot be written or holds
    others; later where the disk is full.
    """
    if jobs < 1:
        raise UserError(f"jobs={jobs}: at least one process is needed")
    if dicom_seg is not None:
        require_highdicom()
    if beam is not None:
        _require_beam()
    out, files = Path(out), find_queries(queries)
    labels, overlap = segmenter.support.labels, segmenter.options.overlap
    targets = {file: targets_of(file, out, labels, overlap, dicom_seg is not None) for file in files}
    made = {file: [*targets[file], *([overlay_of(file, out)] if overlay else [])] for file in files}
    check_targets(made)
    told = open_out(out, segmenter, axis, made, overwrite)
    todo = [
        f
        for f in files
        if overwrite or not all(path.exists() for path in made[f]) or as_text(targets[f][-1].name) not in told
    ]
    forget(out, {as_text(target.name) for file in todo for target in targets[file]})
    work = [(file, targets[file], axis, overlay, dicom_seg) for file in todo]
    if beam is not None:
        done = by_beam(segmenter, work, out, beam, jobs)
    elif jobs > 1:
        done = in_processes(_try_file, how_to_make(segmenter), work, jobs)
    else:
        done = (_try_file(segmenter, *task) for task in work)
    failed = 0
    try:
        for file, rows in tqdm(done, desc="predict", unit="file", total=len(todo), disable=len(todo) < 4):
            if isinstance(rows, str):
                tqdm.write(f"skipped: {rows}", file=sys.stderr)  # on a line of its own, not behind the bar
                failed += 1
                continue
            append_rows(out / TABLE, rows)
            for warning in sorted({row["warnings"] for row in rows} - {""}):
                tqdm.write(f"{file}: {warning}", file=sys.stderr)
    except (OSError, BrokenProcessPool) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"stopped: {why}; finished masks are in {out}: make room, and start the same command again"
        ) from error
    remove_parts(out)
    there = f", {len(files) - len(todo)} were there already" if len(todo) < len(files) else ""
    print(f"{len(todo) - failed} masks in {out}{there}" + (f", {failed} files could not be read" if failed else ""))
    return int(failed > 0)


Task = tuple[Path, Sequence[Path], int | None, bool, Mapping[int, str] | None]  # what `predict_file` takes


def _try_file(segmenter: Segmenter, file: Path, *task: Any) -> Done:
    try:
        return file, predict_file(segmenter, file, *task)
    except ImageError as error:
        return file, str(error)


def by_beam(segmenter: Segmenter, work: Iterable[Task], out: Path, options: Sequence[str], jobs: int) -> Iterator[Done]:
    """The same by the workers of a Beam pipeline, once all of them are done."""
    from universeg_jax.prediction.beam import run_pipeline

    run_pipeline(_try_file, how_to_make(segmenter), work, out / PARTS, options, jobs)
    yield from left_by_workers(out)


def _require_beam() -> None:
    try:
        import apache_beam  # noqa: F401
    except ImportError as error:
        raise UserError("--beam needs Apache Beam: pip install 'universeg_jax[beam]'") from error


def predict_file(
    segmenter: Segmenter,
    file: Path,
    targets: Sequence[Path],
    axis: int | None,
    overlay: bool,
    dicom_seg: Mapping[int, str] | None = None,
) -> list[dict[str, Any]]:
    """Segments one file and writes its masks; rows for predictions.csv, one a label. Raises ImageError."""
    query = _read_query(file)
    volume, axis = isinstance(query, Volume), segmenter.support.axis if axis is None else axis
    prediction = segmenter.volume(query, axis, progress=True) if volume else segmenter(query)
    if dicom_seg is not None and volume and is_dicom(file):
        masks = {label: prediction.of(label)[0] for label in prediction.labels}
        with atomic_write(targets[0]) as temporary:
            write_dicom_seg(temporary, masks, dicom_seg, file, query)
    else:
        _write_masks(targets, prediction, file, query)
    if overlay:
        with atomic_write(overlay_of(file, targets[0].parent)) as temporary:
            draw_overlay(query, prediction, axis).save(temporary, format="PNG")
    size, unit = (float(np.prod(query.spacing)) / 1000, "ml") if volume else (1, "pixels")
    rows = []
    for i, label in enumerate(prediction.labels):
        name = targets[i if len(targets) > 1 else 0].name
        about = [w for w in prediction.warnings if not w.startswith("label ") or w.startswith(f"label {label}:")]
        amount = round(float(prediction.of(label)[0].sum()) * size, 3)
        confidence = round(prediction.confidence(label), 3)
        values = (identity(file), as_text(name), label, amount, unit, confidence, "; ".join(about))
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def _read_query(file: Path) -> np.ndarray | Volume:
    if is_volume(file):
        return read_volume(file)
    return check_image(read_dicom_image(file), file) if is_dicom(file) else read_image(file)


def _write_masks(targets: Sequence[Path], prediction: Prediction, file: Path, query: np.ndarray | Volume) -> None:
    for target, mask in zip(targets, prediction.mask if len(targets) > 1 else [prediction.mask], strict=True):
        with atomic_write(target) as temporary:
            if isinstance(query, Volume):
                write_like(temporary, mask, file, query)
            else:
                Image.fromarray(mask).save(temporary, format="PNG")


def draw_overlay(query: np.ndarray | Volume, prediction: Prediction, axis: int | None = None) -> Image.Image:
    """The picture, or the slice of a volume with most foreground, with each label's outline in its colour."""
    masks = [prediction.of(label)[0] for label in prediction.labels]
    if isinstance(query, Volume):
        axis = slice_axis(query) if axis is None else axis
        rest = tuple(a for a in range(3) if a != axis)
        index = int(np.argmax(sum(m.sum(rest) for m in masks)))
        picture, masks = plane(query.data, axis, index), [plane(m, axis, index) for m in masks]
    else:
        picture = query
    low, high = np.percentile(picture, (0.5, 99.5))
    grey = (255 * min_max(picture.clip(low, max(high, low + 1e-6)))).astype(np.uint8)
    canvas = np.repeat(grey[..., None], 3, -1)
    for mask, colour in zip(masks, COLOURS * (1 + len(masks) // len(COLOURS)), strict=False):
        canvas[outline(mask)] = colour
    return Image.fromarray(canvas)
