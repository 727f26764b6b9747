"""Stage train: goes on from the kit's checkpoint until the time is up, and leaves weights that can be used.

The recipe is configs/accelerator.py with the checkpoint's model. The step is compiled once: its cosine ends at a number
of steps that is part of the state, fitted to what a step takes and to the seconds that are left, and again at each
save. Every 45 seconds the averaged parameters go to OUT/train.safetensors, whole or not at all, with step, config and
lineage: `--checkpoint OUT/train.safetensors` takes them. Val is scored before and after, on the device.
"""

import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from benchmarks.accelerator_stage import FILE_MB, Stage, about_device, profiled, shrink, start
from universeg_jax.checkpoints import packaged, store
from universeg_jax.checkpoints.lineage import inherit, lineage
from universeg_jax.configs import accelerator
from universeg_jax.configuration import to_dict
from universeg_jax.episodes import inputs
from universeg_jax.episodes.sampler import batches
from universeg_jax.model.factory import build_model, param_shapes
from universeg_jax.startup import Interrupted
from universeg_jax.training import setup
from universeg_jax.training.optimizer import make_optimizer
from universeg_jax.training.step import (
    evaluated_params,
    init_state,
    local_shardings,
    pmap_step,
    shard_batch,
    train_step,
)
from universeg_jax.training.validation import Evaluator, make_evaluator

WEIGHTS = "train.safetensors"
SAVE_SECONDS = 45.0
WARM, MEASURED = 3, 10  # steps before the first measurement of a step, and in it
MARGIN = 1.15  # of the last evaluation's seconds: what is kept for the next one
FEWEST_SECONDS = 10.0  # of training, below which it is not begun


class Horizon(NamedTuple):
    """State of `follow_cosine`."""

    step: jax.Array  # int32
    end: jax.Array  # float32, steps: the rate is 0 there


def cosine(step: Any, end: Any, peak: float, warmup: int) -> Any:
    """The rate of `optimizer.make_schedule`: linear over `warmup` steps, then cosine to 0 at `end`."""
    rest = jnp.clip((step - warmup) / jnp.maximum(end - warmup, 1.0), 0.0, 1.0)
    falling = 0.5 * peak * (1 + jnp.cos(jnp.pi * rest))
    if not warmup:
        return falling
    return jnp.where(step < warmup, peak * (1 + (warmup - 1) * step / warmup) / warmup, falling)


def follow_cosine(peak: float, warmup: int) -> optax.GradientTransformation:
    """Scales updates that were made for a rate of 1 by a cosine whose end is state and can be moved."""

    def update(updates: Any, state: Horizon, params: Any = None) -> tuple[Any, Horizon]:
        rate = cosine(state.step, state.end, peak, warmup)
        return jax.tree.map(lambda u: rate * u, updates), state._replace(step=state.step + 1)

    return optax.GradientTransformation(lambda params: Horizon(jnp.int32(0), jnp.float32(1e9)), update)


def timed_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The config's optimizer at a rate of 1, whose updates are linear in the rate, under a cosine that can be moved."""
    fixed = config.copy_and_resolve_references()
    fixed.optimizer.update({"schedule": "constant", "learning_rate": 1.0, "warmup_steps": 0})
    return optax.chain(
        make_optimizer(fixed)[0], follow_cosine(config.optimizer.learning_rate, config.optimizer.warmup_steps)
    )


def with_end(state: Any, end: float, sharding: Any) -> Any:
    """The state with the cosine's end moved."""
    *inner, horizon = state.opt_state
    horizon = horizon._replace(end=jax.device_put(jnp.float32(end), sharding))
    return state._replace(opt_state=(*inner, horizon))


def fit_steps(done: int, seconds_left: float, step_seconds: float) -> int:
    """At which step the cosine must end for the seconds that are left."""
    return done + max(1, int(seconds_left / step_seconds))


