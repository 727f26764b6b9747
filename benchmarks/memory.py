"""The largest support set that fits into some memory, by what the compiler says a program needs.

    python -m benchmarks.memory --budget_gb 24 --out results.jsonl       # a minute

Arguments, temporaries and outputs together grow linearly with S: two compilations give the line, a third one at the
answer confirms it. Nothing is run.
"""

import argparse

import jax
import jax.numpy as jnp

from benchmarks.lines import write_line
from universeg_jax.model.factory import build_model, param_shapes
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

    compiled = jax.jit(step if gradient else forward).lower(params, query, entries, entries).compile()
    memory = compiled.memory_analysis()
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
    args = parser.parse_args()
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
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }
        write_line(row, args.out)


if __name__ == "__main__":
    main()
