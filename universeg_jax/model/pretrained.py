"""Frozen features of EfficientNet-Lite0, which ImageNet taught what things look like (Tan & Le, ICML 2019; Lite: 2020).

`features(images)` gives what the network sees at strides 8, 16 and 32: the outputs of blocks 4, 10 and 12 of 16. Its
weights come with the package, with batch norms folded into the convolutions, in float16 (`python -m
tools.convert_lite0` makes the file); they are constants of a program, not parameters: no optimizer and no checkpoint
holds them, and gradients stop at them.

Depthwise convolutions are sums of shifted products: XLA:CPU takes six times as long for the convolutions themselves.
"""

import contextlib
import contextvars
import functools
import importlib.resources
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

Array = jax.Array

FILE = importlib.resources.files("universeg_jax") / "weights" / "backbone" / "efficientnet_lite0.safetensors"


class Block(NamedTuple):
    """One inverted bottleneck: a pointwise expansion, a depthwise convolution and a pointwise projection."""

    size: int  # of the depthwise kernel
    stride: int
    expansion: int
    features_in: int
    features: int


def _blocks() -> tuple[Block, ...]:
    """All but the last three, which nothing here asks for."""
    stages = [(1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80),
              (3, 5, 1, 6, 80, 112), (4, 5, 2, 6, 112, 192)]  # fmt: skip
    blocks = []
    for repeats, size, stride, expansion, features_in, features in stages:
        blocks.append(Block(size, stride, expansion, features_in, features))
        blocks += [Block(size, 1, expansion, features, features)] * (repeats - 1)
    return tuple(blocks[: LAST + 1])


TAPS = {8: 4, 16: 10, 32: 12}  # stride of a feature map: the block whose output it is
LAST = max(TAPS.values())
BLOCKS = _blocks()
FEATURES = {stride: BLOCKS[block].features for stride, block in TAPS.items()}
MEAN, SCALE = 127 / 255, 255 / 128  # of the release: (0..255 - 127) / 128, all channels alike


_at_once = contextvars.ContextVar("at_once", default=False)


@contextlib.contextmanager
def all_at_once() -> Iterator[None]:
    """Within it `features` traces all images at once on any platform: ONNX has no choice by platform."""
    token = _at_once.set(True)
    try:
        yield
    finally:
        _at_once.reset(token)


@functools.cache
def weights() -> dict[str, np.ndarray]:
    """float16 arrays of the packaged file: stem [3, 3, 3, 32]; of block i expand [C, F], depthwise [k, k, F], project
    [F, C'], and a bias [F] of each."""
    found = safetensors.numpy.load(FILE.read_bytes())
    # Each process gets them in another order, which would make another program, compiled anew.
    return dict(sorted(found.items()))


def features(images: Array) -> dict[int, Array]:
    """{stride: [..., H / stride, W / stride, FEATURES[stride]]} of images [..., H, W, 1 or 3] in [0, 1].

    Sides must be multiples of 32. Raises ValueError. Gradients do not pass.
    """
    *before, height, width, channels = images.shape
    if height % 32 or width % 32 or channels not in (1, 3):
        raise ValueError(f"images of shape {images.shape}: sides that are multiples of 32, and 1 or 3 channels, needed")
    x = (jax.lax.stop_gradient(images).reshape((-1, height, width, channels)) - MEAN) * SCALE
    held = {name: jnp.asarray(w).astype(x.dtype) for name, w in weights().items()}

    def one_by_one(x: Array) -> dict[int, Array]:  # what lies between two layers then stays in a CPU's cache
        return jax.lax.map(lambda image: jax.tree.map(lambda y: y[0], network(image[None], held)), x)

    def at_once(x: Array) -> dict[int, Array]:
        return network(x, held)

    found = at_once(x) if _at_once.get() else jax.lax.platform_dependent(x, cpu=one_by_one, default=at_once)
    return {stride: x.reshape((*before, *x.shape[1:])) for stride, x in found.items()}


def network(x: Array, held: dict[str, Array]) -> dict[int, Array]:
    """{stride: features} of normalised images [N, H, W, 1 or 3]."""
    kernel = held["stem.kernel"]
    if x.shape[-1] == 1:  # grey is three equal channels
        kernel = kernel.sum(2, keepdims=True)
    x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = relu6(x + held["stem.bias"][None, None, None])
    found: dict[int, Array] = {}
    for i, block in enumerate(BLOCKS):
        part = {name: held[f"{i}.{name}"] for name in PARTS if f"{i}.{name}" in held}
        y = x
        if block.expansion > 1:
            y = relu6(pointwise(y, part["expand.kernel"], part["expand.bias"]))
        y = relu6(depthwise(y, part["depthwise.kernel"], block.stride) + part["depthwise.bias"][None, None, None])
        y = pointwise(y, part["project.kernel"], part["project.bias"])
        x = x + y if block.stride == 1 and block.features_in == block.features else y
        found |= {stride: x for stride, tap in TAPS.items() if tap == i}
    return found


PARTS = [f"{layer}.{kind}" for layer in ("expand", "depthwise", "project") for kind in ("kernel", "bias")]


def relu6(x: Array) -> Array:
    return jnp.clip(x, 0, 6)


def pointwise(x: Array, kernel: Array, bias: Array) -> Array:
    """[N, H, W, C] by [C, F]."""
    y = x.reshape((-1, x.shape[-1])) @ kernel + bias[None]
    return y.reshape((*x.shape[:-1], -1))


def depthwise(x: Array, kernel: Array, stride: int) -> Array:
    """[N, H, W, C] by [k, k, C], with TensorFlow's "same" padding."""
    size, sides = kernel.shape[0], x.shape[1:3]
    out = [-(-side // stride) for side in sides]
    missing = [(n - 1) * stride + size - side for n, side in zip(out, sides, strict=True)]
    x = jnp.pad(x, [(0, 0), *((max(n, 0) // 2, max(n, 0) - max(n, 0) // 2) for n in missing), (0, 0)])
    total = jnp.zeros((), x.dtype)
    for i in range(size):
        for j in range(size):
            rows, columns = (slice(at, at + (n - 1) * stride + 1, stride) for at, n in zip((i, j), out, strict=True))
            total = total + x[:, rows, columns] * kernel[i, j][None, None, None]
    return total
