"""Checks or regenerates the golden vectors with PyTorch.

    python -m tests.golden.regenerate                             # checksums, then every value against PyTorch
    python -m tests.golden.regenerate --out /tmp/golden           # recomputes outputs for the inputs in this folder
    python -m tests.golden.regenerate --source FOLDER --out OUT   # the same for the inputs and parameters in FOLDER
    python -m tests.golden.regenerate --fresh 0 --out OUT         # samples new inputs and parameters of the same shapes

`NAME_params.npz` holds the parameters under the released names, kernels in PyTorch's OIHW layout. `NAME.npz` holds
target_image and target_label [B, 1, H, W], support_images and support_labels [B, S, 1, H, W], and what the released
architecture computes from them: logits [B, 1, H, W], soft_dice_loss (the mean of 1 - (2 Σpy + 1e-7) / (Σp + Σy + 1e-7)
over the batch) and grad/KEY for each parameter. Images are float32 in [0, 1], labels uint8. In `ties` images have
constant regions and a border of zeros, so that a window of the max-pool holds its maximum more than once.

The model is benchmarks/torch_model.py, written from the published description and independent of the JAX model. With
PyTorch 2.13.0 on a CPU it agrees with these files to 3e-6 in logits and to 8e-6 of a gradient's largest value.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch

from benchmarks.torch_model import UniverSeg

HERE = Path(__file__).parent
CHECKSUMS = HERE / "SHA256SUMS"
INPUTS = ("target_image", "support_images", "support_labels", "target_label")
LOGITS_TOLERANCE = 1e-5  # absolute
GRADIENT_TOLERANCE = 1e-4  # of a tensor's largest magnitude

Arrays = dict[str, np.ndarray]


def vector_names(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix("_params.npz") for path in folder.glob("*_grad_params.npz"))


def checksums() -> dict[str, str]:
    """File name → SHA-256, as written in SHA256SUMS (`sha256sum --check SHA256SUMS` reads it too)."""
    return {name: digest for digest, name in (line.split() for line in CHECKSUMS.read_text().splitlines())}


def changed_files() -> list[str]:
    """Names of vectors in this folder whose bytes differ from SHA256SUMS."""
    return [
        name for name, digest in checksums().items() if hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest
    ]


def block_widths(params: Arrays, part: str) -> list[tuple[int, int]]:
    """(features of the cross convolution, features of the convolutions after it) of each block of `part`."""
    count = 1 + max(int(key.split(".")[1]) for key in params if key.startswith(part))
    keys = ("cross.cross_conv.bias", "target.vmapped.conv.bias")
    return [(params[f"{part}.{i}.{keys[0]}"].size, params[f"{part}.{i}.{keys[1]}"].size) for i in range(count)]


def compute(params: Arrays, inputs: Arrays) -> Arrays:
    """Logits, loss and gradients of the released architecture in float32."""
    model = UniverSeg(block_widths(params, "enc_blocks"), block_widths(params, "dec_blocks"))
    model.load_state_dict({key: torch.from_numpy(value) for key, value in params.items()})
    images, support_images, support_labels, labels = (torch.from_numpy(inputs[name]).float() for name in INPUTS)
    logits = model(images, support_images, support_labels)
    p, axes = torch.sigmoid(logits), (1, 2, 3)
    overlap = (2 * (p * labels).sum(axes) + 1e-7) / (p.sum(axes) + labels.sum(axes) + 1e-7)
    loss = (1 - overlap).mean()
    loss.backward()
    gradients = {
        f"grad/{name}": np.zeros_like(params[name]) if parameter.grad is None else parameter.grad.numpy()
        for name, parameter in model.named_parameters()  # the last block's support output reaches no logit
    }
    return {"logits": logits.detach().numpy(), "soft_dice_loss": loss.detach().numpy(), **gradients}


def largest_errors(stored: Arrays, computed: Arrays) -> tuple[float, float]:
    """(largest error of the logits and the loss, largest error of a gradient relative to its largest magnitude)."""
    if stored.keys() - set(INPUTS) != computed.keys():
        raise SystemExit(f"the file and PyTorch differ in {sorted(stored.keys() - set(INPUTS) ^ computed.keys())}")
    errors = {key: float(np.abs(stored[key] - value).max()) for key, value in computed.items()}
    gradients = [
        error / max(float(np.abs(stored[key]).max()), 1e-30) for key, error in errors.items() if key.startswith("grad/")
    ]
    return max(errors["logits"], errors["soft_dice_loss"]), max(gradients)


def fresh(params: Arrays, inputs: Arrays, seed: int, ties: bool) -> tuple[Arrays, Arrays]:
    """New parameters and inputs of the same names, shapes and types."""
    rng = np.random.default_rng(seed)

    def parameter(key: str, old: np.ndarray) -> np.ndarray:
        gain = 2.0 if "vmapped" in key else 1.0  # He's before a LeakyReLU, else the variance is kept
        scale = 0.1 if old.ndim == 1 else np.sqrt(gain / old[0].size)
        return (scale * rng.standard_normal(old.shape)).astype(np.float32)

    def image(shape: tuple[int, ...]) -> np.ndarray:
        values = rng.random(shape, dtype=np.float32)
        if ties:
            values = values[..., ::8, ::8].repeat(8, -2).repeat(8, -1)[..., : shape[-2], : shape[-1]]
            values[..., :4, :] = values[..., -4:, :] = values[..., :4] = values[..., -4:] = 0
        return values

    images = {name: image(inputs[name].shape) for name in ("target_image", "support_images")}
    labels = {name: (image(inputs[name].shape) > 0.6).astype(np.uint8) for name in ("target_label", "support_labels")}
    return {key: parameter(key, value) for key, value in params.items()}, images | labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=HERE, help="folder of NAME_params.npz and NAME.npz")
    parser.add_argument("--fresh", type=int, metavar="SEED", help="sample new inputs and parameters; needs --out")
    parser.add_argument("--out", type=Path, help="folder for the regenerated vectors; without it nothing is written")
    args = parser.parse_args()
    if args.fresh is not None and args.out is None:
        parser.error("--fresh needs --out: new vectors have nothing to be checked against")
    if args.source == HERE and (changed := changed_files()):
        raise SystemExit(f"SHA-256 differs from {CHECKSUMS.name}: {', '.join(changed)}; restore them from git")
    if not (names := vector_names(args.source)):
        raise SystemExit(f"{args.source} holds no NAME_grad_params.npz")
    for name in names:
        stored = dict(np.load(args.source / f"{name}.npz"))
        params = dict(np.load(args.source / f"{name}_params.npz"))
        inputs = {key: stored[key] for key in INPUTS}
        if args.fresh is not None:
            params, inputs = fresh(params, inputs, args.fresh, ties="ties" in name)
        computed = compute(params, inputs)
        if args.fresh is None:
            logits, gradient = largest_errors(stored, computed)
            print(f"{name}: logits within {logits:.1e}, gradients within {gradient:.1e} of their largest")
            if not (logits <= LOGITS_TOLERANCE and gradient <= GRADIENT_TOLERANCE):
                raise SystemExit(f"{name}: beyond {LOGITS_TOLERANCE:g} or {GRADIENT_TOLERANCE:g}")
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(args.out / f"{name}.npz", **inputs, **computed)
            np.savez_compressed(args.out / f"{name}_params.npz", **params)


if __name__ == "__main__":
    main()
