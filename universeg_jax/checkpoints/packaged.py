"""Weights in one safetensors file, whose header holds the config, the lineage and the hash of the parameters.

The weights of the project are in `weights/`; their names are accepted wherever a checkpoint is. `lineage.package`
writes such files.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from universeg_jax.errors import UserError
from universeg_jax.reports.files import atomic_write

FOLDER = Path(__file__).parents[1] / "weights"
SUFFIX = ".safetensors"
KEY = "universeg_jax"  # in the header


class CheckpointError(UserError):
    """A path that is no usable checkpoint; the message says why and what is."""


def packaged() -> dict[str, Path]:
    """Names and files of the project's weights."""
    return {file.stem: file for file in sorted(FOLDER.glob("*" + SUFFIX))}


def params_hash(params: Any) -> str:
    """sha256 over names, shapes and float32 values: the identity of a set of weights."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        array = np.asarray(leaf, np.float32)
        digest.update(f"{jax.tree_util.keystr(path)}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_file(path: Path, params: Any, header: dict[str, Any]) -> None:
    """Writes parameters as float32 with `header`, atomically."""
    flat = {".".join(name): np.asarray(x, np.float32) for name, x in flatten_dict(params).items()}
    metadata = {KEY: json.dumps({**header, "params_hash": params_hash(params)})}
    with atomic_write(path) as temporary:
        safetensors.numpy.save_file(flat, temporary, metadata)


def read_header(path: Path) -> dict[str, Any]:
    """Reads the header that `write_file` wrote. Raises CheckpointError."""
    try:
        with safe_open(path, "numpy") as file:
            header = (file.metadata() or {}).get(KEY)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if header is None:
        raise CheckpointError(
            f"{path} holds no config; convert weights of the authors' code by `universeg convert {path} FOLDER`"
        )
    return json.loads(header)


def read_file(path: Path) -> Any:
    """Reads the parameters. Raises CheckpointError if they do not match the hash in the header."""
    expected = read_header(path)["params_hash"]
    flat = safetensors.numpy.load_file(path)
    params = unflatten_dict({tuple(name.split(".")): x for name, x in flat.items()})
    if params_hash(params) != expected:
        raise CheckpointError(f"{path} is damaged: its parameters do not match their hash")
    return params
