"""Checkpoints on disk, by Orbax; nothing else in the project knows Orbax.

A checkpoint is a directory with two parts: `params`, what evaluation and prediction use, and `state`, what training
resumes from. Its metadata holds the config and the lineage, so that it can be used without anything beside it.
A workdir keeps its latest two and its best checkpoint in `<workdir>/checkpoints/<step>/`: there is a good one while one
is replaced. Wherever one is read, a name or file of packaged weights (packaged.py) will do.
"""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
from orbax.checkpoint import v1 as ocp

from universeg_jax.checkpoints import packaged
from universeg_jax.checkpoints.packaged import CheckpointError
from universeg_jax.model.factory import build_model, param_shapes

METRIC = "mean_dice"
FORMAT = "universeg_jax checkpoint 1"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what an operating system says of a full disk


@contextlib.contextmanager
def open_checkpointer(workdir: str | Path, keep_every: int = 0) -> Iterator[ocp.training.Checkpointer]:
    """Keeps the latest two, the best by METRIC, and every `keep_every`-th step if that is not 0.

    Raises CheckpointError where one could not be written or, inside the `with`, a log beside them, as on a full disk;
    those written before stay.
    """
    policies = ocp.training.preservation_policies
    keep = [
        policies.LatestN(2),
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
    except (ValueError, OSError) as error:
        # TensorStore reports what the operating system said as a ValueError.
        if getattr(error, "errno", None) not in FULL and "os_error_code" not in str(error):
            raise
        written = [*saved(workdir)]
        good = f"step {written[-1]}" if written else "no step yet"
        raise CheckpointError(
            f"{directory.parent} could not be written to ({str(error).splitlines()[-1]}); the last good checkpoint is "
            f"of {good}: make room there and start the same command again"
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

    With several hosts each holds all of it, and Orbax lets the first one write. A checkpoint of the same step, whose
    evaluation was cut short, is replaced.
    """
    params, state = jax.device_get((params, state))
    checkpointer.save_checkpointables_async(
        step,
        {"params": params, "state": state},
        force=True,
        overwrite=any(written.step == step for written in checkpointer.checkpoints),
        metrics=metrics,
        custom_metadata={"format": FORMAT, "step": step, "metrics": metrics, **metadata},
    )


def restore_state(checkpointer: ocp.training.Checkpointer, state: Any) -> Any:
    """The latest state, in host memory and with the shapes of `state`; or `state` where there is no checkpoint yet."""
    if checkpointer.latest is None:
        return state
    return checkpointer.load_checkpointables(checkpointer.latest.step, {"state": jax.device_get(state)})["state"]


def latest_metadata(checkpointer: ocp.training.Checkpointer) -> dict[str, Any] | None:
    """`read_metadata` of the latest checkpoint, if there is one."""
    return None if checkpointer.latest is None else read_metadata(checkpointer.latest.path)


def write_params(path: str | Path, params: Any, metadata: dict[str, Any]) -> None:
    """A checkpoint of parameters alone, for prediction: converted or packaged weights."""
    ocp.save_checkpointables(
        Path(path).resolve(), {"params": params}, custom_metadata={"format": FORMAT, **metadata}, overwrite=True
    )


def saved(workdir: str | Path) -> dict[int, Path]:
    """The finished checkpoints of a workdir by step, in order."""
    found = {int(p.name): p for p in (Path(workdir) / "checkpoints").glob("*") if p.name.isdigit()}
    return dict(sorted(found.items()))


def resolve(path: str | Path) -> Path:
    """The checkpoint that is meant: a path itself, the best (else the latest) of a workdir, or weights by name."""
    if str(path) in packaged.packaged() and not Path(path).exists():
        return packaged.packaged()[str(path)]
    path = Path(path).resolve()
    if path.is_file() and path.suffix == packaged.SUFFIX:
        return path
    if (path / "checkpoints").is_dir():
        steps = saved(path)
        if not steps:
            raise CheckpointError(
                f"{path}/checkpoints is empty: the run has not saved yet; let it reach its first save"
            )
        scores = {step: metrics[METRIC] for step, p in steps.items() if (metrics := read_metadata(p)["metrics"])}
        return steps[max(scores, key=lambda step: (scores[step], step)) if scores else max(steps)]
    if not path.exists():
        names = ", ".join(packaged.packaged()) or "none yet"
        raise CheckpointError(
            f"{path} does not exist; a checkpoint is a workdir of train.py, a directory inside it, or the name of "
            f"packaged weights ({names})"
        )
    if not (path / "params").is_dir():
        raise CheckpointError(
            f"{path} holds no checkpoint; give a workdir of train.py, or one <workdir>/checkpoints/<step>"
        )
    return path


def read_metadata(path: str | Path) -> dict[str, Any]:
    """{"config": …, "lineage": …, …} of a resolved checkpoint."""
    if Path(path).is_file():
        return packaged.read_header(Path(path))
    path = Path(path).resolve()
    try:
        metadata = ocp.checkpointables_metadata(path).custom_metadata or {}
    except (ValueError, KeyError, OSError, RuntimeError) as error:  # a file of it is cut short or lost
        raise CheckpointError(f"{path} is damaged ({' '.join(str(error).split())[:120]}); {_remedy(path)}") from error
    if not metadata and path.name.isdigit() and path.parent.name == "checkpoints":
        raise CheckpointError(f"{path} is damaged: it has lost its metadata; {_remedy(path)}")
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} was written by another program; give a workdir of train.py")
    return metadata


def _remedy(path: Path) -> str:
    """What to do about a damaged checkpoint of a workdir."""
    others = [step for step in saved(path.parent.parent) if str(step) != path.name]
    if not others:
        return "no other checkpoint is beside it; start the run again in another workdir"
    return f"delete this folder: the run then goes on from step {others[-1]}"


def load_params(path: str | Path, abstract_params: Any) -> Any:
    """Parameters of a resolved checkpoint in the shapes and shardings of `abstract_params`. Raises CheckpointError."""
    path = Path(path).resolve()
    there = packaged.read_file(path) if path.is_file() else ocp.checkpointables_metadata(path).metadata["params"]
    if (wrong := first_difference(there, abstract_params)) is not None:
        raise CheckpointError(
            f"{path} holds a model of another shape ({wrong}): give the config.model that "
            f"`universeg checkpoint {path}` shows, or another checkpoint"
        )
    return there if path.is_file() else ocp.load_checkpointables(path, {"params": abstract_params})["params"]


def first_difference(there: Any, wanted: Any) -> str | None:
    """What the first array is, by name, that two trees do not share; None where they have the same shapes."""
    before, after = (
        {jax.tree_util.keystr(at, simple=True, separator="."): tuple(x.shape) for at, x in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (there, wanted))
    )
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            return f"{name}: {before.get(name, 'absent')} there, {after.get(name, 'absent')} wanted"
    return None


def load(path: str | Path) -> tuple[Any, ml_collections.ConfigDict]:
    """(parameters on one device, config) of whatever `resolve` takes."""
    path = resolve(path)
    config = ml_collections.ConfigDict(read_metadata(path)["config"])
    return load_params(path, abstract_params(config)), config


def abstract_params(config: ml_collections.ConfigDict) -> Any:
    """Shapes, dtypes and a single-device sharding of the parameters of a config."""
    shapes = param_shapes(build_model(config.model))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
