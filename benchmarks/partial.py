"""Dice of queries from partly labelled examples, by what stands in for the missing labels; one JSON object per line.

    python -m benchmarks.partial --checkpoint small --data_dir DATA --out results.jsonl

Of each `val` dataset's most frequent label, up to --queries images of half of the subjects are queries, and --examples
images of other subjects the examples. Of every example a part is left unlabelled: a random half plane of half of the
area ("half"), every second block of 16x16 pixels at random ("blocks"), or all but a few discs of 9 pixels, half of them
on the structure ("scribbles"). The choice of universeg_jax/prediction/partial.py follows from these numbers.
"""

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.annotation import read_set
from benchmarks.lines import write_line
from universeg_jax.prediction.check import dice_scores
from universeg_jax.prediction.options import Options
from universeg_jax.prediction.partial import filled_masks
from universeg_jax.prediction.predictor import Predictor, Segmenter
from universeg_jax.prediction.support import Support

SETS = "chaos_ct_liver,chasedb1_vessels,kvasir_polyp_mini,monuseg,stu_breast_us"
IMAGES = 96  # read of a dataset
DISCS, RADIUS = 6, 4.5
PATTERNS = ("half", "blocks", "scribbles")


def without_labels(pattern: str, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bool [H, W]: pixels of a mask [H, W] that are left unlabelled."""
    rows, columns = np.indices(mask.shape)
    if pattern == "half":
        angle = rng.uniform(0, 2 * np.pi)
        height = np.cos(angle) * rows + np.sin(angle) * columns
        return height > np.median(height)
    if pattern == "blocks":
        blocks = rng.permutation(np.arange((len(mask) // 16) ** 2) % 2).reshape((len(mask) // 16, -1))
        return blocks.repeat(16, 0).repeat(16, 1) > 0
    labelled = np.zeros(mask.shape, bool)
    for part in (mask > 0, mask == 0):
        places = np.argwhere(part)
        for row, column in places[rng.permutation(len(places))[: DISCS // 2]]:
            labelled |= np.hypot(rows - row, columns - column) <= RADIUS
    return ~labelled


def partly(support: Support, pattern: str) -> Support:
    seed = int.from_bytes(hashlib.sha256(support.names[0].encode()).digest()[:4], "big")
    rng = np.random.default_rng(seed)
    return replace(support, ignored=np.stack([without_labels(pattern, mask, rng) for mask in support.masks[0]]))


def split(everything: Support, count: int, queries: int) -> tuple[Support, Support]:
    """(examples, queries) of different subjects, evenly spaced."""
    picked = np.array([hashlib.sha256(s.encode()).digest()[0] % 2 for s in everything.subjects]) > 0
    parts = []
    for rows, most in ((np.flatnonzero(~picked), count), (np.flatnonzero(picked), queries)):
        places = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)
        parts.append(everything.take(rows[np.unique(places)]))
    return parts[0], parts[1]


# Method → masks float32 [1, N, 128, 128] of a partly labelled support set.
METHODS: dict[str, Callable[[Segmenter, Support], np.ndarray]] = {
    "background": lambda segmenter, support: support.masks.astype(np.float32),
    "unknown": lambda segmenter, support: fill(segmenter, support, 0.5, 0),
    "rate": lambda segmenter, support: fill(segmenter, support, None, 0),
    "hard": lambda segmenter, support: fill(segmenter, support, None, 1),
    "hard from background": lambda segmenter, support: fill(segmenter, support, 0, 1),
    "hard from unknown": lambda segmenter, support: fill(segmenter, support, 0.5, 1),
    "hard twice": lambda segmenter, support: fill(segmenter, support, None, 2),
    "soft": lambda segmenter, support: fill(segmenter, support, None, 1, True),
}


def fill(segmenter: Segmenter, support: Support, start: float | None, rounds: int, soft: bool = False) -> np.ndarray:
    return filled_masks(support, segmenter.by_masks, segmenter.options, start, rounds, soft)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--sets", default=SETS)
    parser.add_argument("--patterns", default=",".join(PATTERNS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--queries", type=int, default=16, help="of each dataset")
    parser.add_argument("--out", help="append the lines there too")
    args = parser.parse_args()
    predictor, means = Predictor.from_checkpoint(args.checkpoint), defaultdict(list)
    for name in args.sets.split(","):
        examples, queries = split(read_set(args.data_dir, name, IMAGES), args.examples, args.queries)
        about = {"benchmark": "partial", "checkpoint": args.checkpoint, "dataset": name, "examples": len(examples)}
        rows = np.tile(np.arange(len(examples)), (len(queries), 1, 1))
        segmenter = predictor.segmenter(examples, Options(support_size=len(examples)))

        def score(masks: np.ndarray) -> float:
            p = segmenter.by_masks(masks, queries.images, rows)  # noqa: B023
            return round(float(np.nanmean(dice_scores(p, queries))), 4)  # noqa: B023

        full = score(examples.masks)
        write_line({**about, "queries": len(queries), "method": "full", "dice": full}, args.out)
        means["full", ""].append(full)
        for pattern in args.patterns.split(","):
            support = partly(examples, pattern)
            segmenter = predictor.segmenter(support, Options(support_size=len(examples)))
            for method in args.methods.split(","):
                dice = score(METHODS[method](segmenter, support))
                ignored = round(float(support.ignored.mean()), 3)
                write_line({**about, "pattern": pattern, "ignored": ignored, "method": method, "dice": dice}, args.out)
                means[method, pattern].append(dice)
    for (method, pattern), values in means.items():
        row = {"benchmark": "partial", "mean": True, "pattern": pattern, "method": method, "datasets": len(values)}
        write_line({**row, "dice": round(float(np.mean(values)), 4)}, args.out)


if __name__ == "__main__":
    main()
