"""Checkpoints on disk, by Orbax; nothing else in the project knows Orbax.

A checkpoint is a directory with two parts: `params`, what evaluation and prediction use, and `state`, what training
resumes from. Its metadata holds the config and the lineage, so that it can be used without anything beside it.
A workdir keeps its latest and its best checkpoint in `<workdir>/checkpoints/<step>/`.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from orbax.checkpoint import v1 as ocp

from universeg_jax.errors import UserError

METRIC = "mean_dice"
FORMAT = "universeg_jax checkpoint 1"


class CheckpointError(UserError):
    """A path that is no usable checkpoint; says why and what would be."""


@contextlib.contextmanager
def open_checkpointer(workdir: str | Path, keep_every: int = 0) -> Iterator[ocp.training.Checkpointer]:
    """Keeps the latest, the best by METRIC, and every `keep_every`-th step if that is not 0.

    Raises CheckpointError where one could not be written, as on a full disk; those written before stay.
    """
    policies = ocp.training.preservation_policies
    keep = [
        policies.LatestN(1),
        policies.BestN(get_metric_fn=lambda metrics: metrics[METRIC], n=1, keep_checkpoints_without_metrics=False),
    ]
    if keep_every:
        keep.append(policies.EveryNSteps(keep_every))
    directory = (Path(workdir) / "checkpoints").resolve()
    try:
        with ocp.training.Checkpointer(
            directory,
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,  # what a kill in the middle of a save left
        ) as checkpointer:
            yield checkpointer
    except ValueError as error:  # TensorStore's way to report what the operating system said
        if "os_error_code" not in str(error):
            raise
        written = sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())
        raise CheckpointError(
            f"no checkpoint could be written to {directory} ({str(error).splitlines()[-1]}); the last good one is of "
            f"{f'step {written[-1]}' if written else 'no step yet'}: make room there and start the same command again"
        ) from None


def save(
    checkpointer: ocp.training.Checkpointer,
    step: int,
    params: Any,
    state: Any,
    metadata: dict[str, Any],
    metrics: dict[str, float] | None,
) -> None:
    """Copies the arrays to the host and returns; the writing goes on in the background.

    With several hosts each holds all of it, and Orbax lets the first one write.
    """
    params, state = jax.device_get((params, state))
    checkpointer.save_checkpointables_async(
        step,
        {"params": params, "state": state},
        force=True,
        metrics=metrics,
        custom_metadata={"format": FORMAT, "metrics": metrics, **metadata},
    )


def restore_state(checkpointer: ocp.training.Checkpointer, state: Any) -> Any:
    """The latest state, in host memory and with the shapes of `state`; or `state` where there is no checkpoint yet."""
    if checkpointer.latest is None:
        return state
    return checkpointer.load_checkpointables(checkpointer.latest.step, {"state": jax.device_get(state)})["state"]


def write_params(path: str | Path, params: Any, metadata: dict[str, Any]) -> None:
    """A checkpoint of parameters alone, for prediction: converted or packaged weights."""
    ocp.save_checkpointables(
        Path(path).resolve(), {"params": params}, custom_metadata={"format": FORMAT, **metadata}, overwrite=True
    )


def resolve(path: str | Path) -> Path:
    """The checkpoint directory that a path means: itself, or the best (else the latest) one of a workdir."""
    path = Path(path).resolve()
    if (path / "checkpoints").is_dir():
        steps = {int(p.name): p for p in (path / "checkpoints").iterdir() if p.name.isdigit()}
        if not steps:
            raise CheckpointError(
                f"{path}/checkpoints is empty: the run has not saved yet; let it reach its first save"
            )
        scores = {step: metrics[METRIC] for step, p in steps.items() if (metrics := read_metadata(p)["metrics"])}
        return steps[max(scores, key=lambda step: (scores[step], step)) if scores else max(steps)]
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; a checkpoint is a workdir of train.py or a directory inside it")
    if not (path / "params").is_dir():
        raise CheckpointError(
            f"{path} holds no checkpoint; give a workdir of train.py, or one <workdir>/checkpoints/<step>"
        )
    return path


def read_metadata(path: str | Path) -> dict[str, Any]:
    """{"config": …, "lineage": …, …} of a checkpoint directory."""
    metadata = ocp.checkpointables_metadata(Path(path).resolve()).custom_metadata or {}
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} was written by another program; give a workdir of train.py")
    return metadata


def load_params(path: str | Path, abstract_params: Any) -> Any:
    """Parameters of a checkpoint directory in the shapes and shardings of `abstract_params`."""
    return ocp.load_checkpointables(Path(path).resolve(), {"params": abstract_params})["params"]


def config_of(metadata: dict[str, Any]) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(metadata["config"])


def params_hash(params: Any) -> str:
    """sha256 over names, shapes and float32 values: the identity of a set of weights."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        array = np.asarray(leaf, np.float32)
        digest.update(f"{jax.tree_util.keystr(path)}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
