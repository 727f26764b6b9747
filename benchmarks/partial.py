"""Dice of queries from partly labelled examples, by what is done without labels; one JSON object per line.

    python -m benchmarks.partial --checkpoint small --data_dir DATA --out results.jsonl

Each `val` dataset gives one task, its most frequent label: up to --queries images of half of the subjects are
queries, and --examples images of other subjects are examples. A part of every example is left unlabelled: a random
half plane of half of the area ("half"), every second block of 16x16 pixels at random ("blocks"), or all but a few
discs of 9 pixels, half of them on the structure ("scribbles"). Methods: pixels without a label are background; have
the share of foreground of the others as their label; have the label that the other examples predict; or count for
nothing in matching and as that share elsewhere, which is what the model does ("weights"). "full" has all labels.
"""

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.annotation import read_set
from benchmarks.lines import write_line
from universeg_jax.prediction.check import dice_scores
from universeg_jax.prediction.options import Options
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


def shares(support: Support) -> np.ndarray:
    """Masks float32 [1, N, 128, 128] in which a pixel without a label has the share of foreground of the others."""
    share = support.masks.sum() / np.broadcast_to(support.known, support.images.shape).sum()
    return np.where(support.known, support.masks, share).astype(np.float32)


def filled(segmenter: Segmenter) -> np.ndarray:
    """Masks in which a pixel without a label has the one that the other examples predict."""
    support = segmenter.support
    rows = np.stack([np.delete(np.arange(len(support)), i) for i in range(len(support))])[:, None]
    p = segment(segmenter, shares(support), support.images, rows).swapaxes(0, 1)
    return np.where(support.known, support.masks, p >= 0.5).astype(np.float32)


def segment(segmenter: Segmenter, masks: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Probabilities [Q, 1, 128, 128] with masks [1, N, 128, 128] in which each pixel counts fully."""
    inputs = (queries[..., None], segmenter.images, masks[..., None], segmenter.keys_of(rows), rows)
    return segmenter.predictor.forward(segmenter.predictor.params, *inputs, False, False)


# Method → probabilities of queries [Q, 128, 128]; rows [Q, 1, S] are all examples for each.
METHODS: dict[str, Callable[[Segmenter, np.ndarray, np.ndarray], np.ndarray]] = {
    "background": lambda s, queries, rows: segment(s, s.support.masks.astype(np.float32), queries, rows),
    "share": lambda s, queries, rows: segment(s, shares(s.support), queries, rows),
    "filled": lambda s, queries, rows: segment(s, filled(s), queries, rows),
    "weights": lambda s, queries, rows: s.by_rows(queries, rows),
}


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
        about["queries"] = len(queries)
        rows = np.tile(np.arange(len(examples)), (len(queries), 1, 1))
        options = Options(support_size=len(examples))

        def measure(segmenter: Segmenter, method: str, pattern: str, **more: Any) -> None:
            p = METHODS[method](segmenter, queries.images, rows)  # noqa: B023
            dice = float(np.nanmean(dice_scores(p, queries)))  # noqa: B023
            name = method if pattern else "full"
            means[name, pattern].append(dice)
            write_line({**about, "method": name, "pattern": pattern, **more, "dice": round(dice, 4)}, args.out)  # noqa: B023

        measure(predictor.segmenter(examples, options), "background", "")
        for pattern in args.patterns.split(","):
            segmenter = predictor.segmenter(partly(examples, pattern), options)
            for method in args.methods.split(","):
                measure(segmenter, method, pattern, ignored=round(float((~segmenter.support.known).mean()), 3))
    for (method, pattern), values in means.items():
        row = {"benchmark": "partial", "mean": True, "pattern": pattern, "method": method, "datasets": len(values)}
        write_line({**row, "dice": round(float(np.mean(values)), 4)}, args.out)


if __name__ == "__main__":
    main()
