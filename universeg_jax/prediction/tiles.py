"""A second look through overlapping tiles: what 128x128 pixels of a whole picture do not show.

At `times` magnification a picture is preprocessed to 128 times as many pixels a side, cut into tiles of 128x128 that
overlap by half, and every tile is segmented by tiles of the support at the same magnification, from about the same
place. The first look at the whole says which tiles matter and, where labels are not too thin for it, is half of the
answer. Both are measured in docs/predict.md.
"""

import numpy as np

from universeg_jax.episode import OFFICIAL_SIZE
from universeg_jax.readers.preprocess import restore

MOST = 16  # times, with 961 tiles
STEP = OFFICIAL_SIZE // 2
LOOK = 0.05  # probability in the first look below which a tile is not looked at
THIN = 0.85  # of the labels themselves kept at 128x128 (as Dice) below which the first look counts for nothing


def corners(times: int) -> list[tuple[int, int]]:
    """Upper left corners of all tiles, row by row."""
    steps = range(0, OFFICIAL_SIZE * (times - 1) + 1, STEP)
    return [(row, column) for row in steps for column in steps]


def cut(whole: np.ndarray, times: int) -> np.ndarray:
    """[..., 128 t, 128 t] → tiles [..., T, 128, 128]."""
    size = OFFICIAL_SIZE
    return np.stack([whole[..., r : r + size, c : c + size] for r, c in corners(times)], -3)


def stretch(tiles: np.ndarray) -> np.ndarray:
    """Each tile [..., 128, 128] to [0, 1] by its own smallest and largest value, as every picture is."""
    low = tiles.min((-2, -1), keepdims=True)
    return (tiles - low) / np.maximum(tiles.max((-2, -1), keepdims=True) - low, 1e-6)


def join(tiles: np.ndarray, times: int) -> np.ndarray:
    """Predictions [T, L, 128, 128] → [L, 128 t, 128 t]: means, in which a tile's middle counts most."""
    size = OFFICIAL_SIZE
    ramp = np.minimum(np.arange(size) + 0.5, size - 0.5 - np.arange(size))
    weight = np.outer(ramp, ramp).astype(np.float32)
    total = np.zeros((tiles.shape[1], size * times, size * times), np.float32)
    weights = np.zeros(total.shape[1:], np.float32)
    for tile, (r, c) in zip(tiles, corners(times), strict=True):
        total[:, r : r + size, c : c + size] += weight * tile
        weights[r : r + size, c : c + size] += weight
    return total / weights


def enlarge(probabilities: np.ndarray, times: int) -> np.ndarray:
    """[L, 128, 128] → [L, 128 t, 128 t], linear."""
    return np.stack([restore(p, (OFFICIAL_SIZE * times,) * 2) for p in probabilities])


def shrink(probabilities: np.ndarray, times: int) -> np.ndarray:
    """[L, 128 t, 128 t] → [L, 128, 128], means."""
    return probabilities.reshape(len(probabilities), OFFICIAL_SIZE, times, OFFICIAL_SIZE, times).mean((2, 4))


def kept(coarse: np.ndarray, fine: np.ndarray) -> float:
    """What is left of a mask [128 t, 128 t] at 128x128: its Dice with [128, 128]."""
    times = len(fine) // OFFICIAL_SIZE
    large = coarse.repeat(times, 0).repeat(times, 1)
    return float(2 * (large & fine).sum() / (large.sum() + fine.sum()))
