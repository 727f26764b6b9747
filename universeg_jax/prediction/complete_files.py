"""Complete the labels of a volume from files to a file with the grid, type and ids of the labels that were given."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from universeg_jax.errors import UserError
from universeg_jax.prediction.between import CompletionOptions
from universeg_jax.prediction.complete import complete
from universeg_jax.prediction.support import Support
from universeg_jax.readers.file_names import NIFTI_EXTENSIONS, TIFF_EXTENSIONS, extension
from universeg_jax.readers.labelled_slices import (
    LabelledSlices,
    check_slices,
    find_axis,
    find_labelled_slices,
    unused_slices,
)
from universeg_jax.readers.preprocess import Window
from universeg_jax.readers.segments import on_grid_of
from universeg_jax.readers.tiff import write_tiff_stack
from universeg_jax.readers.volume_files import (
    mask_extension,
    read_label_volume,
    read_volume,
    stored_type,
    write_like,
)
from universeg_jax.readers.volumes import AXIS_NAMES, Volume, check_same_grid, file_order
from universeg_jax.reports.files import atomic_write

if TYPE_CHECKING:
    from universeg_jax.prediction.predictor import Predictor

SHOWN = 12  # slices in a line of text


@dataclass(frozen=True)
class PartialLabels:
    """What is labelled in a file, and where the completed labels go."""

    volume: Volume  # the image
    ids: Volume  # int32 ids; those to ignore are 0
    labelled: tuple[LabelledSlices, ...]
    notes: tuple[str, ...]  # how the file was understood
    source: Path  # whose grid and format the result gets
    dtype: np.dtype  # of the result


def read_partial(
    image: str | Path,
    labels: str | Path,
    axis: int | None = None,
    slices: Sequence[int] | None = None,
    ignore: int | None = None,
) -> PartialLabels:
    """Reads a volume and its partial labels. `slices` are numbered as in the file. Raises ImageError and UserError."""
    volume, given = read_volume(image), read_label_volume(labels)
    ids = on_grid_of(given, volume)
    check_same_grid(volume, ids)
    try:
        if slices is not None:
            axis = find_axis(ids.data, ignore) if axis is None else axis
            slices = file_order(ids, axis, check_slices(slices, axis, ids.shape[axis]))
        labelled = find_labelled_slices(ids.data, axis, slices, ignore)
    except UserError as error:
        raise UserError(f"{labels}: {error}") from error
    notes = _describe(ids, labelled, ignore)
    source = Path(labels) if given.shape == ids.shape else Path(image)  # a cropped label is put on the image's grid
    if ignore is not None:
        ids = replace(ids, data=np.where(ids.data == ignore, 0, ids.data))
    return PartialLabels(volume, ids, labelled, notes, source, stored_type(labels))


def _describe(ids: Volume, labelled: Sequence[LabelledSlices], ignore: int | None) -> tuple[str, ...]:
    lines = []
    for each in labelled:
        name, count = AXIS_NAMES[each.axis], ids.shape[each.axis]
        lines.append(f"labelled: {len(each.slices)} of {count} {name} slices: {_listed(ids, each.axis, each.slices)}")
        if each.empty:
            rows = _listed(ids, each.axis, each.empty)
            lines.append(f"taken as empty, a step beyond the last label: {name} {rows}; --slices or --ignore overrules")
        if (unused := unused_slices(ids.data, each, ignore)) and len(labelled) == 1:
            rows = _listed(ids, each.axis, unused)
            lines.append(f"replaced, since not among the labelled slices: the labels of {name} {rows}")
    return tuple(lines)


def _listed(ids: Volume, axis: int, slices: Sequence[int]) -> str:
    numbers = [str(i) for i in sorted(file_order(ids, axis, slices))]
    if len(numbers) > SHOWN:
        numbers = [*numbers[: SHOWN - 1], "...", numbers[-1]]
    return ", ".join(numbers)


def check_out(out: Path, partial: PartialLabels, inputs: Sequence[Path], overwrite: bool) -> None:
    """Raises UserError if the completed labels cannot or must not be written to `out`."""
    kinds = out_extensions(partial.source)
    if extension(out) not in kinds:
        raise UserError(f"--out {out}: the labels keep the format of {partial.source}, so end it with {kinds[0]}")
    if out.resolve() in {path.resolve() for path in inputs}:
        raise UserError(f"--out {out} would overwrite an input; give it another name")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; give another --out, or --overwrite")


def check_same_ids(others: Support, partial: PartialLabels, folder: str | Path) -> None:
    """Raises UserError if examples of other cases show none of the labels."""
    ids = np.unique(partial.ids.data[partial.ids.data > 0]).tolist()
    if not set(ids) & set(others.labels):
        raise UserError(
            f"{folder}: its ids are {list(others.labels)}, those to complete {ids}: use the same ids in both"
        )


def out_extensions(source: Path) -> tuple[str, ...]:
    """The formats of completed labels whose given ones are `source`."""
    if extension(source) in TIFF_EXTENSIONS:
        return TIFF_EXTENSIONS
    kind = mask_extension(source)
    return (kind, *NIFTI_EXTENSIONS) if kind in NIFTI_EXTENSIONS else (kind,)


def complete_file(
    predictor: "Predictor",
    partial: PartialLabels,
    out: Path,
    others: Support | None = None,
    window: Window = "auto",
    options: CompletionOptions | None = None,
) -> int:
    """Writes the completed labels to `out`, whole or not at all; returns the number of slices that were completed."""
    completion = complete(
        predictor, partial.volume, partial.ids, partial.labelled, others, window, options, progress=True
    )
    data = completion.mask.astype(partial.dtype)
    with atomic_write(out) as temporary:
        if extension(out) in TIFF_EXTENSIONS:
            write_tiff_stack(temporary, replace(partial.ids, data=data).file_data().T)
        else:
            write_like(temporary, data, partial.source, partial.ids)
    return sum(data.shape[each.axis] - len(each.slices) for each in partial.labelled)
