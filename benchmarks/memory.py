"""The largest support set that fits into some memory, by what the compiler says a program needs.

    python -m benchmarks.memory --budget_gb 24 --out results.jsonl       # a minute
    python -m benchmarks.memory --checkpoint small --out results.jsonl   # what a mask by these weights needs

Arguments, temporaries and outputs together grow linearly with S: two compilations give the line, a third one at the
answer confirms it. Nothing is run. With --checkpoint it compiles the program of a CPU for one query and a support set
whose keys are given, and counts these inputs too.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.lines import write_line
from universeg_jax.checkpoints import store
from universeg_jax.model.factory import build_model, param_shapes
from universeg_jax.model.layers import sum_of_first
from universeg_jax.training.losses import soft_dice

SIZE = 128


def bytes_needed(support: int, gradient: bool, **fields) -> int:
    model = build_model({}, **fields)
    params = param_shapes(model)
    query = jax.ShapeDtypeStruct((1, SIZE, SIZE, 1), jnp.float32)
    entries = jax.ShapeDtypeStruct((1, support, SIZE, SIZE, 1), jnp.float32)

    def forward(params, query, images, labels):
        return model.apply({"params": params}, query, images, labels)

    def step(params, query, images, labels):
        return jax.grad(lambda p: soft_dice(forward(p, query, images, labels), query).mean())(params)

    return total_bytes(step if gradient else forward, params, query, entries, entries)


def bytes_of_a_mask(checkpoint: str, support: int) -> int:
    """Compiles the program that segments one query with up to `support` entries, and returns the bytes it needs."""
    _, config = store.load(store.resolve(checkpoint))
    model = build_model(config.model, support_chunk=1)
    size, params = config.image_size, param_shapes(model)
    query = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    entries = jax.ShapeDtypeStruct((1, support, size, size, 1), jnp.float32)
    mask, count = jax.ShapeDtypeStruct((1, support), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    keys = [None, None]
    if getattr(model, "has_keys", False):
        for i, images in enumerate((query, entries)):
            keys_of = functools.partial(model.apply, method="keys_of", support=i == 1)
            keys[i] = jax.eval_shape(keys_of, {"params": params}, images)

    def forward(params, count, *inputs):
        return model.apply({"params": params}, *inputs, over=sum_of_first(count))

    return total_bytes(forward, params, count, query, entries, entries, mask, *keys)


def total_bytes(function: Callable[..., Any], *shapes: Any) -> int:
    """Arguments, temporaries and outputs of the compiled function."""
    memory = jax.jit(function).lower(*shapes).compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes


def largest(budget: float, gradient: bool, **fields) -> tuple[int, float]:
    """(S, bytes an entry)."""
    low, high = (bytes_needed(s, gradient, **fields) for s in (32, 64))
    slope = (high - low) / 32
    return int((budget - (low - 32 * slope)) / slope), slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget_gb", type=float, default=24.0)
    parser.add_argument("--out", help="append the lines there too")
    parser.add_argument("--checkpoint", help="weights whose masks to measure, in place of the table")
    args = parser.parse_args()
    about = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    if args.checkpoint:
        for support in (1, 16, 64):
            needed = round(bytes_of_a_mask(args.checkpoint, support) / 1e6)
            row = {"benchmark": "memory", "candidate": f"a mask by {args.checkpoint}", "support_size": support}
            write_line({**row, "needed_mb": needed, **about}, args.out)
        return
    cases = {
        "forward, one entry at a time": (False, {"support_chunk": 1}),
        "forward, all entries at once": (False, {"support_chunk": 0}),
        "gradient": (True, {"support_chunk": 0}),
        "gradient, remat": (True, {"support_chunk": 0, "remat": True}),
        "gradient, bfloat16": (True, {"support_chunk": 0, "dtype": "bfloat16"}),
        "gradient, remat, bfloat16": (True, {"support_chunk": 0, "remat": True, "dtype": "bfloat16"}),
    }
    for name, (gradient, fields) in cases.items():
        support, slope = largest(args.budget_gb * 1e9, gradient, **fields)
        needed = bytes_needed(support, gradient, **fields)
        row = {
            "benchmark": "memory",
            "candidate": name,
            "largest_support": support,
            "mb_an_entry": round(slope / 1e6, 2),
            "budget_gb": args.budget_gb,
            "needed_gb": round(needed / 1e9, 2),
            **about,
        }
        write_line(row, args.out)


if __name__ == "__main__":
    main()
