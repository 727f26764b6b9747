"""The model against a PyTorch implementation of the released architecture, side by side on this machine.

    python -m benchmarks.model --out results.jsonl             # everything, about 10 minutes on 2 cores
    python -m benchmarks.model --only forward-16,grad-16
    python -m benchmarks.model --release=FOLDER                # time the public code in FOLDER

One JSON line a measurement: seconds are medians over rounds in which every candidate runs in turn, so that a machine
that slows down slows all of them; `ratio` is PyTorch eager's median over the candidate's. Needs torch (extra `bench`).
"""

import argparse
import importlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.lines import write_line
from benchmarks.torch_model import UniverSeg as TorchUniverSeg
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.training.losses import soft_dice

SIZE = 128


def torch_model(release: str | None) -> torch.nn.Module:
    """The released architecture: ours of benchmarks/torch_model.py, or that of the public code in a folder."""
    if not release:
        return TorchUniverSeg()
    if not (Path(release) / "universeg" / "model.py").is_file():
        raise SystemExit(f"--release={release}: no universeg/model.py there; give a checkout of the public repository")
    sys.path.insert(0, release)
    return importlib.import_module("universeg.model").UniverSeg(encoder_blocks=[64, 64, 64, 64])


def inputs(batch: int, support: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    query = rng.random((batch, SIZE, SIZE, 1), np.float32)
    images = rng.random((batch, support, SIZE, SIZE, 1), np.float32)
    return query, images, (images > 0.5).astype(np.float32), (query > 0.5).astype(np.float32)


def jax_forward(batch: int, support: int, **fields) -> tuple[Callable[[], None], dict]:
    model = build_model({}, **fields)
    params = init_params(model, 0)
    arrays = [jnp.asarray(x) for x in inputs(batch, support)[:3]]
    started = time.perf_counter()
    compiled = jax.jit(model.apply).lower({"params": params}, *arrays).compile()
    about = {
        "compile_seconds": round(time.perf_counter() - started, 2),
        "temp_mb": round(compiled.memory_analysis().temp_size_in_bytes / 2**20),
    }
    return lambda: jax.block_until_ready(compiled({"params": params}, *arrays)), about


def jax_grad(batch: int, support: int, **fields) -> tuple[Callable[[], None], dict]:
    model = build_model({}, **fields)
    params = init_params(model, 0)
    *arrays, label = (jnp.asarray(x) for x in inputs(batch, support))

    def step(params):
        grads = jax.grad(lambda p: soft_dice(model.apply({"params": p}, *arrays), label).mean())(params)
        return jax.tree.map(lambda p, g: p - 1e-4 * g, params, grads)

    started = time.perf_counter()
    compiled = jax.jit(step).lower(params).compile()
    about = {
        "compile_seconds": round(time.perf_counter() - started, 2),
        "temp_mb": round(compiled.memory_analysis().temp_size_in_bytes / 2**20),
    }
    return lambda: jax.block_until_ready(compiled(params)), about


def torch_inputs(batch: int, support: int) -> list[torch.Tensor]:
    query, images, labels, truth = (torch.from_numpy(x) for x in inputs(batch, support))
    return [query.movedim(-1, 1), images.movedim(-1, 2), labels.movedim(-1, 2), truth.movedim(-1, 1)]


def torch_forward(
    model: torch.nn.Module,
    batch: int,
    support: int,
    channels_last: bool = False,
    bfloat16: bool = False,
    compiled: bool = False,
) -> tuple[Callable[[], None], dict]:
    model = model.eval()
    model = model.to(memory_format=torch.channels_last) if channels_last else model
    model = torch.compile(model) if compiled else model
    arrays = torch_inputs(batch, support)[:3]

    def run() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            model(*arrays)

    return run, {}


def torch_grad(
    model: torch.nn.Module, batch: int, support: int, channels_last: bool = False
) -> tuple[Callable[[], None], dict]:
    model = model.to(memory_format=torch.channels_last) if channels_last else model
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    *arrays, truth = torch_inputs(batch, support)

    def run() -> None:
        optimizer.zero_grad()
        p = torch.sigmoid(model(*arrays))
        sizes = (p * p + truth * truth).sum((1, 2, 3))
        (1 - (2 * (p * truth).sum((1, 2, 3)) + 1e-7) / (sizes + 1e-7)).mean().backward()
        optimizer.step()

    return run, {}


def candidates(kind: str, support: int, release: str | None) -> dict[str, Callable]:
    """Names → makers; the first one is what ratios refer to."""

    def net() -> torch.nn.Module:
        return torch_model(release)

    if kind == "forward":
        return {
            "torch eager": lambda: torch_forward(net(), 1, support),
            "torch channels_last": lambda: torch_forward(net(), 1, support, channels_last=True),
            "torch bfloat16": lambda: torch_forward(net(), 1, support, bfloat16=True),
            "torch compile": lambda: torch_forward(net(), 1, support, compiled=True),
            "torch compile bfloat16": lambda: torch_forward(net(), 1, support, bfloat16=True, compiled=True),
            "jax plain": lambda: jax_forward(1, support, form="plain"),
            "jax fast, all entries at once": lambda: jax_forward(1, support, support_chunk=0),
            "jax fast": lambda: jax_forward(1, support, support_chunk=1),
        }
    return {
        "torch eager": lambda: torch_grad(net(), 1, support),
        "torch channels_last": lambda: torch_grad(net(), 1, support, channels_last=True),
        "jax fast": lambda: jax_grad(1, support, support_chunk=0),
        "jax fast, remat": lambda: jax_grad(1, support, support_chunk=0, remat=True),
    }


def measure(kind: str, support: int, rounds: int, release: str | None = None) -> list[dict]:
    runs, about = {}, {}
    for name, make in candidates(kind, support, release).items():
        runs[name], about[name] = make()
        runs[name]()  # warm-up; torch.compile compiles here
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    reference = medians["torch eager"]
    return [
        {
            "benchmark": f"{kind}-{support}",
            "candidate": name,
            "seconds": round(median, 4),
            "fastest": round(min(seconds[name]), 4),
            "slowest": round(max(seconds[name]), 4),
            "ratio": round(reference / median, 2),
            **about[name],
        }
        for name, median in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="forward-1,forward-16,forward-64,grad-16", help="kind-S, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--release", help="folder of the public repository, to time its code in place of ours")
    parser.add_argument("--out", help="append the lines there too")
    args = parser.parse_args()
    machine = {
        "machine": platform.processor() or platform.machine(),
        "cores": torch.get_num_threads(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "device": jax.devices()[0].device_kind,
        "pytorch_code": "public" if args.release else "ours",
    }
    for each in args.only.split(","):
        kind, support = each.split("-")
        for row in measure(kind, int(support), args.rounds, args.release):
            write_line({**row, **machine}, args.out)


if __name__ == "__main__":
    main()