def make_config(stage: Stage, of_checkpoint: ConfigDict) -> ConfigDict:
    config = accelerator.get_config()
    config.model.update(of_checkpoint.model)
    config.model.update({"dtype": accelerator.get_config().model.dtype, "support_chunk": 0})
    config.image_size = of_checkpoint.image_size
    if stage.args.tiny:
        config = shrink(config)
    config.data_dir = str(stage.args.data_dir)
    config.read_threads = min(config.read_threads, os.cpu_count() or 1)
    return config


class Training(NamedTuple):
    """All that the loop needs."""

    config: ConfigDict
    state: Any
    step_fn: Callable[..., Any]
    sampler: Any
    evaluate: Evaluator | None
    header: dict[str, Any]  # of the weights


def prepare(stage: Stage) -> Training:
    path = store.resolve(stage.args.checkpoint)
    before = ConfigDict(store.read_metadata(path)["config"])
    config = make_config(stage, before)
    setup.check_config(config)
    model = build_model(config.model)
    train_data, val_data = inputs.open_data(config)
    params, record = inherit(path, lineage(config, train_data, val_data), param_shapes(model))
    if (megabytes := 4 * sum(x.size for x in jax.tree.leaves(params)) / 1e6) > FILE_MB:
        raise ValueError(f"{megabytes:.1f} MB of parameters; files of at most {FILE_MB} MB come back")
    optimizer = timed_optimizer(config)
    rate = optax.constant_schedule(config.optimizer.learning_rate)  # that of now is written by the loop
    step = functools.partial(train_step, model=model, optimizer=optimizer, schedule=rate, config=config)
    kept = config.copy_and_resolve_references()
    kept.update({"data_dir": "", "init_from": "", "image_size": before.image_size})
    kept.model.update({"dtype": before.model.dtype})  # what predicts chooses its own; bfloat16 would be slow on a CPU
    scored = build_model(config.model, dtype="float32")
    return Training(
        config,
        init_state(params, optimizer, bool(config.ema_decay)),
        pmap_step(step),
        inputs.open_sampler(config, train_data),
        make_evaluator(config, val_data, scored),
        {"format": store.FORMAT, "config": to_dict(kept), "lineage": record},
    )


def score(stage: Stage, run: Training, params: Any, when: str) -> float:
    """Writes the line of val and returns the seconds it took besides compilation."""
    started, compiled = time.time(), stage.compile_seconds

    def check() -> None:
        if stage.left() < 1:
            raise Interrupted

    try:
        summary = run.evaluate(params, check)
    except Interrupted:
        stage.line(skipped=f"val {when}", seconds_left=round(stage.left(), 1))
        return time.time() - started
    seconds = time.time() - started
    by_dataset = {name: round(dataset["dice"], 4) for name, dataset in summary["datasets"].items()}
    stage.line(val=when, mean_dice=summary["mean_dice"], datasets=by_dataset, seconds=round(seconds, 1))
    return seconds - (stage.compile_seconds - compiled)


def save(stage: Stage, run: Training, state: Any, step: int, row: dict[str, Any]) -> None:
    path = stage.args.out / WEIGHTS
    packaged.write_file(path, jax.device_get(evaluated_params(state)), {**run.header, "step": step})
    with path.open("rb") as file:
        os.fsync(file.fileno())
    stage.line(saved=WEIGHTS, step=step, bytes=path.stat().st_size, **row)


class Progress:
    """Sums of the steps since the last line; fetched a step late, so that the device never waits."""

    def __init__(self, config: ConfigDict):
        self.batch, self.pending, self.began = config.batch_size, None, time.time()
        self.loss, self.dice, self.steps, self.curve = 0.0, 0.0, 0, []

    def add(self, step: int, sums: dict[str, Any]) -> None:
        before, self.pending = self.pending, (step, {name: sums[name] for name in ("loss", "dice")})
        if before is None:
            return
        values = {name: float(total / count) for name, (total, count) in jax.device_get(before[1]).items()}
        if not np.isfinite(values["loss"]):
            raise FloatingPointError(f"loss {values['loss']} at step {before[0]}")
        self.curve.append((before[0], values["loss"]))
        self.loss, self.dice, self.steps = self.loss + values["loss"], self.dice + values["dice"], self.steps + 1

    def row(self) -> dict[str, float]:
        """Means since the last call."""
        passed, n = time.time() - self.began, max(self.steps, 1)
        row = {"loss": self.loss / n, "dice": self.dice / n, "episodes_per_second": self.batch * self.steps / passed}
        self.loss, self.dice, self.steps, self.began = 0.0, 0.0, 0, time.time()
        return row


