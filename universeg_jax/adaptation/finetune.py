"""Trains a checkpoint further on a support set: each of its labels is a task over the same images.

If at least four subjects have a marked image, a quarter of them is held out of the training episodes, both as queries
and as support. The best parameters are chosen by the Dice of the held-out images, each segmented with a support sampled
from all other subjects. The initial parameters are a candidate too, so the result is never worse by that score.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from universeg_jax.adaptation.fitting import MAX_SCORED, MIN_SUBJECTS_TO_HOLD_OUT, Array, Fitted, Labelled, Recipe
from universeg_jax.adaptation.leave_one_out import Start, fit_checkpoint, leave_one_out
from universeg_jax.checkpoints import lineage, store
from universeg_jax.configuration import to_dict
from universeg_jax.episode import Episode, resize
from universeg_jax.errors import UserError
from universeg_jax.prediction.support import Support
from universeg_jax.readers.cases import MAX_WITHOUT_LABEL

HELD_OUT = 0.25  # of the subjects
PATIENCE = 3  # scores without improvement before the training stops


class SupportTasks(NamedTuple):
    """N images with L labels; query number j * N + i is image i with label j."""

    images: Array  # float32 [N, H, W, 1] in [0, 1]
    labels: Array  # float32 [L, N, H, W, 1], 0 or 1
    subjects: Array  # int32 [N]
    held_out: Array  # bool [N]
    trained: Array  # bool [L * N]
    scored: Array  # int32 [M], queries that the best parameters are chosen by
    counts: Array  # float32 [M], 1


def read_tasks(support: Support, size: int, seed: int = 0) -> SupportTasks:
    """A support set at `size` pixels with its held-out subjects. Raises UserError if it is too small to train on."""
    present = support.masks.any((2, 3))  # [L, N]
    subjects = np.unique(support.subjects, return_inverse=True)[1].astype(np.int32)
    if len(support) < 2 or not present.any():
        raise UserError(
            f"{len(support)} examples, {int(present.any(0).sum())} with a marked label: fine-tuning needs at least "
            "two examples, so that one can support the other"
        )
    if support.ignored is not None and (share := float(support.ignored.mean())) > MAX_WITHOUT_LABEL:
        raise UserError(
            f"{100 * share:.0f} % of the pixels have no label, and fine-tuning would take them for background: label "
            "them, or leave out the images that are labelled in part"
        )
    rng = np.random.default_rng(seed)
    held_out = np.isin(subjects, choose_held_out(subjects, np.asarray(present.any(0)), rng))
    scored = np.flatnonzero(present & held_out) if held_out.any() else np.flatnonzero(present)
    scored = np.sort(rng.permutation(scored)[:MAX_SCORED]).astype(np.int32)
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
    """A random quarter of the subjects with a marked image; none if there are fewer than four."""
    candidates = np.unique(subjects[marked])
    if len(candidates) < MIN_SUBJECTS_TO_HOLD_OUT:
        return candidates[:0]
    return rng.permutation(candidates)[: max(round(HELD_OUT * len(candidates)), 1)]


def scoring_episode(key: Array, data: SupportTasks, query: Array, support_size: int) -> Episode:
    """The episode of a query, with a support from all other subjects."""
    j, i = jnp.divmod(query, len(data.images))
    labelled = Labelled(data.images, data.labels[j], data.subjects, data.trained, data.scored, data.counts)
    return leave_one_out(key, labelled, i, support_size)


def training_episode(key: Array, data: SupportTasks, query: Array, support_size: int) -> Episode:
    """The episode of a query, with a support from the other subjects that are not held out."""
    subjects = jnp.where(data.held_out, -1, data.subjects)
    return scoring_episode(key, data._replace(subjects=subjects), query, support_size)


def finetune(
    params: Any, config: ConfigDict, tasks: SupportTasks, support_size: int, recipe: Recipe, progress: bool = False
) -> Fitted:
    """The parameters with the best Dice on the scored queries, the initial ones included; `about` has both scores.

    A KeyboardInterrupt ends the training with the best so far.
    """
    start = Start(params, config)
    samplers = (training_episode, scoring_episode)
    return fit_checkpoint(start, tasks, support_size, recipe, *samplers, PATIENCE, progress, stoppable=True)


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
    """Fine-tunes `checkpoint` into <out>, with config and lineage, and returns its scores. Raises UserError.

    Stopped by a KeyboardInterrupt, it writes the best parameters so far, and raises it if no step was better.

    `name` identifies the support set in the lineage. Each step takes two episodes at a learning rate of 1e-4, like
    `universeg baseline --kind finetune`.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already holds files; choose another --out")
    if support_size < 1:
        raise UserError(f"support_size={support_size}: must be at least 1")
    start = store.resolve(checkpoint)
    before = store.read_metadata(start)
    config = ConfigDict(before["config"])
    recipe = Recipe(steps, 2, 1e-4, min(score_every, steps), config.image_size, seed)
    tasks = read_tasks(support, config.image_size, seed)
    out.mkdir(parents=True, exist_ok=True)  # fails before the training if it cannot be written
    shapes = store.abstract_params(config)
    fitted = finetune(store.load_params(start, shapes), config, tasks, support_size, recipe, progress)
    if "stopped_at" in fitted.about and not fitted.about["best_step"]:
        out.rmdir()
        raise KeyboardInterrupt
    record = lineage_of(f"user:{name}-{support.digest()[:8]}", support, licence, fitted.about["best_step"] > 0)
    record = {**before.get("lineage", {}), **lineage.inherit(start, record, shapes)[1]}
    about = {**fitted.about, **scored_on(tasks, support.subjects)}
    metadata = {"step": fitted.about["best_step"], "config": to_dict(config), "lineage": record, "metrics": None}
    store.write_params(out, fitted.params, {**metadata, "finetuned": about})
    return about


