"""Runs with the same step share one compiled step, and those of the same model one compiled evaluation."""

import functools
import json

import pytest

from universeg_jax.configuration import RESUMABLE, flatten, to_dict
from universeg_jax.training import setup, validation

FREE = (*RESUMABLE, "num_steps", "init_from", "train_roles", "val_role")  # fields that no step reads


@pytest.fixture(autouse=True, scope="module")
def compiled_steps():
    steps, pmap_step = {}, setup.pmap_step

    def shared(step):
        config = step.keywords["config"]
        free = FREE if config.optimizer.schedule == "constant" else RESUMABLE
        fields = {name: x for name, x in flatten(to_dict(config)).items() if name not in free}
        return steps.setdefault(json.dumps(fields, sort_keys=True), pmap_step(step))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "pmap_step", shared)
        patch.setattr(validation, "model_method", functools.cache(validation.model_method))
        yield
