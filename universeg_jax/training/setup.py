"""Checks a config and prepares a training run, before anything is written."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from universeg_jax.checkpoints import store
from universeg_jax.checkpoints.lineage import inherit, lineage
from universeg_jax.configuration import ConfigError, check_fields, to_dict
from universeg_jax.data.dataset import list_datasets
from universeg_jax.episodes.inputs import open_data, open_sampler
from universeg_jax.episodes.sampler import EpisodeSampler
from universeg_jax.episodes.synthetic_datasets import NAMES, make_datasets
from universeg_jax.model.factory import build_model, init_params, param_shapes
from universeg_jax.startup import wait_for_all_hosts
from universeg_jax.training.optimizer import make_optimizer
from universeg_jax.training.step import TrainState, init_state, pmap_step, train_step
from universeg_jax.training.validation import Evaluator, make_evaluator


def check_config(config: ConfigDict) -> None:
    """Raises ConfigError naming a wrong field, before anything is computed."""
    check_fields(config)
    if config.batch_size % (jax.device_count() * config.accumulation):
        raise ConfigError(
            f"config.batch_size={config.batch_size} is not a multiple of the {jax.device_count()} devices times "
            f"config.accumulation={config.accumulation}"
        )


def checked_model(config: ConfigDict) -> nn.Module:
    """Builds the model. Raises ConfigError if its fields are wrong or it does not take images of this size."""
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


class Run(NamedTuple):
    """Everything the loop needs."""

    step_fn: Callable[..., Any]
    sampler: EpisodeSampler
    evaluate: Evaluator | None
    state: TrainState
    metadata: dict[str, Any]  # of its checkpoints


def prepare_run(config: ConfigDict) -> Run:
    """Checks config and data and prepares a run. Raises UserError."""
    check_config(config)
    model = checked_model(config)
    optimizer, schedule = make_optimizer(config)
    main = jax.process_index() == 0
    # An interrupted build leaves some of the synthetic datasets; the others are built now.
    if config.make_data and main and set(list_datasets(config.data_dir)) < set(NAMES):
        make_datasets(config.data_dir)
    wait_for_all_hosts("data")
    train_data, validation_data = open_data(config)
    sampler = open_sampler(config, train_data)
    record = lineage(config, train_data, validation_data)
    params = init_params(model, config.seed)
    if config.init_from:
        params, record = inherit(store.resolve(config.init_from), record, params)
    count, used = sum(x.size for x in jax.tree.leaves(params)), {task.dataset for task in sampler.tasks}
    without = 0 if config.train_tasks else len(train_data) - len(used)
    unused = f" (without a usable task: {without}; `universeg tasks` says why)" if without else ""
    message = (
        f"{count:,} parameters; {len(sampler.tasks)} tasks of {len(used)} datasets{unused}; "
        f"{jax.device_count()} {jax.devices()[0].device_kind} of {jax.process_count()} host(s)"
    )
    print(message if main else f"host {jax.process_index()}: host 0 prints the progress")
    step = functools.partial(train_step, model=model, optimizer=optimizer, schedule=schedule, config=config)
    return Run(
        step_fn=pmap_step(step),
        sampler=sampler,
        evaluate=make_evaluator(config, validation_data, model),
        state=init_state(params, optimizer, bool(config.ema_decay)),
        metadata={"config": to_dict(config), "lineage": record},
    )
