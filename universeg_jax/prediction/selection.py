"""Selection of the examples that a query is segmented with, where a support set holds more than fit."""

import numpy as np

from universeg_jax.prediction.support import Support

CHOICES = ("nearest", "random", "diverse")
THUMBNAIL = 16  # pixels a side, for the similarity of images


def thumbnails(images: np.ndarray) -> np.ndarray:
    """[N, 128, 128] → [N, 256] with mean 0 and length 1, so that their products are correlations."""
    cell = images.shape[-1] // THUMBNAIL
    small = images.reshape(len(images), THUMBNAIL, cell, THUMBNAIL, cell).mean((2, 4)).reshape(len(images), -1)
    small = small - small.mean(1, keepdims=True)
    return small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)


def select_examples(
    support: Support,
    query: np.ndarray,
    position: float | None,
    size: int,
    samples: int,
    how: str,
    seed: int,
    allowed: np.ndarray | None = None,
) -> np.ndarray:
    """Rows, int [K, S], of the examples for one query [128, 128]: all of them if there are at most S = `size`.

    Otherwise K = `samples` samples without replacement. If query and support have positions, only the 3 S nearest
    positions are eligible. `how`: "random" samples by seed; "nearest" takes the examples most similar to the query;
    "diverse" takes a k-centre set, which covers all examples best. The last two have one best sample; each further one
    is random among twice as many candidates. `allowed`: rows to choose from, all by default.
    """
    rows = np.arange(len(support)) if allowed is None else allowed
    if len(rows) <= size:
        return rows[None]
    if position is not None and support.positions is not None:
        rows = rows[np.argsort(np.abs(support.positions[rows] - position), kind="stable")[: 3 * size]]
    rng = np.random.default_rng(seed)
    if how == "random":
        return np.stack([np.sort(rng.choice(rows, size, replace=False)) for _ in range(samples)])
    features = thumbnails(support.images[rows])
    if how == "nearest":
        order = np.argsort(-(features @ thumbnails(query[None])[0]), kind="stable")
    else:
        order = k_centre(features, min(2 * size, len(rows)))
    best, candidates = np.sort(rows[order[:size]]), rows[order[: 2 * size]]
    others = [np.sort(rng.choice(candidates, size, replace=False)) for _ in range(samples - 1)]
    return np.stack([best, *others])


def k_centre(features: np.ndarray, count: int) -> np.ndarray:
    """Rows [count] by greedy k-centre: the one nearest to the mean, then each time the farthest from those chosen."""
    chosen = [int(np.argmax(features @ features.mean(0)))]
    distance = 1 - features @ features[chosen[0]]
    while len(chosen) < count:
        distance[chosen] = -np.inf
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, 1 - features @ features[chosen[-1]])
    return np.array(chosen)
