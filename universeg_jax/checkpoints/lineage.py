"""The origin of a checkpoint, so that weights are given away only if every licence allows it."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

import universeg_jax
from universeg_jax.checkpoints import packaged, store
from universeg_jax.errors import UserError
from universeg_jax.model.factory import NEUTRAL, build_model, fields_of, muted

if TYPE_CHECKING:
    from universeg_jax.data.dataset import Dataset  # which imports TFDS, and only the name of the type is needed

TRAIN_ROLE, SELECT_ROLE = "train_open", "val"  # of weights that may be given away
PARTS = ("trained_on", "selected_on")


def lineage(config: ConfigDict, train: Sequence["Dataset"], validation: Sequence["Dataset"]) -> dict[str, Any]:
    """The origin of a checkpoint: every dataset it was trained or selected on, and its parents.

    Datasets that only a parent was trained or selected on are marked as inherited.
    """
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
    """The version, with the commit in a git checkout: 0.1.0+1a2b3c4d5e6f, and -dirty after uncommitted changes."""
    root = Path(universeg_jax.__file__).parents[1]
    if not (root / ".git").exists() or not shutil.which("git"):
        return universeg_jax.__version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    described = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{universeg_jax.__version__}+{described.stdout.strip() or 'unknown'}"


def inherit(path: Path, record: dict[str, Any], fresh: Any) -> tuple[Any, dict[str, Any]]:
    """Loads the parameters of a checkpoint, and adds what it was trained and selected on to the lineage `record`.

    `fresh` are parameters of the new model. Its parts in factory.NEUTRAL that the checkpoint lacks keep their fresh
    values: until they are trained, the new model computes what the checkpoint's model computes.
    """
    added = {name: fresh[name] for name in set(NEUTRAL).intersection(fresh) - store.modules(path)}
    params = store.load_params(path, {name: x for name, x in fresh.items() if name not in added})
    before = store.read_metadata(path).get("lineage", {})
    known = {part: {name: {**d, "inherited": True} for name, d in before.get(part, {}).items()} for part in PARTS}
    joined = _joined({**before, **known}, record)
    if not set(PARTS) <= before.keys():
        joined["unknown_origin"] = before
    return {**params, **added}, {**joined, "parents": [*before.get("parents", []), packaged.params_hash(params)]}


def resumed(record: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The lineage `record` of a run that resumes from a checkpoint with metadata `before`.

    It keeps its first parents, whatever config.init_from leads to now.
    """
    return {**_joined(before["lineage"], record), "parents": before["lineage"]["parents"]}


def _joined(before: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """Merges two lineages; for a dataset in both, `record` counts."""
    parts = {part: {**before[part], **record[part]} for part in PARTS}
    return {**before, **record, **parts, "synthetic": bool(record["synthetic"] or before.get("synthetic"))}


def check_same_data(workdir: Path, record: dict[str, Any], parts: Sequence[str] = PARTS) -> None:
    """Raises UserError if `record` names other datasets of its own than the latest checkpoint of the workdir."""
    saved = store.saved(workdir)
    if not saved:
        return
    before = store.read_metadata([*saved.values()][-1])["lineage"]
    for part in parts:
        then, now = (
            {name: d["fingerprint"] for name, d in known[part].items() if not d.get("inherited")}
            for known in (before, record)
        )
        if part == "selected_on" and not then:
            continue  # there are no earlier scores to compare with
        changed = [
            f"{name} ({'built anew' if name in then and name in now else 'missing' if name in then else 'new'})"
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        ]
        if changed:
            raise UserError(
                f"{workdir} was {part.replace('_', ' ')} other datasets than data_dir has: {', '.join(changed)}; "
                "give the data_dir with the datasets of that run, or take another --workdir"
            )


def check_open(record: dict[str, Any]) -> None:
    """Raises UserError unless the weights saw open data alone and were selected on `val` alone."""
    if not set(PARTS) <= record.keys() or "unknown_origin" in record:
        origin = record.get("unknown_origin", record)
        raise UserError(f"weights of unknown origin ({origin}) are not packaged; train them by train.py from the start")
    for what, role in (("trained_on", TRAIN_ROLE), ("selected_on", SELECT_ROLE)):
        if wrong := {name: d["role"] for name, d in record[what].items() if d["role"] != role}:
            names = ", ".join(f"{name} ({other})" for name, other in wrong.items())
            raise UserError(f"{what.replace('_', ' ')} {names}: packaged weights may see datasets of role {role} alone")
    if unlicensed := [name for name, d in record["trained_on"].items() if not d["licence"]]:
        raise UserError(f"trained on {', '.join(unlicensed)}, of unknown licence; write it into meta.json")


def package(checkpoint: str | Path, out: str | Path, mean_with: str | Path = "") -> dict[str, Any]:
    """Writes the parameters of a checkpoint to one file, with config and lineage but without local paths.

    `mean_with` names another checkpoint of the same model: the file gets the mean of both parameters (Wortsman et al.,
    ICML 2022), the config of the first and what either was trained and selected on. A part of factory.NEUTRAL that the
    other lacks counts as one that adds nothing. Raises UserError.
    """
    out, path = Path(out), store.resolve(checkpoint)
    if out.suffix != packaged.SUFFIX:
        raise UserError(f"{out}: the name of packaged weights ends in {packaged.SUFFIX}")
    metadata = store.read_metadata(path)
    check_open(metadata.get("lineage", {}))
    if mean_with:
        params, metadata["lineage"] = _mean(path, store.resolve(mean_with))
    else:
        params = store.load(path)[0]
    header: dict[str, Any] = {key: metadata.get(key) for key in ("format", "step", "config", "lineage")}
    header["config"] |= {"data_dir": "", "init_from": ""}  # local paths
    packaged.write_file(out, params, header)
    return packaged.read_header(out)


def _mean(path: Path, other: Path) -> tuple[Any, dict[str, Any]]:
    """The mean of two checkpoints' parameters, and the lineage of both. Raises UserError."""
    (first, config), (second, config_of_other) = store.load(path), store.load(other)
    records = [store.read_metadata(each).get("lineage", {}) for each in (path, other)]
    check_open(records[1])
    models = [build_model(each.model) for each in (config, config_of_other)]
    added = set(NEUTRAL).intersection(first) - set(second)
    excused = [field for part in added for field in NEUTRAL[part]]
    ours, theirs = ({"name": type(m).__name__} | {f: getattr(m, f) for f in fields_of(type(m))} for m in models)
    if fields := [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name) and name not in excused]:
        named = ", ".join(f"config.model.{name}={ours.get(name)!r} and {theirs.get(name)!r}" for name in fields)
        raise UserError(f"{path} and {other} have no mean: {named}; take checkpoints of one model")
    hashes = [packaged.params_hash(params) for params in (first, second)]
    second = {**second, **{part: muted(first[part]) for part in added}}
    parents = list(dict.fromkeys(parent for record in records for parent in record["parents"]))
    mean = jax.tree.map(lambda a, b: (np.asarray(a, np.float32) + np.asarray(b, np.float32)) / 2, first, second)
    return mean, {**_joined(records[1], records[0]), "parents": parents, "mean_of": hashes}
