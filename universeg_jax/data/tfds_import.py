"""Importing any TFDS dataset (array_record) whose records hold an image and a mask of class ids.

It is built like a folder of images: grey, scaled, resized, ids as masks. Masks may be images or tensors. Without a
subject feature each record is its own subject.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from universeg_jax.data.dataset import BuildError
from universeg_jax.readers.cases import Example
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.images import check_image
from universeg_jax.readers.label_fit import fits_of
from universeg_jax.readers.labels import check_label
from universeg_jax.readers.meta import Folder
from universeg_jax.readers.preprocess import preprocess_image, preprocess_mask, quantize


@dataclass(frozen=True)
class TfdsFeatures:
    """Names of the features to read, "a/b" for b within a."""

    image: str
    mask: str
    subject: str = ""  # "" = each record is its own


@dataclass(frozen=True)
class TfdsCase:
    """One record."""

    directory: str
    split: str
    row: int
    features: TfdsFeatures
    modality: str
    size: int

    def __str__(self) -> str:
        return f"{self.split}/{self.row}"


def read_tfds(
    dataset: str, data_dir: str | Path, features: TfdsFeatures, size: int, modality: str = "", licence: str = ""
) -> Folder[TfdsCase]:
    """Reads the records of `dataset`, a folder or the name of one prepared in `data_dir`. Raises BuildError.

    Every mask is read once to find the ids that occur, unless the feature names its classes.
    """
    directory = _find(Path(dataset) if Path(dataset).is_dir() else Path(data_dir) / dataset)
    info = _info(directory)
    if info.file_format.value != "array_record":
        raise BuildError(
            f"{directory} is in {info.file_format.value}, which needs TensorFlow to be read; prepare it again with "
            'download_and_prepare(file_format="array_record")'
        )
    for key in filter(None, (features.image, features.mask, features.subject)):
        _feature(directory, info.features, key)
    cases = tuple(
        TfdsCase(str(directory), split, row, features, modality, size)
        for split in sorted(info.splits)
        for row in range(info.splits[split].num_examples)
    )
    mask = _feature(directory, info.features, features.mask)
    if getattr(mask, "encoding_format", None) == "jpeg":
        raise BuildError(
            f"{directory}: {features.mask} is stored in JPEG, whose compression changes class ids; store it as PNG"
        )
    names = getattr(mask, "names", None)
    labels = dict(enumerate(names)) if names else {i: f"label {i}" for i in sorted(_occurring_ids(cases))}
    return Folder(
        cases,
        labels={i: name for i, name in labels.items() if i},
        modality=modality,
        licence=licence,
        citation=info.citation or "",
        subjects_identifiable=bool(features.subject),
        ignored=(),
    )


def make_tfds_examples(case: TfdsCase) -> list[Example]:
    """Makes the example of a record. Raises ImageError where it cannot be used."""
    record = _read_record(case)
    image = check_image(_value(record, case.features.image), case)
    label = check_label(_value(record, case.features.mask), case)
    if label.shape != image.shape:
        raise ImageError(case, "image and label differ in size", f"{image.shape} and {label.shape}")
    ids = tuple(i for i in np.unique(label).tolist() if i)
    masks = [preprocess_mask(label == i, case.size) for i in ids]
    subject = _text(_value(record, case.features.subject)) if case.features.subject else str(case)
    if not subject:
        raise ImageError(case, "has no subject", f"its feature {case.features.subject} is empty")
    stacked = np.stack(masks) if masks else np.zeros((0, case.size, case.size), np.uint8)
    cut = quantize(preprocess_image(image, case.size))
    fits = fits_of(cut, stacked, image.shape)
    return [Example(cut, stacked, ids, subject, str(case), modality=case.modality, fits=fits)]


def _find(root: Path) -> Path:
    """The one dataset in a folder or below, such as <name>/<config>/<version>."""
    directories = sorted(path.parent for path in root.rglob("features.json"))
    if not directories:
        raise BuildError(f"{root} holds no TFDS dataset; give the folder with its features.json")
    if len(directories) > 1:
        names = ", ".join(map(str, directories))
        raise BuildError(f"{root} holds several TFDS datasets: {names}; give one of them")
    return directories[0].resolve()


def _info(directory: Path) -> Any:
    try:
        info = tfds.builder_from_directory(directory).info
        promised = sum(split.num_examples for split in info.splits.values())
    except Exception as error:  # a damaged description makes TFDS raise almost anything
        raise BuildError(f"{directory} cannot be opened as a TFDS dataset: {_short(error)}") from error
    held = sum(file.stat().st_size for file in directory.iterdir())
    if promised > held:
        raise BuildError(f"{directory} promises {promised:,} records in {held:,} bytes; prepare it again")
    return info


def _read_record(case: TfdsCase) -> dict[str, Any]:
    """Raises ImageError where the record cannot be read, whatever the reason."""
    try:
        return _data_source(case.directory, case.split)[case.row]
    except MemoryError:
        raise
    except Exception as error:  # damaged records, images in them that cannot be decoded
        raise ImageError(case, "cannot be read", _short(error).replace(f"{case.directory}/", "")) from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _feature(directory: Path, features: Any, key: str) -> Any:
    for part in key.split("/"):
        if not isinstance(features, tfds.features.FeaturesDict) or part not in features:
            raise BuildError(f"{directory} has no feature {key!r}; there are {', '.join(_keys(features))}")
        features = features[part]
    return features


def _keys(features: Any) -> list[str]:
    return sorted(features.keys()) if isinstance(features, tfds.features.FeaturesDict) else ["none within it"]


@functools.lru_cache(maxsize=16)
def _data_source(directory: str, split: str) -> Any:
    """One open reader per process and split."""
    return tfds.builder_from_directory(directory).as_data_source(split=split)


def _value(record: dict[str, Any], key: str) -> Any:
    value: Any = record
    for part in key.split("/"):
        value = value[part]
    return value


def _text(value: Any) -> str:
    value = value.item() if isinstance(value, np.ndarray | np.generic) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _occurring_ids(cases: tuple[TfdsCase, ...]) -> set[int]:
    return {i for label in _readable_labels(cases) for i in np.unique(label).tolist()}


def _readable_labels(cases: tuple[TfdsCase, ...]) -> Iterator[np.ndarray]:
    for case in cases:
        try:
            yield check_label(_value(_read_record(case), case.features.mask), case)
        except ImageError:
            continue  # the build meets the error again, then drops and counts the case
