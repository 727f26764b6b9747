"""Checkpoints on disk, written by Orbax; no other module uses Orbax, and packaged weights are read without it.

A checkpoint is a folder with two parts: `params` for evaluation and prediction, and `state` for resuming. Its metadata
holds the config and the lineage, so that it can be used alone. A workdir keeps its latest two and its best checkpoint
in `<workdir>/checkpoints/<step>/`, so that a good one exists while another is replaced. All readers also take a name or
file of packaged weights (packaged.py).
"""

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import ml_collections

from universeg_jax.checkpoints import packaged, remote
from universeg_jax.checkpoints.packaged import CheckpointError
from universeg_jax.model.factory import build_model, param_shapes

if TYPE_CHECKING:
    from orbax.checkpoint import v1 as ocp  # at run time where it is used: importing it takes a second

METRIC = "mean_dice"
FORMAT = "universeg_jax checkpoint 1"
DAMAGE = (ValueError, KeyError, OSError, RuntimeError)  # raised where a file is cut short or lost
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a full disk


def _orbax() -> Any:
    from orbax.checkpoint import v1  # slow to import, and prediction with packaged weights does without it

    return v1


@contextlib.contextmanager
def open_checkpointer(workdir: str | Path, keep_every: int = 0) -> Iterator["ocp.training.Checkpointer"]:
    """Keeps the latest two, the best by METRIC, and every `keep_every`-th step if that is not 0.

    Raises CheckpointError if a checkpoint, or a log inside the `with`, cannot be written, as on a full disk; earlier
    checkpoints stay.
    """
    ocp = _orbax()
    policies = ocp.training.preservation_policies
    keep = [
        policies.LatestN(2),
        policies.BestN(get_metric_fn=lambda metrics: metrics[METRIC], n=1, keep_checkpoints_without_metrics=False),
    ]
    if keep_every:
        keep.append(policies.EveryNSteps(keep_every))
    directory = (Path(workdir) / "checkpoints").resolve()
    _check_scores(workdir)
    try:
        with ocp.training.Checkpointer(
            directory,
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,  # left by a kill during a save
        ) as checkpointer:
            yield checkpointer
    except (ValueError, OSError) as error:
        # TensorStore reports errors of the operating system as ValueError.
        if getattr(error, "errno", None) not in FULL and "os_error_code" not in str(error):
            raise
        written = [*saved(workdir)]
        good = f"step {written[-1]}" if written else "no step yet"
        raise CheckpointError(
            f"{directory.parent} could not be written to ({str(error).splitlines()[-1]}); the last good checkpoint is "
            f"of {good}: make room there and start the same command again"
        ) from None


def _check_scores(workdir: str | Path) -> None:
    """Orbax reads the scores of all checkpoints at once and does not name the damaged one. Raises CheckpointError."""
    for path in saved(workdir).values():
        file = path / "metrics" / "metrics"
        try:
            if file.exists():
                json.loads(file.read_bytes())
        except ValueError as error:
            raise CheckpointError(f"{path.resolve()} is damaged: its scores cannot be read; {_remedy(path)}") from error


