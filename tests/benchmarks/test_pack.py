"""The kit: datasets come back byte for byte, wheels are chosen and slimmed, and what is damaged is refused."""

import importlib.metadata
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks import kit, pack
from universeg_jax.checkpoints import store
from universeg_jax.data.dataset import list_datasets, open_dataset


@pytest.fixture(scope="module")
def packed(data_dir, checkpoint, tmp_path_factory):
    """A kit without wheels, which would be downloaded."""
    out = tmp_path_factory.mktemp("kits") / "kit"
    return out, pack.pack(data_dir, str(checkpoint), out, wheels=())


def files_of(directory: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def test_datasets_come_back_byte_for_byte_and_no_test_set_goes_along(packed, data_dir, tmp_path):
    out, manifest = packed
    assert sorted(kit.unpack(out, tmp_path, 1)) == list_datasets(tmp_path) == ["train_discs", "val_discs"]
    for name in ("train_discs", "val_discs"):
        before, after = open_dataset(data_dir, name), open_dataset(tmp_path, name)
        assert files_of(before.directory) == files_of(after.directory)
        assert manifest["datasets"][name]["fingerprint"] == before.fingerprint


def test_another_builder_of_records_is_noticed(packed, tmp_path, monkeypatch):
    from universeg_jax.data import builder

    monkeypatch.setattr(builder, "fingerprint_of", lambda directory: "another")
    with pytest.raises(kit.KitError, match="val_discs is another dataset"):
        kit.unpack_dataset(packed[0] / "data" / "val_discs.npz.xz", tmp_path)


def test_manifest_knows_every_file_and_the_checkpoint(packed, checkpoint):
    out, manifest = packed
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} - {kit.MANIFEST}
    assert there == set(manifest["files"]) == {kit.CHECKPOINT, "data/train_discs.npz.xz", "data/val_discs.npz.xz"}
    assert kit.read_manifest(out) == json.loads(json.dumps(manifest))
    params, config = store.load(out / kit.CHECKPOINT)
    assert config.to_dict() == store.load(checkpoint)[1].to_dict()
    assert manifest["checkpoint"]["params_hash"] == pack.packaged.params_hash(params)


def test_a_damaged_or_missing_file_is_named(packed, tmp_path):
    out, manifest = packed
    (tmp_path / "data").mkdir()
    for name in manifest["files"]:
        (tmp_path / name).write_bytes((out / name).read_bytes())
    (tmp_path / kit.MANIFEST).write_text(json.dumps(manifest))
    assert kit.read_manifest(tmp_path)
    (tmp_path / "data" / "val_discs.npz.xz").write_bytes(b"")
    with pytest.raises(kit.KitError, match="val_discs.npz.xz is missing or damaged"):
        kit.read_manifest(tmp_path)
    with pytest.raises(kit.KitError, match="holds no manifest.json"):
        kit.read_manifest(tmp_path / "data")


def test_too_large_a_kit_is_refused_and_the_last_one_stays(packed, data_dir, checkpoint, monkeypatch):
    out, manifest = packed
    monkeypatch.setattr(pack, "LIMIT_MB", 1e-3)
    with pytest.raises(kit.KitError, match=r"more than 0.001 MB: .*data"):
        pack.pack(data_dir, str(checkpoint), out, wheels=())
    assert kit.read_manifest(out) == json.loads(json.dumps(manifest))


def test_a_folder_that_is_no_kit_is_left_alone(data_dir, checkpoint, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(kit.KitError, match="is no kit"):
        pack.pack(data_dir, str(checkpoint), tmp_path, wheels=())
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_wheel_is_needed_where_the_version_is_missing_or_out_of_bounds():
    assert kit.satisfied("numpy")
    assert kit.satisfied("numpy>=2.0")
    assert not kit.satisfied("numpy>=999")
    assert not kit.satisfied("a-package-that-nobody-has")


def test_versions_are_those_of_the_target_and_bounds_those_of_setup():
    assert pack.pins()["jax"].startswith("0.11")  # constraints.txt has another one for Python 3.11
    assert pack.pins()["array-record"]
    assert pack.bounds()["flax"].startswith("flax<0.13")
    assert {pack.canonicalize_name(name) for name in (*pack.MISSING, *pack.BOUNDED)} <= set(pack.pins())


IMAGE = (
    "jax", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "pillow", "matplotlib", "safetensors", "tqdm",
    "tifffile", "packaging",
)  # fmt: skip
STAGES = """
import sys
from pathlib import Path
sys.modules.update(dict.fromkeys({hidden}))  # importing one of them raises
from benchmarks import accelerator_loop, accelerator_parity, accelerator_speed, accelerator_train, kit
print(kit.unpack_dataset(Path({packed!r}), {data_dir!r}))
"""


def with_needs(names, found=()):
    """Names of distributions and of all that they declare to need."""
    found = set(found)
    for name in map(pack.canonicalize_name, names):
        if name not in found:
            found.add(name)
            needs = map(Requirement, importlib.metadata.requires(name) or ())
            found |= with_needs([r.name for r in needs if not r.marker or r.marker.evaluate({"extra": ""})], found)
    return found


def test_stages_need_nothing_but_the_image_and_the_wheels(packed, tmp_path):
    there = with_needs(IMAGE) | {pack.canonicalize_name(name) for name in (*pack.MISSING, "universeg_jax")}
    modules = importlib.metadata.packages_distributions()
    hidden = [m for m, names in modules.items() if not there & {pack.canonicalize_name(name) for name in names}]
    assert {"SimpleITK", "nibabel", "pytest"} <= set(hidden)
    code = STAGES.format(
        hidden=hidden, packed=str(packed[0] / "data" / "val_discs.npz.xz"), data_dir=str(tmp_path / "data")
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout == "val_discs\n", done.stderr[-2000:]


def test_wheels_are_installed_offline_and_slim(tmp_path):
    wheel = tmp_path / "wheels" / "thing-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    contents = {
        "thing/__init__.py": "",
        "thing/core/part.py": "value = 7",
        "thing/core/part_test.py": "",
        "thing/datasets/large.py": "",
        "thing-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n",
        "thing-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*contents, "thing-1.0.dist-info/RECORD"])
    with zipfile.ZipFile(wheel, "w") as file:
        for name, content in {**contents, "thing-1.0.dist-info/RECORD": record}.items():
            file.writestr(name, content)
    pack.slim(wheel, ("core",))
    installed = kit.install(tmp_path, {"wheels": {f"wheels/{wheel.name}": "thing"}}, tmp_path / "site")
    assert installed == [f"wheels/{wheel.name}"]
    assert (tmp_path / "site" / "thing" / "core" / "part.py").exists()
    assert not (tmp_path / "site" / "thing" / "datasets").exists()
    assert not (tmp_path / "site" / "thing" / "core" / "part_test.py").exists()
    assert kit.install(tmp_path, {"wheels": {f"wheels/{wheel.name}": "numpy"}}, tmp_path / "other") == []
