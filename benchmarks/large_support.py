"""One query with a support set far larger than memory for its features: time, memory and bytes on the host.

    python -m benchmarks.large_support --support 10000 --out results.jsonl     # about 5 minutes on 2 cores
    python -m benchmarks.large_support --support 1000 --check                  # and against all entries at once

Entries are drawn from their number, chunk by chunk, as a reader of files would.
"""

import argparse
import os
import resource
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lines import write_line
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.model.large_support import streamed_logits

SIZE = 128


class Chunks(Sequence):
    """Support entries uint8 [n, H, W, 1], made when they are asked for."""

    def __init__(self, support: int, chunk: int):
        self.support, self.chunk = support, chunk

    def __len__(self) -> int:
        return self.support // self.chunk

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        images = np.random.default_rng(i).integers(0, 256, (self.chunk, SIZE, SIZE, 1), np.uint8)
        return images, (images > 127).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--support", type=int, default=10_000)
    parser.add_argument("--chunk", type=int, default=20, help="entries a call; divides --support")
    parser.add_argument("--store", default="bfloat16", help="in which features wait on the host")
    parser.add_argument("--check", action="store_true", help="compare with one pass over all entries")
    parser.add_argument("--out", help="append the line there too")
    args = parser.parse_args()
    if args.support % args.chunk:
        parser.error(f"--chunk={args.chunk} does not divide --support={args.support}")
    model = build_model({})
    params = init_params(model, 0)
    query = np.random.default_rng(0).random((1, SIZE, SIZE, 1), np.float32)
    chunks = Chunks(args.support, args.chunk)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    logits = streamed_logits(model, params, query, chunks, jnp.dtype(args.store))
    logits.block_until_ready()
    row = {
        "benchmark": "large support",
        "support": args.support,
        "chunk": args.chunk,
        "store": args.store,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "before_mb": round(before / 1024),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    if args.check:
        images, labels = (np.concatenate(each)[None].astype(np.float32) for each in zip(*chunks, strict=True))
        expected = jax.jit(model.apply)({"params": params}, query, images / 255, labels)
        row["largest_difference"] = float(jnp.abs(logits - expected).max())
    write_line(row, args.out)


if __name__ == "__main__":
    main()
