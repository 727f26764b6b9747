"""A case: one picture or volume with its labels, wherever they come from, and the examples made of it.

Folders, nnU-Net and Decathlon layouts and the sources of public datasets all give cases; the builder knows nothing else
of them. Of a picture one example is made. Of a volume, for each axis that is wanted (Butoi et al., ICCV 2023): the
mid-slice, index N // 2, with every label on it, and for each label the max-slice, where it covers most pixels. Labels
whose max-slice is the same share one example. A volume of one slice is a picture.

Axes that are wanted, where nobody says it: all three if no voxel is more than twice as long as it is wide, else the
planes that were acquired, across the longest voxels (axial for most scans). A TIFF of pages says no voxel size: its
pages alone. Axis IN_PLANE, where somebody says it, stands for the acquired planes whatever their direction.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from universeg_jax.errors import UserError
from universeg_jax.readers.dicom import DICOM, read_dicom_picture, read_label_stack
from universeg_jax.readers.file_names import extension
from universeg_jax.readers.images import (
    EXTENSIONS,
    ImageError,
    check_picture,
    preprocess_image,
    preprocess_mask,
    quantize,
    read_contour,
    read_image,
    read_label,
)
from universeg_jax.readers.volume_files import TIFF, VOLUME_EXTENSIONS, is_volume, read_label_volume, read_volume
from universeg_jax.readers.volumes import (
    AXES,
    IN_PLANE,
    ISOTROPIC,
    Volume,
    check_same_place,
    choose_window,
    largest_slice,
    middle_slice,
    on_grid,
    plane,
    slice_axis,
    slice_image,
    slice_mask,
    to_spacing,
    window_volume,
)


class FolderError(UserError):
    """A folder that cannot be read as images and labels; says which file and what to do."""


@dataclass(frozen=True)
class Example:
    """One picture with the binary masks of all labels that were drawn on it."""

    image: np.ndarray  # uint8 [size, size]
    masks: np.ndarray  # uint8 0/1 [L, size, size]
    labels: tuple[int, ...]  # id of each mask
    subject: str
    name: str
    subset: str = ""
    modality: str = ""
    axis: int = 0
    slicing: str = "image"  # one of SLICINGS


@dataclass(frozen=True)
class LabelFile:
    """Where classes are drawn. `classes` are (id, values of the file that mean it); no values = everything but 0.

    Without `classes` the values are the ids. `ignored` are values that mean nothing, such as a border.
    """

    path: str
    classes: tuple[tuple[int, tuple[int, ...]], ...] = ()
    ignored: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """One picture, or one channel of a volume, and all that is needed to make examples of it."""

    image: str
    labels: tuple[LabelFile, ...]
    subject: str
    name: str
    size: int
    ids: tuple[int, ...] = ()  # that may occur in a label file without classes; () = any
    modality: str = ""
    subset: str = ""
    volume: bool = False
    channel: int | None = None  # of the image, where it has several
    axes: tuple[int, ...] = ()  # of AXES or IN_PLANE; () = by the size of the voxels
    window: str | tuple[float, float] = "auto"  # "auto": by the modality's words
    root: str = "/"  # no file may lie outside this folder
    fault: tuple[str, str] = ("", "")  # (problem, detail), where its files are missing or too many: it is to be dropped

    def __str__(self) -> str:
        return self.name


def may_be_case(path: Path) -> bool:
    """Whether a file or folder is read as a picture or volume, by its name."""
    return is_volume(path) if path.is_dir() else extension(path) in (*EXTENSIONS, *VOLUME_EXTENSIONS, *DICOM)


def make_examples(case: Case) -> list[Example]:
    """The examples of a case. Raises ImageError where a file cannot be used, FolderError where ids are unknown."""
    check_inside(case)
    return _of_volume(case) if case.volume else _of_picture(case)


def read_pair(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(image float32 [H, W], label map int32 [H, W]) of a picture; where classes overlap the higher id is seen."""
    check_complete(case)
    image = _read_picture(case)
    label = np.zeros(image.shape, np.int32)
    for i, mask in class_masks(case, lambda file: _read_label_picture(file, image.shape)):
        label[mask] = i
    return image, label


