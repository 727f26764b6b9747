"""Measures the cost of a method: its parameters and its milliseconds per mask."""

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
    """Parameters, and the median time of `repeats` runs for one query at 128x128, without compilation.

    The record names the device, since the time depends on it.
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
    """The table of the paper, one line per method from its summary.json; "-" for a dataset without a result.

    `support_size` and `ensemble` select the setting; 0 takes the largest of each method. Milliseconds are measured at
    the largest support size.
    """
    chosen = {name: _setting(name, summary, support_size, ensemble) for name, summary in summaries.items()}
    datasets = sorted({name for setting in chosen.values() for name in setting["datasets"]})
    rows = []
    for name, setting in chosen.items():
        results = setting["datasets"]
        scores = [_with_interval(results[d], "dice", "ci") if d in results else "-" for d in datasets]
        mean = _with_interval(setting, "mean_dice", "mean_ci")
        rows.append([name, *cost_cells(summaries[name].get("cost")), *scores, mean])
    return markdown_table(["Dice (%)", "M parameters", "ms", "preparation (s)", *datasets, "mean"], rows)


def _setting(name: str, summary: dict[str, Any], support_size: int, ensemble: int) -> dict[str, Any]:
    wanted = {k: v for k, v in (("support_size", support_size), ("ensemble", ensemble)) if v}
    sizes = {field: summary[field] for field in ("support_size", "ensemble") if field in summary} | wanted
    settings = summary.get("settings", ())
    for setting in (summary, *settings):
        if setting.get("method") == summary.get("method") and all(setting.get(k) == v for k, v in sizes.items()):
            return setting
    available = ", ".join(f"{s.get('support_size')} with {s.get('ensemble')}" for s in settings)
    raise UserError(f"{name} has no result for {sizes}; available support sizes and draws: {available or 'none'}")


def _with_interval(scores: dict[str, Any], field: str, ends: str) -> str:
    text = interval_text(scores.get(f"{ends}_low"), scores.get(f"{ends}_high"))
    return f"{percent(scores[field])} ({text})" if text else percent(scores[field])
