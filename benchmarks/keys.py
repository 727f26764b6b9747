"""How much the pretrained keys find alone: guesses without a network behind them, by Dice; JSON lines.

    python -m benchmarks.keys --checkpoint small --data_dir data --role val --max_cases 6 --out results.jsonl

A guess is the average label of all support cells, weighted by exp(τ (cosine - 1)), of --support_size examples, enlarged
linearly. A guess has no scale, so each task is cut at the one threshold that is best for its queries: an upper bound,
the same for all, that says how well a guess tells foreground from background. Dice is the mean over datasets of means
over tasks.

    from scratch        the keys of the checkpoint's `matching`, 16x16 cells, which learnt from the episodes alone
    learned STRIDE      the keys of the checkpoint, the best of their heads for each task, with distance
    frozen STRIDE       the features of one stride
    normalised STRIDE   the same with mean 0 and variance 1 over each image
    columns             those of every stride joined (recognition.columns), as the network gets them
    columns, every cell the same with four times as many cells of the support
    probe               a linear probe of columns instead of an average, fitted to the support (probe.py)
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.lines import write_line
from universeg_jax.checkpoints import store
from universeg_jax.data.dataset import list_datasets, open_dataset
from universeg_jax.data.tasks import dataset_tasks, usable
from universeg_jax.episode import Array, Episode, to_device_floats
from universeg_jax.evaluation.cases import Settings, gather_episodes, query_cases
from universeg_jax.evaluation.metrics import dice_on_host
from universeg_jax.model import pretrained, probe
from universeg_jax.model.factory import build_model
from universeg_jax.model.matching import MATCHES, comparer
from universeg_jax.model.recognition import (
    COLUMN_LOCALITY,
    COLUMN_STEP,
    COLUMN_TEMPERATURE,
    SCALES,
    columns,
    enlarge,
    unit,
)

SIZE = 128
QUANTILES = np.linspace(0.1, 0.9995, 100)  # of a guess's values: thresholds
TEMPERATURE = 20.0  # of the features of one stride


def guess(query: Array, support: Array, labels: Array, temperature: Any, locality: Any) -> jax.Array:
    """[SIZE, SIZE, heads] from keys [rows, columns, heads, D] and [S, r, c, heads, D], labels [S, SIZE, SIZE, 1]."""
    rows, width, heads, _ = query.shape
    sharp, near = (jnp.broadcast_to(jnp.asarray(x, jnp.float32), heads) for x in (temperature, locality))
    compare = comparer(query.astype(jnp.float32)[None], sharp, near)
    sums = compare(support.astype(jnp.float32)[None], labels[None], jnp.ones((1, len(support))))[0]
    label = (sums[..., :-1].mean(-1) / (sums[..., -1] + 1e-12)).reshape((heads, rows, width))
    return jax.image.resize(jnp.moveaxis(label, 0, -1), (SIZE, SIZE, heads), "linear")


def normalised(x: Array) -> Array:
    return (x - x.mean((-3, -2), keepdims=True)) / (x.std((-3, -2), keepdims=True) + 1e-2)


def guesses(model: Any, params: Any, episode: Episode) -> dict[str, jax.Array]:
    """Name → [SIZE, SIZE, heads] of the one case of an episode."""
    query, images, labels = episode.query_image, episode.support_images, episode.support_labels[0]
    found = {}
    if params is not None:
        keys = [model.apply({"params": params}, *x, method="keys_of") for x in ((query,), (images, True))]
        if model.matching:  # whose keys come first, those of cells before those of pixels
            (asked, *_), (given, *_) = keys
            keys = [k[len(MATCHES) :] for k in keys]
            sharpness = [jnp.exp(params["matches_0"][f"log_{x}"]) for x in ("temperature", "locality")]
            found["from scratch"] = guess(asked[0], given[0], labels, *sharpness)
        for scale, asked, given in zip(SCALES, *keys, strict=False):
            sharpness = [jnp.exp(params["recognition"][f"log_{x}_{scale.stride}"]) for x in ("temperature", "locality")]
            found[f"learned {scale.stride}"] = guess(asked[0], given[0], labels, *sharpness)
    asked, given = pretrained.features(enlarge(query)), pretrained.features(enlarge(images[0]))
    for stride in asked:
        step = 2 if stride == 8 else 1
        for name, change in (("frozen", lambda x: x), ("normalised", normalised)):
            pair = [unit(change(x))[..., None, :] for x in (asked[stride][0], given[stride])]
            found[f"{name} {stride}"] = guess(pair[0], pair[1][:, ::step, ::step], labels, TEMPERATURE, 0.0)
    q, s = columns(asked)[0], columns(given)
    entries = jnp.concatenate([images, labels[None]], -1)
    weights = jnp.full((1, len(labels)), 1 / len(labels))
    sums = probe.moments(s[None, :, ::COLUMN_STEP, ::COLUMN_STEP], entries, weights, SIZE // q.shape[0])
    found["probe"] = jax.image.resize(probe.probed(q[None], *sums)[0, ..., :1], (SIZE, SIZE, 1), "linear")
    for name, step in (("columns", COLUMN_STEP), ("columns, every cell", 1)):
        found[name] = guess(q, s[:, ::step, ::step], labels, COLUMN_TEMPERATURE, COLUMN_LOCALITY)
    return found


def best_dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean Dice of guesses [N, SIZE, SIZE] at the one threshold that is best for all of them."""
    thresholds = np.unique(np.quantile(found, QUANTILES))
    return max(float(dice_on_host(found >= t, truth).mean()) for t in thresholds)


