"""Measures the gain of the second, tiled pass on images larger than 128x128, one JSON object per line.

    python -m benchmarks.tiles --folders DATA/drive_vessels,DATA/monuseg --times 2,4 --out results.jsonl

Splits the subjects of a folder like those of a `val` dataset and segments up to `--queries` query images with the whole
support side. Dice is measured at the size of the images and averaged over queries, for the first pass alone (times 0)
and for both. `bound` is the Dice of labels that are resized to 128x128 and back: the limit of the first pass.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.lines import write_line
from universeg_jax.data.dataset import DatasetMeta
from universeg_jax.data.tasks import SECOND, split_subjects
from universeg_jax.episode import OFFICIAL_SIZE
from universeg_jax.evaluation.metrics import dice_on_host
from universeg_jax.prediction.options import Options
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.readers.folder import read_folder, read_support
from universeg_jax.readers.preprocess import preprocess_mask, restore


def bound(truth: np.ndarray) -> float:
    at_size = preprocess_mask(truth, OFFICIAL_SIZE).astype(np.float32)
    return float(dice_on_host(restore(at_size, truth.shape) >= 0.5, truth))


def split(folder: Path) -> tuple[list[int], list[int]]:
    """Row numbers of (support, query)."""
    subjects = [case.subject for case in read_folder(folder).cases]
    distinct = sorted(set(subjects))
    sides = dict(zip(distinct, split_subjects(DatasetMeta(folder.name, "val", {1: "any"}, 128), distinct), strict=True))
    rows: tuple[list[int], list[int]] = ([], [])
    for row, subject in enumerate(subjects):
        rows[int(sides[subject] == SECOND)].append(row)
    return rows


def measure(predictor: Predictor, folder: Path, times: int, queries: int, support_size: int) -> dict:
    images, labels, _ = read_support(folder)
    masks_of = [np.any([*label.values()], 0) if isinstance(label, dict) else label > 0 for label in labels]
    pool, query_rows = split(folder)
    query_rows = [row for row in query_rows if masks_of[row].any()][:queries]
    options = {"support_size": support_size, "tiles": times}
    segment = predictor.for_support([images[i] for i in pool], [masks_of[i] for i in pool], **options)
    started = time.perf_counter()
    masks = [segment(images[i]).mask > 0 for i in query_rows]
    seconds = (time.perf_counter() - started) / len(query_rows)
    row = {"benchmark": "tiles", "folder": folder.name, "times": times, "support_size": support_size}
    row |= {"pool": len(pool), "queries": len(query_rows)}
    truths = [masks_of[i] for i in query_rows]
    row["dice"] = round(float(np.mean([dice_on_host(*pair) for pair in zip(masks, truths, strict=True)])), 4)
    row["bound"] = round(float(np.mean([bound(truth) for truth in truths])), 4)
    share = segment.support.tile_support.first_weight if times else 1.0
    return row | {"share_of_first_look": share, "seconds_a_query": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--folders", required=True, help="comma-separated; every id above 0 counts as the structure")
    parser.add_argument("--times", default="0,2", help="magnifications, comma-separated; 0 = first pass alone")
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
