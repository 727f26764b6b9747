"""Packs all that measuring on a bare accelerator needs: datasets, a checkpoint, wheels, a manifest.

    python -m benchmarks.pack --data_dir data --out .kit     # a minute or two; `benchmarks.accelerator` takes it

The machine that it is for has no network; its image holds jax 0.11, flax, optax, orbax-checkpoint, numpy, scipy,
pillow, matplotlib, safetensors and tqdm for Python 3.12 on x86_64. Of those that setup.cfg bounds, wheels go along too
and are installed where the image's version is another. Readers of files (SimpleITK, nibabel, pydicom) are not needed.
"""

import argparse
import configparser
import filecmp
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.kit import CACHE, CHECKPOINT, MANIFEST, KitError, pack_dataset, sha256, unpack
from universeg_jax.checkpoints import packaged, store
from universeg_jax.checkpoints.lineage import code_version
from universeg_jax.data.dataset import list_datasets, open_dataset

ROOT = Path(__file__).parents[1]
LIMIT_MB = 45
ROLES = ("train_open", "val")
PYTHON = "3.12"
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17)] + ["manylinux2014_x86_64"]
MISSING = (
    "array-record", "dm-tree", "grain", "immutabledict", "importlib-resources", "ml-collections", "portpicker",
    "promise", "tensorboardX", "tensorflow-datasets", "tensorflow-metadata", "termcolor", "toml",
    "attrs", "cloudpickle", "six", "wrapt",  # which dm-tree, grain and promise import
)  # fmt: skip
BOUNDED = ("etils", "flax", "optax", "orbax-checkpoint")  # there already, perhaps in a version that we do not take
SOURCE_ONLY = ("promise",)  # published without a wheel, and pure Python
# Packages inside a wheel that are kept, beside its single modules: not the 500 datasets of TFDS.
SLIM = {"tensorflow-datasets": ("core", "proto", "rlds", "url_checksums")}


def pins() -> dict[str, str]:
    """Name → version of constraints.txt for PYTHON."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    wanted = [Requirement(line) for line in lines if line]
    there = [r for r in wanted if not r.marker or r.marker.evaluate({"python_version": PYTHON})]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in there}


def bounds() -> dict[str, str]:
    """Name → requirement of setup.cfg."""
    setup = configparser.ConfigParser(inline_comment_prefixes=("#",))
    setup.read(ROOT / "setup.cfg")
    wanted = [Requirement(line) for line in setup["options"]["install_requires"].splitlines() if line.strip()]
    return {canonicalize_name(r.name): str(r) for r in wanted}


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise KitError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")


def fetch_wheels(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Downloads wheels for the target, slimmed; file name → the requirement whose lack makes it needed."""
    versions, requirements = pins(), bounds()
    target = [f"--platform={name}" for name in PLATFORMS]
    target += ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp"]
    wanted = {canonicalize_name(name): name for name in names}
    exact = {key: f"{name}=={versions[key]}" for key, name in wanted.items()}
    if published := [exact[key] for key in wanted if key not in SOURCE_ONLY]:
        pip("download", *target, f"--dest={folder}", *published)
    for key in wanted.keys() & set(SOURCE_ONLY):
        pip("wheel", f"--wheel-dir={folder}", exact[key])
    found = {canonicalize_name(path.name.split("-")[0]): path for path in sorted(folder.glob("*.whl"))}
    for key, packages in SLIM.items():
        if key in found:
            slim(found[key], packages)
    return {f"wheels/{found[key].name}": requirements.get(key, wanted[key]) for key in wanted}