def save(
    checkpointer: "ocp.training.Checkpointer",
    step: int,
    params: Any,
    state: Any,
    metadata: dict[str, Any],
    metrics: dict[str, float] | None,
) -> None:
    """Copies the arrays to the host and returns; writing continues in the background.

    Each of several hosts holds all arrays, and Orbax lets the first one write. A checkpoint of the same step, whose
    evaluation was interrupted, is replaced.
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


def restore_state(checkpointer: "ocp.training.Checkpointer", state: Any) -> Any:
    """Loads the latest state into host memory, with the shapes of `state`; returns `state` without a checkpoint.

    Raises CheckpointError where its files are damaged.
    """
    if checkpointer.latest is None:
        return state
    step, path = checkpointer.latest.step, Path(checkpointer.latest.path)
    try:
        return checkpointer.load_checkpointables(step, {"state": jax.device_get(state)})["state"]
    except DAMAGE as error:
        what = f"its training state cannot be read ({' '.join(str(error).split())[:120]})"
        raise CheckpointError(f"{path} is damaged: {what}; {_remedy(path)}") from error


def latest_metadata(checkpointer: "ocp.training.Checkpointer") -> dict[str, Any] | None:
    """`read_metadata` of the latest checkpoint, or None."""
    return None if checkpointer.latest is None else read_metadata(checkpointer.latest.path)


def write_params(path: str | Path, params: Any, metadata: dict[str, Any]) -> None:
    """Writes a checkpoint of parameters alone, for prediction."""
    _orbax().save_checkpointables(
        Path(path).resolve(), {"params": params}, custom_metadata={"format": FORMAT, **metadata}, overwrite=True
    )


def saved(workdir: str | Path) -> dict[int, Path]:
    """The finished checkpoints of a workdir by step, in order."""
    steps = {int(p.name): p for p in (Path(workdir) / "checkpoints").glob("*") if p.name.isdigit()}
    return dict(sorted(steps.items()))


def resolve(path: str | Path) -> Path:
    """Finds a checkpoint: a path itself, the best (else the latest) of a workdir, packaged weights by name, or weights
    at an https:// or hf:// address, which are downloaded once (remote.py)."""
    if remote.is_address(path):
        return remote.fetch(str(path))
    if str(path) in packaged.packaged() and not Path(path).exists():
        return packaged.packaged()[str(path)]
    path = Path(path).resolve()
    if path.is_file() and path.suffix == packaged.SUFFIX:
        return path
    if (path / "checkpoints").is_dir():
        steps = saved(path)
        if not steps:
            raise CheckpointError(f"{path}/checkpoints is empty: the run has not saved yet; wait for its first save")
        scores = {step: metrics[METRIC] for step, p in steps.items() if (metrics := read_metadata(p)["metrics"])}
        return steps[max(scores, key=lambda step: (scores[step], step)) if scores else max(steps)]
    if not path.exists():
        names = ", ".join(packaged.packaged()) or "none yet"
        raise CheckpointError(
            f"{path} does not exist; a checkpoint is a workdir of train.py, a folder inside it, or the name of "
            f"packaged weights ({names})"
        )
    if not (path / "params").is_dir():
        raise CheckpointError(
            f"{path} holds no checkpoint; give a workdir of train.py, or one <workdir>/checkpoints/<step>"
        )
    return path


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Reads {"config": …, "lineage": …, …} of a resolved checkpoint."""
    if Path(path).is_file():
        return packaged.read_header(Path(path))
    path = Path(path).resolve()
    try:
        metadata = _orbax().checkpointables_metadata(path).custom_metadata or {}
    except DAMAGE as error:
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
    """Loads parameters of a resolved checkpoint as `abstract_params` (shapes, shardings). Raises CheckpointError."""
    path = Path(path).resolve()
    stored = _tree(path)
    if (wrong := first_difference(stored, abstract_params)) is not None:
        raise CheckpointError(
            f"{path} holds a model of another shape ({wrong}): give the config.model that "
            f"`universeg checkpoint {path}` shows, or another checkpoint"
        )
    return stored if path.is_file() else _orbax().load_checkpointables(path, {"params": abstract_params})["params"]


def modules(path: str | Path) -> set[str]:
    """Names of the model's parts for which a resolved checkpoint holds parameters."""
    return set(_tree(Path(path).resolve()))


def _tree(path: Path) -> Any:
    """The parameters of a file, or their shapes for a directory."""
    return packaged.read_file(path) if path.is_file() else _orbax().checkpointables_metadata(path).metadata["params"]


def first_difference(stored: Any, wanted: Any) -> str | None:
    """Names the first array that two trees do not share; None if all shapes are the same."""
    before, after = (
        {jax.tree_util.keystr(at, simple=True, separator="."): tuple(x.shape) for at, x in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (stored, wanted))
    )
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            return f"{name}: {before.get(name, 'absent')} in the file, {after.get(name, 'absent')} wanted"
    return None


def load(path: str | Path) -> tuple[Any, ml_collections.ConfigDict]:
    """Loads (parameters on one device, config) of anything `resolve` takes."""
    path = resolve(path)
    config = ml_collections.ConfigDict(read_metadata(path)["config"])
    if path in packaged.packaged().values():  # tested: computing the shapes takes two seconds
        return packaged.read_file(path), config
    return load_params(path, abstract_params(config)), config


def abstract_params(config: ml_collections.ConfigDict) -> Any:
    """Shapes, dtypes and a single-device sharding of the parameters of a config."""
    shapes = param_shapes(build_model(config.model))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
