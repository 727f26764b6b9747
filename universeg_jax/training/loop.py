"""The training loop: one function that reads top to bottom.

The order must not change: evaluate → checkpoint → next batch → step → log. A checkpoint at step t holds the parameters
evaluated at t, and everything logged before t is on disk when the checkpoint is written. So a run that is killed and
started again ends in the same bytes as one that never stopped.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from universeg_jax.checkpoints import store
from universeg_jax.checkpoints.lineage import check_same_data, resumed
from universeg_jax.configuration import write_config
from universeg_jax.episodes.on_device import support_size_of, trim_support
from universeg_jax.episodes.replay import plot_episode
from universeg_jax.episodes.sampler import Batch, batches, task_name
from universeg_jax.reports.files import lock
from universeg_jax.reports.waiting import say_if_compiling
from universeg_jax.startup import Interrupted, when_to_stop
from universeg_jax.training.log import NotFinite, Profile, StepLog
from universeg_jax.training.setup import Run, prepare_run
from universeg_jax.training.step import TrainState, evaluated_params, local_shardings, shard_batch
from universeg_jax.training.validation import Evaluator, ValidationLog


def train_and_evaluate(config: ConfigDict, workdir: str | Path, profile: bool = False) -> TrainState:
    """Trains to config.num_steps, from the latest checkpoint of the workdir if any; returns the last state.

    With several hosts, each calls it with the same shared workdir. `profile` writes a trace of five steps.
    """
    run, workdir = prepare_run(config), Path(workdir)
    check_same_data(workdir, run.metadata["lineage"])
    main = jax.process_index() == 0  # only the first host writes logs and config
    with (
        lock(workdir if main else None),
        store.open_checkpointer(workdir, config.keep_every) as checkpointer,
        when_to_stop() as stopping,
    ):
        if main:
            write_config(config, workdir)
        try:
            return train(run, config, workdir, checkpointer, stopping, profile)
        except NotFinite as error:
            raise explain(error, run, config, workdir) from None


def seconds_per_step(config: ConfigDict, count: int = 8) -> float:
    """Seconds of a training step of `config` on this machine, the fastest of `count`; compiles, and writes nothing."""
    run = prepare_run(config)
    replicated, split = local_shardings()
    state, stream = jax.device_put(run.state, replicated), open_stream(run, config, 0)
    with say_if_compiling("the training step", "one to three minutes"):
        state, _ = jax.block_until_ready(run.step_fn(state, _next_batch(stream, 0, config, split)))
    fastest = float("inf")
    for step in range(1, count + 1):
        started = time.perf_counter()
        state, _ = jax.block_until_ready(run.step_fn(state, _next_batch(stream, step, config, split)))
        fastest = min(fastest, time.perf_counter() - started)
    return fastest


def _next_batch(stream: Iterator[Batch], step: int, config: ConfigDict, split: Any) -> Any:
    return shard_batch(trim_support(next(stream), *support_size_of(step, config)), split)


def train(
    run: Run, config: ConfigDict, workdir: Path, checkpointer: Any, stopping: tuple[Any, Any], profile: bool = False
) -> TrainState:
    """Runs the loop. `stopping`: see startup.when_to_stop."""
    replicated, split = local_shardings()
    # The latest checkpoint of the workdir takes precedence over config.init_from, and that over random parameters.
    state = jax.device_put(store.restore_state(checkpointer, run.state), replicated)
    first_step = int(jax.device_get(state.step))
    stream = open_stream(run, config, first_step)
    log = StepLog(workdir, config, first_step)
    before = store.latest_metadata(checkpointer)
    report_code_change(before, run)
    metadata = {**run.metadata, "lineage": resumed(run.metadata["lineage"], before)} if before else run.metadata
    # A SIGTERM during an evaluation leaves a checkpoint without a score; the resumed run evaluates it first.
    scored = before is not None and before["metrics"] is not None
    validation = ValidationLog(workdir, config, first_step + 1 if scored else first_step)
    trace = Profile(workdir / "profile") if profile else None
    must_stop, check_signal = stopping

    def should_evaluate(step: int) -> bool:
        due = step > 0 and (step % config.eval_every == 0 or step == config.num_steps)
        return due and not (step == first_step and scored)

    def should_save(step: int) -> bool:
        return step > first_step and (step % config.checkpoint_every == 0 or step == config.num_steps or stopped)

    with jax.transfer_guard("disallow"), log.progress:  # closes the progress line before an error is printed
        for step in range(first_step, config.num_steps + 1):
            stopped, scores = must_stop(step), None
            if run.evaluate and should_evaluate(step):
                log.flush()
                scores = validate(run.evaluate, config, step, evaluated_params(state), check_signal, validation, log)
                stopped = stopped or scores is None
            if scores or should_save(step):
                log.flush()
                with jax.transfer_guard("allow"):
                    store.save(checkpointer, step, evaluated_params(state), state, metadata, scores)
            if stopped or step == config.num_steps:
                break
            waiting = time.time()
            batch = _next_batch(stream, step, config, split)
            waited = time.time() - waiting
            first = step == first_step and jax.process_index() == 0
            with say_if_compiling("the training step", "one to three minutes") if first else contextlib.nullcontext():
                state, sums = run.step_fn(state, batch)
            log.dispatched(step, sums, waited)
            if trace:
                trace.after(step - first_step + 1)
    for each in (log, validation, trace):
        if each:
            each.close()
    if stopped and (step < config.num_steps or (run.evaluate and not scores)):
        checkpointer.close()
        print(f"stopped by SIGTERM at step {step}; the same command continues")
        raise SystemExit(0)
    if jax.process_index() == 0:
        print(f"step {step} of {config.num_steps} is done; `universeg evaluate --checkpoint {workdir} …` measures it")
    return state


def open_stream(run: Run, config: ConfigDict, first_step: int) -> Iterator[Batch]:
    """Reads this host's share of the batch of each step from `first_step` on."""
    return batches(
        run.sampler,
        batch_size=config.batch_size,
        first_step=first_step,
        last_step=config.num_steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.read_threads,
    )