def slim(wheel: Path, packages: tuple[str, ...]) -> None:
    """Leaves only these packages, what lies beside them, and no tests in a wheel."""
    whole = wheel.with_suffix(".whole")
    wheel.rename(whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        (record,) = (name for name in old.namelist() if name.endswith(".dist-info/RECORD"))

        def kept(name: str) -> bool:
            parts = name.split("/")
            return (len(parts) == 2 or parts[1] in packages) and not name.endswith("_test.py")

        for name in filter(kept, old.namelist()):
            content = old.read(name)
            if name == record:
                lines = content.decode().splitlines(keepends=True)
                content = "".join(line for line in lines if kept(line.split(",")[0])).encode()
            new.writestr(name, content)
    whole.unlink()


def pack_datasets(data_dir: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Packs every dataset of ROLES, builds all of them again and compares the bytes. Raises KitError."""
    datasets = [open_dataset(data_dir, name) for name in list_datasets(data_dir)]
    datasets = [dataset for dataset in datasets if dataset.meta.role in ROLES]
    if not datasets:
        raise KitError(f"no dataset of roles {', '.join(ROLES)} in {data_dir}; `universeg build` makes them")
    out.mkdir()
    for dataset in datasets:
        name = dataset.meta.name
        (out / f"{name}.npz.xz").write_bytes(pack_dataset(dataset.directory, str(data_dir), name))
    with tempfile.TemporaryDirectory() as again:
        unpack(out.parent, Path(again), processes=2)
        for dataset in datasets:
            files = [path.name for path in Path(dataset.directory).iterdir()]
            built = open_dataset(again, dataset.meta.name).directory
            _, differing, failed = filecmp.cmpfiles(dataset.directory, built, files, shallow=False)
            if differing or failed:
                raise KitError(f"{dataset.meta.name} is not the same after unpacking: {', '.join(differing + failed)}")
    return {
        d.meta.name: {"role": d.meta.role, "examples": len(d), "size": d.meta.size, "fingerprint": d.fingerprint}
        for d in datasets
    }


def pack_checkpoint(checkpoint: str, out: Path) -> dict[str, Any]:
    """Parameters, config and lineage in one file; returns its header."""
    path = store.resolve(checkpoint)
    metadata = store.read_metadata(path)
    header = {key: metadata.get(key) for key in ("format", "step", "config", "lineage")}
    packaged.write_file(out, store.load(path)[0], header)
    return packaged.read_header(out)


def pack(data_dir: Path, checkpoint: str, out: Path, wheels: Iterable[str], cache: Path | None = None) -> dict:
    """Writes the kit to a new folder, whole or not at all; returns its manifest. Raises KitError."""
    if out.exists() and not (out / MANIFEST).exists():
        raise KitError(f"{out} exists and is no kit; take another name")
    making = out.with_name(f"{out.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    (making / "wheels").mkdir(parents=True)
    header = pack_checkpoint(checkpoint, making / CHECKPOINT)
    if cache:
        shutil.copyfile(cache, making / CACHE)
    manifest = {
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "code_version": code_version(),
        "checkpoint": {"name": Path(checkpoint).name, **header},
        "wheels": fetch_wheels(making / "wheels", wheels),
        "datasets": pack_datasets(data_dir, making / "data"),
    }
    files = sorted(path for path in making.rglob("*") if path.is_file())
    manifest["files"] = {str(p.relative_to(making)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
    (making / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    sizes = sizes_of(making)
    if sum(sizes.values()) > LIMIT_MB * 1e6:
        raise KitError(f"{making} holds more than {LIMIT_MB} MB: {table(sizes)}; take a smaller --checkpoint")
    shutil.rmtree(out, ignore_errors=True)
    making.rename(out)
    print(f"{out}: {table(sizes)}; {len(manifest['datasets'])} datasets, {len(manifest['wheels'])} wheels")
    return manifest


def sizes_of(kit: Path) -> dict[str, int]:
    """Bytes of each part, those of a folder together."""
    sizes: dict[str, int] = {}
    for path in sorted(path for path in kit.rglob("*") if path.is_file()):
        part = path.relative_to(kit).parts[0]
        sizes[part] = sizes.get(part, 0) + path.stat().st_size
    return sizes


def table(sizes: dict[str, int]) -> str:
    total = {"all": sum(sizes.values())}
    return ", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in (sizes | total).items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help=f"datasets of {', '.join(ROLES)} are taken")
    parser.add_argument("--out", type=Path, default=Path(".kit"))
    parser.add_argument("--checkpoint", default="small", help="packaged weights, a workdir or a checkpoint")
    parser.add_argument("--cache", type=Path, help=f"{CACHE} of an earlier run on such a machine: compiled programs")
    args = parser.parse_args()
    try:
        pack(args.data_dir, args.checkpoint, args.out, (*MISSING, *BOUNDED), args.cache)
    except (KitError, ValueError) as error:
        sys.exit(f"pack: {error}")


if __name__ == "__main__":
    main()