def class_masks(case: Case, read: Callable[[LabelFile], np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """(id, its mask, bool) for each class that occurs, ids ascending; one is in memory at a time.

    `read` gives the values of a label file. Raises ImageError for a value that no class has, FolderError for an id that
    the dataset does not name.
    """
    read = functools.lru_cache(1)(functools.partial(_read_known, case, read))
    classes: dict[int, list[tuple[LabelFile, tuple[int, ...]]]] = {}
    for file in case.labels:
        for i, values in file.classes or [(int(i), (int(i),)) for i in _values(read(file))]:
            classes.setdefault(i, []).append((file, values))
    for i in sorted(classes):
        mask = functools.reduce(np.logical_or, (_mask(read(file), values) for file, values in classes[i]))
        if mask.any():
            yield i, mask


def _values(label: np.ndarray) -> set[int]:
    """Those that occur, without 0; counting is faster than sorting where they are small."""
    if label.min() >= 0 and label.max() < 1 << 16:
        return set(np.flatnonzero(np.bincount(label.ravel())).tolist()) - {0}
    return set(np.unique(label).tolist()) - {0}


def _mask(label: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    if len(values) == 1:
        return label == values[0]
    return np.isin(label, values) if values else label != 0


def _read_known(case: Case, read: Callable[[LabelFile], np.ndarray], file: LabelFile) -> np.ndarray:
    label = read(file)
    found = _values(label)
    if file.classes:
        known = {value for _, values in file.classes for value in values} | set(file.ignored)
        if all(values for _, values in file.classes) and found - known:
            raise ImageError(file.path, "holds values that mean no class", f"{sorted(found - known)[:9]}")
    elif case.ids and found - set(case.ids):
        raise FolderError(
            f"{file.path}: ids {sorted(found - set(case.ids))} are not in meta.json, which names {sorted(case.ids)}; "
            'add them to its "labels" or correct the file'
        )
    return label


def check_complete(case: Case) -> None:
    """Raises ImageError for a case that its folder holds in part, or twice."""
    if case.fault[0]:
        raise ImageError(case.image, *case.fault)


def check_inside(case: Case) -> None:
    """As `check_complete`, and for a link: it must not make a stranger's folder read other files of this machine."""
    check_complete(case)
    root = Path(case.root).resolve()
    for path in (Path(case.image), *(Path(file.path) for file in case.labels)):
        for file in (path, *(path.iterdir() if path.is_dir() else ())):
            if not file.resolve().is_relative_to(root):
                raise ImageError(
                    file, "is a link out of its folder", "put the file itself there, or link the whole folder"
                )


def _of_picture(case: Case) -> list[Example]:
    image = _read_picture(case)
    masks = {
        i: preprocess_mask(mask, case.size)
        for i, mask in class_masks(case, lambda file: _read_label_picture(file, image.shape))
    }
    window = case.window
    if window == "auto":  # other pictures have no units any more, whatever their modality
        window = choose_window(case.modality) if extension(case.image) in DICOM else "none"
    return [_example(case, preprocess_image(window_volume(image, window), case.size, scale=False), masks)]


def _read_picture(case: Case) -> np.ndarray:
    if extension(case.image) in DICOM:
        return check_picture(read_dicom_picture(case.image), case.image)
    return read_image(case.image)


def _read_label_picture(file: LabelFile, shape: tuple[int, int]) -> np.ndarray:
    """int32 [H, W] of the image's shape."""
    if extension(file.path) == ".txt":
        return read_contour(file.path, shape)
    label = read_label(file.path)
    if label.shape != shape:
        sizes = ["x".join(map(str, each[::-1])) for each in (shape, label.shape)]
        raise ImageError(
            file.path,
            "image and label differ in size",
            f"the image is {sizes[0]}, the label {sizes[1]} (width x height)",
        )
    return label


def _of_volume(case: Case) -> list[Example]:
    image = read_volume(case.image, case.channel)
    shape = to_spacing(image).shape
    axes = wanted_axes(case, image)
    found: dict[tuple[int, str, int], dict[int, np.ndarray]] = {}  # (axis, slicing, index) → masks
    for i, mask in class_masks(case, lambda file: read_label_on(case, file, image, shape)):
        for axis in axes:
            across = slice_axis(image) if axis == IN_PLANE else axis
            slices = {"mid": middle_slice(mask, across), "max": largest_slice(mask, across)}
            if mask.shape[across] == 1:
                slices = {"image": 0}
            for slicing, index in slices.items():
                if plane(mask, across, index).any():
                    found.setdefault((axis, slicing, index), {})[i] = slice_mask(mask, across, index, case.size)
    if not found:
        raise ImageError(case.labels[0].path, "no class occurs in the volume", "every voxel is 0")
    window = choose_window(case.modality) if case.window == "auto" else case.window
    data = window_volume(to_spacing(image).data, window)
    examples = []
    for axis, slicing, index in sorted(found):
        across = slice_axis(image) if axis == IN_PLANE else axis
        picture = slice_image(data, across, index, case.size)
        of_slice = replace(case, name=f"{case.name}/axis{axis}/{slicing}{index}")
        examples.append(_example(of_slice, picture, found[axis, slicing, index], axis, slicing))
    return examples


def wanted_axes(case: Case, image: Volume) -> tuple[int, ...]:
    """Of AXES or IN_PLANE; the rule stands at the head of this file."""
    if case.axes:
        return case.axes
    thick = max(image.spacing) > ISOTROPIC * min(image.spacing) or 1 in image.shape
    return (slice_axis(image),) if thick or extension(case.image) in TIFF else AXES


def read_label_on(case: Case, file: LabelFile, image: Volume, shape: tuple[int, int, int]) -> np.ndarray:
    """int32 class values on the grid that the image was resampled to."""
    if Path(file.path).is_dir() and Path(case.image).is_dir() and not is_volume(file.path):
        label = read_label_stack(file.path, case.image)
    else:
        label = read_label_volume(file.path)
    check_same_place(image, label)
    return on_grid(label, shape).data


def _example(
    case: Case, picture: np.ndarray, masks: dict[int, np.ndarray], axis: int = 0, slicing: str = "image"
) -> Example:
    stacked = np.stack(list(masks.values())) if masks else np.zeros((0, case.size, case.size), np.uint8)
    return Example(
        quantize(picture), stacked, tuple(masks), case.subject, case.name, case.subset, case.modality, axis, slicing
    )
