"""A checkpoint trained further on a support set: each of its labels is a task over the same images.

Where at least four subjects have something marked, a quarter of them are held out of the training episodes, as queries
and as support, and the parameters are chosen by the Dice of their images, each segmented by a draw from all other
subjects. The start is among the candidates, so that nothing worse by that estimate is returned. The engine is that of
baselines/per_task.py.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from universeg_jax.adaptation import per_task
from universeg_jax.adaptation.per_task import FEWEST_TO_HOLD_BACK, MOST_SCORED, Array, Fitted, Recipe
from universeg_jax.checkpoints import lineage, store
from universeg_jax.configuration import to_dict
from universeg_jax.episode import Episode, resize
from universeg_jax.errors import UserError
from universeg_jax.model.factory import build_model
from universeg_jax.prediction.support import Support

HELD_OUT = 0.25  # of the subjects
PATIENCE = 3  # scores without a better one, after which it stops


class SupportTasks(NamedTuple):
    """N images of L labels; a query is a number j * N + i, image i with label j."""

    images: Array  # float32 [N, H, W, 1] in [0, 1]
    labels: Array  # float32 [L, N, H, W, 1], 0 or 1
    subjects: Array  # int32 [N]
    held_out: Array  # bool [N]
    trained: Array  # bool [L * N]
    scored: Array  # int32 [M], queries that parameters are chosen by
    counts: Array  # float32 [M], 1


def read_tasks(support: Support, size: int, seed: int = 0) -> SupportTasks:
    """A support set at `size` pixels, with who is held out. Raises UserError where nothing could be trained on."""
    present = support.masks.any((2, 3))  # [L, N]
    subjects = np.unique(support.subjects, return_inverse=True)[1].astype(np.int32)
    if len(support) < 2 or not present.any():
        raise UserError(
            f"{len(support)} examples, {int(present.any(0).sum())} with something marked: fine-tuning needs at least "
            "two examples, so that one can be segmented by another"
        )
    rng = np.random.default_rng(seed)
    held_out = np.isin(subjects, choose_held_out(subjects, present.any(0), rng))
    scored = np.flatnonzero(present & held_out) if held_out.any() else np.flatnonzero(present)
    scored = np.sort(rng.permutation(scored)[:MOST_SCORED]).astype(np.int32)
    masks = resize(jnp.asarray(support.masks, jnp.float32)[..., None], size)
    return SupportTasks(
        resize(jnp.asarray(support.images)[..., None], size),
        (masks >= 0.5).astype(jnp.float32),
        jnp.asarray(subjects),
        jnp.asarray(held_out),
        jnp.asarray((present & ~held_out).ravel()),
        jnp.asarray(scored),
        jnp.ones(len(scored)),
    )


def choose_held_out(subjects: np.ndarray, marked: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A quarter of the subjects that have something marked; none where those are fewer than four."""
    able = np.unique(subjects[marked])
    if len(able) < FEWEST_TO_HOLD_BACK:
        return able[:0]
    return rng.permutation(able)[: max(round(HELD_OUT * len(able)), 1)]


def sample_episode(key: Array, data: SupportTasks, query: Array, support_size: int, training: bool) -> Episode:
    """The episode of a query; in training nobody who is held out supports it."""
    j, i = jnp.divmod(query, len(data.images))
    subjects = jnp.where(data.held_out, -1, data.subjects) if training else data.subjects
    labelled = per_task.Labelled(data.images, data.labels[j], subjects, data.trained, data.scored, data.counts)
    return per_task.leave_one_out(key, labelled, i, support_size)


def finetune(
    params: Any, config: ConfigDict, tasks: SupportTasks, support_size: int, recipe: Recipe, progress: bool = False
) -> Fitted:
    """The best parameters by the scored queries, those of the start among them; `about` has both scores."""
    size = min(support_size, len(tasks.images))
    model = build_model(config.model)
    loss = functools.partial(
        per_task.finetune_loss,
        model=model,
        batch_size=recipe.batch_size,
        support_size=size,
        weights=per_task.loss_weights(config),
        draw=functools.partial(sample_episode, training=True),
    )
    score = functools.partial(
        per_task.finetune_score, model=model, support_size=size, draw=functools.partial(sample_episode, training=False)
    )
    return per_task.fit(params, tasks, loss, score, recipe, keep_start=True, patience=PATIENCE, progress=progress)


def finetune_to(
    checkpoint: str | Path,
    support: Support,
    name: str,
    out: str | Path,
    steps: int = 100,
    score_every: int = 20,
    support_size: int = 16,
    seed: int = 0,
    licence: str = "",
    progress: bool = False,
) -> dict[str, Any]:
    """Writes <out>, a checkpoint with config and lineage, and returns what is to be told. Raises UserError.

    `name` is that of the support set in the lineage. Two episodes a step at learning rate 1e-4, as `universeg baseline
    --kind finetune` has it.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds files already; take another --out")
    if support_size < 1:
        raise UserError(f"support_size={support_size}: at least 1 is needed")
    start = store.resolve(checkpoint)
    before = store.read_metadata(start)
    config = ConfigDict(before["config"])
    recipe = Recipe(steps, 2, 1e-4, min(score_every, steps), config.image_size, seed)
    tasks = read_tasks(support, config.image_size, seed)
    out.mkdir(parents=True, exist_ok=True)  # known now, not after the training, if it cannot be written
    shapes = store.abstract_params(config)
    fitted = finetune(store.load_params(start, shapes), config, tasks, support_size, recipe, progress)
    record = lineage_of(f"user:{name}-{support.digest()[:8]}", support, licence, fitted.about["best_step"] > 0)
    record = {**before.get("lineage", {}), **lineage.inherit(start, record, shapes)[1]}
    about = {**fitted.about, **scored_on(tasks, support.subjects)}
    metadata = {"step": fitted.about["best_step"], "config": to_dict(config), "lineage": record, "metrics": None}
    store.write_params(out, fitted.params, {**metadata, "finetuned": about})
    return about


def lineage_of(name: str, support: Support, licence: str, trained: bool) -> dict[str, Any]:
    """Of role "user", which is never packaged; parameters that are still those of the start were but selected on it."""
    about = {"role": "user", "fingerprint": support.digest()}
    return {
        "code_version": lineage.code_version(),
        "trained_on": {name: {**about, "licence": licence}} if trained else {},
        "synthetic": False,
        "selected_on": {name: about},
        "parents": [],
    }


def scored_on(tasks: SupportTasks, subjects: Sequence[str]) -> dict[str, int]:
    """What the scores are of."""
    held_out = np.asarray(tasks.held_out)
    who = {name for name, out in zip(subjects, held_out, strict=True) if out}
    return {"held_out_subjects": len(who), "subjects": len(set(subjects)), "scored": len(tasks.scored)}


def as_text(about: dict[str, Any], out: str | Path) -> str:
    """What the command prints."""
    before, after = 100 * about["start_score"], 100 * about["best_score"]
    if about["held_out_subjects"]:
        where = f"on {about['scored']} masks of {about['held_out_subjects']} subjects that were not trained on"
    else:
        where = (
            f"on {about['scored']} masks that were trained on, as {about['subjects']} subjects are too few to hold one "
            "out: no estimate for new images, a guard against harm alone"
        )
    lines = [f"leave-one-out Dice {before:.1f} before, {after:.1f} after, {where}"]
    if about["best_step"]:
        lines.append(f"the parameters of step {about['best_step']} are in {out}")
    else:
        lines.append(f"no step was better: {out} holds the parameters that it started from")
    return "\n".join(lines)
