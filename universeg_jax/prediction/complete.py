"""The rest of a volume of which some slices are labelled.

Each axis with labelled slices is completed by itself (between.py). Of several, a voxel takes the axis that is surest of
it and has a labelled slice nearest. Labelled slices come back untouched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from universeg_jax.errors import UserError
from universeg_jax.prediction.between import CompletionOptions, Labelled, Setting, checks_of, choose_mixes, fill_gap
from universeg_jax.prediction.gaps import find_gaps
from universeg_jax.prediction.motion import Motion
from universeg_jax.prediction.support import Support
from universeg_jax.readers.checks import check_intensities
from universeg_jax.readers.labelled_slices import LabelledSlices, find_labelled_slices
from universeg_jax.readers.labels import check_ids
from universeg_jax.readers.preprocess import Window, apply_window
from universeg_jax.readers.segments import on_grid_of
from universeg_jax.readers.slices import guess_window
from universeg_jax.readers.volume_files import read_label_volume, read_volume
from universeg_jax.readers.volumes import AXES, Shape, Volume, check_same_grid, make_volume, on_grid

if TYPE_CHECKING:
    from universeg_jax.prediction.predictor import Predictor

VolumeLike = npt.ArrayLike | Path | Volume  # a string is a file name
ANISOTROPIC = 1.05  # ratio of the sides of a plane's pixels from which on the plane is resampled to squares


@dataclass(frozen=True)
class Completion:
    """The labels of a whole volume, on its grid.

    - `mask`: label ids, int32 [X, Y, Z]; labelled slices are as they were given.
    - `uncertainty`: float32 [X, Y, Z] in [0, 1], the entropy in bits, clipped at one bit; 0 in labelled slices.
    - `labelled`: the slices that counted as labelled, one entry for each axis.
    """

    mask: np.ndarray
    uncertainty: np.ndarray
    labelled: tuple[LabelledSlices, ...]


def complete(
    predictor: "Predictor",
    volume: Volume,
    partial: Volume,
    labelled: Sequence[LabelledSlices] = (),
    others: Support | None = None,
    window: Window = "auto",
    options: CompletionOptions | None = None,
    progress: bool = False,
) -> Completion:
    """Completes `partial`, int32 ids on the grid of `volume`; whatever it holds outside labelled slices is not used.

    `labelled`: default `find_labelled_slices`. `others`: examples of other cases, which the network sees where the
    volume has fewer than `support_size` labelled slices. `window`: of the intensities, as in `volume_slices`. Raises
    UserError, and ImageError for labels on another grid.
    """
    check_same_grid(volume, partial)
    options = options or CompletionOptions()
    labelled = tuple(labelled) or find_labelled_slices(partial.data)
    window = guess_window(volume) if window == "auto" else window
    seen = [_along(volume, partial, each, window) for each in labelled]
    work = sum(_work(each, options) for each in seen)
    if not any(find_gaps(each.slices, len(each.ids)) for each in seen):
        raise UserError("every slice counts as labelled, so that nothing is left to complete: name those that are")
    results = []
    with tqdm(total=work, desc="complete", unit="slice", leave=False, disable=not progress) as bar:
        for along in seen:
            motion = Motion(along.planes)
            results.append(_fill(Setting(predictor, along, motion, others, options, bar.update)))
    ids, uncertainty = _merge(volume, labelled, results)
    known = np.zeros(volume.shape, bool)
    for each in labelled:
        np.moveaxis(known, each.axis, 0)[list(each.slices)] = True
    return Completion(np.where(known, partial.data, ids), np.where(known, np.float32(0), uncertainty), labelled)


def complete_any(
    predictor: "Predictor",
    volume: VolumeLike,
    partial: VolumeLike,
    labelled: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Completion:
    """`complete` for arrays, files and volumes; see `Predictor.complete`."""
    if isinstance(volume, str | Path):
        volume = read_volume(volume)
    elif not isinstance(volume, Volume):
        volume = make_volume(np.asarray(volume, np.float32), np.eye(4), "the volume")
        check_intensities(volume.data, volume.name)
    if isinstance(partial, str | Path):
        partial = on_grid_of(read_label_volume(partial), volume)
    elif not isinstance(partial, Volume):
        partial = make_volume(check_ids(np.asarray(partial), "the labels"), volume.file_affine(), "the labels")
    found = find_labelled_slices(partial.data, **labelled)
    if (ignore := labelled.get("ignore")) is not None:
        partial = replace(partial, data=np.where(partial.data == ignore, 0, partial.data))
    return complete(predictor, volume, partial, found, options=CompletionOptions(**options))


def _along(volume: Volume, partial: Volume, labelled: LabelledSlices, window: Window) -> Labelled:
    """The planes of an axis, resampled to square pixels."""
    shape = _square_shape(volume, labelled.axis)
    image = replace(volume, data=apply_window(volume.data, window))
    planes, ids = (np.moveaxis(on_grid(each, shape).data, labelled.axis, 0) for each in (image, partial))
    return Labelled(np.ascontiguousarray(planes), np.ascontiguousarray(ids), labelled.slices)


def _square_shape(volume: Volume, axis: int) -> Shape:
    spacing = {a: volume.spacing[a] for a in AXES if a != axis}
    fine = min(spacing.values())
    if max(spacing.values()) <= ANISOTROPIC * fine:
        return volume.shape
    x, y, z = (n if a == axis else max(1, round(n * spacing[a] / fine)) for a, n in enumerate(volume.shape))
    return x, y, z


def _work(volume: Labelled, options: CompletionOptions) -> int:
    """The number of slices to complete and to choose on, counted once for each label."""
    checks = sum(map(len, checks_of(volume, options).values()))
    return checks + sum(len(gap) * len(volume.of(gap)) for gap in find_gaps(volume.slices, len(volume.ids)))


def _fill(setting: Setting) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, uncertainty, margin) of all slices [N, H, W] of an axis."""
    given = setting.volume.ids
    setting = replace(setting, mixes=choose_mixes(setting))
    ids, uncertainty, margin = given.copy(), np.zeros(given.shape, np.float32), np.zeros(given.shape, np.float32)
    for gap in find_gaps(setting.volume.slices, len(given)):
        filled = fill_gap(setting, gap)
        rows = slice(gap.start, gap.stop)
        ids[rows], uncertainty[rows], margin[rows] = filled.ids, filled.uncertainty, filled.margin
        setting.motion.forget()
    return ids, uncertainty, margin


def _merge(
    volume: Volume, labelled: Sequence[LabelledSlices], results: Sequence[tuple[np.ndarray, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, uncertainty) [X, Y, Z]: of each voxel those of the axis with the largest margin per distance."""
    ids, uncertainty = np.zeros(volume.shape, np.int32), np.zeros(volume.shape, np.float32)
    best = np.full(volume.shape, -1, np.float32)
    for each, parts in zip(labelled, results, strict=True):
        moved = (replace(volume, data=np.moveaxis(part, 0, each.axis)) for part in parts)
        found = [on_grid(part, volume.shape).data for part in moved]  # back from square pixels
        positions = np.arange(volume.shape[each.axis])
        apart = np.abs(positions[:, None] - np.asarray(each.slices)).min(1) * volume.spacing[each.axis]
        lines = [-1 if a == each.axis else 1 for a in AXES]
        sure = found[2] / np.maximum(apart, 1e-6).astype(np.float32).reshape(lines)
        better = sure > best
        for whole, part in ((ids, found[0]), (uncertainty, found[1]), (best, sure)):
            whole[better] = part[better]
    return ids, uncertainty
