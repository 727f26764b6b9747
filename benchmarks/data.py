"""Measures the speed of reading and sampling episodes and the memory of the index: one JSON object per line.

    python -m benchmarks.data [--only=records,table,cold,index,tasks] [--folder=DIR] [--repeats=5] [--out=FILE]
    python -m benchmarks.data --only=build --collection=DIR

`records` reads every example of an episode from the array_record files, as any TFDS dataset is read; `table` gathers it
from the pixel table beside them, mapped into memory: first with its pages dropped from the system's cache as far as the
system allows, then warm. `cold` is a new process that opens every dataset, makes the task table and reads one batch.
`index` and `tasks` use synthetic tables without pixels. `build` is the command that builds a collection of folders (see
docs/data.md) from scratch.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.lines import write_line
from universeg_jax.data import dataset as dataset_files
from universeg_jax.data.builder import build
from universeg_jax.data.dataset import (
    Dataset,
    DatasetMeta,
    Index,
    list_datasets,
    open_dataset,
    read_report,
)
from universeg_jax.data.tasks import task_table
from universeg_jax.episodes.sampler import EpisodeSampler, batches, make_sampler
from universeg_jax.readers.cases import Example

SUPPORT, SIZE, THREADS = 64, 128, 2
COLD = """
import sys, time
start = time.perf_counter()
from universeg_jax.data.dataset import list_datasets, open_dataset
from universeg_jax.episodes.sampler import make_sampler
from universeg_jax.data.tasks import task_table
imported = time.perf_counter()
datasets = [open_dataset(sys.argv[1], name) for name in list_datasets(sys.argv[1])]
sampler = make_sampler(datasets, task_table(datasets), seed=0, support_size=64)
for i in range(4):
    sampler(i)
