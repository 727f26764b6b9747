"""Scores on the validation datasets during training; they choose the best checkpoint."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from universeg_jax.checkpoints import store
from universeg_jax.data.dataset import Dataset
from universeg_jax.data.tasks import Task, task_table, usable
from universeg_jax.evaluation import runner
from universeg_jax.evaluation.cases import Settings
from universeg_jax.evaluation.scoring import Method, model_method
from universeg_jax.reports.figures import plot_sheet
from universeg_jax.reports.files import JsonLines, write_json


class Evaluator(NamedTuple):
    """Scores parameters on the validation datasets."""

    datasets: Sequence[Dataset]
    tasks: Sequence[Task]
    settings: Settings
    method: Method

    def __call__(self, params: Any, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Returns the summary of all cases; `check` is called between batches and may raise."""
        params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
        methods = {"model": (self.method, params)}
        rows = runner.evaluate(methods, self.datasets, self.tasks, self.settings, progress=False, check=check)
        return runner.summarize(rows, "model", self.settings.support_sizes[0], self.settings.ensembles[0])

    def plot(self, params: Any, count: int, path: Path) -> None:
        """Plots one case of each of the first `count` datasets: its support, label and predicted mask."""
        params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
        scored = {task.dataset for task in self.tasks}
        shown = [dataset for dataset in self.datasets if dataset.meta.name in scored][:count]
        cases = [
            {**case, "task": f"{dataset.meta.name}\n{case['task']}"}
            for dataset in shown
            for case in runner.example_cases(self.method, params, dataset, self.settings, 1)
        ]
        plot_sheet(cases, f"support size {self.settings.support_sizes[0]}", path)


def make_evaluator(config: ConfigDict, datasets: Sequence[Dataset], model: nn.Module) -> Evaluator | None:
    settings = Settings(
        support_sizes=(config.eval.support_size,),
        ensembles=(config.eval.ensemble,),
        max_cases=config.eval.max_cases,
        batch_size=config.eval.batch_size,
    )
    if not datasets:
        return None
    method = model_method(model, config.image_size)
    return Evaluator(datasets, usable(task_table(datasets)), settings, method)


class ValidationLog:
    """Writes eval/metrics.jsonl, one line per evaluation, and eval/summary.json of the latest; first host only."""

    def __init__(self, workdir: Path, config: ConfigDict, first: int):
        """`first`: the first step this process may evaluate; older lines from there on are dropped."""
        self.directory, self.role = workdir / "eval", config.val_role
        self.lines = JsonLines(self.directory / "metrics.jsonl", first) if jax.process_index() == 0 else None

    def write(self, step: int, summary: dict[str, Any]) -> dict[str, float]:
        """Returns the metrics that choose the best checkpoint."""
        scores = {store.METRIC: summary["mean_dice"]}
        if self.lines:
            by_dataset = {name: d["dice"] for name, d in summary["datasets"].items()}
            self.lines.write({"step": step, **scores, "datasets": by_dataset})
            write_json(self.directory / "summary.json", {"step": step, "role": self.role, **summary})
        return scores

    def close(self) -> None:
        if self.lines:
            self.lines.close()
