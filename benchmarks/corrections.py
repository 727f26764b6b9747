"""Simulates a person who corrects predicted masks stroke by stroke; Dice after each stroke as JSON lines.

    python -m benchmarks.corrections --checkpoint small --data_dir DATA --max_cases 3 --out results.jsonl

A stroke is a disc in the middle of the largest error, of at most RADIUS pixels of 128x128, that gives pixels of one
label their true label. `guided` predicts again after each stroke, from all strokes so far; `painted` only paints them.
Each puts strokes where its own mask is wrong. The support has --support_size examples of the support split. Only
datasets of role `val` are taken.
"""

import argparse
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt
from tqdm import tqdm

from benchmarks.lines import write_line
from universeg_jax.data.dataset import Dataset, list_datasets, open_dataset
from universeg_jax.data.tasks import dataset_tasks, usable
from universeg_jax.evaluation.cases import QueryCase, query_cases, sample_support, support_pool
from universeg_jax.evaluation.intervals import CaseScores, interval, paired
from universeg_jax.evaluation.metrics import dice_on_host
from universeg_jax.prediction.corrections import Strokes
from universeg_jax.prediction.options import Options
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.prediction.support import Support

RADIUS = 4.0
LABEL = 1


def stroke(mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Bool [H, W]: the pixels of the next stroke; none where the mask is right."""
    depth = distance_transform_edt(np.pad(mask != truth, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    rows, columns = np.mgrid[: len(mask), : mask.shape[1]]
    near = (rows - row) ** 2 + (columns - column) ** 2 <= min(depth[row, column], RADIUS) ** 2
    return near & (truth == truth[row, column]) & (depth.max() > 0)


def measure(predictor: Predictor, dataset: Dataset, case: QueryCase, size: int, strokes: int) -> dict[str, list[float]]:
    """Dice before and after each stroke, by name."""
    pool = support_pool(case.task)
    chosen = sample_support(case, pool, size, 0, 0)
    images, masks = dataset.gather(pool.rows[chosen], pool.positions[chosen])
    names = tuple(map(str, range(size)))
    support = Support(images.astype(np.float32) / 255, masks[None], (LABEL,), names, names)
    segmenter = predictor.segmenter(support, Options(support_size=size))
    query, rows = dataset[case.row], np.arange(size)[None]
    image, truth = query["image"].astype(np.float32) / 255, query["masks"][case.position] > 0
    guided = painted = segmenter.by_rows(image[None], rows[None])[0, 0] >= 0.5
    known = np.zeros(truth.shape, bool)
    dice = {"guided": [float(dice_on_host(guided, truth))]}
    dice["painted"] = list(dice["guided"])
    for _ in range(strokes):
        painted = np.where(stroke(painted, truth), truth, painted)
        known |= stroke(guided, truth)
        found = segmenter.guided(image, Strokes((known & truth)[None].astype(np.uint8), known), rows)[0] >= 0.5
        guided = np.where(known, truth, found)
        for name, mask in (("guided", guided), ("painted", painted)):
            dice[name].append(float(dice_on_host(mask, truth)))
    return dice


def summarise(rows: list[tuple[QueryCase, dict[str, list[float]]]], count: int) -> dict[str, Any]:
    """Means over datasets of means over tasks, with intervals over subjects, after `count` strokes."""
    sets, tasks = [case.task.dataset for case, _ in rows], [case.task.name for case, _ in rows]
    subjects = [f"{case.task.dataset} {case.subject}" for case, _ in rows]
    scores = {name: CaseScores(sets, tasks, subjects, [dice[name][count] for _, dice in rows]) for name in rows[0][1]}
    line: dict[str, Any] = {"strokes": count}
    for name, each in scores.items():
        found = interval(each)
        line[name] = [round(100 * x, 1) for x in (found.overall.mean, found.overall.low, found.overall.high)]
        line[f"{name}_sets"] = {dataset: round(100 * x.mean, 1) for dataset, x in found.by_dataset.items()}
    if count:
        gain = paired(scores["painted"], scores["guided"]).overall
        line["gain"] = [round(100 * x, 1) for x in (gain.mean, gain.low, gain.high)]
    return line


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--max_cases", type=int, default=3, help="queries of each task; 0 = all")
    parser.add_argument("--support_size", type=int, default=16)
    parser.add_argument("--strokes", type=int, default=5)
    parser.add_argument("--out", help="append the lines there too")
    args = parser.parse_args(argv)
    predictor = Predictor.from_checkpoint(args.checkpoint)
    datasets = [open_dataset(args.data_dir, name) for name in list_datasets(args.data_dir)]
    found = []
    for dataset in tqdm([d for d in datasets if d.meta.role == "val"], "datasets"):
        for task in usable(dataset_tasks(dataset)):
            for case in query_cases(task, args.max_cases):
                found.append((case, measure(predictor, dataset, case, args.support_size, args.strokes)))
    for count in range(args.strokes + 1):
        line = {"benchmark": "corrections", "checkpoint": args.checkpoint, "support_size": args.support_size}
        write_line(line | {"queries": len(found)} | summarise(found, count), args.out)


if __name__ == "__main__":
    main()
