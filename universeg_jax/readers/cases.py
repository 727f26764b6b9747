"""A case is one image or volume with its labels; examples are made of it.

Folders, nnU-Net and Decathlon layouts and public datasets all become cases, and the builder knows nothing else of them.
An image gives one example. A volume gives, for each wanted axis (Butoi et al., ICCV 2023), the mid-slice, index N // 2,
with all its labels, and for each label the max-slice, where it covers most pixels. Labels with the same max-slice share
an example. A volume of one slice is an image.

Unless a folder says which axes to slice, all three are if no voxel side is more than twice another, else only the
acquired planes, across the longest voxel side (axial for most scans). A TIFF has no voxel size, so only its pages are
used. IN_PLANE stands for the acquired planes whatever their direction.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from universeg_jax.readers.checks import check_voxels
from universeg_jax.readers.colours import ids_of_colours
from universeg_jax.readers.dicom import read_dicom_image, read_label_stack
from universeg_jax.readers.dicom_files import is_dicom_file
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.file_names import (
    CONTOUR_EXTENSION,
    IMAGE_EXTENSIONS,
    READABLE_EXTENSIONS,
    TIFF_EXTENSIONS,
    extension,
)
from universeg_jax.readers.images import (
    check_image,
    is_drawn_on_raw,
    read_colours,
    read_contour,
    read_image,
    read_label,
)
from universeg_jax.readers.label_fit import Fit, fits_of
from universeg_jax.readers.labels import IN_COLOURS, LabelFile, class_masks, ignored_mask
from universeg_jax.readers.notes import Notes, collect, note
from universeg_jax.readers.ome_zarr import is_ome_zarr
from universeg_jax.readers.polygons import draw
from universeg_jax.readers.preprocess import (
    Window,
    apply_window,
    preprocess_image,
    preprocess_mask,
    quantize,
    window_of_modality,
)
from universeg_jax.readers.segments import on_grid_of
from universeg_jax.readers.slices import largest_slice, middle_slice, plane, slice_image, slice_mask
from universeg_jax.readers.volume_files import is_volume, read_label_volume, read_volume
from universeg_jax.readers.volumes import (
    AXES,
    IN_PLANE,
    ISOTROPIC,
    Shape,
    Volume,
    check_same_grid,
    on_grid,
    slice_axis,
)

LabelMap = np.ndarray | dict[int, np.ndarray]  # int32 ids; or the bool mask of each id, where classes overlap
MAX_WITHOUT_LABEL = 0.05  # share of an image or volume of a dataset for training and evaluation
OVERLAP = 0.02  # share of the smaller of two classes from which they overlap


@dataclass(frozen=True)
class Example:
    """One image with a binary mask for each label on it."""

    image: np.ndarray  # uint8 [size, size]
    masks: np.ndarray  # uint8 0/1 [L, size, size]
    labels: tuple[int, ...]  # id of each mask
    subject: str
    name: str
    subset: str = ""
    modality: str = ""
    axis: int = 0
    slicing: str = "image"  # one of SLICINGS
    notes: Notes = field(default_factory=Notes, compare=False)  # how its files were understood
    fits: tuple[Fit | None, ...] = field(default=(), compare=False)  # of the masks to the image; not in records


@dataclass(frozen=True)
class Case:
    """One image, or one channel of a volume, and all that is needed to make examples of it."""

    image: str
    labels: tuple[LabelFile, ...]
    subject: str
    name: str
    size: int
    ids: tuple[int, ...] = ()  # allowed in a label file without classes; () = any
    ids_in: str = "meta.json"  # the file that names them
    modality: str = ""
    subset: str = ""
    volume: bool = False
    channel: int | None = None  # of the image, where it has several
    axes: tuple[int, ...] = ()  # of AXES or IN_PLANE; () = chosen by voxel size
    window: Window = "auto"  # "auto" = chosen by the modality
    root: str = "/"  # no file may lie outside this folder
    fault: tuple[str, str] = ("", "")  # (problem, detail) where files are missing or duplicated; the case is dropped

    def __str__(self) -> str:
        return self.name


def may_be_case(path: Path) -> bool:
    """Judges by the name whether a file or folder is read as an image or volume."""
    if path.is_dir():
        return is_volume(path)
    return path.is_file() and (extension(path) in READABLE_EXTENSIONS or is_dicom_file(path))  # no pipe of a stranger's


def make_examples(case: Case) -> list[Example]:
    """Makes the examples of a case. Raises ImageError for an unusable file, FolderError for an unknown id."""
    check_inside(case)
    with collect() as notes:
        examples = _examples_of_volume(case) if case.volume else _examples_of_image(case)
    return [replace(example, notes=notes) for example in examples[:1]] + examples[1:]


def read_pair(case: Case) -> tuple[np.ndarray, LabelMap]:
    """Reads (image float32 [H, W], its labels by `label_map`)."""
    check_complete(case)
    image = _read_image(case)
    return image, label_map(image.shape, lambda: _image_masks(case, image))


def label_map(shape: tuple[int, ...], masks: Callable[[], Iterator[tuple[int, np.ndarray]]]) -> LabelMap:
    """int32 ids of `shape` where the classes (id, bool mask) do not overlap; else the mask of each id.

    Where two classes share less than OVERLAP of the smaller one, as polygons do along their edges, the higher id wins.
    """
    label = np.zeros(shape, np.int32)
    for i, mask in masks():
        others = label[mask]
        if others.any():
            for other, shared in zip(*np.unique(others[others > 0], return_counts=True), strict=True):
                if shared > OVERLAP * min(len(others), (label == other).sum()):
                    return dict(masks())
        label[mask] = i
    return label


def ids_of(label: LabelMap) -> set[int]:
    """The ids of a label map, without 0."""
    return set(label) if isinstance(label, dict) else set(np.unique(label).tolist()) - {0}


def mask_of(label: LabelMap, i: int, shape: tuple[int, ...]) -> np.ndarray:
    """The bool mask of id `i` in a label map of `shape`."""
    return label.get(i, np.zeros(shape, bool)) if isinstance(label, dict) else label == i


def read_volume_pair(case: Case) -> tuple[Volume, LabelMap]:
    """Reads (volume, its labels [X, Y, Z] on its grid by `label_map`)."""
    check_inside(case)
    image = read_volume(case.image, case.channel)

    def masks() -> Iterator[tuple[int, np.ndarray]]:
        return class_masks(
            case.labels, case.ids, lambda file: read_label_on(case, file, image, image.shape), case.ids_in
        )

    return image, label_map(image.shape, masks)


def ignored_in(case: Case, image: np.ndarray | Volume) -> np.ndarray | None:
    """Bool, of the shape of the case's image [H, W] or volume: pixels without a label; None where all have one.

    Raises ImageError where none has.
    """

    def read(file: LabelFile) -> np.ndarray:
        if isinstance(image, Volume):
            return read_label_on(case, file, image, image.shape)
        return _read_image_label(file, (image.shape[0], image.shape[1]))

    ignored = ignored_mask(case.labels, read)
    if ignored is None or not ignored.any():
        return None
    if ignored.all():
        file = case.labels[0]
        detail = f"{', '.join(map(str, file.ignored))}; label a part of it, or leave this case out"
        raise ImageError(file.path, "holds nothing but the id to ignore", detail)
    return ignored


def check_nearly_labelled(case: Case, image: np.ndarray | Volume) -> None:
    """Notes that pixels without a label become background in a dataset. Raises ImageError where they are many."""
    if (ignored := ignored_in(case, image)) is None:
        return
    if (share := float(ignored.mean())) > MAX_WITHOUT_LABEL:
        detail = f"{100 * share:.0f} % of it is to be ignored, and a dataset would take that for background; label it, "
        raise ImageError(case.labels[0].path, "is labelled in part", f"{detail}or use the folder as --support")
    note(case.labels[0].path, "its few pixels to be ignored become background in a dataset")


def check_complete(case: Case) -> None:
    """Raises ImageError for a case with missing or duplicated files."""
    if case.fault[0]:
        raise ImageError(case.image, *case.fault)


def check_inside(case: Case) -> None:
    """Raises ImageError for an incomplete case and for a link out of its folder.

    A stranger's folder must not make us read other files of this machine.
    """
    check_complete(case)
    root = Path(case.root).resolve()
    for path in (Path(case.image), *(Path(file.path) for file in case.labels)):
        inner = path.rglob("*") if is_ome_zarr(path) else path.iterdir() if path.is_dir() else ()
        for file in (path, *inner):
            if not file.resolve().is_relative_to(root):
                raise ImageError(
                    file, "is a link out of its folder", "put the file itself there, or link the whole folder"
                )


def _examples_of_image(case: Case) -> list[Example]:
    image = _read_image(case)
    check_nearly_labelled(case, image)
    masks = {i: preprocess_mask(mask, case.size) for i, mask in _image_masks(case, image)}
    window = case.window
    if window == "auto":  # of single images only DICOM has physical units
        window = window_of_modality(case.modality) if is_dicom_file(case.image) else "none"
    cut = preprocess_image(apply_window(image, window), case.size, scale=False)
    return [_example(case, cut, masks, image.shape)]


def _read_image(case: Case) -> np.ndarray:
    if is_dicom_file(case.image):
        return check_image(read_dicom_image(case.image), case.image)
    labels = [file.path for file in case.labels if extension(file.path) in IMAGE_EXTENSIONS]
    upright = not (labels and Path(labels[0]).is_file() and is_drawn_on_raw(case.image, labels[0]))
    return read_image(case.image, upright=upright)


def _image_masks(case: Case, image: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    height, width = image.shape
    return class_masks(case.labels, case.ids, lambda file: _read_image_label(file, (height, width)), case.ids_in)


def read_image_values(file: LabelFile, shape: tuple[int, int]) -> np.ndarray:
    """Reads int32 [H, W] values of a label of an image of `shape`, which polygons and contours are drawn on."""
    if extension(file.path) == CONTOUR_EXTENSION:
        return read_contour(file.path, shape)
    if file.part is not None:
        return draw(file.path, *file.part, shape)
    if file.colours:
        table = {i: (red, green, blue) for i, red, green, blue in file.colours}
        return ids_of_colours(read_colours(file.path), table, file.path)
    try:
        return read_label(file.path, ignored=file.ignored)
    except ImageError as error:
        if error.problem != IN_COLOURS or not file.classes or any(values for _, values in file.classes):
            raise
        is_coloured = np.any(read_colours(file.path) > 0, axis=-1)  # every colour but black belongs to the class
        return np.asarray(is_coloured, np.int32)


def _read_image_label(file: LabelFile, shape: tuple[int, int]) -> np.ndarray:
    """`read_image_values` that have the image's shape."""
    label = read_image_values(file, shape)
    if label.shape != shape:
        sizes = ["x".join(map(str, each[::-1])) for each in (shape, label.shape)]
        detail = f"the image is {sizes[0]}, the label {sizes[1]} (width x height)"
        raise ImageError(file.path, "image and label differ in size", detail)
    return label


