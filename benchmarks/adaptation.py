"""Dice against the wall-clock seconds from n labelled images to a mask.

    python -m benchmarks.adaptation --checkpoint runs/small128 --data_dir data --role test --out results/adaptation

Compares in-context segmentation, fine-tuning and a U-Net from scratch for n labelled images from the support split of
each task, chosen by hash. The seconds are those of one task: its training, if any, and one mask. Compilation is timed
separately, because a later task of the same shape reuses the programs.

Writes one JSON line per (task, n, method) to <out>/adaptation.jsonl. Rerunning the same command skips finished lines.
<out>/adaptation.png shows means over tasks, then datasets.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from universeg_jax import startup
from universeg_jax.adaptation.fitting import Fitted, Recipe
from universeg_jax.adaptation.workflow import Trainer, claim, finetune_trainer, unet_trainer
from universeg_jax.checkpoints import packaged
from universeg_jax.data.dataset import Dataset, list_datasets, open_dataset
from universeg_jax.data.tasks import Task, dataset_tasks, subject_hash, usable
from universeg_jax.episode import OFFICIAL_SIZE, Episode, to_device_floats
from universeg_jax.errors import UserError
from universeg_jax.evaluation import runner
from universeg_jax.evaluation.cases import Settings, gather_episodes, query_cases, support_pool
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.reports.figures import figure, save_figure
from universeg_jax.reports.files import lock, read_json_lines
from universeg_jax.reports.markdown import markdown_table, percent

LABEL_OFFSET = {"in_context": 6, "finetune": 6, "unet": -16}  # points from a marker to its n, on the free side
METHODS = {"in_context": "in context", "finetune": "fine-tuned", "unet": "U-Net from scratch"}
MAX_SUPPORT = 16  # entries while fine-tuning, whose time is linear in them
LINES, FIGURE = "adaptation.jsonl", "adaptation.png"


def make_trainers(
    checkpoint: str, n: int, finetune: Recipe, unet: Recipe, features: Sequence[int]
) -> dict[str, Trainer]:
    """Method → Trainer for n labelled images; in context does not train."""
    tuned = finetune_trainer(checkpoint, min(n, MAX_SUPPORT), finetune)
    untrained = Fitted(tuned.start, {"seconds": 0.0, "compile_seconds": 0.0})
    in_context = replace(tuned, kind="in_context", fit=lambda *_: untrained)
    return {"in_context": in_context, "finetune": tuned, "unet": unet_trainer(features, unet)}


def measure(trainer: Trainer, dataset: Dataset, task: Task, n: int, max_cases: int) -> dict[str, Any]:
    """Mean Dice over the query cases of a task, with the seconds of its training and of one mask."""
    pool = support_pool(task, n)
    fitted = trainer.fit(dataset, task, pool)
    # A pool smaller than n is the support as a whole: sampling n with replacement would miss some examples.
    settings = Settings((len(pool),), (1,), pool_size=n, max_cases=max_cases, batch_size=4)
    rows = runner.evaluate({trainer.kind: (trainer.method, fitted.params)}, [dataset], [task], settings, progress=False)
    scored = [row["dice"] for row in rows if not row["empty"]]
    if not scored:
        raise UserError(f"{task.name}: no query case has a truth that is not empty; leave its dataset out")
    predict, compiling = one_mask(trainer, fitted.params, dataset, task, settings)
    return {
        "labelled": len(pool),
        "dice": float(np.mean(scored)),
        "cases": len(scored),
        "seconds": fitted.about["seconds"] + predict,
        "training_seconds": fitted.about["seconds"],
        "mask_seconds": predict,
        "compile_seconds": fitted.about["compile_seconds"] + compiling,
    }


def one_mask(trainer: Trainer, params: Any, dataset: Dataset, task: Task, settings: Settings) -> tuple[float, float]:
    """(median seconds of a mask, seconds of compilation) for the first query of a task."""
    case = query_cases(task, 1)[0]
    episode, _ = gather_episodes([case], {dataset.meta.name: dataset}, settings, settings.support_sizes[0], 1)
    flat = Episode(*episode[:2], *(x[:, 0] for x in episode[2:]))
    floats = jax.device_put(to_device_floats(flat, OFFICIAL_SIZE))
    started = time.perf_counter()
    run = jax.jit(trainer.method).lower(params, floats).compile()
    compiling = time.perf_counter() - started
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        jax.block_until_ready(run(params, floats))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]), compiling


def chosen_tasks(datasets: Sequence[Dataset], most: int) -> list[Task]:
    """The usable tasks; at most `most` of each dataset by hash, if that is not 0."""
    tasks = usable([task for dataset in datasets for task in dataset_tasks(dataset)])
    if not most:
        return tasks
    ranked = sorted(tasks, key=lambda task: subject_hash("adaptation", task.name))
    kept = {task.name for d in datasets for task in [task for task in ranked if task.dataset == d.meta.name][:most]}
    return [task for task in tasks if task.name in kept]


def summarize(lines: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Method → points by n: means over the tasks of a dataset, then over the datasets.

    Tasks with fewer than n labelled images use all of them; "labelled" is the mean number of used images.
    """
    points: dict[str, list[dict[str, float]]] = {}
    for method in METHODS:
        for n in sorted({line["n"] for line in lines}):
            selected = [line for line in lines if (line["method"], line["n"]) == (method, n)]
            if not selected:
                continue
            by_dataset: dict[str, list[dict[str, Any]]] = {}
            for line in selected:
                by_dataset.setdefault(line["dataset"], []).append(line)
            fields = ("dice", "seconds", "labelled")
            means = {
                f: float(np.mean([np.mean([line[f] for line in group]) for group in by_dataset.values()]))
                for f in fields
            }
            points.setdefault(method, []).append({"n": n, "tasks": len(selected), **means})
    return points


