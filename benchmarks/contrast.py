"""How much labels differ in intensity from what is around them, in datasets and in synthetic structures: JSON lines.

    python -m benchmarks.contrast --data_dir data --datasets drive_vessels,chasedb1_vessels

The median over examples of |mean inside the label - mean of a ring 2 to 3 pixels outside it|, images in [0, 1] at
128x128. Synthetic structures that are this much plainer than real ones teach nothing of the real ones.
"""

import argparse
import functools

import jax
import numpy as np
from scipy import ndimage

from benchmarks.lines import write_line
from universeg_jax.data.dataset import open_dataset
from universeg_jax.episode import OFFICIAL_SIZE
from universeg_jax.episodes import structures, synthesis


def contrast(image: np.ndarray, label: np.ndarray) -> float:
    """Of an image [H, W] and a boolean label; NaN where either side of the border is empty."""
    ring = ndimage.binary_dilation(label, iterations=3) & ~ndimage.binary_dilation(label, iterations=1)
    return abs(float(image[label].mean() - image[ring].mean())) if label.any() and ring.any() else np.nan


def of_dataset(data_dir: str, name: str, count: int) -> list[float]:
    dataset = open_dataset(data_dir, name)
    rows, positions = dataset.index.mask_row, dataset.index.mask_position
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
    images, masks = dataset.gather(rows[chosen], positions[chosen])
    return [contrast(image / 255, mask > 0) for image, mask in zip(images, masks, strict=True)]


def of_family(name: str, count: int) -> list[float]:
    config = synthesis.get_config()
    config.weights = {family: float(family == name) for family in structures.FAMILIES}
    make = functools.partial(synthesis.synthetic_episode, size=OFFICIAL_SIZE, support_size=1, config=config)
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), count)
    drawn = jax.device_get(jax.jit(lambda keys: jax.lax.map(make, keys))(keys))
    pairs = zip(drawn.query_image[..., 0], drawn.query_label[..., 0] > 0, strict=True)
    return [contrast(*pair) for pair in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--datasets", default="", help="comma-separated; '' = the synthetic families alone")
    parser.add_argument("--count", type=int, default=40, help="examples of each")
    parser.add_argument("--out", help="append the lines there too")
    args = parser.parse_args()
    for name in filter(None, args.datasets.split(",")):
        write_line(row(name, of_dataset(args.data_dir, name, args.count)), args.out)
    for name in structures.FAMILIES:
        write_line(row(f"synthetic {name}", of_family(name, args.count)), args.out)


def row(name: str, contrasts: list[float]) -> dict:
    low, median = np.nanquantile(contrasts, (0.1, 0.5))
    return {"benchmark": "contrast", "of": name, "median": round(float(median), 3), "tenth": round(float(low), 3)}


if __name__ == "__main__":
    main()