def _examples_of_volume(case: Case) -> list[Example]:
    image = read_volume(case.image, case.channel)
    check_nearly_labelled(case, image)
    spacing = image.fine_spacing(case.size)
    shape = image.shape_at(spacing)
    check_voxels(image.name, shape, f"{spacing:g} mm")
    axes = {axis: slice_axis(image) if axis == IN_PLANE else axis for axis in wanted_axes(case, image)}
    slices: dict[tuple[int, str, int], dict[int, np.ndarray]] = {}  # (axis, slicing, index) → masks
    masks = class_masks(case.labels, case.ids, lambda file: read_label_on(case, file, image, shape), case.ids_in)
    for i, mask in masks:
        for axis, across in axes.items():
            indices = {"mid": middle_slice(mask, across), "max": largest_slice(mask, across)}
            if mask.shape[across] == 1:
                indices = {"image": 0}
            for slicing, index in indices.items():
                if plane(mask, across, index).any():
                    slices.setdefault((axis, slicing, index), {})[i] = slice_mask(mask, across, index, case.size)
    if not slices:
        raise ImageError(case.labels[0].path, "no class occurs in the volume", "every voxel is 0")
    window = window_of_modality(case.modality) if case.window == "auto" else case.window
    data = apply_window(on_grid(image, shape).data, window)
    examples = []
    for axis, slicing, index in sorted(slices):
        cut = slice_image(data, axes[axis], index, case.size)
        slice_case = replace(case, name=f"{case.name}/axis{axis}/{slicing}{index}")
        examples.append(_example(slice_case, cut, slices[axis, slicing, index], (), axis, slicing))
    return examples


