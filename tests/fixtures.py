"""Small things that several tests need: task tables in memory, folders of pictures, a tiny config."""

from pathlib import Path
from typing import Any

import jax
import nibabel as nib
import numpy as np
from PIL import Image

from universeg_jax.configs import default
from universeg_jax.data.builder import build
from universeg_jax.data.dataset import (
    SLICINGS,
    Dataset,
    DatasetMeta,
    Index,
    open_dataset,
)
from universeg_jax.readers.cases import Example

LIGHT = ("noise", "flip_intensities")  # the augmentation that a tiny config has


def tiny_config(data_dir: str = "", **fields):
    """The default config, small enough to train in seconds."""
    config = default.get_config()
    config.data_dir = str(data_dir)
    config.train_roles = ("train_open",)
    config.image_size = 16
    config.support_size = 3
    config.batch_size = 4
    config.num_steps = 6
    config.model.encoder_blocks = (4, 4)
    config.eval_every = 3
    config.checkpoint_every = 2
    config.eval.support_size = 2
    config.eval.max_cases = 2
    config.eval.pictures = 0
    config.synthesis.weights = {"shapes": 1.0, "tubes": 0.0, "blobs": 0.0, "nests": 0.0}  # half the time to compile
    config.superpixel.cells = (3, 6)
    for level in ("task", "in_task"):  # each operation takes a second to compile; tests/test_augment.py has them all
        for name in config.augment[level]:
            if name not in LIGHT and "p" in config.augment[level][name]:
                config.augment[level][name].p = 0.0
    config.update(fields)
    return config


def random_params(shapes: Any, seed: int = 0) -> Any:
    """Parameters of usual sizes, none of them neutral, in no time: `init_params` compiles for seconds."""
    rng = np.random.default_rng(seed)

    def leaf(path: Any, shape: Any) -> np.ndarray:
        name, normal = path[-1].key, rng.normal(size=shape.shape).astype(np.float32)
        scale = np.sqrt(2 / np.prod(shape.shape[:-1])) if name == "kernel" else 0.1
        return np.float32((name == "scale") + scale * normal)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def memory_dataset(name, role="train_open", subjects=(), labels=(), areas=None, group="", size=16) -> Dataset:
    """A dataset with an index but no pictures: subjects[i] and labels[i] are those of example i, one mask each."""
    table, codes = np.unique(subjects, return_inverse=True)
    count = len(subjects)
    zeros = np.zeros(count, np.int8)
    index = Index(
        subject=codes.astype(np.int32), subset=zeros, modality=zeros, axis=zeros, slicing=zeros,
        mask_row=np.arange(count, dtype=np.int32), mask_position=zeros, mask_label=np.asarray(labels, np.int32),
        mask_area=np.full(count, size**2, np.int32) if areas is None else np.asarray(areas, np.int32),
        subjects=tuple(table.tolist()), subsets=("",), modalities=("",), slicings=SLICINGS,
    )  # fmt: skip
    meta = DatasetMeta(name, role, {int(i): f"label {i}" for i in set(labels)}, size, source_group=group)
    return Dataset(meta, index, fingerprint="", directory="")


def disc(size: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def disc_examples(count: int, size: int = 16, seed: int = 0) -> list[Example]:
    """Bright discs on noise, one a subject; the label is the disc."""
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(count):
        mask = disc(size, rng.uniform(size / 3, 2 * size / 3, 2), rng.uniform(size / 6, size / 3))
        image = np.clip(60 * rng.random((size, size)) + 150 * mask, 0, 255).astype(np.uint8)
        examples.append(Example(image, mask[None].astype(np.uint8), (1,), f"s{i:02d}", f"s{i:02d}"))
    return examples


def itself(example: Example) -> list[Example]:
    return [example]


def build_discs(data_dir: Path, name: str, role: str, count: int = 12, size: int = 16, seed: int = 0) -> Dataset:
    build(DatasetMeta(name, role, {1: "disc"}, size), disc_examples(count, size, seed), itself, data_dir)
    return open_dataset(data_dir, name)


def write_folder(path: Path, count: int = 6, shape: tuple[int, int] = (20, 30), ids: tuple[int, ...] = (1,)) -> Path:
    """images/ and labels/ of discs: one disc an id, brighter the higher the id."""
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (path / part).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        label = np.zeros(shape, np.uint8)
        for place, value in enumerate(ids):
            centre = (shape[0] / 2 + rng.uniform(-1, 1), (place + 0.5) * shape[1] / len(ids))
            label[disc(max(shape), centre, min(shape) / 5)[: shape[0], : shape[1]]] = value
        image = (20 * rng.random(shape) + 60 * np.searchsorted((0, *ids), label)).astype(np.uint8)
        Image.fromarray(image).save(path / "images" / f"p{i}_0.png")
        Image.fromarray(label).save(path / "labels" / f"p{i}_0.png")
    return path


def block_volume(
    shape: tuple[int, int, int], ids: tuple[int, ...] = (1,), seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(image int16, label uint8) [I, J, K]: a bright block an id on noise, along the first axis."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    edges = np.linspace(0, shape[0], len(ids) + 1).astype(int)
    for value, start, stop in zip(ids, edges[:-1], edges[1:], strict=True):
        label[start + 1 : max(stop - 1, start + 2), shape[1] // 4 : -(shape[1] // 4), : max(shape[2] - 1, 1)] = value
    return (rng.integers(0, 50, shape) + 200 * (label > 0) + 10 * label).astype(np.int16), label


def write_nifti(path: Path, data: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([*spacing, 1.0])), path)
    return path


def assert_trees_equal(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def key(seed: int = 0) -> jax.Array:
    return jax.random.key(seed, impl="threefry2x32")


def within_4_sigma(happened, p: float) -> None:
    """What happened in so many draws has probability p."""
    assert abs(np.mean(happened) - p) <= 4 * np.sqrt(p * (1 - p) / len(happened))
