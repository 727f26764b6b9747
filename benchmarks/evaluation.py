"""Times an evaluation like that of `universeg evaluate` against a PyTorch loop over single episodes.

    python -m benchmarks.evaluation --data_dir data --role test --out results.jsonl
    python -m benchmarks.evaluation --data_dir data --only torch,batched --max_cases 4 --support_size 16 --ensemble 5

Prints one JSON line per measurement; measurements in --out for the same machine and cases are skipped. A warm-up run
excludes compilation. `torch` needs the package torch (extra `bench`). It runs the released architecture, our model has
the same size, and both read the same cases and supports from disk.

- torch: one episode per call, and the next one is read afterwards.
- batched: all cases in batches, with all scores but distances; `ratio` is PyTorch's time divided by this time.
- compiled: the compiled function alone, on a batch on the device, times the number of batches; `share` is its share of
  the batched time.
- surfaces: the batched run with HD95 and surface Dice; `cost` is the additional time relative to the run without.
- memory: peak memory of new processes that evaluate few and more cases in one pass.
"""

import argparse
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.lines import write_line
from universeg_jax.data.dataset import Dataset, list_datasets, open_dataset
from universeg_jax.data.tasks import Task, dataset_tasks
from universeg_jax.evaluation import runner
from universeg_jax.evaluation.cases import Settings, gather_episodes, query_cases
from universeg_jax.evaluation.runner import evaluate
from universeg_jax.evaluation.scoring import Method, model_method, scorer
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.reports.files import read_json_lines

PARTS = ("torch", "batched", "compiled", "surfaces", "memory")


def make_model(features: int) -> tuple[Method, Any]:
    """The released architecture with random weights, at 128x128."""
    chunk = 1 if jax.default_backend() == "cpu" else 0
    model = build_model({"encoder_blocks": (features,) * 4}, support_chunk=chunk)
    return model_method(model, 128), init_params(model, 0)


def open_data(data_dir: str, role: str) -> tuple[list[Dataset], list[Task]]:
    built = [open_dataset(data_dir, name) for name in list_datasets(data_dir)]
    datasets = runner.select_datasets(built, data_dir, role=role)
    return datasets, [task for dataset in datasets for task in dataset_tasks(dataset) if not task.unusable]


