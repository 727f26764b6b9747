"""Which augmentation and which made tasks help: short trainings with equal steps and seeds, scored on `val` datasets.

    python -m benchmarks.which_helps --data_dir data --workdir runs/which_helps --steps 1200 --seeds 0,1

Every run lies in <workdir>/<variant>_<seed>; the same command goes on where it was stopped, and what is finished is not
done again. The table is printed and written to <workdir>/results.jsonl; with --steps 0 it is gathered from what is
there. Its intervals resample datasets, and the differences to `both` are paired: the same datasets for both sides.
No `test` dataset is opened.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import quickstart
from universeg_jax import augment
from universeg_jax.errors import UserError
from universeg_jax.reporting import markdown_table, percent, read_json
from universeg_jax.training import train_and_evaluate

REFERENCE = "both"
RESAMPLES = 2000


def without(*levels: str) -> Callable[[ConfigDict], None]:
    """Switches all operations of levels of augmentation off."""

    def change(config: ConfigDict) -> None:
        for level in levels:
            for section in config.augment[level].values():
                section.p = 0.0

    return change


def mixed(kind: str, *families: str) -> Callable[[ConfigDict], None]:
    """Half of the episodes real, half of `kind`, synthetic ones of `families` alike."""

    def change(config: ConfigDict) -> None:
        config.kinds.update({"real": 0.5, kind: 0.5})
        if families:
            config.synthesis.weights.update({name: float(name in families) for name in config.synthesis.weights})

    return change


def published(config: ConfigDict) -> None:
    """Synthetic label maps without what we added to them: unions, textures, borders, fields of view."""
    mixed("synthetic", "shapes")(config)
    config.synthesis.update(dict.fromkeys(("union", "texture", "border", "view"), 0.0))


def gentle(config: ConfigDict) -> None:
    """The ranges of configs/quickstart.py in place of the published ones."""
    config.augment = quickstart.get_config().augment


# Each changes `both`: real episodes with the published augmentation of both levels.
VARIANTS: dict[str, Callable[[ConfigDict], None]] = {
    "none": without("task", "in_task"),
    "in_task": without("task"),
    "task": without("in_task"),
    REFERENCE: without(),
    "gentle": gentle,
    "synthetic": mixed("synthetic", "shapes"),
    "tubes": mixed("synthetic", "shapes", "tubes"),
    "blobs": mixed("synthetic", "shapes", "blobs"),
    "nests": mixed("synthetic", "shapes", "nests"),
    "structures": mixed("synthetic", "shapes", "tubes", "blobs", "nests"),
    "superpixel": mixed("superpixel"),
    "published": published,
}


def config_of(variant: str, seed: int, steps: int, data_dir: str, base: ConfigDict | None = None) -> ConfigDict:
    """The config of one run; `base` is the quickstart's, 64x64 with S = 8, if not given."""
    config = base.copy_and_resolve_references() if base else quickstart.get_config()
    config.seed, config.num_steps, config.data_dir = seed, steps, str(data_dir)
    config.make_data = False
    config.kinds.update({"real": 1.0, "synthetic": 0.0, "superpixel": 0.0})
    config.augment = augment.get_config()
    config.eval_every = steps  # once, at the end: nothing is chosen by it
    config.eval.max_cases = 0  # all: the differences are small
    config.eval.pictures = 0
    VARIANTS[variant](config)
    return config


def finished(workdir: Path, steps: int) -> bool:
    summary = workdir / "eval" / "summary.json"
    return summary.exists() and read_json(summary)["step"] == steps


def run(
    workdir: Path, variants: Sequence[str], seeds: Sequence[int], steps: int, data_dir: str, base=None, minutes=0
) -> None:
    """Trains what is not finished yet, seed by seed, so that a table can be made of the first seed early.

    After `minutes`, if not 0, no training is begun.
    """
    started = time.monotonic()
    for seed in seeds:
        for variant in variants:
            directory = workdir / f"{variant}_{seed}"
            if minutes and time.monotonic() - started > 60 * minutes:
                return
            if not finished(directory, steps):
                train_and_evaluate(config_of(variant, seed, steps, data_dir, base), directory)


def gather(workdir: Path, variants: Sequence[str], seeds: Sequence[int]) -> list[dict]:
    """A row a variant: mean Dice over datasets and seeds, its interval, and the same of the difference to `both`.

    Variants of which no seed is finished are left out. Raises UserError if runs differ in their datasets or steps.
    """
    scores, steps, names = {}, set(), set()
    for variant in variants:
        paths = [workdir / f"{variant}_{seed}" / "eval" / "summary.json" for seed in seeds]
        summaries = [read_json(path) for path in paths if path.exists()]
        if summaries:
            scores[variant] = [{name: d["dice"] for name, d in s["datasets"].items()} for s in summaries]
            steps |= {summary["step"] for summary in summaries}
            names |= {tuple(sorted(dice)) for dice in scores[variant]}
    if not scores:
        raise UserError(f"{workdir} holds no finished run; give --steps")
    if len(names) > 1 or len(steps) > 1:
        raise UserError(f"{workdir}: runs differ in datasets or steps ({sorted(steps)}); take another --workdir")
    (order,), (count,) = names, steps
    dice = {v: np.array([[row[name] for name in order] for row in rows]).mean(0) for v, rows in scores.items()}
    picks = np.random.default_rng(0).integers(len(order), size=(RESAMPLES, len(order)))

    def with_interval(values: np.ndarray) -> dict[str, float]:
        low, high = np.nanquantile(np.nanmean(values[picks], 1), (0.025, 0.975))
        return {"mean": float(np.nanmean(values)), "low": float(low), "high": float(high)}

    rows = []
    for variant, values in dice.items():
        row = {"variant": variant, "seeds": len(scores[variant]), "steps": count, "datasets": len(order)}
        row["dice"] = with_interval(values)
        if REFERENCE in dice and variant != REFERENCE:
            row["minus_both"] = with_interval(values - dice[REFERENCE])
        rows.append(row)
    return rows


def table(rows: Sequence[dict]) -> str:
    def cells(value: dict[str, float] | None) -> list[str]:
        if value is None:
            return ["", ""]
        return [percent(value["mean"]), f"{percent(value['low'])} to {percent(value['high'])}"]

    head = ["variant", "seeds", "Dice (%)", "95 % interval", f"minus {REFERENCE}", "95 % interval"]
    lines = [[r["variant"], r["seeds"], *cells(r["dice"]), *cells(r.get("minus_both"))] for r in rows]
    return markdown_table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True, help="of each run; 0 gathers what is there")
    parser.add_argument("--minutes", type=float, default=0, help="begin no training after so many; 0 = no limit")
    parser.add_argument("--seeds", type=lambda text: [int(x) for x in text.split(",")], default=[0])
    parser.add_argument("--variants", type=lambda text: text.split(","), default=list(VARIANTS))
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.variants) - set(VARIANTS)):
        parser.error(f"--variants: no {', '.join(unknown)}; choose among {', '.join(VARIANTS)}")
    if arguments.steps:
        a = arguments
        run(a.workdir, a.variants, a.seeds, a.steps, a.data_dir, minutes=a.minutes)
    rows = gather(arguments.workdir, arguments.variants, arguments.seeds)
    (arguments.workdir / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(table(rows))


if __name__ == "__main__":
    main()
