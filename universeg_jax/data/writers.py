"""Writers of what lies beside the records of a dataset: the index and the pixel table."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from universeg_jax.data.dataset import IMAGE_TABLE, MASK_TABLE, SLICINGS, Index
from universeg_jax.readers.cases import Example


@dataclass
class IndexWriter:
    """Collects the columns of the index while examples are written."""

    examples: list[tuple[str, str, str, int, int]] = field(default_factory=list)
    masks: list[tuple[int, int, int, int]] = field(default_factory=list)

    def add(self, e: Example) -> None:
        row = len(self.examples)
        self.examples.append((e.subject, e.subset, e.modality, e.axis, SLICINGS.index(e.slicing)))
        areas = e.masks.sum((1, 2), dtype=np.int64).tolist()
        self.masks += [(row, at, *of_mask) for at, of_mask in enumerate(zip(e.labels, areas, strict=True))]

    def index(self) -> Index:
        subjects, subsets, modalities, axis, slicing = zip(*self.examples, strict=True)
        subject, subjects = _codes(subjects, np.int32)
        subset, subsets = _codes(subsets, np.int16)
        modality, modalities = _codes(modalities, np.int16)
        row, position, label, area = np.array(self.masks, np.int64).reshape((-1, 4)).T
        return Index(
            subject, subset, modality, np.array(axis, np.int8), np.array(slicing, np.int8),
            row.astype(np.int32), position.astype(np.int16), label.astype(np.int32), area.astype(np.int32),
            subjects, subsets, modalities, SLICINGS,
        )  # fmt: skip


class PixelWriter:
    """Writes the pixels of all examples to two files, which `Dataset.gather` maps into memory."""

    def __init__(self, directory: Path):
        self.paths = [directory / name for name in (IMAGE_TABLE, MASK_TABLE)]
        self.files = [path.open("wb") for path in self.paths]

    def add(self, e: Example) -> None:
        self.files[0].write(np.ascontiguousarray(e.image).data)
        self.files[1].write(np.packbits(e.masks.reshape(len(e.masks), e.image.size), axis=1).data)

    def finish(self, directory: Path) -> None:
        """Closes the files and moves them to `directory`."""
        for path, file in zip(self.paths, self.files, strict=True):
            file.close()
            os.replace(path, directory / path.name)


def _codes(values: Sequence[str], dtype: type) -> tuple[np.ndarray, tuple[str, ...]]:
    """(code of each value, sorted table of the distinct values)."""
    table = tuple(sorted(set(values)))
    code = {value: i for i, value in enumerate(table)}
    return np.array([code[value] for value in values], dtype), table