def measure(args: argparse.Namespace, function: Callable[[Episode], dict[str, jax.Array]]) -> dict[str, dict[str, Any]]:
    """Name of a guess → dataset → Dice."""
    settings = Settings(support_sizes=(args.support_size,), max_cases=args.max_cases, batch_size=1)
    datasets = [open_dataset(args.data_dir, name) for name in list_datasets(args.data_dir)]
    totals: dict[str, dict[str, Any]] = {}
    for dataset in tqdm([d for d in datasets if d.meta.role == args.role], "datasets"):
        scores: dict[str, list[float]] = {}
        for task in usable(dataset_tasks(dataset)):
            seen: dict[str, list[np.ndarray]] = {}
            truth = []
            for case in query_cases(task, args.max_cases):
                episode, _ = gather_episodes([case], {dataset.meta.name: dataset}, settings, args.support_size, 1)
                floats = to_device_floats(episode._replace(**{x: getattr(episode, x)[:, 0] for x in DRAWN}), SIZE)
                truth.append(np.asarray(floats.query_label[0, ..., 0]) > 0)
                for name, x in function(floats).items():
                    seen.setdefault(name, []).append(np.asarray(x))
            for name, x in seen.items():
                heads = np.moveaxis(np.stack(x), -1, 0)
                scores.setdefault(name, []).append(max(best_dice(head, np.stack(truth)) for head in heads))
        for name, dices in scores.items():
            totals.setdefault(name, {})[dataset.meta.name] = round(100 * float(np.mean(dices)), 2)
    return totals


DRAWN = ("support_images", "support_labels", "support_mask")  # arrays with an axis of draws


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="whose learned keys to measure, too")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--role", default="val")
    parser.add_argument("--support_size", type=int, default=16)
    parser.add_argument("--max_cases", type=int, default=6, help="queries of each task; 0 = all")
    parser.add_argument("--out", help="file to append the lines to")
    args = parser.parse_args(argv)
    params, config = store.load(store.resolve(args.checkpoint)) if args.checkpoint else (None, None)
    model = build_model(config.model) if config else None
    function = jax.jit(lambda episode: guesses(model, params, episode))
    for name, dices in measure(args, function).items():
        row = {"benchmark": "keys", "guess": name, "dice": round(float(np.mean(list(dices.values()))), 2)}
        write_line({**row, "role": args.role, "support_size": args.support_size, "datasets": dices}, args.out)


if __name__ == "__main__":
    main()
