"""Our XLA path on a CPU against ONNX Runtime and OpenVINO, which run what `universeg export --out m.onnx` writes.

    python -m benchmarks.runtimes --checkpoint small --out results.jsonl
    python -m benchmarks.runtimes --support 1,16 --seconds 20       # the released architecture, at random

One JSON line a candidate: medians over rounds in which every candidate runs in turn, one query at a time; `ratio` is
our median over the candidate's: above 1 it is faster than we are; `ratio_of_fastest` is that of the fastest rounds, for
a machine that others use too. `apart` is the largest difference of its logits from ours. Needs the extra `onnx` and
jax2onnx as docs/export.md installs it; OpenVINO (Apache-2.0) is measured where it is installed, in bfloat16 too where
the processor has instructions for it.
"""

import argparse
import importlib
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.lines import write_line
from universeg_jax.configs import default
from universeg_jax.export.onnx_export import _require_packages, convert, example_inputs
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.prediction.predictor import Predictor

Run = Callable[[], np.ndarray]
FEWEST = 5  # rounds


def make_predictor(checkpoint: str) -> Predictor:
    if checkpoint:
        return Predictor.from_checkpoint(checkpoint)
    config = default.get_config()
    return Predictor(init_params(build_model(config.model), 0), config)


def by_onnxruntime(content: bytes, inputs: dict[str, np.ndarray]) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)[0]


def by_openvino(content: bytes, inputs: dict[str, np.ndarray], precision: str) -> Run:
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(content), "CPU", options)
    return lambda: compiled(inputs)[0]


def candidates(predictor: Predictor, support: int) -> dict[str, Run]:
    """Name → call; ours is the first."""
    inputs = example_inputs(predictor.config.image_size, support)
    found = {"xla": lambda: np.asarray(predictor.logits(*inputs.values()))}
    content = convert(_require_packages()[0], predictor.params, predictor.config, inputs).SerializeToString()
    found["onnxruntime"] = by_onnxruntime(content, inputs)
    if importlib.util.find_spec("openvino"):
        import openvino

        found["openvino"] = by_openvino(content, inputs, "f32")
        if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            found["openvino bfloat16"] = by_openvino(content, inputs, "bf16")
    return found


def measure(predictor: Predictor, support: int, seconds: float) -> list[dict[str, Any]]:
    runs = candidates(predictor, support)
    logits = {name: run() for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times["xla"]) < FEWEST:
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(each) for name, each in times.items()}
    return [
        {
            "support": support,
            "candidate": name,
            "seconds": round(median, 4),
            "fastest": round(min(times[name]), 4),
            "ratio": round(medians["xla"] / median, 3),
            "ratio_of_fastest": round(min(times["xla"]) / min(times[name]), 3),
            "rounds": len(times[name]),
            "apart": float(np.abs(logits[name] - logits["xla"]).max()),
        }
        for name, median in medians.items()
    ]


def processor() -> dict[str, Any]:
    """Which of the instructions that decide it are there."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0)), "instructions": wide}


def versions() -> dict[str, str]:
    names = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
    there = {name: importlib.import_module(name).__version__ for name in names}
    return {"python": platform.python_version(), "jax": jax.__version__, **there}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", default="", help="as for `universeg predict`; the released architecture without"
    )
    parser.add_argument("--support", default="1,16,64", help="support sizes, comma-separated")
    parser.add_argument("--seconds", type=float, default=15.0, help="of rounds for each support size")
    parser.add_argument("--out", help="append the lines there too")
    args = parser.parse_args()
    predictor = make_predictor(args.checkpoint)
    about = {"model": args.checkpoint or "released architecture", **versions(), **processor()}
    for support in map(int, args.support.split(",")):
        for row in measure(predictor, support, args.seconds):
            write_line({**row, **about}, args.out)


if __name__ == "__main__":
    main()
