"""Compares numbers of support examples, and rules that choose them from a larger folder, by Dice; JSON lines.

    python -m benchmarks.choose --checkpoint small --data DATA --sizes 8,16,32,64 --out results.jsonl
    python -m benchmarks.choose --volumes FOLDER --sizes 8,16,32,64 --queries 4 --out results.jsonl

The first reads every `val` folder of DATA (see its splits.json) or those of --names, and takes as queries up to
--queries images of half of its subjects; the images of all other subjects are the support folder. The second reads a
folder of volumes: the first --supports of them are the support, the next --queries are segmented whole and scored on
their own grid. The defaults of `universeg predict` follow from these numbers.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.lines import write_line
from universeg_jax.evaluation.metrics import dice_on_host
from universeg_jax.prediction.check import dice_scores
from universeg_jax.prediction.options import Options
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.prediction.selection import CHOICES
from universeg_jax.prediction.support import Support, case_names, read_support_folder
from universeg_jax.readers.cases import ids_of, mask_of, read_volume_pair
from universeg_jax.readers.folder import read_folder

Totals = dict[tuple[int, int, str], dict[str, float]]  # (support size, ensemble, rule) → folder or volume → Dice


def split(support: Support, count: int) -> tuple[Support, Support]:
    """(support, queries): queries are of the half of the subjects that a hash picks, supports of no query's subject."""
    picked = [hashlib.sha256(s.encode()).digest()[0] % 2 for s in support.subjects]
    queries = np.flatnonzero(picked)[:count]
    subjects = {support.subjects[i] for i in queries}
    pool = [i for i, subject in enumerate(support.subjects) if subject not in subjects]
    return support.take(pool), support.take(queries)


def dice_of_images(predictor: Predictor, pool: Support, queries: Support, options: Options) -> float:
    probabilities = predictor.segmenter(pool, options).probabilities(queries.images)
    return float(np.nanmean(dice_scores(probabilities, queries), 1).mean())


def measure_folders(predictor: Predictor, folders: Sequence[Path], args: argparse.Namespace) -> Totals:
    totals: Totals = {}
    for folder in folders:
        pool, queries = split(read_support_folder(folder), args.queries)
        for size, ensemble, rule in settings(args):
            if len(queries) and len(pool) > min(args.sizes):
                seeds = range(3 if rule == "random" and ensemble == 1 else 1)
                dices = [
                    dice_of_images(predictor, pool, queries, Options(size, ensemble, rule, seed=seed)) for seed in seeds
                ]
                totals.setdefault((size, ensemble, rule), {})[folder.name] = float(np.mean(dices))
                print(f"{folder.name}, pool of {len(pool)}, size {size}: {100 * np.mean(dices):.1f}", flush=True)
    return totals


def measure_volumes(predictor: Predictor, folder: Path, args: argparse.Namespace) -> Totals:
    """Mean Dice over the labels of each query volume, on its own grid."""
    everything = read_support_folder(folder)
    cases = read_folder(folder).cases
    names = [case.name for case in cases[: args.supports]]
    support = everything.take(np.flatnonzero(np.isin(case_names(everything), names)))
    totals: Totals = {}
    for case in cases[args.supports : args.supports + args.queries]:
        volume, ids = read_volume_pair(case)
        for size, ensemble, rule in settings(args):
            prediction = predictor.segmenter(support, Options(size, ensemble, rule)).volume(volume)
            pairs = [(prediction.of(i)[0], mask_of(ids, i, volume.shape)) for i in support.labels if i in ids_of(ids)]
            dice = float(np.mean([dice_on_host(p.reshape(len(p), -1), m.reshape(len(p), -1)) for p, m in pairs]))
            totals.setdefault((size, ensemble, rule), {})[case.name] = dice
            print(f"{case.name}, {len(support)} slices, size {size}: {100 * dice:.1f}", flush=True)
    return totals


def settings(args: argparse.Namespace) -> list[tuple[int, int, str]]:
    return [(size, ensemble, rule) for size in args.sizes for ensemble in args.ensembles for rule in args.rules]


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="folder of dataset folders")
    what.add_argument("--volumes", type=Path, help="folder with images/ and labels/ of volumes")
    parser.add_argument("--names", default="", help="of DATA, comma-separated (default: all of role val)")
    parser.add_argument("--sizes", type=numbers, default=[4, 8])
    parser.add_argument("--ensembles", type=numbers, default=[1])
    parser.add_argument("--rules", type=lambda text: text.split(","), default=["nearest"], help=", ".join(CHOICES))
    parser.add_argument("--queries", type=int, default=24)
    parser.add_argument("--supports", type=int, default=3, help="volumes in the support set")
    parser.add_argument("--out", help="append the lines there too")
    args = parser.parse_args()
    predictor = Predictor.from_checkpoint(args.checkpoint)
    if args.volumes:
        totals = measure_volumes(predictor, args.volumes, args)
    else:
        roles = json.loads((args.data / "splits.json").read_text())["roles"]
        names = args.names.split(",") if args.names else roles["val"]
        totals = measure_folders(predictor, [args.data / name for name in names], args)
    for (size, ensemble, rule), by_name in totals.items():
        row = {"benchmark": "choose", "support_size": size, "ensemble": ensemble, "choose": rule}
        row |= {"datasets": len(by_name), "mean_dice": round(float(np.mean(list(by_name.values()))), 4)}
        row["dice"] = {name: round(d, 3) for name, d in by_name.items()}
        write_line(row, args.out)


if __name__ == "__main__":
    main()