def seconds_of(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def time_batched(method, datasets: Sequence[Dataset], tasks: Sequence[Task], settings: Settings) -> float:
    """Seconds of a whole pass, without compilation."""
    run_one(method, datasets, tasks, settings)
    return seconds_of(lambda: evaluate({"model": method}, datasets, tasks, settings, progress=False))


def run_one(method, datasets: Sequence[Dataset], tasks: Sequence[Task], settings: Settings) -> None:
    """Evaluates one case, which compiles the program."""
    evaluate({"model": method}, datasets, tasks[:1], replace(settings, max_cases=1), progress=False)


def time_compiled(method, datasets: Sequence[Dataset], tasks: Sequence[Task], settings: Settings, rounds: int) -> float:
    """Median seconds of the compiled function for one batch over `rounds`."""
    cases = [case for task in tasks for case in query_cases(task, settings.max_cases)][: settings.batch_size]
    by_name = {dataset.meta.name: dataset for dataset in datasets}
    episode, _ = gather_episodes(cases, by_name, settings, settings.support_sizes[0], settings.batch_size)
    episode = jax.device_put(episode)
    run = scorer(method[0], settings)
    jax.block_until_ready(run(method[1], episode))
    return float(np.median([seconds_of(lambda: jax.block_until_ready(run(method[1], episode))) for _ in range(rounds)]))


def time_torch(features: int, datasets: Sequence[Dataset], tasks: Sequence[Task], settings: Settings) -> float:
    """Seconds of a loop over episodes with one support draw per call, and the Dice of their average per case."""
    import torch

    from benchmarks.torch_model import UniverSeg

    model = UniverSeg(((features, features),) * 4).eval()
    by_name = {dataset.meta.name: dataset for dataset in datasets}
    cases = [case for task in tasks for case in query_cases(task, settings.max_cases)]

    def channels_first(x: np.ndarray, scale: float = 1.0) -> torch.Tensor:
        return torch.from_numpy(np.moveaxis(x, -1, -3).astype(np.float32) / scale)

    def loop(cases) -> None:
        for case in cases:
            episode, _ = gather_episodes([case], by_name, settings, settings.support_sizes[0], 1)
            total = torch.zeros(())
            for k in range(episode.support_images.shape[1]):
                inputs = channels_first(episode.query_image, 255), channels_first(episode.support_images[:, k], 255)
                with torch.inference_mode():
                    total = total + torch.sigmoid(model(*inputs, channels_first(episode.support_labels[:, k])))
            mask = total / episode.support_images.shape[1] >= 0.5
            truth = channels_first(episode.query_label) > 0
            float(2 * (mask & truth).sum() / torch.clamp(mask.sum() + truth.sum(), min=1))

    loop(cases[:1])
    return seconds_of(lambda: loop(cases))


def peak_mb(arguments: Sequence[str], repeat: int) -> float:
    """Peak memory of a new process that makes `repeat` passes; each pass holds all its rows."""
    command = [sys.executable, "-m", "benchmarks.evaluation", *arguments, f"--passes={repeat}"]
    root = Path(__file__).parents[1]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
    return float(output.split()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--role", default="test")
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--support_size", type=int, default=16)
    parser.add_argument("--ensemble", type=int, default=5)
    parser.add_argument("--max_cases", type=int, default=0, help="queries per task; 0 = all")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of the compiled function")
    parser.add_argument("--repeat", type=int, default=8, help="passes of the larger memory measurement")
    parser.add_argument("--passes", type=int, default=0, help=argparse.SUPPRESS)  # prints the peak memory
    parser.add_argument("--out", type=Path, help="append the lines there too")
    args = parser.parse_args(argv)
    if wrong := set(args.only.split(",")) - set(PARTS):
        raise SystemExit(f"--only={args.only}: {', '.join(sorted(wrong))} is not one of {', '.join(PARTS)}")
    settings = Settings((args.support_size,), (args.ensemble,), max_cases=args.max_cases, batch_size=args.batch_size)
    datasets, tasks = open_data(args.data_dir, args.role)
    method = make_model(args.features)
    if args.passes:
        evaluate({"model": method}, datasets, tasks * args.passes, settings, progress=False)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    count = sum(len(query_cases(task, args.max_cases)) for task in tasks)
    options = {name: getattr(args, name) for name in ("support_size", "ensemble", "batch_size", "features")}
    about = {
        "cases": count,
        **options,
        "machine": platform.processor() or platform.machine(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }

    def report(benchmark: str, **values: Any) -> None:
        write_line({"benchmark": benchmark, **values, **about}, args.out)

    lines = read_json_lines(args.out) if args.out else []
    done = {line["benchmark"]: line for line in lines if about.items() <= line.items()}
    parts = set(args.only.split(",")) - done.keys()
    seconds: dict[str, float] = {name: line["seconds"] for name, line in done.items() if "seconds" in line}
    if "torch" in parts:
        seconds["torch"] = time_torch(args.features, datasets, tasks, settings)
        report("torch", seconds=round(seconds["torch"], 3))
    if "batched" in parts or ("batched" not in seconds and {"compiled", "surfaces"} & parts):
        seconds["batched"] = time_batched(method, datasets, tasks, settings)
        ratio = {"ratio": round(seconds["torch"] / seconds["batched"], 2)} if "torch" in seconds else {}
        report("batched", seconds=round(seconds["batched"], 3), **ratio)
    if "compiled" in parts:
        one = time_compiled(method, datasets, tasks, settings, args.rounds)
        total = one * -(-count // args.batch_size)
        report("compiled", seconds=round(total, 3), share=round(total / seconds["batched"], 3))
    if "surfaces" in parts:
        measured = time_batched(method, datasets, tasks, replace(settings, surfaces=True))
        report("surfaces", seconds=round(measured, 3), cost=round(measured / seconds["batched"] - 1, 3))
    if "memory" in parts:
        same = ("data_dir", "role", "support_size", "ensemble", "max_cases", "batch_size", "features")
        flags = [f"--{name}={getattr(args, name)}" for name in same]
        few, more = (peak_mb(flags, repeat) for repeat in (1, args.repeat))
        report("memory", peak_mb=round(few), peak_mb_more=round(more), times=args.repeat)


if __name__ == "__main__":
    main()
