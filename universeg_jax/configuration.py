"""Configs: loading them, the rule of each field, and which fields of a run may change when it is resumed."""

import difflib
import importlib.util
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from universeg_jax.errors import UserError
from universeg_jax.reports.files import read_json, write_json

CONFIGS = Path(__file__).parent / "configs"
# Fields that change where things are, how fast they go and how often they are written, but no number of the run. The
# other fields of `eval` define the score that chooses the best checkpoint, so all scores of a run need the same ones.
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
Rule = str | tuple[str, ...]
# Field, or pattern of fields → rule; the first match counts. An interval holds for a number or for a pair (lowest,
# highest); "range" is a pair of whole numbers whose upper one is excluded; "sizes" are one or more numbers above 0;
# "odd" is an odd number above 0; a tuple lists the choices. `relation_problems` checks fields against each other.
RULES: dict[str, Rule] = {
    **dict.fromkeys(("batch_size", "support_size", "image_size", "num_steps", "accumulation"), "[1, inf)"),
    **dict.fromkeys(("read_threads", "log_every", "eval_every", "checkpoint_every"), "[1, inf)"),
    **dict.fromkeys(("eval.support_size", "eval.ensemble", "eval.batch_size"), "[1, inf)"),
    **dict.fromkeys(("eval.max_cases", "eval.pictures", "keep_every", "seed", "train_tasks"), "[0, inf)"),
    **dict.fromkeys(("min_label_density", "label_union", "all_labels", "corrections"), "[0, 1]"),
    "model.key_heads": "[1, inf)",
    "draw": ("datasets", "tasks"),
    "support_schedule": ("fixed", "uniform", "log_uniform"),
    "ema_decay": "[0, 1)",
    "optimizer.schedule": ("constant", "cosine", "wsd"),
    "optimizer.*": "[0, inf)",
    "loss.*": "[0, inf)",
    "kinds.*": "[0, inf)",
    # augment, and the views of superpixel
    "*.label_interpolation": ("linear", "nearest"),
    "*task.*.p": "[0, 1]",
    "*task.blur.kernel": "odd",
    "*task.*.degrees": "(-inf, inf)",
    "*task.*.brightness": "(-inf, inf)",
    "*task.*.mean": "(-inf, inf)",
    "*task.*.scale": "(0, inf)",
    "*task.*.sigma": "(0, inf)",
    "*task.*": "[0, inf)",
    # synthesis
    "synthesis.*_scales": "sizes",
    "synthesis.labels": "range from 2",
    "synthesis.quiet_labels": "range from 1",
    "synthesis.*.count": "range from 1",
    "synthesis.tubes.levels": "range from 1 to 6",
    "synthesis.contrast": "(0, inf)",
    "synthesis.plain_contrast": "(0, inf)",
    "synthesis.bias_res": "[1, inf)",
    "synthesis.texture_cell": "[1, inf)",
    "synthesis.*.elongation": "[1, inf)",
    **dict.fromkeys([f"synthesis.{name}" for name in ("background_zero", "union", "union_share")], "[0, 1]"),
    **dict.fromkeys([f"synthesis.{name}" for name in ("distractor", "texture", "border", "view")], "[0, 1]"),
    **dict.fromkeys([f"synthesis.{name}" for name in ("min_label_area", "*_foreground")], "[0, 1]"),
    **dict.fromkeys([f"synthesis.tubes.{name}" for name in ("radial", "taper")], "[0, 1]"),
    **dict.fromkeys([f"synthesis.*.{name}" for name in ("nested", "inner", "coverage", "redraw")], "[0, 1]"),
    "synthesis.*": "[0, inf)",
    # superpixel
    "superpixel.cells": "range from 2",
    "superpixel.hops": "range from 1",
    "superpixel.bias_nodes": "[2, inf)",
    "superpixel.compactness": "[0, inf)",
    "superpixel.*_std": "[0, inf)",
    "superpixel.*": "[0, 1]",
    # painting
    "painting.nodes": "[2, inf)",
    **dict.fromkeys([f"painting.{name}" for name in ("texture_cell", "blur")], "[0, inf)"),
    "painting.*": "[0, 1]",
}
WEIGHTS = {  # sections of weights: which fields they have, of which one must be above 0
    "kinds": ("real", "synthetic", "superpixel", "painted"),
    "loss": ("soft_dice", "bce", "focal"),
    "synthesis.weights": ("shapes", "tubes", "blobs", "nests"),
}
# Fields of older configs → the value with which they changed nothing; None where another field decided that. A run or
# checkpoint with these values is read as if it did not have the fields.
RETIRED = {
    "every_image_as_query": False,
    "draw_exponent": None,  # of draw="size"
    "*task.low_resolution.p": 0,
    "*task.view.p": 0,
    "*task.zoom.p": 0,
    **dict.fromkeys(("*task.low_resolution.*", "*task.view.*", "*task.zoom.*"), None),
}

