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
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.accelerator_stage import DETERMINISTIC, Stage, about_device, profiled, shrink, start, without
from configs import accelerator, default
from universeg_jax import checkpoints, training
from universeg_jax.data.episodes import stack
from universeg_jax.reporting import read_json_lines
from universeg_jax.step import local_shardings, shard_batch

SIZES = ((64, 16), (16, 64))  # (support size, batch): as many images a step
SKIP = 3  # steps at the start of a loop that fill the queue
LOOP_SECONDS, BARE_SECONDS, MOST_STEPS = 8.0, 2.0, 1000
COMPILES = 20.0  # seconds for a program, until one was measured


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


def bare_seconds(run: training.Run, config: ConfigDict, seconds: float) -> tuple[float, float]:
    """(seconds of a step on one batch over and over, seconds until the first was done, which compiles it)."""
    replicated, split = local_shardings()
    state = jax.device_put(jax.tree.map(jnp.copy, run.state), replicated)  # a step takes its state away
    batch = shard_batch(stack([run.sampler(i) for i in range(config.batch_size)]), split)
    started = time.perf_counter()
    state, sums = run.step_fn(state, batch)
    jax.block_until_ready(sums)
    first = time.perf_counter() - started
    times: list[float] = []
    while not times or sum(times) < seconds:
        started = time.perf_counter()
        for _ in range(5):
            state, sums = run.step_fn(state, batch)
        jax.block_until_ready((state, sums))
        times.append(time.perf_counter() - started)
    return float(np.median(times)) / 5, first


def loop(run: training.Run, config: ConfigDict, steps: int) -> dict[str, float]:
    """The loop of train.py with the step that is compiled already: seconds a step and what it waited."""
    config.num_steps = steps
    with tempfile.TemporaryDirectory() as workdir, checkpoints.open_checkpointer(workdir) as checkpointer:
        training.train(run, config, Path(workdir), checkpointer, (lambda step: False, lambda: None))
        rows = read_json_lines(Path(workdir) / "metrics.jsonl")
    passed = rows[-1]["time"] - rows[SKIP]["time"]
    waited = sum(row["seconds_waiting"] for row in rows[SKIP + 1 :])
    return {"steps": steps, "seconds": passed / (len(rows) - 1 - SKIP), "waiting": waited / passed}


def measure(stage: Stage, support: int, batch: int) -> dict[str, Any]:
    """The bare step and the loop around it."""
    config = make_config(stage, support, batch)
    run = training.prepare(config)
    scale = 0.1 if stage.args.tiny else 1.0
    bare, first = bare_seconds(run, config, BARE_SECONDS * scale)
    sizes = {"support": support, "batch": batch}
    stage.line(part="bare", **sizes, step_seconds=bare, episodes_per_second=batch / bare, first_step_seconds=first)
    steps = int(np.clip(min(LOOP_SECONDS * scale, 0.7 * stage.left()) / bare, 2 * SKIP + 4, MOST_STEPS))
    found = loop(run, config, steps)
    rates = {"episodes_per_second": batch / found["seconds"], "share_of_bare": bare / found["seconds"]}
    stage.line(part="loop", **sizes, step_seconds=found["seconds"], **rates, waiting=found["waiting"], steps=steps)
    return {"bare": bare, "first": first}


def measure_plain(stage: Stage, support: int, batch: int, bare: float) -> None:
    """What of a step is synthesis and augmentation."""
    config = make_config(stage, support, batch, plain=True)
    seconds, first = bare_seconds(training.prepare(config), config, BARE_SECONDS * (0.1 if stage.args.tiny else 1.0))
    row = {"support": support, "batch": batch, "step_seconds": seconds, "first_step_seconds": first}
    stage.line(part="plain", **row, synthesis_and_augmentation_share=1 - seconds / bare)


def trace(stage: Stage, support: int, batch: int) -> None:
    """Three steps in a trace, by the cache of what `measure` has compiled."""
    config = make_config(stage, support, batch)
    run = training.prepare(config)
    replicated, split = local_shardings()
    data = shard_batch(stack([run.sampler(i) for i in range(batch)]), split)
    state, sums = run.step_fn(jax.device_put(run.state, replicated), data)
    jax.block_until_ready(sums)
    with profiled(stage):
        for _ in range(3):
            state, sums = run.step_fn(state, data)
        jax.block_until_ready(sums)


def deterministic(stage: Stage, bare: float) -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    command = [sys.executable, "-m", "benchmarks.accelerator_loop", f"--part={bare}", f"--until={stage.until}"]
    command += [f"--{name}={getattr(stage.args, name)}" for name in ("kit", "data_dir", "out")]
    command += ["--tiny"] if stage.args.tiny else []
    subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, check=True, timeout=max(stage.left(), 1))


def deterministic_part(stage: Stage, support: int, batch: int) -> None:
    """In a process with the flag; --part is the seconds of the bare step without it."""
    config = make_config(stage, support, batch)
    seconds, first = bare_seconds(training.prepare(config), config, BARE_SECONDS * (0.1 if stage.args.tiny else 1.0))
    row = {"support": support, "batch": batch, "step_seconds": seconds, "first_step_seconds": first}
    stage.line(part="deterministic", **row, times_the_bare_step=seconds / float(stage.args.part))


def main() -> None:
    stage = start("loop", __doc__, parts=True)
    sizes = ((3, 2), (2, 2)) if stage.args.tiny else SIZES
    if stage.args.part:
        stage.part("deterministic", 0, deterministic_part, stage, *sizes[0])
        sys.exit(min(stage.failed, 1))
    stage.line(**about_device(), cores=os.cpu_count())
    needed = COMPILES
    if found := stage.part("loop", 5, measure, stage, *sizes[0]):
        needed = found["first"] + 5
        stage.part("plain", needed / 2, measure_plain, stage, *sizes[0], found["bare"])
        stage.part("deterministic", needed + 5, deterministic, stage, found["bare"])
        if stage.args.profile:
            stage.part("profile", 10, trace, stage, *sizes[0])
    stage.part("loop of the smaller support", needed, measure, stage, *sizes[1])
    stage.end()


if __name__ == "__main__":
    main()
