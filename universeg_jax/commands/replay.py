"""Plot one training episode before and after augmentation."""

import argparse
from pathlib import Path

from universeg_jax.errors import UserError

EXAMPLE = "universeg replay --workdir runs/mine --step 1200 --index 3 --out episode.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, help="folder of the run, with config.json")
    parser.add_argument("--step", type=int, required=True, help="training step, from 0")
    parser.add_argument(
        "--index", type=int, default=0, help="place in the batch of the step, from 0 (default: %(default)s)"
    )
    parser.add_argument("--data_dir", help="folder of the run's datasets (default: the config's)")
    parser.add_argument("--out", help="image file to write, FILE.png (default: WORKDIR/episode_NUMBER.png)")


def run(args: argparse.Namespace) -> int:
    from universeg_jax.checkpoints.lineage import check_same_data, lineage
    from universeg_jax.configuration import read_config
    from universeg_jax.episodes.inputs import open_data, open_sampler
    from universeg_jax.episodes.replay import plot_episode

    workdir = Path(args.workdir)
    config = read_config(workdir)
    config.data_dir = args.data_dir or config.data_dir
    for name, value, count in (
        ("step", args.step, config.num_steps),
        ("index", args.index, config.batch_size),
    ):
        if not 0 <= value < count:
            raise UserError(f"--{name} {value}: use 0 to {count - 1} for this run")
    train_data, _ = open_data(config)
    check_same_data(workdir, lineage(config, train_data, []), ["trained_on"])
    number = args.step * config.batch_size + args.index
    out = Path(args.out) if args.out else workdir / f"episode_{number}.png"
    print(plot_episode(open_sampler(config, train_data), number, config, out))
    return 0