def wanted_axes(case: Case, image: Volume) -> tuple[int, ...]:
    """The axes to slice, of AXES or IN_PLANE, by the rule at the head of this file."""
    if case.axes:
        return case.axes
    thick = max(image.spacing) > ISOTROPIC * min(image.spacing) or 1 in image.shape
    return (slice_axis(image),) if thick or extension(case.image) in TIFF_EXTENSIONS else AXES


def read_label_on(case: Case, file: LabelFile, image: Volume, shape: Shape) -> np.ndarray:
    """Reads int32 class values on the grid that the image was resampled to."""
    if Path(file.path).is_dir() and Path(case.image).is_dir() and not is_volume(file.path):
        label = read_label_stack(file.path, case.image, file.ignored)
    else:
        label = on_grid_of(read_label_volume(file.path, file.ignored), image)
    check_same_grid(image, label)
    return on_grid(label, shape).data


def _example(
    case: Case,
    image: np.ndarray,
    masks: dict[int, np.ndarray],
    shape: tuple[int, ...],
    axis: int = 0,
    slicing: str = "image",
) -> Example:
    """`shape` of the image before it was padded; () for a slice of a volume."""
    stacked = np.stack(list(masks.values())) if masks else np.zeros((0, case.size, case.size), np.uint8)
    example = Example(
        quantize(image), stacked, tuple(masks), case.subject, case.name, case.subset, case.modality, axis, slicing
    )
    return replace(example, fits=fits_of(example.image, stacked, shape))
