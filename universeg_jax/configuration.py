"""A run's config on disk, and which of its fields may change when the run is resumed."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from universeg_jax.errors import UserError
from universeg_jax.reports.files import write_json

# Fields that change where things are, how fast they go and how often they are written, but no number of the run: the
# rest of `eval` says what a score is of, and the best checkpoint is the one of several scores of the same.
RESUMABLE = (
    "data_dir",
    "read_threads",
    "log_every",
    "checkpoint_every",
    "keep_every",
    "eval_every",
    "eval.batch_size",
    "eval.pictures",
    "tensorboard",
)
LOWEST = {
    **dict.fromkeys(("batch_size", "support_size", "image_size", "num_steps", "accumulation", "read_threads"), 1),
    **dict.fromkeys(("log_every", "eval_every", "checkpoint_every"), 1),
    **dict.fromkeys(("eval.support_size", "eval.ensemble", "eval.batch_size"), 1),
    **dict.fromkeys(("eval.max_cases", "eval.pictures", "keep_every", "seed", "train_tasks", "ema_decay"), 0),
    **dict.fromkeys([f"optimizer.{name}" for name in ("clip_norm", "warmup_steps", "decay_steps", "weight_decay")], 0),
}  # of config fields


class ConfigError(UserError):
    """A config that cannot be run, or not in this workdir."""


def load_config(spec: str) -> ConfigDict:
    """The config of "FILE.py[:argument]", as train.py's --config takes it."""
    name, _, argument = spec.partition(":")
    path = Path(name).resolve()
    if not path.is_file() or path.suffix != ".py":
        raise ConfigError(f"--config={spec}: {name} is no Python file; give one such as configs/default.py")
    module = importlib.util.module_from_spec(found := importlib.util.spec_from_file_location(path.stem, path))
    root = str(path.parents[1])  # configs import each other as `configs.default`
    sys.path.insert(0, root)
    try:
        found.loader.exec_module(module)
        return module.get_config(argument) if argument else module.get_config()
    except ValueError as error:
        raise ConfigError(f"--config={spec}: {error}") from error
    finally:
        sys.path.remove(root)


def to_dict(config: ConfigDict | FrozenConfigDict) -> dict[str, Any]:
    """Plain JSON values; tuples become lists."""
    return json.loads(json.dumps(ConfigDict(config).to_dict()))


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes <workdir>/config.json; where there is one already, first refuses a config that would be another run."""
    path, new = workdir / "config.json", to_dict(config)
    if path.exists():
        check_resumable(json.loads(path.read_text()), new, workdir)
    write_json(path, new)


def read_config(workdir: Path) -> ConfigDict:
    """The config of a run. Raises ConfigError where there is none."""
    path = workdir / "config.json"
    if not path.is_file():
        raise ConfigError(f"{workdir} holds no config.json; give the --workdir of a run of train.py")
    return ConfigDict(json.loads(path.read_text()))


def check_lowest(config: ConfigDict) -> None:
    """Raises ConfigError naming the first field that is below LOWEST."""
    values = flatten(config.to_dict())
    for name, lowest in LOWEST.items():
        if not values[name] >= lowest:  # NaN too
            raise ConfigError(f"config.{name}={values[name]}: at least {lowest} is needed")


def check_resumable(old: dict[str, Any], new: dict[str, Any], workdir: Path) -> None:
    """Raises ConfigError naming every field that differs and is not in RESUMABLE."""
    allowed = RESUMABLE
    if old["optimizer"]["schedule"] == new["optimizer"]["schedule"] == "constant":
        allowed += ("num_steps",)  # the schedule does not depend on it, so a longer run begins with the shorter one
    before, after = flatten(old), flatten(new)
    differing = [
        f"config.{name}: {before.get(name, 'absent')!r} there, {after.get(name, 'absent')!r} given"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and name not in allowed
    ]
    if differing:
        raise ConfigError(
            f"{workdir} holds a run with another config ({'; '.join(differing)}); take another --workdir (with "
            f"--config.init_from={workdir} it begins with these parameters), or set these back. May change on "
            f"resuming: {', '.join(allowed)}"
        )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat
