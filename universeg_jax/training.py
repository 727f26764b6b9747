"""Training: a pure step, pmapped once, and the loop around it. Reads top to bottom.

The order of the loop is law: evaluate → checkpoint → next batch → step → log. A checkpoint at step t holds the
parameters that were evaluated at t, and everything logged before t is on disk when it is written: a run that is
killed and started again ends in the same bytes as one that never stopped.
"""

import functools
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from tqdm import tqdm

import universeg_jax
from universeg_jax import augment, checkpoints, evaluation, losses, metrics, synthesis
from universeg_jax.configuration import ConfigError, to_dict, write_config
from universeg_jax.data.builder import Dataset, list_datasets, open_dataset
from universeg_jax.data.episodes import KINDS, SYNTHETIC, Batch, EpisodeSampler, batches, make_sampler
from universeg_jax.data.tasks import Task, task_table, usable
from universeg_jax.episode import Episode, to_device_floats
from universeg_jax.made_data import make_datasets
from universeg_jax.model import UniverSeg, build_model, init_params
from universeg_jax.reporting import JsonLines, lock, write_json

Array = jax.Array


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Array  # int32 [], steps done
    params: Any
    opt_state: Any
    ema: Any  # like params, or None where config.ema_decay is 0


def make_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer that config.optimizer asks for, and its learning rate by step."""
    c = config.optimizer
    if c.schedule == "constant":
        schedule = optax.constant_schedule(c.learning_rate)
    elif c.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(c.learning_rate, max(config.num_steps - c.warmup_steps, 1))
    else:
        raise ConfigError(f"config.optimizer.schedule={c.schedule!r}: choose one of constant, cosine")
    if c.warmup_steps:
        warmup = optax.linear_schedule(c.learning_rate / c.warmup_steps, c.learning_rate, c.warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [c.warmup_steps])
    if not hasattr(optax, c.name):
        raise ConfigError(f"config.optimizer.name={c.name!r}: optax has no such optimizer")
    decay = {"weight_decay": c.weight_decay, "mask": _kernels} if c.weight_decay else {}
    try:
        optimizer = getattr(optax, c.name)(learning_rate=schedule, **decay)
    except TypeError as error:
        raise ConfigError(
            f"config.optimizer.name={c.name!r} does not take {[*decay, 'learning_rate']}: {error}"
        ) from error
    return optax.chain(optax.clip_by_global_norm(c.clip_norm), optimizer) if c.clip_norm else optimizer, schedule


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def init_state(params: Any, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    copy = jax.tree.map(jnp.copy, params) if ema else None  # its own buffers: the state is donated
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), copy)


def evaluated_params(state: TrainState) -> Any:
    """The parameters that are evaluated and used for prediction."""
    return state.params if state.ema is None else state.ema


def device_episode(index: Array, kind: Array, raw: Episode, config: ConfigDict) -> tuple[Episode, Array]:
    """One uint8 episode of the host → float32 at the model's size, or a synthetic one in its place; then augmented.

    A pure function of (seed, index). Also returns how many labels augmentation had to repair, int32 [].
    """
    key = jax.random.fold_in(jax.random.key(config.seed, impl="threefry2x32"), index)
    synthesis_key, augment_key = jax.random.split(key)

    def real() -> Episode:
        return to_device_floats(raw, config.image_size)

    def synthetic() -> Episode:
        episode = synthesis.synthetic_episode(synthesis_key, config.image_size, config.support_size, config.synthesis)
        return episode._replace(support_mask=raw.support_mask.astype(jnp.float32))

    weights = config.kinds
    if not weights.synthetic:
        episode = real()
    elif not weights.real:
        episode = synthetic()
    else:
        episode = jax.lax.cond(kind == SYNTHETIC, synthetic, real)
    return augment.augment_episode(augment_key, episode, config.augment)


def device_episodes(batch: Batch, config: ConfigDict) -> tuple[Episode, Array]:
    """The same for a batch. One by one on a CPU, where a kind that was not drawn then costs nothing; else vmapped."""
    function = functools.partial(device_episode, config=config)
    arguments = (batch.index, batch.kind, batch.episode)
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda x: function(*x), arguments)
    return jax.vmap(function)(*arguments)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: UniverSeg,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    axis_name: str | None = "batch",
) -> tuple[TrainState, dict[str, tuple[Array, Array]]]:
    """One step on this device's share of the batch. Pure; metrics are (sum, count) over all devices."""
    episode, repaired = device_episodes(batch, config)

    def loss_fn(params: Any) -> tuple[Array, tuple[Array, Array]]:
        logits = model.apply({"params": params}, episode.query_image, *episode[2:])
        each = losses.total(logits, episode.query_label, config.loss)
        dice = metrics.dice_score(logits[..., 0] >= 0, episode.query_label[..., 0])
        return each.mean(), (each, dice)

    grads, (each, dice) = jax.grad(loss_fn, has_aux=True)(state.params)
    sums = {name: metrics.masked_sum(x, jnp.ones_like(x, bool)) for name, x in (("loss", each), ("dice", dice))}
    sums["repaired"] = metrics.masked_sum(repaired.astype(jnp.float32), jnp.ones_like(repaired, bool))
    if axis_name:
        grads, sums = jax.lax.pmean(grads, axis_name), jax.lax.psum(sums, axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))  # short memory at the start
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)
    sums["grad_norm"] = (optax.tree.norm(grads), jnp.float32(1))
    sums["learning_rate"] = (jnp.asarray(schedule(state.step), jnp.float32), jnp.float32(1))
    return TrainState(state.step + 1, params, opt_state, ema), sums


def pmap_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """The one place where devices enter: state replicated, batch [devices, B / devices, ...]."""
    return jax.pmap(step, axis_name="batch", in_axes=(None, 0), out_axes=None, donate_argnums=0)


def local_shardings() -> tuple[NamedSharding, NamedSharding]:
    """(replicated, split over the leading axis) on this host's devices."""
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))


def shard_batch(batch: Batch, sharding: NamedSharding) -> Batch:
    """[B, ...] on the host → [devices, B / devices, ...] on the devices."""
    count = sharding.mesh.size
    return jax.device_put(jax.tree.map(lambda x: np.asarray(x).reshape((count, -1, *x.shape[1:])), batch), sharding)


def open_data(config: ConfigDict) -> tuple[list[Dataset], list[Dataset]]:
    """(training, validation) datasets of config.data_dir by role."""
    datasets = [open_dataset(config.data_dir, name) for name in list_datasets(config.data_dir)]
    train = [d for d in datasets if d.meta.role in tuple(config.train_roles) and config.kinds.real]
    validation = [d for d in datasets if d.meta.role == config.val_role]
    if config.kinds.real and not train:
        found = ", ".join(f"{d.meta.name} ({d.meta.role})" for d in datasets) or "nothing"
        raise ConfigError(
            f"no dataset of roles {tuple(config.train_roles)} in {config.data_dir} (there: {found}); "
            "build one with `universeg build --folder DIR --name N --data_dir D --role train_open`"
        )
    return train, validation


def check_config(config: ConfigDict) -> None:
    """Raises ConfigError, or ValueError of the part concerned, naming the field; before anything is computed."""
    for name in (
        "batch_size",
        "support_size",
        "image_size",
        "num_steps",
        "checkpoint_every",
        "eval_every",
        "log_every",
    ):
        if config[name] < 1:
            raise ConfigError(f"config.{name}={config[name]}: at least 1 is needed")
    weights = config.kinds.to_dict()
    if set(weights) != set(KINDS) or min(weights.values()) < 0 or not sum(weights.values()):
        raise ConfigError(
            f"config.kinds={weights}: non-negative weights of {', '.join(KINDS)}, one above 0, are needed"
        )
    if config.batch_size % jax.device_count():
        raise ConfigError(
            f"config.batch_size={config.batch_size} is not a multiple of the {jax.device_count()} devices"
        )
    augment.validate(config.augment)
    if config.kinds.synthetic:
        synthesis.validate(config.synthesis, config.image_size)


class Evaluator(NamedTuple):
    """Scores of parameters on the validation datasets."""

    datasets: Sequence[Dataset]
    tasks: Sequence[Task]
    settings: evaluation.Settings
    method: evaluation.Method

    def __call__(self, params: Any) -> dict[str, Any]:
        params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
        methods = {"model": (self.method, params)}
        rows = evaluation.evaluate(methods, self.datasets, self.tasks, self.settings, progress=False)
        return evaluation.summarize(rows, "model", self.settings.support_sizes[0], self.settings.ensembles[0])


def make_evaluator(config: ConfigDict, datasets: Sequence[Dataset], model: UniverSeg) -> Evaluator | None:
    settings = evaluation.Settings(
        support_sizes=(config.eval.support_size,),
        ensembles=(config.eval.ensemble,),
        max_cases=config.eval.max_cases,
        batch_size=config.eval.batch_size,
    )
    if not datasets:
        return None
    method = evaluation.model_method(model, config.image_size)
    return Evaluator(datasets, usable(task_table(datasets)), settings, method)


def lineage(config: ConfigDict, train: Sequence[Dataset], validation: Sequence[Dataset]) -> dict[str, Any]:
    """What a checkpoint says of its origin: every dataset that it was trained or selected on, and its parents."""
    return {
        "code_version": universeg_jax.__version__,
        "trained_on": {
            d.meta.name: {"role": d.meta.role, "licence": d.meta.licence, "fingerprint": d.fingerprint} for d in train
        },
        "synthetic": bool(config.kinds.synthetic),
        "selected_on": {d.meta.name: {"role": d.meta.role, "fingerprint": d.fingerprint} for d in validation},
        "parents": [],
    }


def inherit(path: Path, record: dict[str, Any], abstract_params: Any) -> tuple[Any, dict[str, Any]]:
    """Parameters of a checkpoint, and the lineage `record` with all that it was trained or selected on."""
    params = checkpoints.load_params(path, abstract_params)
    before = checkpoints.read_metadata(path).get("lineage", {})
    joined = {name: {**before.get(name, {}), **record[name]} for name in ("trained_on", "selected_on")}
    parents = [*before.get("parents", []), checkpoints.params_hash(params)]
    return params, {**record, **joined, "parents": parents, "synthetic": record["synthetic"] or before.get("synthetic")}


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
    model = build_model(config.model)
    optimizer, schedule = make_optimizer(config)
    if config.make_data and not list_datasets(config.data_dir):
        make_datasets(config.data_dir)
    train_data, validation_data = open_data(config)
    sampler = make_sampler(
        train_data,
        usable(task_table(train_data, config.min_label_density)) if train_data else [],
        seed=config.seed,
        support_size=config.support_size,
        synthetic=config.kinds.synthetic / (config.kinds.real + config.kinds.synthetic),
        replacement=config.replacement,
        size=config.image_size,
    )
    record = lineage(config, train_data, validation_data)
    params = init_params(model, config.seed)
    if config.init_from:
        params, record = inherit(checkpoints.resolve(config.init_from), record, params)
    count = sum(x.size for x in jax.tree.leaves(params))
    print(f"{count:,} parameters; {len(sampler.tasks)} tasks of {len(train_data)} datasets")
    step = functools.partial(train_step, model=model, optimizer=optimizer, schedule=schedule, config=config)
    return Run(
        step_fn=pmap_step(step),
        sampler=sampler,
        evaluate=make_evaluator(config, validation_data, model),
        state=init_state(params, optimizer, bool(config.ema_decay)),
        metadata={"config": to_dict(config), "lineage": record},
    )


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> TrainState:
    """Trains to config.num_steps, from the latest checkpoint of the workdir if there is one; returns the last state."""
    run, workdir = prepare(config), Path(workdir)
    with lock(workdir), checkpoints.open_checkpointer(workdir, config.keep_every) as checkpointer:
        write_config(config, workdir)
        return train(run, config, workdir, checkpointer)


def train(run: Run, config: ConfigDict, workdir: Path, checkpointer: Any) -> TrainState:
    """The loop."""
    replicated, split = local_shardings()
    state = jax.device_put(run.state, replicated)
    # The workdir's latest checkpoint comes before config.init_from, which comes before a random start.
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), state)
    state = checkpoints.restore_state(checkpointer, abstract) or state
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
    # The evaluation of the first step itself was written before its checkpoint: it stays.
    eval_log = JsonLines(workdir / "eval" / "metrics.jsonl", first_step + 1)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    with jax.transfer_guard("disallow"):
        for step in range(first_step, config.num_steps + 1):
            last, scores = step == config.num_steps or stop.is_set(), None
            if step > first_step:
                if run.evaluate and (step % config.eval_every == 0 or step == config.num_steps):
                    log.flush()
                    with jax.transfer_guard("allow"):
                        summary = run.evaluate(evaluated_params(state))
                    scores = {checkpoints.METRIC: summary["mean_dice"]}
                    by_dataset = {name: d["dice"] for name, d in summary["datasets"].items()}
                    eval_log.write({"step": step, **scores, "datasets": by_dataset})
                    write_json(workdir / "eval" / "summary.json", {"step": step, "role": config.val_role, **summary})
                if scores or step % config.checkpoint_every == 0 or last:
                    log.flush()
                    with jax.transfer_guard("allow"):
                        checkpoints.save(checkpointer, step, evaluated_params(state), state, run.metadata, scores)
            if last:
                break
            waiting = time.time()
            batch = shard_batch(next(stream), split)
            waited = time.time() - waiting
            state, sums = run.step_fn(state, batch)
            log.dispatched(step, sums, waited)
    log.close()
    eval_log.close()
    if stop.is_set():
        checkpointer.close()
        print(f"stopped by SIGTERM at step {step}; the same command continues")
        raise SystemExit(0)
    return state


class StepLog:
    """metrics.jsonl and the progress line. Metrics of step t-1 are fetched once step t is dispatched: no waiting."""

    def __init__(self, workdir: Path, config: ConfigDict, first_step: int):
        self.config = config
        self.lines = JsonLines(workdir / "metrics.jsonl", first_step)
        self.progress = tqdm(total=config.num_steps, initial=first_step, desc="train", unit="step", mininterval=1.0)
        self.started = time.time()
        self.pending: tuple[int, Any, float] | None = None

    def dispatched(self, step: int, sums: Any, waited: float) -> None:
        self.flush()
        self.pending = step, sums, waited
        self.progress.update()

    def flush(self) -> None:
        """Writes what is pending; raises FloatingPointError where it is not finite."""
        if self.pending is None:
            return
        (step, sums, waited), self.pending = self.pending, None
        values = {name: float(total / count) for name, (total, count) in jax.device_get(sums).items()}
        if not np.isfinite([values["loss"], values["grad_norm"]]).all():
            first = step * self.config.batch_size
            raise FloatingPointError(
                f"loss {values['loss']}, gradient norm {values['grad_norm']} at step {step}, episodes {first} to "
                f"{first + self.config.batch_size - 1}; lower config.optimizer.learning_rate or set clip_norm"
            )
        self.progress.set_postfix(loss=f"{values['loss']:.3f}", dice=f"{values['dice']:.3f}", refresh=False)
        if step % self.config.log_every == 0:
            seconds = {"seconds_waiting": round(waited, 6), "time": round(time.time() - self.started, 3)}
            self.lines.write({"step": step, **values, **seconds})

    def close(self) -> None:
        self.flush()
        self.lines.close()
        self.progress.close()
