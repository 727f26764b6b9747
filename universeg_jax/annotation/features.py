"""What the network sees of an image by itself, for the choice of what to label next."""

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from universeg_jax.episode import resize
from universeg_jax.prediction.selection import thumbnails

if TYPE_CHECKING:
    from universeg_jax.prediction.predictor import Predictor

AT_A_TIME = 8  # images


def image_features(predictor: "Predictor", images: np.ndarray) -> np.ndarray:
    """Unit vectors, float32 [N, D], of images [N, 128, 128] in [0, 1]; their products say how alike two images are.

    They are the keys by which the model matches cells of a query to cells of the support, so that a product is the mean
    likeness of cells in the same place. A model without matching has thumbnails instead.
    """
    if not getattr(predictor.model, "matching", 0):
        return thumbnails(images)
    found = []
    for start in range(0, len(images), AT_A_TIME):
        part = np.resize(images[start : start + AT_A_TIME], (AT_A_TIME, *images.shape[1:]))  # one shape, one program
        count = len(images[start : start + AT_A_TIME])
        seen = resize(part[..., None], predictor.config.image_size)
        found.append(np.asarray(_keys(predictor)(predictor.params, seen))[:count])
    keys = np.concatenate(found).reshape(len(images), -1)
    return keys / np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-6)


@functools.lru_cache(maxsize=4)
def _keys(predictor: "Predictor"):
    """Parameters and images [N, H, W, 1] → keys of their cells."""
    apply = predictor.model.apply
    found = lambda params, images: apply({"params": params}, images, method=lambda m, x: m.matches[0].keys(x))  # noqa: E731
    return jax.jit(lambda params, images: jnp.asarray(found(params, images), jnp.float32))
