"""Stage loop: episodes a second of the loop of train.py, with all augmentation and synthesis on the device.

The released architecture in bfloat16 with the data, kinds and augmentation of configs/accelerator.py. `bare` is the
same compiled step on one batch, called again and again; `plain` the step on real episodes without augmentation, so that
what the full step takes longer is synthesis and augmentation. `deterministic` is the bare step in a process with
--xla_gpu_deterministic_ops.
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.accelerator_stage import DETERMINISTIC, Stage, about_device, profiled, shrink, start, without
from universeg_jax.checkpoints import store
from universeg_jax.configs import accelerator, default
from universeg_jax.episodes.sampler import stack
from universeg_jax.reports.files import read_json_lines
from universeg_jax.training import loop, setup
from universeg_jax.training.step import local_shardings, shard_batch

SIZES = ((64, 16), (16, 64))  # (support size, batch): as many images a step
SKIP = 3  # steps at the start of a loop that fill the queue
LOOP_SECONDS, BARE_SECONDS, MOST_STEPS = 8.0, 2.0, 1000
CALLS = 5  # of the bare step between two looks at the clock


def make_config(stage: Stage, support: int, batch: int, plain: bool = False) -> ConfigDict:
    config = accelerator.get_config()
    config.model = default.get_config().model
    config.model.update({"dtype": "bfloat16", "support_chunk": 0})
    if stage.args.tiny:
        config = shrink(config)
        config.model.encoder_blocks = (4, 4)
    config.update({"data_dir": str(stage.args.data_dir), "val_role": "", "ema_decay": 0.0})
    config.update({"support_size": support, "batch_size": batch, "checkpoint_every": 10**9})
    config.read_threads = min(config.read_threads, os.cpu_count() or 1)
    config.optimizer.schedule = "constant"
    if plain:
        config.kinds.update({"real": 1.0, "synthetic": 0.0, "superpixel": 0.0})
        without(config, [name for level in ("task", "in_task") for name in config.augment[level]])
    return config


class Bench:
    """A training and its step, compiled by its first call, with one batch to call it on."""

    def __init__(self, stage: Stage, support: int, batch: int, plain: bool = False):
        self.config = make_config(stage, support, batch, plain)
        self.sizes = {"support": support, "batch": batch}
        self.seconds = BARE_SECONDS * (0.1 if stage.args.tiny else 1.0)
        self.run = setup.prepare_run(self.config)
        replicated, split = local_shardings()
        self.state = jax.device_put(jax.tree.map(jnp.copy, self.run.state), replicated)  # a step takes its state away
        self.batch = shard_batch(stack([self.run.sampler(i) for i in range(batch)]), split)

    def first(self) -> "Bench":
        started = time.perf_counter()
        self.calls(1)
        self.first_seconds = time.perf_counter() - started
        return self

    def calls(self, count: int) -> None:
        for _ in range(count):
            self.state, sums = self.run.step_fn(self.state, self.batch)
        jax.block_until_ready((self.state, sums))

    def bare(self) -> float:
        """Seconds of a step, over and over on one batch."""
        times: list[float] = []
        while not times or sum(times) < self.seconds:
            started = time.perf_counter()
            self.calls(CALLS)
            times.append(time.perf_counter() - started)
        return float(np.median(times)) / CALLS


def time_loop(run: setup.Run, config: ConfigDict, steps: int) -> dict[str, float]:
    """The loop of train.py with the step that is compiled already: seconds a step and what it waited."""
    config.num_steps = steps
    with tempfile.TemporaryDirectory() as workdir, store.open_checkpointer(workdir) as checkpointer:
        loop.train(run, config, Path(workdir), checkpointer, (lambda step: False, lambda: None))
        rows = read_json_lines(Path(workdir) / "metrics.jsonl")
    passed = rows[-1]["time"] - rows[SKIP]["time"]
    waited = sum(row["seconds_waiting"] for row in rows[SKIP + 1 :])
    return {"steps": steps, "seconds": passed / (len(rows) - 1 - SKIP), "waiting": waited / passed}


def measure(stage: Stage, bench: Bench) -> float:
    """The bare step, whose seconds are returned, and the loop around it."""
    bare, batch, scale = bench.bare(), bench.config.batch_size, 0.1 if stage.args.tiny else 1.0
    row = {"step_seconds": bare, "episodes_per_second": batch / bare, "first_step_seconds": bench.first_seconds}
    stage.line(part="bare", **bench.sizes, **row)
    steps = int(np.clip(min(LOOP_SECONDS * scale, 0.7 * stage.left()) / bare, 2 * SKIP + 4, MOST_STEPS))
    found = time_loop(bench.run, bench.config, steps)
    rates = {"episodes_per_second": batch / found["seconds"], "share_of_bare": bare / found["seconds"]}
    row = {"step_seconds": found["seconds"], **rates, "waiting": found["waiting"], "steps": steps}
    stage.line(part="loop", **bench.sizes, **row)
    return bare


def measure_plain(stage: Stage, bench: Bench, bare: float) -> None:
    """What of a step is synthesis and augmentation."""
    seconds = bench.bare()
    row = {"step_seconds": seconds, "first_step_seconds": bench.first_seconds}
    stage.line(part="plain", **bench.sizes, **row, synthesis_and_augmentation_share=1 - seconds / bare)


def trace(stage: Stage, bench: Bench) -> None:
    with profiled(stage):
        bench.calls(3)


def start_deterministic(stage: Stage) -> subprocess.Popen:
    """A process with the flag, which compiles beside this one and then waits to be told the bare step's seconds."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    command = [sys.executable, "-m", "benchmarks.accelerator_loop", "--part=deterministic", f"--until={stage.until}"]
    command += [f"--{name}={getattr(stage.args, name)}" for name in ("kit", "data_dir", "out")]
    command += ["--tiny"] if stage.args.tiny else []
    return subprocess.Popen(command, env={**os.environ, "XLA_FLAGS": flags}, stdin=subprocess.PIPE, text=True)


