"""What stage speed measures in PyTorch: benchmarks/torch_model.py, eager and compiled, in the run that measures ours.

Forward passes in bfloat16 have bfloat16 parameters, the fastest that PyTorch offers; gradient steps keep float32
parameters and use autocast, as training does. Convolutions of float32 may use TF32, as PyTorch does by default.
`channels_last` is taken everywhere: cuDNN's tensor-core kernels want it, and torch.compile chooses it by itself.
"""

import contextlib
import gc
from collections.abc import Callable
from typing import Any

import numpy as np


def versions() -> dict[str, str]:
    """What is there, or that it is not."""
    try:
        import torch
    except ImportError:
        return {"torch": "missing"}
    return {"torch": torch.__version__, "cudnn": str(torch.backends.cudnn.version())}


def make(
    arrays: list[np.ndarray], gradient: bool, dtype: str, compiled: bool, blocks: tuple[int, ...]
) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """(call, wait) for arrays channels last: query, support images, support labels, query label."""
    import torch

    from benchmarks.torch_model import UniverSeg

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    half = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model = UniverSeg([(n, n) for n in blocks]).to(device, memory_format=torch.channels_last)
    model = model if gradient else model.to(half).eval()
    inputs = [torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, -3))).to(device) for x in arrays]
    *inputs, label = inputs if gradient else [x.to(half) for x in inputs]
    net = torch.compile(model, dynamic=False) if compiled else model

    def forward() -> Any:
        with torch.inference_mode():
            return net(*inputs)

    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    half_precision = torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()

    def step() -> Any:
        optimizer.zero_grad()
        with half_precision:
            logits = net(*inputs)
        p = torch.sigmoid(logits.float())
        sizes = (p * p + label * label).sum((1, 2, 3))
        loss = (1 - (2 * (p * label).sum((1, 2, 3)) + 1e-7) / (sizes + 1e-7)).mean()
        loss.backward()
        optimizer.step()
        return loss

    return (step if gradient else forward), (lambda _: torch.cuda.synchronize() if device == "cuda" else None)


def forget() -> None:
    """Frees what the last case took, so that the next one's memory is its own."""
    import torch

    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mb() -> float | None:
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**20, 1) if torch.cuda.is_available() else None