# Fields that older configs lack → the value with which they change nothing; None where another field decides that.
ADDED: dict[str, Any] = {
    "train_without": [],
    "corrections": 0.0,
    "kinds.painted": 0.0,
    "painting.*": None,
    "model.keys": "none",
    "model.key_heads": None,
    "model.key_columns": False,
    "model.key_probe": False,
}


class ConfigError(UserError):
    """A config that cannot be run, or that differs from the one of the run in this workdir."""


def load_config(spec: str) -> ConfigDict:
    """The config of "FILE.py[:argument]", as train.py's --config takes it.

    A file configs/NAME.py that the working directory does not have is that of the package.
    """
    drive, rest = os.path.splitdrive(spec)  # "C:" on Windows
    name, _, argument = rest.partition(":")
    name = drive + name
    path = find_config(name)
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or module_spec is None or module_spec.loader is None:
        raise ConfigError(f"config {spec}: there is no Python file {name}; give one such as configs/default.py")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    try:
        return module.get_config(argument) if argument else module.get_config()
    except ValueError as error:
        raise ConfigError(f"config {spec}: {error}") from error


def find_config(name: str) -> Path:
    """The file of a config; configs/NAME.py is also that of the package, where the working directory has none.

    In a clone configs is a link, of which git makes a text file where links are not allowed, as on Windows.
    """
    path = Path(name)
    return CONFIGS / path.name if not path.is_file() and path.parent == Path("configs") else path