print(imported - start, time.perf_counter() - imported)
"""


class Reporter:
    """Prints JSON lines and appends them to a file if there is one."""

    def __init__(self, out: str | None):
        self.out = out

    def __call__(self, name: str, value: float, unit: str, **more: object) -> None:
        write_line({"name": name, "value": round(value, 4), "unit": unit, **more}, self.out)


def make_example(case: int) -> list[Example]:
    """A smooth image, which compresses as scans do, with three discs; the case is its subject."""
    rng = np.random.default_rng(case)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    image = 0.5 + 0.3 * np.sin(6 * (x * rng.random() + y * rng.random()) + 6 * rng.random())
    image = 255 * np.clip(image + 0.03 * rng.standard_normal(image.shape), 0, 1)
    masks = [(x - a) ** 2 + (y - b) ** 2 < r**2 for a, b, r in rng.uniform(0.1, 0.4, (3, 3)) + [0.2, 0.2, 0]]
    return [Example(image.astype(np.uint8), np.stack(masks).astype(np.uint8), (1, 2, 3), f"s{case}", f"s{case}")]


def build_synthetic(folder: Path, datasets: int, examples: int) -> Path:
    """Builds the synthetic datasets that are missing."""
    for number in range(datasets):
        if f"synthetic{number}" not in list_datasets(folder):
            meta = DatasetMeta(f"synthetic{number}", "train_open", {1: "a", 2: "b", 3: "c"}, SIZE)
            build(meta, range(number * examples, (number + 1) * examples), make_example, folder)
    return folder


def open_sampler(folder: Path) -> EpisodeSampler:
    datasets = [open_dataset(folder, name) for name in list_datasets(folder)]
    return make_sampler(datasets, task_table(datasets), seed=0, support_size=SUPPORT)


def rates(sampler: EpisodeSampler, first: int, count: int, threads: int) -> tuple[float, float]:
    """(Episodes per second, episodes per CPU second) of a training run's pipeline, or of sampler(i) for 0 threads.

    On a busy machine the second number tells the rate of one core without the other load.
    """
    if threads:
        stream = batches(sampler, batch_size=4, first_step=first, last_step=first + count // 4, threads=threads)
    else:
        stream = map(sampler, range(first, first + count))
    start, used = time.perf_counter(), time.process_time()
    read = sum(batch.index.size for batch in stream)
    return read / (time.perf_counter() - start), read / (time.process_time() - used)


def drop_pages(folder: Path) -> None:
    """Asks the system to drop the files from its cache; pages that another process maps stay."""
    dataset_files._table.cache_clear()
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def without_table(folder: Path) -> EpisodeSampler:
    """A sampler that reads only the records."""

    class Records(Dataset):
        def gather(self, rows: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return self.gather_records(rows, positions)

    sampler = open_sampler(folder)
    return replace(sampler, datasets={name: Records(**vars(d)) for name, d in sampler.datasets.items()})


def read_benchmarks(folder: Path, only: list[str], repeats: int, report: Reporter) -> None:
    for source, opener, count in (("records", without_table, 200), ("table", open_sampler, 1000)):
        if source not in only:
            continue
        sampler = opener(folder)
        drop_pages(folder)
        cold = rates(sampler, 0, count, THREADS)
        warm = np.median([rates(sampler, 1000 * n, count, THREADS) for n in range(1, repeats)], axis=0)
        single = np.median([rates(sampler, 1000 * n, count, 0) for n in range(1, repeats)], axis=0)
        for name, (seconds, cpu), threads in (("cold", cold, THREADS), ("warm", warm, THREADS), ("alone", single, 0)):
            more = {"support_size": SUPPORT, "size": SIZE, "threads": threads, "load": os.getloadavg()[0]}
            report(f"episodes from {source}, {name}", seconds, "episodes/s", **more)
            report(f"episodes from {source}, {name}", cpu, "episodes/CPU-s", **more)


def cold_start(folder: Path, report: Reporter) -> None:
    drop_pages(folder)
    done = subprocess.run([sys.executable, "-c", COLD, folder], check=True, capture_output=True, text=True)
    imports, opening = map(float, done.stdout.split())
    count = len(list_datasets(folder))
    report("cold start: imports", imports, "s")
    report("cold start: open, task table, first batch of 4", opening, "s", datasets=count)


def build_time(collection: str, report: Reporter) -> None:
    load, before = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as data_dir:
        where = ["--collection", collection, "--data_dir", data_dir, "--workers", str(THREADS)]
        start = time.perf_counter()
        command = [sys.executable, "-m", "universeg_jax.cli", "build", *where]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        reports = [read_report(data_dir, name) for name in list_datasets(data_dir)]
    more = {"datasets": len(reports), "examples": sum(each.examples for each in reports)}
    more |= {"dropped": sum(len(each.dropped) for each in reports), "workers": THREADS, "load": load}
    report("build a collection", seconds, "s", **more)
    report("build a collection", sum(after[:2]) - sum(before[:2]), "CPU-s", **more)


def synthetic_index(examples: int, subjects: int, labels: int) -> Index:
    """An index in which every example has one mask of each label."""
    code = np.arange(examples, dtype=np.int32) % subjects
    short, byte = np.zeros(examples, np.int16), np.zeros(examples, np.int8)
    masks = examples * labels
    return Index(
        code, short, short, byte, byte, np.repeat(np.arange(examples, dtype=np.int32), labels),
        np.tile(np.arange(labels, dtype=np.int16), examples),
        np.tile(np.arange(1, labels + 1, dtype=np.int32), examples),
        np.full(masks, 100, np.int32), tuple(f"s{i}" for i in range(subjects)), ("",), ("CT",), ("image", "mid", "max"),
    )  # fmt: skip


def index_size(report: Reporter, examples: int = 1_000_000, labels: int = 3) -> None:
    index = synthetic_index(examples, examples // 10, labels)
    held = sum(column.nbytes for column in vars(index).values() if isinstance(column, np.ndarray))
    report("index", held / examples, "bytes/example", examples=examples, masks=examples * labels)
    dataset = Dataset(
        DatasetMeta("synthetic", "train_open", {i: str(i) for i in range(1, labels + 1)}, SIZE), index, "", ""
    )
    before, start = peak_bytes(), time.perf_counter()
    tasks = task_table([dataset])
    sampler = make_sampler([dataset], tasks, seed=0, support_size=SUPPORT)
    seconds = time.perf_counter() - start
    kept = sum(a.nbytes for task in tasks for a in (task.rows, task.positions, task.subjects, task.sides))
    pools = (a for pool in sampler.pools for a in (pool.rows, pool.positions, pool.subjects))
    kept += sum(a.nbytes for a in pools if a.base is None)  # the others are views
    report("task table and pools", kept / examples, "bytes/example", examples=examples, masks=examples * labels)
    report("making them", seconds, "s", examples=examples, peak_megabytes=round((peak_bytes() - before) / 1e6))


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def task_datasets(tasks: int) -> Iterator[Dataset]:
    """Datasets of 50 tasks, each with 200 examples of 20 subjects."""
    for number in range(tasks // 50):
        index = synthetic_index(200, 20, 50)
        yield Dataset(DatasetMeta(f"d{number}", "train_open", dict.fromkeys(range(1, 51), "x"), SIZE), index, "", "")


def sampling(report: Reporter, repeats: int) -> None:
    """Samples episodes of few and of many tasks in turn, so that a busy machine slows both."""
    samplers = {}
    for count in (50, 50_000):
        datasets = list(task_datasets(count))
        samplers[count] = make_sampler(datasets, task_table(datasets), seed=0, support_size=SUPPORT)
    micros: dict[int, list[float]] = {count: [] for count in samplers}
    for n in range(4 * repeats):
        for count, sampler in samplers.items():
            micros[count].append(1e6 * seconds_of(lambda i, s=sampler: s.select(i), 1000 * n, 1000))
    medians = {count: float(np.median(values)) for count, values in micros.items()}
    for count, value in medians.items():
        report("draw an episode", value, "us", tasks=count, support_size=SUPPORT)
    report("50,000 tasks against 50", medians[50_000] / medians[50], "ratio")


def seconds_of(function: Callable[[int], object], first: int, count: int) -> float:
    start = time.perf_counter()
    for i in range(first, first + count):
        function(i)
    return (time.perf_counter() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="records,table,cold,index,tasks")
    parser.add_argument("--collection", help="with --only=build: a folder of folders with a splits.json")
    parser.add_argument("--folder", help="where the synthetic datasets are kept (default: a temporary folder)")
    parser.add_argument("--datasets", type=int, default=54)
    parser.add_argument("--examples", type=int, default=60, help="of each dataset")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", help="also append the lines there")
    arguments = parser.parse_args()
    only, report = arguments.only.split(","), Reporter(arguments.out)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        if {"records", "table", "cold"} & set(only):
            build_synthetic(folder, arguments.datasets, arguments.examples)
        read_benchmarks(folder, only, arguments.repeats, report)
        if "cold" in only:
            cold_start(folder, report)
    if "build" in only:
        build_time(arguments.collection, report)
    if "index" in only:
        index_size(report)
    if "tasks" in only:
        sampling(report, arguments.repeats)


if __name__ == "__main__":
    main()
