"""Draws the README's picture: cases of a dataset, chosen by hash, with four of their supports and the mask.

    python -m benchmarks.picture --data_dir data --dataset sunnybrook_lv --out docs/picture.png

What is published must be of a dataset whose licence allows it: Sunnybrook Cardiac Data are CC0.
"""

import argparse
from pathlib import Path

from universeg_jax.data.dataset import open_dataset
from universeg_jax.evaluation.cases import Settings
from universeg_jax.evaluation.runner import example_cases
from universeg_jax.evaluation.scoring import model_method
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.reports.figures import plot_sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--support_size", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    predictor = Predictor.from_checkpoint(args.checkpoint)
    method = model_method(predictor.model, predictor.config.image_size)
    settings = Settings(support_sizes=(args.support_size,), ensembles=(1,))
    cases = example_cases(method, predictor.params, open_dataset(args.data_dir, args.dataset), settings)
    plot_sheet(cases, f"{args.dataset}, support size {args.support_size}", args.out)


if __name__ == "__main__":
    main()
