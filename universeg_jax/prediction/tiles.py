"""A second, magnified pass over overlapping tiles, for structures too small or thin for one pass at 128x128.

At magnification t an image is preprocessed to 128 t pixels a side and cut into tiles of 128x128 that overlap by half.
Each tile is segmented with tiles of the support images at the same magnification, from about the same place. Tiles
where the first pass finds nothing are skipped. The result is the mean of both passes, or the second pass alone if the
support labels do not survive 128x128. Measurements: docs/predict.md.
"""

import numpy as np

from universeg_jax.episode import OFFICIAL_SIZE
from universeg_jax.readers.preprocess import restore

MAX_MAGNIFICATION = 16  # 961 tiles
STEP = OFFICIAL_SIZE // 2
MIN_PROBABILITY = 0.05  # in the first pass, anywhere in a tile; below this the tile is skipped
MIN_RETAINED_DICE = 0.85  # of the support labels at 128x128; below this the first pass is ignored


def tile_corners(times: int) -> list[tuple[int, int]]:
    """(row, column) of the upper left corner of each of T tiles, row by row."""
    steps = range(0, OFFICIAL_SIZE * (times - 1) + 1, STEP)
    return [(row, column) for row in steps for column in steps]


def tile_positions(rows: np.ndarray, times: int) -> np.ndarray:
    """Positions in [0, 1] of the tiles `rows` among all T, in the role that slices have in a volume."""
    return (rows + 0.5) / len(tile_corners(times))


def cut_tiles(image: np.ndarray, times: int) -> np.ndarray:
    """[..., 128 t, 128 t] → tiles [..., T, 128, 128]."""
    size = OFFICIAL_SIZE
    return np.stack([image[..., r : r + size, c : c + size] for r, c in tile_corners(times)], -3)


def min_max_tiles(tiles: np.ndarray) -> np.ndarray:
    """Scales each tile [..., 128, 128] to [0, 1] by its own minimum and maximum."""
    low = tiles.min((-2, -1), keepdims=True)
    return (tiles - low) / np.maximum(tiles.max((-2, -1), keepdims=True) - low, 1e-6)


def join_tiles(tiles: np.ndarray, times: int) -> np.ndarray:
    """Predictions [T, L, 128, 128] → [L, 128 t, 128 t]: means weighted towards the centre of each tile."""
    size = OFFICIAL_SIZE
    ramp = np.minimum(np.arange(size) + 0.5, size - 0.5 - np.arange(size))
    weight = np.outer(ramp, ramp).astype(np.float32)
    total = np.zeros((tiles.shape[1], size * times, size * times), np.float32)
    weights = np.zeros(total.shape[1:], np.float32)
    for tile, (r, c) in zip(tiles, tile_corners(times), strict=True):
        total[:, r : r + size, c : c + size] += weight * tile
        weights[r : r + size, c : c + size] += weight
    return total / weights


def upsample(probabilities: np.ndarray, times: int) -> np.ndarray:
    """[L, 128, 128] → [L, 128 t, 128 t], linear."""
    return np.stack([restore(p, (OFFICIAL_SIZE * times,) * 2) for p in probabilities])


def downsample(probabilities: np.ndarray, times: int) -> np.ndarray:
    """[L, 128 t, 128 t] → [L, 128, 128], means."""
    return probabilities.reshape(len(probabilities), OFFICIAL_SIZE, times, OFFICIAL_SIZE, times).mean((2, 4))


def retained_dice(coarse: np.ndarray, fine: np.ndarray) -> float:
    """Dice of a mask at 128x128 with the same mask at 128 t x 128 t."""
    times = len(fine) // OFFICIAL_SIZE
    large = coarse.repeat(times, 0).repeat(times, 1)
    return float(2 * (large & fine).sum() / (large.sum() + fine.sum()))
