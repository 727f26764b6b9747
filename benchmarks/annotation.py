"""Simulates annotation from zero labels: mean Dice of what is left after so many labels, one JSON object per line.

    python -m benchmarks.annotation --checkpoint small --data_dir DATA --out results.jsonl

Each set gives up to 24 images of its most frequent label. A policy says which image is labelled next; its true label
joins the support, and the others are predicted. "doubt" looks again after every fourth label. Also measured is the work
that correcting a prediction saves against drawing from nothing: pixels to change, against pixels to mark; and points of
the outline more than a pixel from the predicted one, against all of them. Only datasets with the role `val` are taken.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from benchmarks.lines import write_line
from universeg_jax.annotation.features import image_features
from universeg_jax.annotation.policy import FIRST, POLICIES, choose
from universeg_jax.data.dataset import open_dataset
from universeg_jax.errors import UserError
from universeg_jax.evaluation.intervals import CaseScores, interval, paired
from universeg_jax.evaluation.metrics import dice_on_host
from universeg_jax.prediction.options import Options
from universeg_jax.prediction.predictor import Predictor, Segmenter
from universeg_jax.prediction.selection import thumbnails
from universeg_jax.prediction.support import Support
from universeg_jax.reports.files import read_json_lines
from universeg_jax.reports.overlay import outline

SETS = "camus_echo,chasedb1_vessels,fh_ps_aop_us,ph2_dermoscopy,shenzhen_cxr_lungs"
COUNTS = (1, 2, 4, 8, 16)  # labels
IMAGES = 24
LOOKS = 4  # labels after which "doubt" looks at the predictions again
NEAR = 1.5  # pixels


def read_set(data_dir: str, name: str, count: int) -> Support:
    """Evenly spaced images of the dataset's most frequent label, in the order of its cases."""
    dataset = open_dataset(data_dir, name)
    if dataset.meta.role != "val":
        raise UserError(f"{name} has the role {dataset.meta.role}: choose datasets with the role val")
    index = dataset.index
    label = int(np.bincount(index.mask_label[index.mask_area > 0]).argmax())
    places = np.flatnonzero((index.mask_label == label) & (index.mask_area > 0))
    places = places[np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int))]
    rows = index.mask_row[places]
    images, masks = dataset.gather(rows, index.mask_position[places])
    subjects = tuple(index.subjects[index.subject[row]] for row in rows)
    names = tuple(f"{name} {row}" for row in rows)
    return Support(images.astype(np.float32) / 255, masks[None], (label,), names, subjects)


def segment(segmenter: Segmenter, queries: np.ndarray, labelled: list[int]) -> np.ndarray:
    """Probabilities [Q, 128, 128] of the rows `queries` from the rows `labelled`, padded to a power of two."""
    size = 1 << (len(labelled) - 1).bit_length()
    rows = np.array([*labelled, *[-1] * (size - len(labelled))])
    return segmenter.by_rows(segmenter.support.images[queries], np.tile(rows, (len(queries), 1, 1)))[:, 0]


def expected_dice(probabilities: np.ndarray) -> np.ndarray:
    """The Dice [Q] that the model expects of its masks; 0 where one is empty (as `Prediction.confidence`)."""
    mask = probabilities >= 0.5
    return 2 * (probabilities * mask).sum((1, 2)) / (probabilities.sum((1, 2)) + mask.sum((1, 2)))