def plot(points: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Plots Dice against seconds, with n beside each point."""
    fig, ((axes,),) = figure(6, 4.2)
    for method, of_method in points.items():
        seconds, dice = [p["seconds"] for p in of_method], [100 * p["dice"] for p in of_method]
        (line,) = axes.plot(seconds, dice, "o-", label=METHODS[method])
        for point, x, y in zip(of_method, seconds, dice, strict=True):
            place = {"xytext": (LABEL_OFFSET[method], -3), "textcoords": "offset points", "fontsize": 8}
            axes.annotate(str(point["n"]), (x, y), color=line.get_color(), **place)
    axes.set(xlabel="seconds from n labelled images to a mask", ylabel="mean Dice (%)", xscale="log")
    axes.margins(0.08)
    if points:
        axes.legend(fontsize=8)
    save_figure(fig, path)


def table(points: dict[str, list[dict[str, float]]]) -> str:
    rows = [
        [METHODS[method], p["n"], f"{p['labelled']:.1f}", percent(p["dice"]), f"{p['seconds']:.2f}", p["tasks"]]
        for method, of_method in points.items()
        for p in of_method
    ]
    return markdown_table(["method", "n", "labelled", "Dice (%)", "seconds", "tasks"], rows)


def run(
    checkpoint: str,
    datasets: Sequence[Dataset],
    sizes: Sequence[int],
    recipes: dict[str, Recipe],
    features: Sequence[int],
    max_cases: int,
    max_tasks: int,
    out: Path,
    minutes: float = 0,
) -> dict[str, list[dict[str, float]]]:
    """Measures what <out>/adaptation.jsonl lacks, plots all lines and returns the points.

    After `minutes`, if not 0, no further measurement starts.
    """
    started = time.monotonic()
    plan = {
        "params_hash": packaged.params_hash(Predictor.from_checkpoint(checkpoint).params),
        "recipes": {name: asdict(recipe) for name, recipe in recipes.items()},
        "features": list(features),
        "max_cases": max_cases,
        "datasets": {dataset.meta.name: dataset.fingerprint for dataset in datasets},
    }
    machine = {"machine": platform.processor() or platform.machine(), "device": jax.devices()[0].device_kind}
    by_name = {dataset.meta.name: dataset for dataset in datasets}
    with lock(out):
        claim(out, plan)
        path = out / LINES
        lines = read_json_lines(path)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))  # drops an incomplete last line
        done = {(line["task"], line["n"], line["method"]) for line in lines}
        for n in sizes:
            trainers = make_trainers(checkpoint, n, recipes["finetune"], recipes["unet"], features)
            for task in chosen_tasks(datasets, max_tasks):
                for method, trainer in trainers.items():
                    if (task.name, n, method) in done or (minutes and time.monotonic() - started > 60 * minutes):
                        continue
                    about = {"task": task.name, "dataset": task.dataset, "n": n, "method": method}
                    line = about | measure(trainer, by_name[task.dataset], task, n, max_cases) | machine
                    with path.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(f"{task.name}, n={n}, {METHODS[method]}: {line['seconds']:.2f} s, Dice {line['dice']:.3f}")
                    sys.stdout.flush()
        points = summarize(read_json_lines(path))
        plot(points, out / FIGURE)
    return points


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data_dir", default="data")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--datasets", help="names, comma-separated")
    what.add_argument("--role", default="", help="all datasets of a role")
    parser.add_argument("--sizes", default="1,2,4,8,16,32,64", help="numbers of labelled images")
    parser.add_argument("--max_tasks", type=int, default=2, help="tasks per dataset, chosen by hash; 0 = all")
    parser.add_argument("--max_cases", type=int, default=20, help="queries per task; 0 = all")
    parser.add_argument("--unet_steps", type=int, default=300)
    parser.add_argument("--finetune_steps", type=int, default=60)
    parser.add_argument("--score_every", type=int, default=20)
    parser.add_argument("--image_size", type=int, default=128, help="pixels of the U-Net")
    parser.add_argument("--features", default="16,32,64,128,128", help="features of each level of the U-Net")
    parser.add_argument("--minutes", type=float, default=0, help="start no measurement after this time; 0 = no limit")
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    startup.use_compilation_cache()
    try:
        recipes = {
            "unet": Recipe(args.unet_steps, 8, 2e-3, args.score_every, args.image_size),
            "finetune": Recipe(args.finetune_steps, 2, 1e-4, args.score_every, args.image_size),
        }
        opened = [open_dataset(args.data_dir, name) for name in list_datasets(args.data_dir)]
        names = tuple(args.datasets.split(",")) if args.datasets else ()
        datasets = runner.select_datasets(opened, args.data_dir, names, args.role)
        sizes, features = (tuple(int(x) for x in text.split(",")) for text in (args.sizes, args.features))
        limits = args.max_cases, args.max_tasks
        points = run(args.checkpoint, datasets, sizes, recipes, features, *limits, Path(args.out), args.minutes)
    except (UserError, OSError) as error:
        print(f"adaptation: {error}", file=sys.stderr)
        return 1
    print(table(points))
    return 0


if __name__ == "__main__":
    sys.exit(main())