def validate(
    evaluator: Evaluator,
    config: ConfigDict,
    step: int,
    params: Any,
    check_signal: Callable[[], None],
    validation: ValidationLog,
    log: StepLog,
) -> dict[str, float] | None:
    """Evaluates, logs and plots; returns the metrics that choose the best checkpoint, or None after a SIGTERM."""
    sheet = validation.directory / "sheet.png" if config.eval.pictures else None
    with jax.transfer_guard("allow"), contextlib.suppress(Interrupted):
        summary = evaluator(params, check_signal)
        scores = validation.write(step, summary)
        if sheet and jax.process_index() == 0:
            evaluator.plot(params, config.eval.pictures, sheet)
        log.evaluated(step, summary, sheet)
        return scores
    return None


def report_code_change(before: dict[str, Any] | None, run: Run) -> None:
    """Prints a line if another version of the code continues the run, since its numbers may differ."""
    if before and jax.process_index() == 0:
        old, new = (record["lineage"]["code_version"] for record in (before, run.metadata))
        if old != new:
            print(f"step {before['step']} was written by version {old} of the code; version {new} continues")


def explain(error: NotFinite, run: Run, config: ConfigDict, workdir: Path) -> NotFinite:
    """Adds the tasks of the suspected episodes to the error, and plots the first one beside the logs."""
    names = {task_name(run.sampler, i) for i in error.episodes}
    path = workdir / f"episode_{error.episodes[0]}.png"
    if jax.process_index() == 0:
        plot_episode(run.sampler, error.episodes[0], config, path)
    error.args = (f"{error.args[0]}. Tasks: {', '.join(sorted(names))}; {path} shows the first",)
    return error
