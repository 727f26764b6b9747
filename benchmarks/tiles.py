"""What a second look through tiles gains on pictures larger than 128x128: one JSON object a line.

    python -m benchmarks.tiles --folders DATA/drive_vessels,DATA/monuseg --times 2,4 --out results.jsonl

A folder's subjects are split as those of a `val` dataset; up to `--queries` pictures of the query side are segmented by
all of the support side. Dice is at the pictures' own size, the mean over queries, with the first look alone (times 0)
and with the second. `bound` is the Dice of the labels with themselves at 128x128: what the first look could reach.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.lines import write_line
from universeg_jax.data.dataset import DatasetMeta
from universeg_jax.data.tasks import SECOND, split_subjects
from universeg_jax.episode import OFFICIAL_SIZE
from universeg_jax.prediction.predictor import Options, Predictor
from universeg_jax.readers.folder import read_folder, read_support
from universeg_jax.readers.preprocess import preprocess_mask, restore


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (found & truth).sum() / max(int(found.sum()) + int(truth.sum()), 1))


def bound(truth: np.ndarray) -> float:
    at_size = preprocess_mask(truth, OFFICIAL_SIZE).astype(np.float32)
    return dice(restore(at_size, truth.shape) >= 0.5, truth)


def split(folder: Path) -> tuple[list[int], list[int]]:
    """Rows of (support, query)."""
    subjects = [case.subject for case in read_folder(folder).cases]
    distinct = sorted(set(subjects))
    sides = dict(zip(distinct, split_subjects(DatasetMeta(folder.name, "val", {1: "any"}, 128), distinct), strict=True))
    rows: tuple[list[int], list[int]] = ([], [])
    for row, subject in enumerate(subjects):
        rows[int(sides[subject] == SECOND)].append(row)
    return rows


def measure(predictor: Predictor, folder: Path, times: int, queries: int, support_size: int) -> dict:
    images, labels, _ = read_support(folder)
    pool, asked = split(folder)
    asked = [row for row in asked if labels[row].any()][:queries]
    options = {"support_size": support_size, "tiles": times}
    segment = predictor.for_support([images[i] for i in pool], [labels[i] > 0 for i in pool], **options)
    started = time.perf_counter()
    found = [segment(images[i]).mask > 0 for i in asked]
    seconds = (time.perf_counter() - started) / len(asked)
    row = {"benchmark": "tiles", "folder": folder.name, "times": times, "support_size": support_size}
    row |= {"pool": len(pool), "queries": len(asked)}
    row["dice"] = round(float(np.mean([dice(f, labels[i] > 0) for f, i in zip(found, asked, strict=True)])), 4)
    row["bound"] = round(float(np.mean([bound(labels[i] > 0) for i in asked])), 4)
    share = segment.support.closer.share if times else 1.0
    return row | {"share_of_first_look": share, "seconds_a_query": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--folders", required=True, help="comma-separated; every id counts as the structure")
    parser.add_argument("--times", default="0,2", help="magnifications; 0 is the first look alone")
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--support_size", type=int, default=Options.support_size)
    parser.add_argument("--out", help="append the lines there too")
    args = parser.parse_args()
    predictor = Predictor.from_checkpoint(args.checkpoint)
    for folder in map(Path, args.folders.split(",")):
        for times in map(int, args.times.split(",")):
            write_line(measure(predictor, folder, times, args.queries, args.support_size), args.out)


if __name__ == "__main__":
    main()