def to_dict(config: ConfigDict | FrozenConfigDict) -> dict[str, Any]:
    """Plain JSON values; tuples become lists."""
    return json.loads(json.dumps(ConfigDict(config).to_dict()))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes <workdir>/config.json. Raises ConfigError where that file already holds the config of another run."""
    path, new = workdir / "config.json", to_dict(config)
    if path.exists():
        check_resumable(without_retired(read_json(path)), new, workdir)
    write_json(path, new)


def read_config(workdir: Path) -> ConfigDict:
    """The config of a run, with later fields at values that change nothing. Raises ConfigError where there is none."""
    path = workdir / "config.json"
    if not path.is_file():
        raise ConfigError(f"{workdir} holds no config.json; give the --workdir of a run of train.py")
    tree = without_retired(read_json(path))
    for name, value in ADDED.items():
        section, _, field = name.rpartition(".")
        if value is not None:
            (tree[section] if section else tree).setdefault(field, value)
    return ConfigDict(tree)


def without_retired(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """An older config without the fields of RETIRED. Raises ConfigError where one of them had an effect."""
    kept = {}
    for name, value in tree.items():
        field = f"{prefix}{name}"
        if isinstance(value, dict):
            if (section := without_retired(value, f"{field}.")) or not value:
                kept[name] = section
            continue
        pattern = first_match(field, RETIRED)
        if pattern is None:
            kept[name] = value
        elif RETIRED[pattern] is not None and value != RETIRED[pattern]:
            raise ConfigError(f"config.{field}={value!r}: this version has no such option; use an older one to go on")
    return kept


def check_resumable(old: dict[str, Any], new: dict[str, Any], workdir: Path) -> None:
    """Raises ConfigError naming every field that differs and is not in RESUMABLE."""
    allowed: tuple[str, ...] = RESUMABLE
    if old["optimizer"]["schedule"] == new["optimizer"]["schedule"] == "constant":
        allowed += ("num_steps",)  # the schedule does not depend on it, so a longer run begins with the shorter one
    before, after = flatten(old), flatten(new)
    for name in after.keys() - before.keys():
        if pattern := first_match(name, ADDED):
            before[name] = after[name] if ADDED[pattern] is None else ADDED[pattern]
    differing = [
        f"config.{name}: {before.get(name, 'absent')!r} in the run, {after.get(name, 'absent')!r} given"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and name not in allowed
    ]
    if differing:
        raise ConfigError(
            f"{workdir} holds a run with another config ({'; '.join(differing)}); take another --workdir (with "
            f"--config.init_from={workdir} it starts from these parameters), or set these back. May change on "
            f"resuming: {', '.join(allowed)}"
        )


def check_fields(config: ConfigDict) -> None:
    """Raises ConfigError naming the first field that breaks its rule, or a relation between fields."""
    fields = flatten(config.to_dict())
    for name, value in fields.items():
        pattern = first_match(name, RULES)
        needed = None if pattern is None else needed_instead(value, RULES[pattern])
        if needed:
            raise ConfigError(f"config.{name}={value!r}: {needed} is needed")
    for problem in relation_problems(fields):
        raise ConfigError(problem)


def first_match(field: str, patterns: dict[str, Any]) -> str | None:
    """The first pattern that a field matches."""
    return next((pattern for pattern in patterns if fnmatchcase(field, pattern)), None)


def needed_instead(value: Any, rule: Rule) -> str | None:
    """What the rule asks for, in words, where `value` breaks it; else None."""
    if isinstance(rule, tuple):
        return None if value in rule else f"one of {', '.join(rule)}"
    if isinstance(value, str | bool):
        return None  # optimizer.name and switches: code checks the first, both values of the second hold
    if rule == "odd":
        return None if isinstance(value, int) and value > 0 and value % 2 else "an odd whole number"
    pair = list(value) if isinstance(value, tuple | list) else [value]
    if rule == "sizes":
        return None if pair and all(x > 0 for x in pair) else "one or more numbers above 0"
    if rule.startswith("range"):
        low, high = (float(text) for text in (re.findall(r"\d+", rule) + ["inf"])[:2])
        good = len(pair) == 2 and all(isinstance(x, int) for x in pair) and low <= pair[0] < pair[1] <= high
        return None if good else f"a pair of whole numbers, the second above the first, in [{low:g}, {high:g}]"
    low, high = (float(text) for text in rule[1:-1].split(","))
    inside = all(
        math.isfinite(x) and (low < x if rule[0] == "(" else low <= x) and (x < high if rule[-1] == ")" else x <= high)
        for x in pair
    )
    if isinstance(value, tuple | list):
        good = inside and len(pair) == 2 and pair[0] <= pair[1]
        return None if good else f"a pair (lowest, highest) in {rule}"
    return None if inside else f"a number in {rule}"


def relation_problems(fields: dict[str, Any]) -> Iterator[str]:
    """What is wrong between fields: weights that are all 0, probabilities that exceed 1, grids finer than the image."""
    for section, names in WEIGHTS.items():
        weights = {name.removeprefix(f"{section}."): x for name, x in fields.items() if name.startswith(f"{section}.")}
        if section != "loss" and (unknown := weights.keys() - set(names)):
            yield f"config.{section}.{min(unknown)}: only {', '.join(names)} have weights"
        if not any(weights.get(name, 0) for name in names):
            yield f"config.{section}: the weights of {', '.join(names)} are all 0; one above 0 is needed"
    if round(fields["label_union"] + fields["all_labels"], 9) > 1:
        both = f"config.label_union={fields['label_union']} and config.all_labels={fields['all_labels']}"
        yield f"{both}: two probabilities whose sum is at most 1 are needed"
    if fields["corrections"] and fields["model.name"] != "universeg":
        given = f"config.corrections={fields['corrections']} and config.model.name={fields['model.name']!r}"
        yield f"{given}: only the model universeg knows labels in part"
    needed_size = {}
    if fields["kinds.synthetic"]:
        for name in ("synthesis.shapes_scales", "synthesis.shapes_warp_scales", "synthesis.warp_scales"):
            needed_size[name] = 2 * max(noise_nodes(fields[name]))
    if fields["kinds.superpixel"]:
        needed_size["superpixel.cells"] = 2 * (fields["superpixel.cells"][1] - 1)
        needed_size["superpixel.bias_nodes"] = fields["superpixel.bias_nodes"]
    for name, size in needed_size.items():
        if fields["image_size"] < size:
            yield f"config.{name}={fields[name]!r} needs config.image_size={size} or more, not {fields['image_size']}"


def noise_nodes(scales: Sequence[float]) -> tuple[int, ...]:
    """Nodes along a side of synthesis' noise grids, whose cells are `scales` pixels of 256."""
    return tuple(max(2, math.ceil(256 / scale)) for scale in scales)


def unknown_field(config: ConfigDict, name: str) -> str | None:
    """Says which part of a name such as "optimizer.lr" a config does not have, and what it has; None if it has all."""
    section, path, parts = config, "config", name.split(".")
    for part in parts:
        if not isinstance(section, ConfigDict):
            return f"{path} is a value and has no field {part!r}"
        if part not in section:
            near = difflib.get_close_matches(part, list(section), 1)
            hint = f'Did you mean "{near[0]}"?' if near else f"Its fields are {', '.join(section)}."
            return f"{path} has no field {part!r}. {hint}"
        section, path = section[part], f"{path}.{part}"
    return None
