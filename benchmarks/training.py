"""The training loop against the bare compiled step, and against a PyTorch loop: one JSON object a line.

    python -m benchmarks.training --data_dir data --out results.jsonl     # about 6 minutes on 2 cores

The released architecture at 128x128, one episode a step, S=16, real episodes without augmentation. `loop` is
train_and_evaluate by the times in its metrics.jsonl; `bare` the same compiled step on one batch, timed before and after
it; `torch` benchmarks/torch_model.py with Adam, soft Dice and torch's DataLoader over the same sampler. Needs torch
(extra `bench`) for the last.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.lines import write_line
from universeg_jax.configs import default
from universeg_jax.reports.files import read_json_lines
from universeg_jax.startup import use_compilation_cache
from universeg_jax.training import loop, setup
from universeg_jax.training.step import local_shardings, shard_batch

SKIP = 3  # steps at the start that compile and fill the queue


def make_config(data_dir: str, steps: int, support: int) -> ConfigDict:
    config = default.get_config()
    config.data_dir = data_dir
    config.train_roles = ("train_open",)
    config.val_role = ""
    config.num_steps = steps
    config.support_size = support
    for level in ("task", "in_task"):
        for operation in config.augment[level].values():
            if isinstance(operation, ConfigDict) and "p" in operation:
                operation.p = 0.0
    config.checkpoint_every = max(2, steps // 2)
    return config


def bare_seconds(config: ConfigDict, rounds: int) -> float:
    """Median seconds of the compiled step on one batch."""
    run = setup.prepare_run(config)
    replicated, split = local_shardings()
    state = jax.device_put(run.state, replicated)
    drawn = jax.tree.map(lambda *x: np.stack(x), *[run.sampler(i) for i in range(config.batch_size)])
    seconds = []
    for _ in range(rounds + 1):
        batch = shard_batch(drawn, split)
        started = time.perf_counter()
        state, sums = run.step_fn(state, batch)
        jax.block_until_ready((state, sums))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def loop_seconds(config: ConfigDict) -> dict[str, float]:
    stops: list[float] = []

    def timed_save(*args: object) -> None:
        started = time.perf_counter()
        save(*args)
        stops.append(time.perf_counter() - started)

    save, loop.store.save = loop.store.save, timed_save
    with tempfile.TemporaryDirectory() as workdir:
        loop.train_and_evaluate(config, workdir)
        loop.store.save = save
        rows = read_json_lines(Path(workdir) / "metrics.jsonl")
    gaps = np.diff([row["time"] for row in rows])[SKIP:]
    saved = config.checkpoint_every - 1 - SKIP  # the gap in which the checkpoint was written
    usual = float(np.median(gaps))
    return {
        "seconds": usual,
        "waiting": float(np.mean([row["seconds_waiting"] for row in rows[SKIP + 1 :]]) / np.mean(gaps)),
        "checkpoint_stop_seconds": stops[0],
        "steps_beside_a_checkpoint_seconds": float(gaps[saved : saved + 2].mean()),  # it is written in the background
    }


class Episodes:
    """The sampler's episodes as torch tensors, channels first; what torch calls a map-style dataset."""

    def __init__(self, config: ConfigDict, count: int):
        self.sampler, self.count = setup.prepare_run(config).sampler, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple:
        import torch

        arrays = self.sampler(i).episode[:4]
        return tuple(torch.from_numpy(np.moveaxis(np.asarray(x), -1, -3).copy()) for x in arrays)


def torch_seconds(config: ConfigDict, steps: int) -> float:
    """Median seconds of a step of a PyTorch loop over the same episodes."""
    import torch

    from benchmarks.torch_model import UniverSeg

    model = UniverSeg()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    loader = torch.utils.data.DataLoader(
        Episodes(config, steps), batch_size=1, num_workers=1, multiprocessing_context="spawn"
    )
    seconds, started = [], time.perf_counter()
    for query, label, images, labels in loader:
        inputs = (query.float() / 255, images.float() / 255, labels.float())
        p, y = torch.sigmoid(model(*inputs)), label.float()
        loss = 1 - (2 * (p * y).sum() + 1e-7) / ((p * p).sum() + (y * y).sum() + 1e-7)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    return statistics.median(seconds[SKIP:])


def start_seconds(data_dir: str) -> float:
    """From the command to the first step done, in a process of its own, with whatever the compilation cache holds."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "train.py", "--config=configs/small.py", f"--workdir={workdir}"]
        started = time.perf_counter()
        options = [f"--config.data_dir={data_dir}", "--config.num_steps=1", "--config.val_role="]
        subprocess.run([*command, *options], check=True, capture_output=True)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--support", type=int, default=16)
    parser.add_argument("--out", help="append the lines there too")
    args = parser.parse_args()
    use_compilation_cache()
    config = make_config(args.data_dir, args.steps, args.support)

    def report(row: dict) -> None:
        row = {"benchmark": "training", "support": args.support, "jax": jax.__version__, **row}
        write_line({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, args.out)

    before = bare_seconds(config, args.steps // 2)
    looped = loop_seconds(config)
    after = bare_seconds(config, args.steps // 2)
    bare = (before + after) / 2
    report({"candidate": "bare step", "seconds": bare})
    report({"candidate": "loop", **looped, "share_of_bare_rate": bare / looped["seconds"]})
    if importlib.util.find_spec("torch"):
        theirs = torch_seconds(config, args.steps // 2 + SKIP)
        report({"candidate": "torch loop", "seconds": theirs, "ratio": theirs / looped["seconds"]})
    start_seconds(args.data_dir)  # fills the cache
    report({"candidate": "command to first step, warm cache", "seconds": start_seconds(args.data_dir)})


if __name__ == "__main__":
    main()
