"""Converts weights of the released architecture: PyTorch state_dict or safetensors ↔ our checkpoints, bit for bit.

Foreign files are read by safe loaders only: safetensors, and torch with `weights_only=True`, which executes no code of
a pickle. Blocks and widths follow from the shapes.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from safetensors import SafetensorError

from universeg_jax.checkpoints import store
from universeg_jax.configuration import to_dict
from universeg_jax.errors import UserError
from universeg_jax.reports.files import atomic_write

PARTS = {"encoder": "enc_blocks", "decoder": "dec_blocks"}
CONVS = {"cross": "cross.cross_conv", "query": "target.vmapped.conv", "support": "support.vmapped.conv"}
LEAVES = {"kernel": "weight", "bias": "bias"}


def release_name(path: tuple[str, ...]) -> str:
    """("encoder_0", "query", "kernel") → "enc_blocks.0.target.vmapped.conv.weight"."""
    if path[0] == "out":
        return f"out_conv.conv.{LEAVES[path[-1]]}"
    part, number = path[0].rsplit("_", 1)
    if path[1] not in CONVS:
        raise UserError(
            f"{'.'.join(path)} has no place in the released architecture; `universeg export` writes other formats"
        )
    return f"{PARTS[part]}.{number}.{CONVS[path[1]]}.{LEAVES[path[2]]}"


def check_released(config: ConfigDict) -> None:
    """Raises UserError for a model that the released code cannot compute, even if its parameters fit."""
    remedy = "the released architecture has no such option; `universeg export` writes other formats"
    for field, released in (
        ("name", "universeg"),
        ("cross_activation", "none"),
        ("norm", "none"),
        ("residual", "none"),
        ("keys", "none"),
    ):
        if (value := config.model.get(field, released)) != released:
            raise UserError(f"config.model.{field}={value!r}: {remedy}")


def to_release(params: Any) -> dict[str, np.ndarray]:
    """Our tree → released names, kernels [k, k, in, out] → [out, in, k, k]."""
    state = {release_name(path): np.asarray(value) for path, value in flatten_dict(params).items()}
    return {k: np.ascontiguousarray(v.transpose(3, 2, 0, 1)) if v.ndim == 4 else v for k, v in state.items()}


def from_release(state: dict[str, np.ndarray], config: ConfigDict) -> Any:
    """Released names → the tree of a config. Raises UserError naming a missing, unknown or misshapen tensor."""
    wanted = {release_name(path): (path, x.shape) for path, x in flatten_dict(store.abstract_params(config)).items()}
    for name in [*sorted(wanted.keys() - state.keys())][:1]:
        raise UserError(f"tensor {name} is missing")
    for name in [*sorted(state.keys() - wanted.keys())][:1]:
        raise UserError(f"tensor {name} {state[name].shape} has no place in a UniverSeg of these blocks")
    flat = {}
    for name, (path, shape) in wanted.items():
        value = state[name].transpose(2, 3, 1, 0) if state[name].ndim == 4 else state[name]
        if value.shape != shape:
            raise UserError(f"tensor {name} has shape {value.shape} (as [k, k, in, out]), {shape} is needed")
        flat[path] = np.ascontiguousarray(value)
    return unflatten_dict(flat)


def convert(source: str | Path, out: str | Path) -> str:
    """Foreign weights → a checkpoint folder; or, if `out` ends in .pt or .safetensors, a checkpoint → such a file.

    Raises UserError for a missing, unknown or misshapen tensor, and for a file that its suffix does not describe.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise UserError(f"{out} exists already; take another name")
    if out.suffix in (".pt", ".pth", ".safetensors"):
        params, config = store.load(source)
        check_released(config)
        _write_weights(out, to_release(params))
        size = (
            ""
            if config.image_size == 128
            else f"; the file does not record the image size of {config.image_size} pixels"
        )
        return f"{store.resolve(source)} → {out}, with the released parameter names{size}"
    state = read_weights(source)
    config = config_for(state)
    params = from_release(state, config)
    store.write_params(out, params, {"config": to_dict(config), "lineage": {"converted_from": source.name}})
    count = sum(array.size for array in state.values())
    return f"{source} → {out}: {count:,} parameters, encoder {config.model.encoder_blocks}"


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads names → float32 arrays of a .safetensors or torch file, also if nested under "model"."""
    if not path.is_file():
        raise UserError(f"{path} is no file; give a .pt, .pth or .safetensors file, or a checkpoint and such an OUT")
    if path.suffix == ".safetensors":
        try:
            state: Any = safetensors.numpy.load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a safetensors file: {error}") from error
    else:
        state = _read_torch(path)
    if isinstance(state.get("model"), dict):
        state = state["model"]
    wrong = [name for name, value in state.items() if not isinstance(value, np.ndarray) or value.dtype != np.float32]
    if wrong:
        raise UserError(f"{path}: {wrong[0]} is no float32 tensor; this is not a UniverSeg state_dict")
    return state


def _read_torch(path: Path) -> dict[str, Any]:
    torch = _torch()

    def arrays(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: arrays(value) for name, value in tree.items()}
        return tree.detach().cpu().numpy() if isinstance(tree, torch.Tensor) else tree

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is refused: it does not hold tensors alone ({reason})") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}; a state_dict is needed")
    return arrays(state)


def config_for(state: dict[str, np.ndarray]) -> ConfigDict:
    """The config of a Predictor: the blocks that these shapes imply, and the release's image size."""
    blocks: dict[str, list[tuple[int, int]]] = {"encoder": [], "decoder": []}
    for name, part in PARTS.items():
        while (cross := state.get(f"{part}.{len(blocks[name])}.{CONVS['cross']}.bias")) is not None:
            conv = state.get(f"{part}.{len(blocks[name])}.{CONVS['query']}.bias")
            if conv is None:
                raise UserError(f"tensor {part}.{len(blocks[name])}.{CONVS['query']}.bias is missing")
            blocks[name].append((len(cross), len(conv)))
    encoder, decoder = blocks["encoder"], blocks["decoder"]
    if not encoder or len(decoder) != len(encoder) - 1:
        raise UserError(
            f"{len(encoder)} encoder and {len(decoder)} decoder blocks are no UniverSeg; its tensors are named "
            f"enc_blocks.0.{CONVS['cross']}.weight and so on"
        )
    model = {"encoder_blocks": tuple(encoder), "decoder_blocks": tuple(decoder)}
    return ConfigDict({"model": model, "image_size": 128})


def _write_weights(out: Path, state: dict[str, np.ndarray]) -> None:
    with atomic_write(out) as temporary:
        if out.suffix == ".safetensors":
            safetensors.numpy.save_file(state, temporary)
        else:
            torch = _torch()
            torch.save({name: torch.from_numpy(value.copy()) for name, value in state.items()}, temporary)


def _torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError("torch files need torch: pip install 'universeg_jax[convert]'") from error
    return torch
