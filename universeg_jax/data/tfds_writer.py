"""Writing the records of a dataset by TFDS, the same bytes for the same examples."""

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer

from universeg_jax.data.dataset import SPLIT, VERSION, BuildError, DatasetMeta
from universeg_jax.readers.cases import Example

tfds.disable_progress_bar()  # the builder's own bar covers reading and preprocessing, which take most of the time

MODULE = "universeg_jax.data.builder"  # written to dataset_info.json; another name would change every fingerprint
TEXTS = ("subject", "name", "subset", "modality", "slicing")


def to_features(example: Example) -> dict[str, Any]:
    """An example as the features of a record."""
    fields = {name: value for name, value in vars(example).items() if name not in ("notes", "fits")}
    return {**fields, "labels": np.asarray(example.labels, np.int32)}


def from_features(record: dict[str, Any]) -> Example:
    """The inverse of `to_features`, from a record that was read."""
    texts = {name: record[name].decode() for name in TEXTS}
    return Example(record["image"], record["masks"], tuple(record["labels"].tolist()), axis=record["axis"], **texts)


def write_records(meta: DatasetMeta, keyed: Any, staging: Path, download_config: Any = None) -> Path:
    """Writes (key, features) pairs, or a Beam transform that yields them, below `staging`; returns the directory."""
    builder = _builder_class(meta, keyed)(data_dir=staging)
    try:
        # TFDS announces downloads; there are none.
        with contextlib.redirect_stdout(io.StringIO()), _deterministic_records():
            builder.download_and_prepare(file_format="array_record", download_config=download_config)
    except RuntimeError as error:
        if "Failed to finalize writing" in str(error):  # TFDS's message for a full disk, among others
            raise BuildError(f"{meta.name} cannot be written in {staging.parent}: {error}") from error
        raise
    return Path(builder.data_dir)


def _builder_class(meta: DatasetMeta, keyed: Any) -> type[tfds.core.GeneratorBasedBuilder]:
    """A builder class for this one dataset, kept out of TFDS's global registry."""

    def info(self) -> tfds.core.DatasetInfo:
        square = (meta.size, meta.size)
        features = {
            "image": tfds.features.Tensor(shape=square, dtype=np.uint8, encoding="bytes"),
            "masks": tfds.features.Tensor(shape=(None, *square), dtype=np.uint8, encoding="bytes"),
            "labels": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "axis": tfds.features.Scalar(dtype=np.int32),
            **{name: tfds.features.Text() for name in TEXTS},
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{meta.name}: {meta.modality}. Labels: {', '.join(meta.labels.values())}.",
            features=tfds.features.FeaturesDict(features),
            citation=meta.citation,
            license=meta.licence,
            metadata=tfds.core.MetadataDict(dataclasses.asdict(meta)),
            disable_shuffling=True,
        )

    members = {
        "__module__": MODULE,
        "name": meta.name,
        "VERSION": tfds.core.Version(VERSION),
        "_info": info,
        "_split_generators": lambda self, _: {SPLIT: self._generate_examples()},
        "_generate_examples": lambda self: keyed,
    }
    with tfds.core.registered.skip_registration():
        return type(meta.name, (tfds.core.GeneratorBasedBuilder,), members)


class DeterministicSerializer(example_serializer.ExampleSerializer):
    """Sorts the fields of a record, whose order otherwise differs between processes."""

    def serialize_example(self, example):
        return self.get_tf_example(example).SerializeToString(deterministic=True)


def _deterministic_records() -> contextlib.AbstractContextManager:
    """Replaces the class rather than its method, so that Beam's workers, which get it pickled, have it too."""
    return mock.patch.object(example_serializer, "ExampleSerializer", DeterministicSerializer)
