"""Compares rules that choose the support examples from a larger folder by Dice, one JSON object per line.

    python -m benchmarks.choose --checkpoint small --data DATA --out results.jsonl

Splits every `val` folder of DATA (see its splits.json) in two halves by subject: one is the support folder, up to 24
images of the other are the queries. The default of `universeg predict` follows from these numbers.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np

from benchmarks.lines import write_line
from universeg_jax.prediction.check import dice_scores
from universeg_jax.prediction.options import Options
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.prediction.selection import CHOICES
from universeg_jax.prediction.support import Support, read_support_folder

QUERIES = 24


def halves(support: Support) -> tuple[Support, Support]:
    """(support, queries) by a hash of the subject."""
    first = np.array([hashlib.sha256(s.encode()).digest()[0] % 2 == 0 for s in support.subjects])
    return support.take(np.flatnonzero(first).tolist()), support.take(np.flatnonzero(~first)[:QUERIES].tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--data", required=True)
    parser.add_argument("--sizes", default="4,8")
    parser.add_argument("--ensembles", default="1,3")
    parser.add_argument("--out", help="append the lines there too")
    args = parser.parse_args()
    predictor = Predictor.from_checkpoint(args.checkpoint)
    names = json.loads((Path(args.data) / "splits.json").read_text())["roles"]["val"]
    totals: dict[tuple, dict[str, float]] = {}
    for name in names:
        pool, queries = halves(read_support_folder(Path(args.data) / name))
        for size in map(int, args.sizes.split(",")):
            if len(pool) < 2 * size or not len(queries):
                continue
            for ensemble in map(int, args.ensembles.split(",")):
                for rule in CHOICES:
                    dices = []
                    for seed in range(3 if rule == "random" and ensemble == 1 else 1):
                        options = Options(size, ensemble, rule, seed=seed)
                        probabilities = predictor.segmenter(pool, options).probabilities(queries.images)
                        dices.append(np.nanmean(dice_scores(probabilities, queries), 1).mean())
                    totals.setdefault((size, ensemble, rule), {})[name] = float(np.mean(dices))
    for (size, ensemble, rule), by_name in totals.items():
        row = {"benchmark": "choose", "support_size": size, "ensemble": ensemble, "choose": rule}
        row |= {"datasets": len(by_name), "mean_dice": round(float(np.mean(list(by_name.values()))), 4)}
        row["dice"] = {name: round(d, 3) for name, d in by_name.items()}
        write_line(row, args.out)


if __name__ == "__main__":
    main()
