"""One forward pass under several Pythons, each with its own JAX, in turn.

    python -m benchmarks.versions .venv311/bin/python .venv312/bin/python --out results.jsonl

Each interpreter runs this file as a worker that waits between its calls, so that the rounds of all alternate on one
machine. One JSON line for a support size and an interpreter; `times_the_first` is the median, over the rounds, of its
seconds over those of the first interpreter in the same round. The released architecture at 128x128, one query.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.lines import write_line
from benchmarks.runtimes import make_predictor, processor

ROOT = Path(__file__).parents[1]


def work() -> None:
    """Answers each line of stdin, a support size, with the seconds of a call; the first line says what this is."""
    predictor, rng = make_predictor(""), np.random.default_rng(0)
    size = predictor.config.image_size
    print(json.dumps({"python": platform.python_version(), "jax": jax.__version__}), flush=True)
    inputs: dict[int, list[np.ndarray]] = {}
    for line in sys.stdin:
        support = int(line)
        if support not in inputs:
            images = rng.random((1, support + 1, size, size, 1), np.float32)
            inputs[support] = [images[:, 0], images[:, 1:], (images[:, 1:] > 0.5).astype(np.float32)]
            np.asarray(predictor.logits(*inputs[support]))  # compiles
        started = time.perf_counter()
        np.asarray(predictor.logits(*inputs[support]))
        print(time.perf_counter() - started, flush=True)


class Worker:
    def __init__(self, python: str):
        command = [python, "-m", "benchmarks.versions", "--worker"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about: dict[str, Any] = json.loads(self._read())

    def _read(self) -> str:
        assert self.process.stdout
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{self.process.args!r} ended with status {self.process.wait()}")
        return line

    def seconds(self, support: int) -> float:
        assert self.process.stdin
        self.process.stdin.write(f"{support}\n")
        self.process.stdin.flush()
        return float(self._read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", help="interpreters of environments in which this project is installed")
    parser.add_argument("--support", default="1,16,64", help="support sizes, comma-separated")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", help="append the lines there too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work()
        return
    workers = [Worker(python) for python in args.pythons]
    for support in map(int, args.support.split(",")):
        for worker in workers:
            worker.seconds(support)
        rounds = [[worker.seconds(support) for worker in workers] for _ in range(args.rounds)]
        for worker, times in zip(workers, zip(*rounds, strict=True), strict=True):
            ratios = [mine / first for mine, (first, *_) in zip(times, rounds, strict=True)]
            row = {"seconds": round(statistics.median(times), 4), "fastest": round(min(times), 4)}
            row["times_the_first"] = round(statistics.median(ratios), 3)
            write_line({"support": support, **worker.about, **row, "rounds": len(times), **processor()}, args.out)


if __name__ == "__main__":
    main()