def train(stage: Stage, run: Training, reserve: float) -> tuple[Any, list[tuple[int, float]]]:
    """Trains until `reserve` seconds are left; returns the last state and the loss of each step."""
    replicated, split = local_shardings()
    config, stopped = run.config, []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    state = jax.device_put(run.state, replicated)
    stream = batches(
        run.sampler, batch_size=config.batch_size, first_step=0, last_step=10**6, threads=config.read_threads
    )
    progress, saved, end, began = Progress(config), time.time(), 0, time.time()
    peak, warmup = config.optimizer.learning_rate, config.optimizer.warmup_steps
    step = 0
    while True:
        step += 1
        state, sums = run.step_fn(state, shard_batch(next(stream), split))
        progress.add(step, sums)
        if step == WARM:
            jax.block_until_ready(sums)
            began = saved = time.time()  # what came before was compilation
        last = bool(stopped) or stage.left() < reserve or step == end
        due = last or (step > WARM and time.time() - saved > SAVE_SECONDS)
        if step == WARM + MEASURED or (due and step > WARM and not last):
            jax.block_until_ready(sums)
            seconds = (time.time() - began) / (step - WARM)
            end = fit_steps(step, stage.left() - reserve, seconds)
            state = with_end(state, end, replicated)
            stage.line(step=step, step_seconds=seconds, cosine_ends_at=end)
        if due:
            rate = float(cosine(step, max(end, 1), peak, warmup))
            save(stage, run, state, step, {"learning_rate": rate, **progress.row()})
            saved = time.time()
        if last:
            return state, progress.curve


def trace(stage: Stage, run: Training, state: Any) -> None:
    """Three further steps in a trace, after all that counts."""
    stream = batches(run.sampler, batch_size=run.config.batch_size, first_step=0, last_step=3)
    split = local_shardings()[1]
    with profiled(stage):
        for batch in stream:
            state, sums = run.step_fn(state, shard_batch(batch, split))
        jax.block_until_ready(sums)


def draw(stage: Stage, curve: list[tuple[int, float]]) -> None:
    """train.png: the loss of each step, and its mean."""
    from matplotlib.figure import Figure

    figure = Figure((7, 4), layout="constrained")
    axes = figure.subplots()
    steps, loss = zip(*curve, strict=True) if curve else ((), ())
    axes.plot(steps, loss, lw=0.4, alpha=0.5)
    window = max(1, len(loss) // 25)
    axes.plot(steps[window - 1 :], np.convolve(loss, np.ones(window) / window, "valid") if loss else ())
    axes.set(xlabel="step", ylabel="training loss")
    figure.savefig(Path(stage.args.out) / "train.png", dpi=110)


def main() -> None:
    stage = start("train", __doc__)
    run = stage.part("prepare", 5, prepare, stage)
    if run is None:
        stage.end()
    parameters = sum(x.size for x in jax.tree.leaves(run.state.params))
    stage.line(**about_device(), parameters=parameters, tasks=len(run.sampler.tasks), model=to_dict(run.config.model))
    reserve = 3.0
    if run.evaluate:
        seconds = stage.part("val before", 10, score, stage, run, run.state.params, "before")
        reserve += MARGIN * (seconds or 0.0)
    state, curve = stage.part("train", reserve + FEWEST_SECONDS, train, stage, run, reserve) or (None, [])
    if state is not None and run.evaluate:
        stage.part("val after", 2, score, stage, run, evaluated_params(state), "after")
    if state is not None:
        stage.part("train.png", 1, draw, stage, curve)
    if state is not None and stage.args.profile:
        stage.part("profile", 2, trace, stage, run, state)
    stage.end()


if __name__ == "__main__":
    main()
