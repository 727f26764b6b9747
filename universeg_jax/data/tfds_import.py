"""Any TFDS dataset (array_record) whose records hold a picture and a mask of class ids, as cases for the builder.

It is built like a folder of pictures: grey, scaled, resized, ids as masks. Its masks may be pictures or tensors.
Without a feature that says who is who, each record is its own subject.
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
from universeg_jax.readers.labels import check_label
from universeg_jax.readers.meta import Folder
from universeg_jax.readers.preprocess import preprocess_image, preprocess_mask, quantize


@dataclass(frozen=True)
class Record:
    """One record; `image`, `mask` and `subject` name features, "a/b" for b within a."""

    directory: str
    split: str
    row: int
    image: str
    mask: str
    subject: str  # "" = each record is its own
    modality: str
    size: int

    def __str__(self) -> str:
        return f"{self.split}/{self.row}"


def read_records(
    place: str, data_dir: str | Path, image: str, mask: str, subject: str, modality: str, licence: str, size: int
) -> Folder:
    """The records of the dataset in the folder `place`, or prepared as <data_dir>/<place>. Raises BuildError.

    Every mask is read once, for the ids that occur, unless the feature names its classes.
    """
    directory = _find(Path(place) if Path(place).is_dir() else Path(data_dir) / place)
    info = _info(directory)
    if info.file_format.value != "array_record":
        raise BuildError(
            f"{directory} is in {info.file_format.value}, which needs TensorFlow to be read; prepare it again with "
            'download_and_prepare(file_format="array_record")'
        )
    for key in filter(None, (image, mask, subject)):
        _feature(directory, info.features, key)
    cases = tuple(
        Record(str(directory), split, row, image, mask, subject, modality, size)
        for split in sorted(info.splits)
        for row in range(info.splits[split].num_examples)
    )
    drawn = _feature(directory, info.features, mask)
    if getattr(drawn, "encoding_format", None) == "jpeg":
        raise BuildError(f"{directory}: {mask} is stored in JPEG, whose compression changes class ids; store it as PNG")
    names = getattr(drawn, "names", None)
    labels = dict(enumerate(names)) if names else {i: f"label {i}" for i in sorted(_ids_that_occur(cases))}
    return Folder(
        cases,
        labels={i: name for i, name in labels.items() if i},
        modality=modality,
        licence=licence,
        citation=info.citation or "",
        subjects_identifiable=bool(subject),
        ignored=(),
    )


def make_record_examples(case: Record) -> list[Example]:
    """The example of a record. Raises ImageError where it cannot be used."""
    record = _record(case)
    image = check_image(_value(record, case.image), case)
    label = check_label(_value(record, case.mask), case)
    if label.shape != image.shape:
        raise ImageError(case, "image and label differ in size", f"{image.shape} and {label.shape}")
    ids = tuple(i for i in np.unique(label).tolist() if i)
    masks = [preprocess_mask(label == i, case.size) for i in ids]
    subject = _text(_value(record, case.subject)) if case.subject else str(case)
    if not subject:
        raise ImageError(case, "has no subject", f"its feature {case.subject} is empty")
    return [
        Example(
            quantize(preprocess_image(image, case.size)),
            np.stack(masks) if masks else np.zeros((0, case.size, case.size), np.uint8),
            ids,
            subject,
            str(case),
            modality=case.modality,
        )
    ]


def _find(root: Path) -> Path:
    """The one dataset at a folder or below, such as <name>/<config>/<version>."""
    found = sorted(path.parent for path in root.rglob("features.json"))
    if not found:
        raise BuildError(f"{root} holds no TFDS dataset; give the folder with its features.json")
    if len(found) > 1:
        raise BuildError(f"{root} holds several TFDS datasets: {', '.join(map(str, found))}; give one of them")
    return found[0].resolve()


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


def _record(case: Record) -> dict[str, Any]:
    """Raises ImageError where it cannot be read, whatever the reason."""
    try:
        return _source(case.directory, case.split)[case.row]
    except MemoryError:
        raise
    except Exception as error:  # damaged records, pictures in them that cannot be decoded
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
def _source(directory: str, split: str) -> Any:
    """One open reader a process and split."""
    return tfds.builder_from_directory(directory).as_data_source(split=split)


def _value(record: dict[str, Any], key: str) -> np.ndarray:
    return functools.reduce(lambda inner, part: inner[part], key.split("/"), record)


def _text(value: Any) -> str:
    value = value.item() if isinstance(value, np.ndarray | np.generic) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _ids_that_occur(cases: tuple[Record, ...]) -> set[int]:
    return {i for label in _readable_labels(cases) for i in np.unique(label).tolist()}


def _readable_labels(cases: tuple[Record, ...]) -> Iterator[np.ndarray]:
    for case in cases:
        try:
            yield check_label(_value(_record(case), case.mask), case)
        except ImageError:
            continue  # whoever makes the example gets it again, and drops and counts it
