"""What a method costs: its parameters and its milliseconds a mask, to stand beside its Dice."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from universeg_jax.episode import OFFICIAL_SIZE, Episode, split_query
from universeg_jax.errors import UserError
from universeg_jax.evaluation.summary import cost_cells, interval_text
from universeg_jax.reports.markdown import markdown_table, percent


def count_parameters(params: Any) -> int:
    return int(sum(np.prod(x.shape, dtype=np.int64) for x in jax.tree.leaves(params)))


def cost(
    method: Callable[[Any, Episode], jax.Array], params: Any, support_size: int, repeats: int = 5
) -> dict[str, Any]:
    """Of one query at 128x128 with its support: the median of `repeats` runs, after the one that compiles.

    Such a time belongs to a machine, so its device goes with it.
    """
    rng = np.random.default_rng(0)
    images = rng.random((1, support_size + 1, OFFICIAL_SIZE, OFFICIAL_SIZE, 1), np.float32)
    labels = (images > 0.5).astype(np.float32)
    episode = jax.device_put(split_query(images, labels))
    run = jax.jit(method)
    jax.block_until_ready(run(params, episode))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(run(params, episode))
        seconds.append(time.perf_counter() - started)
    return {
        "parameters": count_parameters(params),
        "milliseconds": 1000 * statistics.median(seconds),
        "support_size": support_size,
        "device": jax.devices()[0].device_kind,
    }


def cost_table(summaries: dict[str, dict[str, Any]], support_size: int = 0, ensemble: int = 0) -> str:
    """The paper's table: a line a method, from its summary.json; - where a method was not run on a dataset.

    Of a support size and a number of draws, 0 = each method's largest. Milliseconds are of the largest support size.
    """
    chosen = {name: _setting(name, summary, support_size, ensemble) for name, summary in summaries.items()}
    datasets = sorted({name for of in chosen.values() for name in of["datasets"]})
    rows = []
    for name, of in chosen.items():
        scores = [_with_interval(of["datasets"][d], "dice", "ci") if d in of["datasets"] else "-" for d in datasets]
        mean = _with_interval(of, "mean_dice", "mean_ci")
        rows.append([name, *cost_cells(summaries[name].get("cost")), *scores, mean])
    return markdown_table(["Dice (%)", "M parameters", "ms", "preparation (s)", *datasets, "mean"], rows)


def _setting(name: str, summary: dict[str, Any], support_size: int, ensemble: int) -> dict[str, Any]:
    wanted = {k: v for k, v in (("support_size", support_size), ("ensemble", ensemble)) if v}
    sizes = {field: summary[field] for field in ("support_size", "ensemble") if field in summary} | wanted
    for of in (summary, *summary.get("settings", ())):
        if of.get("method") == summary.get("method") and all(of.get(k) == v for k, v in sizes.items()):
            return of
    there = ", ".join(f"{of.get('support_size')} with {of.get('ensemble')}" for of in summary.get("settings", ()))
    raise UserError(f"{name} has no result of {sizes}; support sizes and draws that are there: {there or 'none'}")


def _with_interval(of: dict[str, Any], field: str, ends: str) -> str:
    text = interval_text(of.get(f"{ends}_low"), of.get(f"{ends}_high"))
    return f"{percent(of[field])} ({text})" if text else percent(of[field])
