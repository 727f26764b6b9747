"""The one TFDS builder that every source goes through, and how its datasets are opened again.

A dataset lies in <data_dir>/<name>/<version>/ as an ordinary TFDS dataset (array_record; `tfds.builder_from_directory`
opens it anywhere), with one split "examples" in the order of its cases. Beside the records lie `index.npz`, what a task
table needs without decoding a picture, and `build_report.json`, what was dropped and why.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from universeg_jax.data.images import ImageError
from universeg_jax.errors import UserError

tfds.disable_progress_bar()  # ours spans reading and preprocessing, which is where the time goes

VERSION = "1.0.0"
SPLIT = "examples"
ROLES = ("train_open", "train_research", "val", "test")
SLICINGS = ("image", "mid", "max")


class BuildError(UserError):
    """A dataset that cannot be built or opened; says what is wrong and what to do."""


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
class DatasetMeta:
    """What is known of a whole dataset."""

    name: str
    role: str  # one of ROLES
    labels: dict[int, str]
    size: int  # pixels
    source_group: str = ""  # datasets that share cases or a source; "" = none
    modality: str = ""
    licence: str = ""
    citation: str = ""
    subjects_identifiable: bool = True

    def __post_init__(self):
        if self.role not in ROLES:
            raise BuildError(f"{self.name}: role {self.role!r}; choose one of {', '.join(ROLES)}")
        if not self.name.isidentifier() or self.name != self.name.lower():
            raise BuildError(f"dataset name {self.name!r}: use lower-case letters, digits and _ only, a letter first")
        if self.size < 8:
            raise BuildError(f"{self.name}: size {self.size} pixels; at least 8 are needed")


@dataclass(frozen=True)
class Index:
    """Columns over the examples and, in `mask_*`, over all their masks; codes point into the string tables."""

    subject: np.ndarray  # int32 [N]
    subset: np.ndarray  # int16 [N]
    modality: np.ndarray  # int16 [N]
    axis: np.ndarray  # int8 [N]
    slicing: np.ndarray  # int8 [N]
    mask_row: np.ndarray  # int32 [M], row of the example
    mask_position: np.ndarray  # int16 [M], which of the example's masks
    mask_label: np.ndarray  # int32 [M]
    mask_area: np.ndarray  # int32 [M], pixels
    subjects: tuple[str, ...]
    subsets: tuple[str, ...]
    modalities: tuple[str, ...]
    slicings: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """A built dataset: dataset[row] reads one example at random access. Picklable."""

    meta: DatasetMeta
    index: Index
    fingerprint: str  # sha256 of all that was built
    directory: str

    def __len__(self) -> int:
        return len(self.index.subject)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """{"image": uint8 [size, size], "masks": uint8 [L, size, size], …}."""
        return _source(self.directory)[row]


@functools.cache
def _source(directory: str) -> Any:
    """One open reader a process and dataset."""
    return tfds.builder_from_directory(directory).as_data_source(split=SPLIT)


def build(
    meta: DatasetMeta,
    cases: Sequence[Any],
    make_examples: Callable[[Any], list[Example]],
    data_dir: str | Path,
    workers: int = 1,
    input_digest: str = "",
) -> dict[str, Any]:
    """Builds <data_dir>/<name>/<version>/ and returns its report.

    make_examples(case) runs in `workers` processes and must be picklable. A case that raises ImageError is dropped,
    counted and listed in the report; every other exception ends the build. The dataset appears whole or not at all,
    and a previous one stays usable until then. The same input gives the same bytes.
    """
    data_dir = Path(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    examples, dropped = _run(cases, make_examples, workers, meta.name)
    if not examples:
        reasons = "; ".join(list(dropped.values())[:3]) or "no cases were found"
        raise BuildError(f"{meta.name}: no example is left of {len(cases)} cases ({reasons})")
    unnamed = {label for example in examples for label in example.labels} - set(meta.labels)
    if unnamed:
        raise BuildError(f"{meta.name}: label ids {sorted(unnamed)} have no name; its labels are {meta.labels}")
    _recover(data_dir, meta.name)
    temporary = data_dir / f".{meta.name}.building"
    try:
        builder = _builder_class(meta, examples)(data_dir=temporary)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces downloads; there are none
            builder.download_and_prepare(file_format="array_record")
        built = Path(builder.data_dir)
        index = _index(examples)
        np.savez(built / "index.npz", **_arrays(index))
        seen = sorted(set(index.mask_label.tolist()))
        report = {
            "dataset": meta.name,
            "role": meta.role,
            "examples": len(examples),
            "subjects": len(index.subjects),
            "labels_never_seen": {str(i): name for i, name in meta.labels.items() if i not in seen},
            "dropped": dropped,
            "input_digest": input_digest,
            "fingerprint": _fingerprint(built),
        }
        (built / "build_report.json").write_text(json.dumps(report, indent=2) + "\n")
        _swap(data_dir, meta.name, temporary / meta.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def open_dataset(data_dir: str | Path, name: str) -> Dataset:
    """A built dataset; raises BuildError naming those that are there."""
    directory = Path(data_dir) / name / VERSION
    _recover(Path(data_dir), name)
    if not directory.is_dir():
        built = ", ".join(list_datasets(data_dir)) or "none"
        raise BuildError(f"dataset {name!r} is not built in {data_dir}; there: {built}. `universeg build` makes one")
    with np.load(directory / "index.npz") as arrays:
        index = Index(**{k: tuple(v.tolist()) if v.dtype.kind == "U" else v for k, v in arrays.items()})
    meta = json.loads((directory / "metadata.json").read_text())
    meta["labels"] = {int(i): label for i, label in meta["labels"].items()}
    report = read_report(data_dir, name)
    return Dataset(DatasetMeta(**meta), index, report["fingerprint"], str(directory.resolve()))


def read_report(data_dir: str | Path, name: str) -> dict[str, Any]:
    return json.loads((Path(data_dir) / name / VERSION / "build_report.json").read_text())


def list_datasets(data_dir: str | Path) -> list[str]:
    """Names of the datasets built in a folder, sorted."""
    return sorted(p.parent.parent.name for p in Path(data_dir).glob(f"[!.]*/{VERSION}/build_report.json"))


def _run(
    cases: Sequence[Any], make_examples: Callable[[Any], list[Example]], workers: int, name: str
) -> tuple[list[Example], dict[str, str]]:
    """Examples in the order of the cases, and the reason for each case that was dropped."""
    attempt = functools.partial(_attempt, make_examples)
    progress = functools.partial(tqdm, total=len(cases), desc=f"build {name}", unit="case", leave=False, delay=2)
    if workers > 1 and len(cases) > 64:  # a small dataset is built before the processes would have started
        # Spawned: a fork of a process with JAX's threads can hang.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            results = list(progress(pool.map(attempt, cases, chunksize=16)))
    else:
        results = list(progress(map(attempt, cases)))
    dropped = {str(case): result for case, result in zip(cases, results, strict=True) if isinstance(result, str)}
    return [example for result in results if not isinstance(result, str) for example in result], dropped


def _attempt(make_examples: Callable[[Any], list[Example]], case: Any) -> list[Example] | str:
    try:
        return make_examples(case)
    except ImageError as error:
        return str(error)


def _builder_class(meta: DatasetMeta, examples: list[Example]) -> type[tfds.core.GeneratorBasedBuilder]:
    """A builder of this one dataset, kept out of TFDS's global registry."""

    def info(self) -> tfds.core.DatasetInfo:
        picture = (meta.size, meta.size)
        features = {
            "image": tfds.features.Tensor(shape=picture, dtype=np.uint8),
            "masks": tfds.features.Tensor(shape=(None, *picture), dtype=np.uint8),
            "labels": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "axis": tfds.features.Scalar(dtype=np.int32),
            **{name: tfds.features.Text() for name in ("subject", "name", "subset", "modality", "slicing")},
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

    def generate(self):
        for row, example in enumerate(examples):
            fields = dataclasses.asdict(example)
            yield row, {**fields, "labels": np.asarray(example.labels, np.int32)}

    members = {
        "name": meta.name,
        "VERSION": tfds.core.Version(VERSION),
        "_info": info,
        "_split_generators": lambda self, _: {SPLIT: self._generate_examples()},
        "_generate_examples": generate,
    }
    with tfds.core.registered.skip_registration():
        return type(meta.name, (tfds.core.GeneratorBasedBuilder,), members)


def _index(examples: Sequence[Example]) -> Index:
    def column(values: list[str], dtype: type) -> tuple[np.ndarray, tuple[str, ...]]:
        table, codes = np.unique(values, return_inverse=True)
        return codes.astype(dtype), tuple(table.tolist())

    subject, subjects = column([e.subject for e in examples], np.int32)
    subset, subsets = column([e.subset for e in examples], np.int16)
    modality, modalities = column([e.modality for e in examples], np.int16)
    masks = [
        (row, position, label, int(mask.sum()))
        for row, e in enumerate(examples)
        for position, (label, mask) in enumerate(zip(e.labels, e.masks, strict=True))
    ]
    row, position, label, area = np.array(masks, np.int64).reshape((-1, 4)).T
    return Index(
        subject, subset, modality,
        np.array([e.axis for e in examples], np.int8),
        np.array([SLICINGS.index(e.slicing) for e in examples], np.int8),
        row.astype(np.int32), position.astype(np.int16), label.astype(np.int32), area.astype(np.int32),
        subjects, subsets, modalities, SLICINGS,
    )  # fmt: skip


def _arrays(index: Index) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in dataclasses.asdict(index).items()}


def _fingerprint(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        digest.update(path.name.encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _swap(data_dir: Path, name: str, built: Path) -> None:
    """Puts the new dataset in the old one's place by two renames; `_recover` mends a death between them."""
    previous = data_dir / f".{name}.previous"
    if (data_dir / name).exists():
        os.replace(data_dir / name, previous)
    os.replace(built, data_dir / name)
    shutil.rmtree(previous, ignore_errors=True)


def _recover(data_dir: Path, name: str) -> None:
    previous = data_dir / f".{name}.previous"
    if previous.exists() and not (data_dir / name).exists():
        os.replace(previous, data_dir / name)
    for leftover in (previous, data_dir / f".{name}.building"):
        if leftover.exists():
            shutil.rmtree(leftover)
