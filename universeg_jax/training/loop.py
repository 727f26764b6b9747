"""Training: what a run needs, checked before anything is written, and the loop. Reads top to bottom.

The order of the loop is law: evaluate → checkpoint → next batch → step → log. A checkpoint at step t holds the
parameters that were evaluated at t, and everything logged before t is on disk when it is written: a run that is
killed and started again ends in the same bytes as one that never stopped.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from universeg_jax.checkpoints import store
from universeg_jax.checkpoints.lineage import check_same_data, inherit, lineage, resumed
from universeg_jax.configuration import ConfigError, check_lowest, to_dict, write_config
from universeg_jax.data.dataset import Dataset, list_datasets, open_dataset
from universeg_jax.data.tasks import Task, check_groups, subject_hash, task_table, usable
from universeg_jax.episode import Episode
from universeg_jax.episodes import augment, superpixel, synthesis
from universeg_jax.episodes.sampler import KINDS, EpisodeSampler, batches, make_sampler, task_name
from universeg_jax.episodes.synthetic_datasets import MADE, make_datasets
from universeg_jax.model.factory import build_model, init_params, param_shapes
from universeg_jax.model.flops import training_flops
from universeg_jax.reports.figures import plot_rows
from universeg_jax.reports.files import lock
from universeg_jax.startup import Interrupted, jit_for_once, wait_for_all_hosts, when_to_stop
from universeg_jax.training import losses
from universeg_jax.training.log import NotFinite, Profile, StepLog
from universeg_jax.training.optimizer import make_optimizer
from universeg_jax.training.step import (
    TrainState,
    device_episode,
    evaluated_params,
    init_state,
    local_shardings,
    plain_episode,
    pmap_step,
    shard_batch,
    support_size_of,
    train_step,
    trim_support,
)
from universeg_jax.training.validation import Evaluator, ValidationLog, make_evaluator

Array = jax.Array
PICTURE_COLUMNS = 13
SUPPORT_SCHEDULES = ("fixed", "uniform", "log_uniform")


def open_data(config: ConfigDict) -> tuple[list[Dataset], list[Dataset]]:
    """(training, validation) datasets of config.data_dir by role. Raises UserError, also where they share a source."""
    datasets = [open_dataset(config.data_dir, name) for name in list_datasets(config.data_dir)]
    needed = config.kinds.real or config.kinds.superpixel
    train = [d for d in datasets if d.meta.role in tuple(config.train_roles) and needed]
    if missing := sorted(set(config.train_datasets) - {d.meta.name for d in train}):
        found = ", ".join(d.meta.name for d in train) or "none"
        raise ConfigError(f"config.train_datasets: {', '.join(missing)} not among those to train on ({found})")
    train = [d for d in train if not config.train_datasets or d.meta.name in config.train_datasets]
    validation = [d for d in datasets if d.meta.role == config.val_role]
    if needed and not train:
        found = ", ".join(f"{d.meta.name} ({d.meta.role})" for d in datasets) or "nothing"
        raise ConfigError(
            f"no dataset of roles {tuple(config.train_roles)} in {config.data_dir} (there: {found}); "
            "build one with `universeg build --folder DIR --name N --data_dir D --role train_open`"
        )
    check_groups(dataset.meta for dataset in (*train, *validation))
    return train, validation


def open_tasks(config: ConfigDict, datasets: Sequence[Dataset]) -> list[Task]:
    """The training tasks, unusable ones too, or config.train_tasks of the usable ones, by hash."""
    tasks = task_table(datasets, config.min_label_density)
    there = usable(tasks) if datasets else []  # raises with every reason where there are none
    if config.train_tasks > len(there):
        raise ConfigError(f"config.train_tasks={config.train_tasks}: there are {len(there)} usable training tasks")
    if not config.train_tasks:
        return tasks
    names = sorted((task.name for task in there), key=lambda name: subject_hash("train_tasks", name))
    kept = set(names[: config.train_tasks])
    return [task for task in there if task.name in kept]


def check_config(config: ConfigDict) -> None:
    """Raises ConfigError, or ValueError of the part concerned, naming the field; before anything is computed."""
    check_lowest(config)
    if config.ema_decay >= 1:
        raise ConfigError(f"config.ema_decay={config.ema_decay}: a share below 1, or 0 for none, is needed")
    terms = {name: config.loss[name] for name in losses.TERMS}
    if min(terms.values()) < 0 or not 0 < sum(terms.values()) < np.inf:
        raise ConfigError(f"config.loss: {terms}: finite, non-negative weights, one above 0, are needed")
    if config.batch_size % (jax.device_count() * config.accumulation):
        raise ConfigError(
            f"config.batch_size={config.batch_size} is not a multiple of the {jax.device_count()} devices times "
            f"config.accumulation={config.accumulation}"
        )
    if config.support_schedule not in SUPPORT_SCHEDULES:
        raise ConfigError(
            f"config.support_schedule={config.support_schedule!r}: choose one of {', '.join(SUPPORT_SCHEDULES)}"
        )
    check_parts(config)


def check_parts(config: ConfigDict) -> None:
    """The part of `check_config` that is about how an episode is made."""
    weights = config.kinds.to_dict()
    if set(weights) != set(KINDS) or min(weights.values()) < 0 or not 0 < sum(weights.values()) < np.inf:
        raise ConfigError(
            f"config.kinds={weights}: finite, non-negative weights of {', '.join(KINDS)}, one above 0, are needed"
        )
    augment.validate(config.augment)
    if config.kinds.synthetic:
        synthesis.validate(config.synthesis, config.image_size)
    if config.kinds.superpixel:
        superpixel.validate(config.superpixel, config.image_size)


def checked_model(config: ConfigDict) -> nn.Module:
    """The model. Raises ConfigError where there is none of these fields, or it does not take images of this size."""
    size = config.image_size
    query, entry = (jax.ShapeDtypeStruct((*lead, size, size, 1), np.float32) for lead in ((1,), (1, 1)))
    try:
        model = build_model(config.model)
        shapes = param_shapes(model)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    try:
        jax.eval_shape(model.apply, {"params": shapes}, query, entry, entry)
    except ValueError as error:
        raise ConfigError(f"config.image_size={size}: {error}") from error
    return model


def kind_shares(config: ConfigDict) -> dict[str, float]:
    """The probabilities that `make_sampler` takes, from the weights config.kinds."""
    total = sum(config.kinds[name] for name in KINDS)
    return {name: config.kinds[name] / total for name in ("synthetic", "superpixel")}


def sampler_of(config: ConfigDict, train_data: list[Dataset]) -> EpisodeSampler:
    """The sampler of a run. Raises UserError where nothing can be drawn."""
    return make_sampler(
        train_data,
        open_tasks(config, train_data),
        seed=config.seed,
        support_size=config.support_size,
        **kind_shares(config),
        replacement=config.replacement,
        size=config.image_size,
        draw=config.draw,
        draw_exponent=config.draw_exponent,
        label_union=config.label_union,
        all_labels=config.all_labels,
    )


class Run(NamedTuple):
    """All that the loop needs, made and checked before anything is written."""

    step_fn: Callable[..., Any]
    sampler: EpisodeSampler
    evaluate: Evaluator | None
    state: TrainState
    metadata: dict[str, Any]  # of its checkpoints


def prepare(config: ConfigDict) -> Run:
    """Raises UserError for whatever is wrong with the config or the data."""
    check_config(config)
    model = checked_model(config)
    optimizer, schedule = make_optimizer(config)
    main = jax.process_index() == 0
    # Beside made datasets too: some are missing where the making was interrupted.
    if config.make_data and main and set(list_datasets(config.data_dir)) < set(MADE):
        make_datasets(config.data_dir)
    wait_for_all_hosts("data")
    train_data, validation_data = open_data(config)
    sampler = sampler_of(config, train_data)
    record = lineage(config, train_data, validation_data)
    params = init_params(model, config.seed)
    if config.init_from:
        params, record = inherit(store.resolve(config.init_from), record, params)
    count, used = sum(x.size for x in jax.tree.leaves(params)), {task.dataset for task in sampler.tasks}
    without = 0 if config.train_tasks else len(train_data) - len(used)
    unused = f" (without a usable task: {without}; `universeg tasks` says why)" if without else ""
    message = (
        f"{count:,} parameters; {len(sampler.tasks)} tasks of {len(used)} datasets{unused}; "
        f"{training_flops(model, config) / 1e9:,.0f} GFLOP a step; {jax.device_count()} {jax.devices()[0].device_kind} "
        f"of {jax.process_count()} host(s)"
    )
    print(message if main else f"host {jax.process_index()}: the first one tells how it goes")
    step = functools.partial(train_step, model=model, optimizer=optimizer, schedule=schedule, config=config)
    return Run(
        step_fn=pmap_step(step),
        sampler=sampler,
        evaluate=make_evaluator(config, validation_data, model),
        state=init_state(params, optimizer, bool(config.ema_decay)),
        metadata={"config": to_dict(config), "lineage": record},
    )


def train_and_evaluate(config: ConfigDict, workdir: str | Path, profile: bool = False) -> TrainState:
    """Trains to config.num_steps, from the latest checkpoint of the workdir if there is one; returns the last state.

    With several hosts each of them calls it, with one workdir that they share. `profile` writes a trace of five steps.
    """
    run, workdir = prepare(config), Path(workdir)
    check_same_data(workdir, run.metadata["lineage"])
    main = jax.process_index() == 0  # the first host alone writes, besides each one's share of a checkpoint
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


def train(
    run: Run, config: ConfigDict, workdir: Path, checkpointer: Any, stopping: tuple[Any, Any], profile: bool = False
) -> TrainState:
    """The loop. `stopping`: see startup.when_to_stop."""
    replicated, split = local_shardings()
    # The workdir's latest checkpoint comes before config.init_from, which comes before a random start.
    state = jax.device_put(store.restore_state(checkpointer, run.state), replicated)
    first_step = int(jax.device_get(state.step))
    stream = batches(
        run.sampler,
        batch_size=config.batch_size,
        first_step=first_step,
        last_step=config.num_steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.read_threads,
    )
    log = StepLog(workdir, config, first_step)
    before = store.latest_metadata(checkpointer)
    tell_of_other_code(before, run)
    metadata = {**run.metadata, "lineage": resumed(run.metadata["lineage"], before)} if before else run.metadata
    # A SIGTERM in an evaluation leaves a checkpoint without a score: that evaluation is then the first thing to do.
    scored = before is not None and before["metrics"] is not None
    validation = ValidationLog(workdir, config, first_step + 1 if scored else first_step)
    trace = Profile(workdir / "profile") if profile else None
    (must_stop, check_signal), stopped, step = stopping, False, first_step

    with jax.transfer_guard("disallow"), log.progress:  # which is closed before an error is told
        for step in range(first_step, config.num_steps + 1):
            stopped, scores = must_stop(step), None
            due = step and (step % config.eval_every == 0 or step == config.num_steps)
            if run.evaluate and due and not (step == first_step and scored):
                log.flush()
                with jax.transfer_guard("allow"), contextlib.suppress(Interrupted):
                    summary = run.evaluate(evaluated_params(state), check_signal)
                    scores = validation.write(step, summary)
                    sheet = workdir / "eval" / "sheet.png"
                    if config.eval.pictures and jax.process_index() == 0:
                        run.evaluate.draw(evaluated_params(state), config.eval.pictures, sheet)
                    log.evaluated(step, summary, sheet if config.eval.pictures else None)
                stopped = stopped or scores is None
            last = stopped or step == config.num_steps
            if scores or (step > first_step and (last or step % config.checkpoint_every == 0)):
                log.flush()
                with jax.transfer_guard("allow"):
                    store.save(checkpointer, step, evaluated_params(state), state, metadata, scores)
            if last:
                break
            waiting = time.time()
            batch = shard_batch(trim_support(next(stream), *support_size_of(step, config)), split)
            waited = time.time() - waiting
            state, sums = run.step_fn(state, batch)
            log.dispatched(step, sums, waited)
            if trace:
                trace.after(step - first_step + 1)
    log.close()
    validation.close()
    if trace:
        trace.close()
    if stopped and (step < config.num_steps or (run.evaluate and not scores)):
        checkpointer.close()
        print(f"stopped by SIGTERM at step {step}; the same command continues")
        raise SystemExit(0)
    if jax.process_index() == 0:
        print(f"step {step} of {config.num_steps} is done; `universeg evaluate --checkpoint {workdir} …` measures it")
    return state


def tell_of_other_code(before: dict[str, Any] | None, run: Run) -> None:
    """Says so where a run is continued by another version of the code: then its numbers may be others."""
    if before and jax.process_index() == 0:
        old, new = (record["lineage"]["code_version"] for record in (before, run.metadata))
        if old != new:
            print(f"step {before['step']} was written by the code {old}, and is continued by {new}")


def explain(error: NotFinite, run: Run, config: ConfigDict, workdir: Path) -> NotFinite:
    """The error with the tasks of the episodes it may come from, and a picture of the first beside the logs."""
    names = {task_name(run.sampler, i) for i in error.episodes}
    path = workdir / f"episode_{error.episodes[0]}.png"
    if jax.process_index() == 0:
        draw_episode(run.sampler, error.episodes[0], config, path)
    error.args = (f"{error.args[0]}. Tasks: {', '.join(sorted(names))}; the first is drawn in {path}",)
    return error


def draw_episode(sampler: EpisodeSampler, index: int, config: ConfigDict, path: Path) -> Path:
    """Draws one episode, the query first: as it was made, and below each part as its augmentation leaves it."""
    batch = jax.tree.map(lambda x: np.asarray(x)[None], sampler(index))
    batch = trim_support(batch, *support_size_of(index // config.batch_size, config))
    one = jax.tree.map(lambda x: x[0], batch)

    @jit_for_once
    def both(index: Array, kind: Array, raw: Episode) -> tuple[Episode, Episode]:
        return plain_episode(index, kind, raw, config)[0], device_episode(index, kind, raw, config)[0]

    rows = []
    for title, episode in zip(("raw", "augmented"), jax.device_get(both(*one[:2], one.episode)), strict=True):
        count = int(episode.support_mask.sum())
        images = np.concatenate([episode.query_image[None], episode.support_images[:count]])[..., 0]
        labels = np.concatenate([episode.query_label[None], episode.support_labels[:count]])[..., 0]
        columns = min(len(images), PICTURE_COLUMNS)
        gap = [(0, -len(images) % columns), (0, 0), (0, 0)]  # the last row is filled up with nothing
        images, labels = np.pad(images, gap, constant_values=np.nan), np.pad(labels, gap)
        parts = (x.reshape(-1, columns, *x.shape[1:]) for x in (images, labels))
        rows.append([(title, *part) for part in zip(*parts, strict=True)])
    title = f"episode {index} of seed {config.seed}: {task_name(sampler, index)}"
    plot_rows([row for pair in zip(*rows, strict=True) for row in pair], path, title)
    return path