def work(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares [Q] of the pixels, and of the points of the outline, that a prediction saves; below 0 where it costs."""
    mask, true = probabilities >= 0.5, truth > 0
    pixels = 1 - (mask != true).sum((1, 2)) / true.sum((1, 2))
    points = []
    for m, t in zip(mask, true, strict=True):
        edge = outline(t)
        far = distance_transform_edt(~outline(m)) > NEAR if m.any() else np.ones_like(t)
        points.append(1 - (edge & far).sum() / edge.sum())
    return pixels, np.array(points)


def simulate(predictor: Predictor, pool: Support, policy: str, features: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """A row for each image that is left at each of COUNTS."""
    segmenter = predictor.segmenter(pool, Options())
    labelled: list[int] = []
    doubts: dict[int, float] = {}
    scores = []
    while len(labelled) < max(COUNTS) and len(labelled) < len(pool) - 1:
        left = [row for row in range(len(pool)) if row not in labelled]
        if policy == "doubt" and len(labelled) >= FIRST and (len(labelled) - FIRST) % LOOKS == 0:
            doubts = dict(zip(left, expected_dice(segment(segmenter, np.array(left), labelled)), strict=True))
        known = np.array([doubts.get(row, np.nan) for row in left])
        labelled.append(choose(policy, left, labelled, lambda: features, lambda known=known: known, seed))
        if len(labelled) in COUNTS:
            rest = np.array([row for row in range(len(pool)) if row not in labelled])
            p, truth = segment(segmenter, rest, labelled), pool.masks[0][rest]
            pixels, points = work(p, truth)
            for i, row in enumerate(rest):
                dice = float(dice_on_host(p[i] >= 0.5, truth[i]))
                scores.append(
                    {"labels": len(labelled), "row": int(row), "subject": pool.subjects[row], "dice": dice}
                    | {"pixels": float(pixels[i]), "points": float(points[i])}
                )
    return scores


def summarise(results: dict[tuple[str, str], list[dict[str, Any]]], policies: list[str], out: str | None) -> None:
    """A line for each policy and number of labels, over all sets."""
    for policy in policies:
        for count in COUNTS:
            here = [
                (name, row) for (name, which), rows in results.items() if which == policy for row in rows
                if row["labels"] == count
            ]  # fmt: skip
            if not here:
                continue
            names, subjects = [name for name, _ in here], [row["subject"] for _, row in here]
            line: dict[str, Any] = {"benchmark": "annotation", "policy": policy, "labels": count}
            for value in ("dice", "pixels", "points"):
                found = interval(CaseScores(names, names, subjects, [row[value] for _, row in here]))
                estimate = found.overall
                line[value] = [round(x, 4) for x in (estimate.mean, estimate.low, estimate.high)]
                if value == "dice":
                    line["sets"] = {name: round(each.mean, 4) for name, each in found.by_dataset.items()}
            line["images_left"] = len(here)
            if policy != "order" and (both := _paired(results, policy, count)):
                line["dice_against_order"] = both
            write_line(line, out)


def _paired(results: dict[tuple[str, str], list[dict[str, Any]]], policy: str, count: int) -> list[float] | None:
    """The difference to "order" on the images that both leave, with its interval and p."""
    columns: dict[str, list[Any]] = defaultdict(list)
    for (name, which), rows in results.items():
        if which != policy:
            continue
        base = {row["row"]: row["dice"] for row in results[name, "order"] if row["labels"] == count}
        for row in rows:
            if row["labels"] == count and row["row"] in base:
                for key, value in zip("nsab", (name, row["subject"], base[row["row"]], row["dice"]), strict=True):
                    columns[key].append(value)
    if not columns:
        return None
    a, b = (CaseScores(columns["n"], columns["n"], columns["s"], columns[key]) for key in "ab")
    found = paired(a, b).overall
    return [round(x, 4) for x in (found.mean, found.low, found.high, found.p)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--data_dir", required=True, help="built datasets")
    parser.add_argument("--sets", default=SETS)
    parser.add_argument("--images", type=int, default=IMAGES, help="of each set")
    parser.add_argument("--seeds", type=int, default=1, help="of the policy random")
    parser.add_argument("--rows", help="file for a line of each image and number of labels, from which a rerun resumes")
    parser.add_argument("--thumbnails", action="store_true", help="also k-centre over thumbnails of the images")
    parser.add_argument("--out", help="append the lines there too")
    args = parser.parse_args()
    predictor = Predictor.from_checkpoint(args.checkpoint)
    policies = [*POLICIES, *(["thumbnails"] if args.thumbnails else [])]
    kept = read_json_lines(Path(args.rows)) if args.rows else []
    results: dict[tuple[str, str], list[dict[str, Any]]] = {(k["set"], k["policy"]): k["rows"] for k in kept}
    for name in args.sets.split(","):
        pool, start = read_set(args.data_dir, name, args.images), time.time()
        features = image_features(predictor, pool.images)
        for policy in policies:
            if (name, policy) in results:
                continue
            seen = thumbnails(pool.images) if policy == "thumbnails" else features
            rule = "diverse" if policy == "thumbnails" else policy
            seeds = range(args.seeds if policy == "random" else 1)
            results[name, policy] = [row for seed in seeds for row in simulate(predictor, pool, rule, seen, seed)]
            if args.rows:
                with Path(args.rows).open("a") as file:
                    file.write(json.dumps({"set": name, "policy": policy, "rows": results[name, policy]}) + "\n")
            print(f"# {name} {policy}: {time.time() - start:.0f} s", flush=True)
    summarise(results, policies, args.out)


if __name__ == "__main__":
    main()
