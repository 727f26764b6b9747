"""The published preprocessing and its inverse: grey, window, min-max, pad, blur, resize.

In order (Butoi et al., ICCV 2023, supplement): intensity window → min-max to [0, 1] → zero-pad to a centred square →
anti-alias blur (σ = ¼ old/new pixels) → linear resize. Masks go through the same pad, blur and resize and are
thresholded at 0.5; this one rule decides how much of a thin vessel remains.
"""

import functools
from typing import Any

import numpy as np
from scipy import sparse

from universeg_jax.readers.errors import ImageError

Window = str | tuple[float, float]  # one of WINDOWS, or (low, high)
WINDOWS = ("auto", "ct", "mr", "none")
CT_WINDOW = (-500.0, 1000.0)  # HU; MegaMedical's default (Butoi et al., 2023)
MR_PERCENTILES = (0.5, 99.5)  # of the voxels above 0
CT_WORDS = {"ct", "cta", "cbct"}
MR_WORDS = {"mr", "mri", "t1", "t1w", "t1c", "t2", "t2w", "flair", "adc", "dwi", "cine", "lge"}
CT_ONLY_BELOW = -500  # HU; only CT has many values below it
MAX_IGNORED = 0.9  # share of a pixel without a label from which on it has none: a thin stroke of a pen still counts
CT_SHARE = 0.005  # of the voxels that must lie below it; interpolation makes a few such values in MR


def to_grey(image: np.ndarray, path: Any = "an image") -> np.ndarray:
    """[H, W], [H, W, 1..4] → float32 [H, W]; colour by ITU-R 601 luma (0.299 R + 0.587 G + 0.114 B), alpha dropped."""
    if image.dtype.kind not in "biuf":
        raise ImageError(path, "holds no numbers that are brightness", str(image.dtype))
    if image.ndim == 3 and image.shape[2] in (1, 2):
        image = image[..., 0]
    if image.ndim == 3 and image.shape[2] in (3, 4):
        red, green, blue = (image[..., channel].astype(np.float32) for channel in range(3))
        image = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    if image.ndim != 2 or 0 in image.shape:
        raise ImageError(path, "has a shape that is not [H, W] or [H, W, 3]", str(image.shape))
    return image.astype(np.float32)


def window_of_modality(modality: str) -> str:
    """Chooses "ct" or "mr" by the words of a modality ("cardiac CT", "brain MR T1w"); "none" for all others."""
    words = set(modality.lower().replace("-", " ").replace(",", " ").split())
    if words & CT_WORDS:
        return "ct"
    return "mr" if words & MR_WORDS else "none"


def window_of_intensities(data: np.ndarray) -> str:
    """Chooses the window of a volume of unknown modality: "ct" where 0.5 % lie below -500 HU, else "mr"."""
    return "ct" if np.mean(data < CT_ONLY_BELOW) >= CT_SHARE else "mr"


def apply_window(data: np.ndarray, window: Window = "none") -> np.ndarray:
    """Clips by "ct", "mr", "none" or a pair (low, high), then min-max over the whole array → float32 in [0, 1]."""
    return min_max(data if window == "none" else np.clip(data, *window_limits(data, window)))


def window_limits(data: np.ndarray, window: Window) -> tuple[float, float]:
    """The least and the greatest intensity that "ct", "mr", "none" or a pair (low, high) leaves as it is."""
    if window == "ct":
        return CT_WINDOW
    if window == "mr" and (inside := data[data > 0]).size:
        low, high = np.percentile(inside, MR_PERCENTILES)
        return low, high
    if not isinstance(window, str):
        return window
    if window not in ("mr", "none"):
        raise ValueError(f"window is {window!r}; choose ct, mr, none or (low, high)")
    return data.min(), data.max()


def min_max(image: np.ndarray) -> np.ndarray:
    """Scales to [0, 1] float32; a constant image becomes 0."""
    image = image.astype(np.float32)
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else np.zeros_like(image)


def preprocess_image(image: np.ndarray, size: int, side: int = 0, scale: bool = True) -> np.ndarray:
    """[H, W] of any intensities → float32 [size, size] in [0, 1].

    A slice of a volume is padded to `side`, the side of its cube; it is in [0, 1] already, so `scale` is False for it.
    """
    return np.clip(_to_size(min_max(image) if scale else image, size, side), 0, 1)


def preprocess_mask(mask: np.ndarray, size: int, side: int = 0) -> np.ndarray:
    """Binary [H, W] → uint8 0/1 [size, size]; `side` as for the image."""
    # Weights sum to 1 only up to rounding: without the tolerance an exact half would fall to either side.
    return (_to_size(mask.astype(np.float32), size, side) >= 0.5 - 1e-6).astype(np.uint8)


