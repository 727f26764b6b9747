"""What `benchmarks.pack` packs and `benchmarks.accelerator` unpacks: wheels, datasets, a checkpoint, and a manifest.

    python -m benchmarks.kit --kit .kit --data_dir data      # the datasets alone

Datasets are kept as pixels and texts in xz, less than half of what their records take, and are built again from them:
the same input gives the same bytes, which their fingerprints prove. This module needs the standard library and
`packaging` until datasets are touched: it runs before the wheels are installed.
"""

import argparse
import ctypes
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import lzma
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

MANIFEST, CHECKPOINT, CACHE = "manifest.json", "checkpoint.safetensors", "cache.tar"
PIXELS = ("image", "masks", "labels")  # fields of an example that are arrays


class KitError(RuntimeError):
    """A kit that cannot be used; says why."""


def die_with_parent() -> None:
    """Asks Linux to kill this process when the one that started it ends, by a SIGKILL too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(kit: Path) -> dict[str, Any]:
    """The manifest. Raises KitError where a file that it names is missing or another."""
    if not (kit / MANIFEST).is_file():
        raise KitError(f"{kit} holds no {MANIFEST}; make a kit by `python -m benchmarks.pack`")
    manifest = json.loads((kit / MANIFEST).read_text())
    for name, about in manifest["files"].items():
        if not (kit / name).is_file() or sha256(kit / name) != about["sha256"]:
            raise KitError(f"{kit / name} is missing or damaged; pack the kit again")
    return manifest


def satisfied(requirement: str) -> bool:
    """Whether this interpreter has a version that will do."""
    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(importlib.metadata.version(wanted.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def install(kit: Path, manifest: dict[str, Any], site: Path) -> list[str]:
    """Installs the wheels that this interpreter lacks into the folder `site`, offline; returns their names.

    A folder on PYTHONPATH rather than a virtual environment: one made inside another does not see its packages.
    """
    missing = [name for name, requirement in manifest["wheels"].items() if not satisfied(requirement)]
    if missing:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        command += ["--no-cache-dir", "--disable-pip-version-check", "--upgrade", "--target", str(site)]
        done = subprocess.run([*command, *(str(kit / name) for name in missing)], capture_output=True, text=True)
        if done.returncode:
            raise KitError(f"pip could not install {', '.join(missing)}: {done.stderr.strip()[-500:]}")
    return missing


def environment(site: Path, cache: Path) -> dict[str, str]:
    """For the stages: this checkout and the wheels first, and what is compiled kept for the stages that follow."""
    root = str(Path(__file__).parents[1])
    paths = [root, str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    platforms = os.environ.get("JAX_PLATFORMS", "")
    platforms = platforms if not platforms or "cpu" in platforms else f"{platforms},cpu"  # parity needs both
    return {
        **os.environ,
        "JAX_PLATFORMS": platforms,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }


def pack_dataset(directory: str, data_dir: str, name: str) -> bytes:
    """A built dataset as the xz of an npz; `directory` is where it lies."""
    import numpy as np

    from universeg_jax.data.dataset import open_dataset

    dataset = open_dataset(data_dir, name)
    records = [dataset[row] for row in range(len(dataset))]
    masks = np.concatenate([record["masks"] for record in records])
    arrays = {
        "image": np.stack([record["image"] for record in records]),
        "masks": np.packbits(masks.reshape(len(masks), -1), axis=1),
        "counts": np.array([len(record["masks"]) for record in records]),
        "labels": np.concatenate([record["labels"] for record in records]),
    }
    for field in sorted(set(records[0]) - set(PIXELS)):
        values = [record[field] for record in records]
        arrays[field] = np.array([value.decode() if isinstance(value, bytes) else value for value in values])
    meta = json.dumps(dataclasses.asdict(dataset.meta))
    report = (Path(directory) / "build_report.json").read_bytes()
    file = io.BytesIO()
    np.savez(file, meta=np.array(meta), report=np.frombuffer(report, np.uint8), **arrays)
    return lzma.compress(file.getvalue(), preset=9)


def unpack_dataset(path: Path, data_dir: Path) -> str:
    """Builds a packed dataset again in `data_dir`; returns its name. Raises KitError where it is not the same."""
    import numpy as np

    from universeg_jax.data.builder import build
    from universeg_jax.data.dataset import DatasetMeta, open_dataset
    from universeg_jax.readers.cases import Example

    arrays = dict(np.load(io.BytesIO(lzma.decompress(path.read_bytes()))))
    meta = json.loads(str(arrays.pop("meta")))
    meta = DatasetMeta(**{**meta, "labels": {int(i): label for i, label in meta["labels"].items()}})
    report, counts = arrays.pop("report").tobytes(), arrays.pop("counts")
    ends = np.cumsum(counts)
    size = arrays["image"].shape[1:3]

    def example(row: int) -> list[Example]:
        of = slice(ends[row] - counts[row], ends[row])
        masks = np.unpackbits(arrays["masks"][of], axis=1, count=size[0] * size[1]).reshape((-1, *size))
        labels = tuple(arrays["labels"][of].tolist())
        rest = {name: values[row].item() for name, values in arrays.items() if name not in PIXELS}
        return [Example(image=arrays["image"][row], masks=masks, labels=labels, **rest)]

    build(meta, range(len(counts)), example, data_dir)
    built = open_dataset(data_dir, meta.name)
    if built.fingerprint != json.loads(report)["fingerprint"]:
        raise KitError(f"{path}: built again, {meta.name} is another dataset; were TFDS or array_record updated?")
    (Path(built.directory) / "build_report.json").write_bytes(report)
    return meta.name


def unpack(kit: Path, data_dir: Path, processes: int) -> list[str]:
    """Every dataset of a kit; returns their names."""
    packed = sorted((kit / "data").glob("*.npz.xz"))
    with ProcessPoolExecutor(min(processes, len(packed)), get_context("spawn"), die_with_parent) as pool:
        return list(pool.map(unpack_dataset, packed, [data_dir] * len(packed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 16))
    args = parser.parse_args()
    die_with_parent()
    print(f"{len(unpack(args.kit, args.data_dir, args.processes))} datasets in {args.data_dir}")


if __name__ == "__main__":
    main()