def deterministic(stage: Stage, child: subprocess.Popen, bare: float) -> None:
    child.communicate(f"{bare}\n", timeout=max(stage.left(), 1))
    if child.returncode:
        raise RuntimeError(f"its process ended with status {child.returncode}")


def deterministic_part(stage: Stage, support: int, batch: int) -> None:
    bench = Bench(stage, support, batch).first()
    bare = float(sys.stdin.readline())
    seconds = bench.bare()
    row = {"step_seconds": seconds, "first_step_seconds": bench.first_seconds}
    stage.line(part="deterministic", **bench.sizes, **row, times_the_bare_step=seconds / bare)


def main() -> None:
    stage = start("loop", __doc__, parts=True)
    sizes = ((3, 2), (2, 2)) if stage.args.tiny else SIZES
    if stage.args.part:
        stage.part("deterministic", 0, deterministic_part, stage, *sizes[0])
        sys.exit(min(stage.failed, 1))
    stage.line(**about_device(), cores=os.cpu_count())
    child = start_deterministic(stage)
    pool = ThreadPoolExecutor(1 if stage.args.tiny else 3)
    full, plain, small = (
        pool.submit(lambda *x: Bench(stage, *x).first(), *of) for of in (sizes[0], (*sizes[0], True), sizes[1])
    )
    stage.wait_for((full, plain, small))
    bare = stage.part("loop", 2, lambda: measure(stage, stage.result(full)))
    if bare:
        stage.part("plain", 2, lambda: measure_plain(stage, stage.result(plain), bare))
    stage.part("loop of the smaller support", 5, lambda: measure(stage, stage.result(small)))
    if bare:
        stage.part("deterministic", 2, deterministic, stage, child, bare)
    if bare and stage.args.profile:
        stage.part("profile", 5, trace, stage, full.result())
    child.kill()
    stage.end()


if __name__ == "__main__":
    main()