def preprocess_partly(mask: np.ndarray, ignored: np.ndarray, size: int, side: int = 0) -> np.ndarray:
    """Like `preprocess_mask`, by those pixels alone that are not `ignored`, bool [H, W]."""
    share = np.clip(_to_size(ignored.astype(np.float32), size, side), 0, 1)
    own = _to_size((mask & ~ignored).astype(np.float32), size, side)
    return ((own >= 0.5 * (1 - share) - 1e-6) & (share <= MAX_IGNORED)).astype(np.uint8)


def preprocess_ignored(ignored: np.ndarray, size: int, side: int = 0) -> np.ndarray:
    """Bool [H, W] → bool [size, size]: pixels of which nearly nothing has a label."""
    return _to_size(ignored.astype(np.float32), size, side) > MAX_IGNORED


def preprocess_strokes(mask: np.ndarray, said: np.ndarray, size: int, side: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 0/1 [size, size], bool [size, size]): the mask of strokes, by the `said` pixels alone, and where any are.

    Without blur: the smallest stroke counts, and nothing is known of what it does not touch, padding included.
    """
    side = side or max(said.shape)
    votes = np.zeros((2, size, size), np.int64)
    if side >= size:  # several pixels of the image vote in each pixel of the network
        rows, columns = np.nonzero(said)
        places = tuple(
            (2 * (at + (side - n) // 2) + 1) * size // (2 * side)
            for at, n in zip((rows, columns), said.shape, strict=True)
        )
        np.add.at(votes[0], places, 1)
        np.add.at(votes[1], places, mask[rows, columns].astype(np.int64))
    else:  # each pixel of the network lies in one of the image, or outside
        at = [(2 * np.arange(size) + 1) * side // (2 * size) - (side - n) // 2 for n in said.shape]
        inside = [np.flatnonzero((x >= 0) & (x < n)) for x, n in zip(at, said.shape, strict=True)]
        here = np.ix_(*(x[y] for x, y in zip(at, inside, strict=True)))
        votes[0][np.ix_(*inside)], votes[1][np.ix_(*inside)] = said[here], (mask & said)[here]
    return ((2 * votes[1] >= votes[0]) & (votes[0] > 0)).astype(np.uint8), votes[0] > 0


def restore(probabilities: np.ndarray, shape: tuple[int, int], side: int = 0) -> np.ndarray:
    """Inverts the resize and the padding of a prediction, linearly: [size, size] → float32 [H, W] of the image."""
    side, size = side or max(shape), probabilities.shape[0]
    square = _resizer(size, side, 0, size)
    rows, columns = (square[(side - n) // 2 :][:n] for n in shape)
    return _apply(rows, probabilities.astype(np.float32), columns)


def quantize(image: np.ndarray) -> np.ndarray:
    """Rounds [0, 1] to uint8 0..255."""
    return np.round(image * 255).astype(np.uint8)


def _to_size(image: np.ndarray, size: int, side: int = 0) -> np.ndarray:
    """Pads with zeros to a centred square, blurs and resizes. Padding needs no copy: its matrix columns drop out."""
    side = side or max(image.shape)
    rows, columns = (_resizer(side, size, (side - n) // 2, n) for n in image.shape)
    return _apply(rows, image, columns)


def _apply(rows: sparse.csr_array, image: np.ndarray, columns: sparse.csr_array) -> np.ndarray:
    return np.ascontiguousarray((columns @ (rows @ image).T).T)


@functools.lru_cache(maxsize=256)
def _resizer(old: int, new: int, start: int, length: int) -> sparse.csr_array:
    """float32 [new, length]: columns [start, start + length) of the matrix [new, old] that resizes an axis.

    Linear interpolation at half-pixel centres, after a Gaussian blur where it shrinks. The matrix is sparse because
    each row has few weights, and because BLAS would start threads for each small product, which is 100 times slower on
    busy cores.
    """
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(centres).astype(np.int64)
    high = np.minimum(low + 1, old - 1)
    sigma = old / new / 4 if new < old else 0
    offsets = np.arange(-np.ceil(4 * sigma), np.ceil(4 * sigma) + 1, dtype=np.int64)
    blur = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma else np.ones(1)
    rows, places, weights = [], [], []
    for tap, share in ((low, 1 - (centres - low)), (high, centres - low)):
        place = tap[:, None] + offsets
        weight = np.where((place >= 0) & (place < old), blur, 0)
        weights.append(share[:, None] * weight / weight.sum(1, keepdims=True))
        places.append(np.clip(place, 0, old - 1))
        rows.append(np.broadcast_to(np.arange(new)[:, None], place.shape))
    entries = (np.concatenate(weights, None), (np.concatenate(rows, None), np.concatenate(places, None)))
    matrix = sparse.csr_array(entries, shape=(new, old))[:, start : start + length].astype(np.float32)
    matrix.eliminate_zeros()
    return matrix
