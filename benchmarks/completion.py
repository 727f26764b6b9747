"""Completes volumes of which every n-th slice is labelled, by several methods, one JSON object per line.

    python -m benchmarks.completion --data DATA/volumes --steps 4,8,16 --out results.jsonl

Takes every volume of DATA whose meta.json names an `axis`, and labels every n-th slice along it and the last one.
Scores the slices between: the mean 3D Dice over the up to six largest labels, and their mean HD95 in mm, gap by gap.

interpolation: signed distances between the two labelled slices. nearest: a copy of the nearest labelled slice. motion:
the interpolation, carried along with the image. network: the network alone. sum: both, with one weight for all labels.
full: `universeg complete`, which chooses the parts for each label. `--gaps 2` scores at most two gaps of each volume,
evenly spread, which bounds the time; so does `--labels`.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lines import write_line
from universeg_jax.evaluation.metrics import dice_on_host
from universeg_jax.evaluation.surfaces import surface_scores
from universeg_jax.prediction.between import CompletionOptions, Labelled, Setting, choose_mixes, fill_gap
from universeg_jax.prediction.gaps import Gap, find_gaps
from universeg_jax.prediction.motion import Motion
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.readers.file_names import extension, stem
from universeg_jax.readers.notes import collect
from universeg_jax.readers.preprocess import apply_window
from universeg_jax.readers.slices import guess_window
from universeg_jax.readers.volume_files import read_label_volume, read_volume

METHODS = {
    "interpolation": CompletionOptions(motion=False, network=False, smooth=0),
    "motion": CompletionOptions(network=False, smooth=0),
    "network": CompletionOptions(distance_weight=0, smooth=0, choose=False),
    "sum": CompletionOptions(choose=False),
    "full": CompletionOptions(),
}


@dataclass(frozen=True)
class Scan:
    """A labelled volume along its axis."""

    name: str
    planes: np.ndarray  # float32 [N, H, W] in [0, 1]
    ids: np.ndarray  # int32 [N, H, W], the labels to score alone
    spacing: tuple[float, float, float]  # mm, of [N, H, W]


class Remembering:
    """A predictor that computes the logits of the same input once, since methods share them."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.config = predictor, predictor.config
        self.known: dict[bytes, Any] = {}

    def logits(self, *inputs: np.ndarray) -> Any:
        key = b"".join(np.ascontiguousarray(array).tobytes() for array in (inputs[0], inputs[2].astype(bool)))
        if key not in self.known:
            self.known[key] = np.asarray(self.predictor.logits(*inputs))
        return self.known[key]


def read_scans(folder: Path, labels: int) -> Iterator[Scan]:
    for meta in sorted(folder.glob("*/meta.json")):
        axis = json.loads(meta.read_text()).get("axis")
        for path in sorted(meta.parent.glob("*_image.*")) if axis is not None else []:
            with collect():
                image = read_volume(path)
                label = read_label_volume(path.with_name(path.name.replace("_image", "_label")))
                planes = apply_window(image.data, guess_window(image))
            # A TIFF's first axis are its pages, which are read as the last one.
            along = 2 - axis if extension(path) == ".tif" else int(image.axes[axis, 0])
            ids, counts = np.unique(label.data[label.data > 0], return_counts=True)
            largest = ids[np.argsort(-counts, kind="stable")[:labels]]
            kept = np.where(np.isin(label.data, largest), label.data, 0)
            a, b = (other for other in range(3) if other != along)
            spacing = (image.spacing[along], image.spacing[a], image.spacing[b])
            planes, kept = (np.ascontiguousarray(np.moveaxis(x, along, 0)) for x in (planes, kept))
            yield Scan(f"{meta.parent.name}/{stem(path).removesuffix('_image')}", planes, kept, spacing)


def nearest(scan: Scan, gap: Gap) -> np.ndarray:
    assert gap.before is not None
    assert gap.after is not None
    return np.stack([scan.ids[gap.before if s <= 0.5 else gap.after] for s in gap.shares()])


def score(scan: Scan, found: list[tuple[Gap, np.ndarray]]) -> dict[str, float]:
    """Mean Dice over the labels, and mean HD95 over gaps and the labels in them."""
    dices, distances = [], []
    truth, ours = np.concatenate([scan.ids[g.start : g.stop] for g, _ in found]), np.concatenate([f for _, f in found])
    for label in np.unique(truth[truth > 0]):
        dices.append(float(dice_on_host(ours == label, truth == label, (0, 1, 2))))
        for gap, ids in found:
            if (scan.ids[gap.start : gap.stop] == label).any():
                block = [scan.ids[[gap.before]], ids, scan.ids[[gap.after]]]
                masks = np.concatenate(block) == label, scan.ids[gap.before : gap.stop + 1] == label
                distances.append(surface_scores(*masks, scan.spacing, 0)[0])
    return {"dice": round(100 * float(np.mean(dices)), 2), "hd95": round(float(np.mean(distances)), 3)}


def measure(predictor: Predictor, scan: Scan, step: int, gaps: int, methods: list[str]) -> dict[str, Any]:
    slices = tuple(sorted({*range(0, len(scan.ids), step), len(scan.ids) - 1}))
    chosen = [gap for gap in find_gaps(slices, len(scan.ids)) if scan.ids[gap.start : gap.stop].any()]
    if gaps and len(chosen) > gaps:
        chosen = [chosen[i] for i in ((np.arange(gaps) + 0.5) * len(chosen) / gaps).astype(int)]
    hidden = np.zeros_like(scan.ids)
    hidden[list(slices)] = scan.ids[list(slices)]
    volume, motion, remembering = Labelled(scan.planes, hidden, slices), Motion(scan.planes), Remembering(predictor)
    row: dict[str, Any] = {"benchmark": "completion", "volume": scan.name, "step": step, "gaps": len(chosen)}
    row["nearest"] = score(scan, [(gap, nearest(scan, gap)) for gap in chosen])
    setting = Setting(remembering, volume, motion, None, CompletionOptions())  # type: ignore[arg-type]
    mixes = choose_mixes(setting) if "full" in methods else {}
    row["mixes"] = {label: [mix.moved, mix.weight] for label, mix in mixes.items()}
    found: dict[str, list[tuple[Gap, np.ndarray]]] = {name: [] for name in methods}
    start = time.perf_counter()
    for gap in chosen:
        remembering.known.clear()
        motion.forget()
        for name in methods:
            setting = replace(
                setting, options=METHODS[name], mixes=mixes if METHODS[name].choose and METHODS[name].network else {}
            )
            found[name].append((gap, fill_gap(setting, gap).ids))
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row | {name: score(scan, each) for name, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--steps", default="4,8,16")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--labels", type=int, default=6, help="number of the largest labels")
    parser.add_argument("--gaps", type=int, default=0, help="score at most so many of a volume (default: all)")
    parser.add_argument("--out", help="append the lines there too")
    args = parser.parse_args()
    predictor, methods = Predictor.from_checkpoint(args.checkpoint), args.methods.split(",")
    for step in map(int, args.steps.split(",")):
        rows = []
        for scan in read_scans(args.data, args.labels):
            rows.append(measure(predictor, scan, step, args.gaps, methods))
            write_line(rows[-1], args.out)
        mean: dict[str, Any] = {"benchmark": "completion", "volume": "mean", "step": step, "volumes": len(rows)}
        for name in ("nearest", *methods):
            mean[name] = {key: round(float(np.mean([row[name][key] for row in rows])), 2) for key in ("dice", "hd95")}
        write_line(mean, args.out)


if __name__ == "__main__":
    main()
