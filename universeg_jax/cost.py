"""What a method costs: its parameters and its milliseconds a mask, to stand beside its Dice."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from universeg_jax.episode import OFFICIAL_SIZE, Episode
from universeg_jax.reporting import markdown_table, percent


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
    mask = np.ones((1, support_size), np.float32)
    episode = jax.device_put(Episode(images[:, 0], labels[:, 0], images[:, 1:], labels[:, 1:], mask))
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


def cost_table(summaries: dict[str, dict[str, Any]]) -> str:
    """The paper's table: a line a method, from its summary.json; - where a method was not run on a dataset."""
    datasets = sorted({name for summary in summaries.values() for name in summary["datasets"]})
    rows = []
    for name, summary in summaries.items():
        scores = [percent(summary["datasets"][d]["dice"]) if d in summary["datasets"] else "-" for d in datasets]
        rows.append([name, *cost_cells(summary.get("cost")), *scores, percent(summary["mean_dice"])])
    return markdown_table(["Dice (%)", "M parameters", "ms", "preparation (s)", *datasets, "mean"], rows)


def cost_cells(cost: dict[str, Any] | None) -> Sequence[str]:
    """Parameters, milliseconds and seconds of preparation a task; - for what was not measured."""
    if cost is None:
        return "-", "-", "-"
    preparation = cost.get("preparation_seconds", 0.0)
    return f"{cost['parameters'] / 1e6:.2f}", f"{cost['milliseconds']:.0f}", f"{preparation:.0f}"
