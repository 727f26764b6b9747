"""What a checkpoint says of its origin, so that weights can be given away only where every licence allows it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import universeg_jax
from universeg_jax import checkpoints
from universeg_jax.data.builder import Dataset


def lineage(config: ConfigDict, train: Sequence[Dataset], validation: Sequence[Dataset]) -> dict[str, Any]:
    """What a checkpoint says of its origin: every dataset that it was trained or selected on, and its parents."""
    return {
        "code_version": universeg_jax.__version__,
        "trained_on": {
            d.meta.name: {"role": d.meta.role, "licence": d.meta.licence, "fingerprint": d.fingerprint} for d in train
        },
        "synthetic": bool(config.kinds.synthetic),
        "selected_on": {d.meta.name: {"role": d.meta.role, "fingerprint": d.fingerprint} for d in validation},
        "parents": [],
    }


def inherit(path: Path, record: dict[str, Any], abstract_params: Any) -> tuple[Any, dict[str, Any]]:
    """Parameters of a checkpoint, and the lineage `record` with all that it was trained or selected on."""
    params = checkpoints.load_params(path, abstract_params)
    before = checkpoints.read_metadata(path).get("lineage", {})
    joined = {name: {**before.get(name, {}), **record[name]} for name in ("trained_on", "selected_on")}
    parents = [*before.get("parents", []), checkpoints.params_hash(params)]
    return params, {**record, **joined, "parents": parents, "synthetic": record["synthetic"] or before.get("synthetic")}
