"""What a checkpoint says of its origin, so that weights can be given away only where every licence allows it."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import universeg_jax
from universeg_jax import checkpoints, weights
from universeg_jax.data.dataset import Dataset
from universeg_jax.errors import UserError

TRAIN_ROLE, SELECT_ROLE = "train_open", "val"  # of weights that may be given away


def lineage(config: ConfigDict, train: Sequence[Dataset], validation: Sequence[Dataset]) -> dict[str, Any]:
    """What a checkpoint says of its origin: every dataset that it was trained or selected on, and its parents."""
    return {
        "code_version": code_version(),
        "trained_on": {
            d.meta.name: {"role": d.meta.role, "licence": d.meta.licence, "fingerprint": d.fingerprint} for d in train
        },
        "synthetic": bool(config.kinds.synthetic),
        "selected_on": {d.meta.name: {"role": d.meta.role, "fingerprint": d.fingerprint} for d in validation},
        "parents": [],
    }


def code_version() -> str:
    """The version, and the commit where this is a checkout of git: 0.1.0+1a2b3c4d5e6f, with -dirty where it differs."""
    root = Path(universeg_jax.__file__).parents[1]
    if not (root / ".git").exists() or not shutil.which("git"):
        return universeg_jax.__version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    described = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{universeg_jax.__version__}+{described.stdout.strip() or 'unknown'}"


def inherit(path: Path, record: dict[str, Any], abstract_params: Any) -> tuple[Any, dict[str, Any]]:
    """Parameters of a checkpoint, and the lineage `record` with all that it was trained or selected on."""
    params = checkpoints.load_params(path, abstract_params)
    before = checkpoints.read_metadata(path).get("lineage", {})
    joined = {name: {**before.get(name, {}), **record[name]} for name in ("trained_on", "selected_on")}
    parents = [*before.get("parents", []), weights.params_hash(params)]
    return params, {**record, **joined, "parents": parents, "synthetic": record["synthetic"] or before.get("synthetic")}


def check_open(record: dict[str, Any]) -> None:
    """Raises UserError unless all that weights of this lineage saw is open, and `val` alone selected them."""
    if "trained_on" not in record or "selected_on" not in record:
        raise UserError(f"weights of unknown origin ({record}) are not packaged; train them by train.py")
    for what, role in (("trained_on", TRAIN_ROLE), ("selected_on", SELECT_ROLE)):
        if wrong := {name: d["role"] for name, d in record[what].items() if d["role"] != role}:
            names = ", ".join(f"{name} ({found})" for name, found in wrong.items())
            raise UserError(f"{what.replace('_', ' ')} {names}: weights that are packaged may see {role} alone")
    if unlicensed := [name for name, d in record["trained_on"].items() if not d["licence"]]:
        raise UserError(f"trained on {', '.join(unlicensed)}, whose licence is not known: write it into meta.json")


def package(checkpoint: str | Path, out: str | Path) -> dict[str, Any]:
    """Writes the parameters of a checkpoint to one file, with config and lineage, but no path of this machine.

    Raises UserError.
    """
    out, path = Path(out), checkpoints.resolve(checkpoint)
    if out.suffix != weights.SUFFIX:
        raise UserError(f"{out}: the name of packaged weights ends in {weights.SUFFIX}")
    metadata = checkpoints.read_metadata(path)
    check_open(metadata.get("lineage", {}))
    header = {key: metadata.get(key) for key in ("format", "step", "config", "lineage")}
    header["config"] |= {"data_dir": "", "init_from": ""}  # the lineage says what they were
    weights.write_file(out, checkpoints.load(path)[0], header)
    return weights.read_header(out)