def lineage_of(name: str, support: Support, licence: str, trained: bool) -> dict[str, Any]:
    """A lineage of role "user", which is never packaged. Unchanged parameters were selected on the set, not trained."""
    about = {"role": "user", "fingerprint": support.digest()}
    return {
        "code_version": lineage.code_version(),
        "trained_on": {name: {**about, "licence": licence}} if trained else {},
        "synthetic": False,
        "selected_on": {name: about},
        "parents": [],
    }


def scored_on(tasks: SupportTasks, subjects: Sequence[str]) -> dict[str, int]:
    """Counts of held-out subjects, of all subjects, and of scored queries."""
    held_out = {name for name, out in zip(subjects, np.asarray(tasks.held_out), strict=True) if out}
    return {"held_out_subjects": len(held_out), "subjects": len(set(subjects)), "scored": len(tasks.scored)}


def scores_text(about: dict[str, Any], out: str | Path) -> str:
    """The scores before and after, for the command line."""
    before, after = 100 * about["start_score"], 100 * about["best_score"]
    if about["held_out_subjects"]:
        where = f"on {about['scored']} masks of {about['held_out_subjects']} held-out subjects"
    else:
        where = (
            f"on {about['scored']} masks of the training itself, as {about['subjects']} subjects are too few to hold "
            "one out: it prevents harm, but is no estimate for new images"
        )
        if about["subjects"] == 1:  # names such as img_000 have one part before the last _
            where += '; a subject is the name before the last _, or what "subjects" in meta.json says'
    lines = [f"leave-one-out Dice {before:.1f} before, {after:.1f} after, {where}"]
    if "stopped_at" in about:
        lines.append(f"stopped after {about['stopped_at']} steps, which keeps the best so far")
    if about["best_step"]:
        lines.append(f"the parameters of step {about['best_step']} are in {out}")
    else:
        lines.append(f"no step was better: {out} holds the initial parameters")
    return "\n".join(lines)
