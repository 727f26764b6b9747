"""Counts the planted mistakes that `universeg check` finds, one JSON object per folder and kind.

    python -m benchmarks.check --checkpoint small --folders DATA/shenzhen_cxr_lungs,DATA/lung_ct_mini --out a.jsonl

For each kind, ten sets of sixteen examples of different subjects are sampled from a folder, and one example is spoilt.
It counts as found if any finding names it; findings that name other examples are false alarms. Folders with a
leave-one-out Dice below 0.6 are reported and skipped. Use `val` folders, since check.py may be tuned on these numbers.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.lines import write_line
from universeg_jax.prediction.check import check
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.prediction.support import Support, read_support_folder

COUNT = 16
KINDS = ("none", "empty", "inverted", "shifted", "another's label", "swapped", "duplicate")


def spoil(support: Support, kind: str, rng: np.random.Generator) -> tuple[Support, int] | None:
    """(the set with one spoilt example, its index), or None if this kind of mistake is impossible."""
    present = np.flatnonzero(support.masks.any((0, 2, 3)))
    if kind == "swapped":
        present = np.flatnonzero(support.masks.any((2, 3)).all(0)) if len(support.labels) > 1 else present[:0]
    if not len(present):
        return None
    i, j = int(rng.choice(present)), int(rng.integers(len(support)))
    images, masks = support.images.copy(), support.masks.copy()
    if kind == "empty":
        masks[:, i] = 0
    elif kind == "inverted":
        masks[:, i] = 1 - masks[:, i]
    elif kind == "shifted":  # by 10 to 25 % of the side
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.25) * masks.shape[-1]
        down, across = (round(distance * x) for x in (np.sin(angle), np.cos(angle)))
        size = masks.shape[-1]
        wide = np.pad(masks[:, i], ((0, 0), (size, size), (size, size)))
        masks[:, i] = wide[:, size - down : 2 * size - down, size - across : 2 * size - across]
    elif kind == "another's label":
        j = int(rng.choice([k for k in present if k != i]))
        masks[:, i] = masks[:, j]
    elif kind == "swapped":
        masks[[0, 1], i] = masks[[1, 0], i]
    elif kind == "duplicate":
        j = int(rng.choice([k for k in range(len(support)) if k != i]))
        images[i], masks[:, i] = images[j], masks[:, j]
    return replace(support, images=images, masks=masks), i


def draw_set(support: Support, rng: np.random.Generator) -> Support:
    """At most sixteen random examples, of different subjects if there are that many."""
    order = rng.permutation(len(support))
    _, first = np.unique([support.subjects[i] for i in order], return_index=True)
    rows = order[first] if len(first) >= COUNT else order
    return support.take(rng.choice(rows, min(COUNT, len(rows)), replace=False).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--folders", required=True, help="comma-separated")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--out", help="append the lines there too")
    args = parser.parse_args()
    predictor = Predictor.from_checkpoint(args.checkpoint)
    for folder in args.folders.split(","):
        support = read_support_folder(folder)
        for kind in KINDS:
            rng = np.random.default_rng(0)
            found, alarms, dices = [], [], []
            for _ in range(args.draws):
                chosen = draw_set(support, rng)
                spoilt = (chosen, -1) if kind == "none" else spoil(chosen, kind, rng)
                if spoilt is None:
                    continue
                result = check(predictor, spoilt[0], thorough=False)
                name = chosen.names[spoilt[1]] if kind != "none" else ""
                named = [f["example"] for f in result["findings"] if f["example"]]
                if kind == "duplicate":  # either of the two may be named
                    hits = [f for f in result["findings"] if f["kind"] == "duplicate"]
                    found.append(bool(hits))
                    alarms.append(len(named) - len(hits))
                else:
                    found.append(name in named)
                    alarms.append(len([n for n in named if n != name]))
                dices.append(result["dice"])
            row = {"benchmark": "check", "folder": Path(folder).name, "kind": kind, "draws": len(found)}
            if found:
                row |= {"found": sum(found), "false_alarms_a_set": round(float(np.mean(alarms)), 2)}
                row |= {"dice": round(float(np.mean(dices)), 3)}
            write_line(row, args.out)
            if kind == "none" and np.mean(dices) < 0.6:
                print(json.dumps({"folder": Path(folder).name, "left out": "leave-one-out Dice below 0.6"}), flush=True)
                break


if __name__ == "__main__":
    main()
