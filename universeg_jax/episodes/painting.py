"""Real tasks in another contrast: each label of the images, and what is around them, gets new intensities.

`paint(key, images, codes, config)` is a pure function of a threefry2x32 key and the images of an episode with all their
labels. Anatomy, positions and the task stay; intensities are no longer those of a modality. SynthSeg (Billot et al.,
MedIA 2023) paints label maps alone; here the unlabelled rest of an image keeps its structures, in other greys.

A task samples one curve per label from old to new intensities. It need not be monotone, so that edges within a label
appear, vanish or turn over. Each subject's curves move a little, and some labels have texture of their own. With
probability `shared` all labels have the curve and texture of the background: then a border is as visible as the image
makes it. A blur and the stretch to [0, 1] follow.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from ml_collections import ConfigDict

from universeg_jax.episodes import warp
from universeg_jax.episodes.augment import PUBLISHED_SIZE

Array = jax.Array

CODES = 16  # 0 unlabelled, 1 the label of the task, from 2 on the others; higher ones go round


def get_config() -> ConfigDict:
    """Our own choices. Intensities are of an image in [0, 1], pixels (px) of 128."""
    config = ConfigDict()
    config.nodes = 6  # of a curve, evenly spread over the old intensities
    config.shared = 0.4  # probability that all labels have the curve and texture of the background
    config.spread = (0.05, 0.5)  # new intensity; largest distance of a label's curve from its middle
    config.background_spread = (0.3, 0.6)  # the same of the background's
    config.subject_std = (0.0, 0.06)  # new intensity; how far a node moves between subjects
    config.texture = 0.3  # probability that a label has texture of its own
    config.texture_std = (0.02, 0.15)  # intensity
    config.texture_cell = (1.0, 8.0)  # px per cell of the texture's noise
    config.blur = (0.0, 1.0)  # px
    return config


def paint(key: Array, images: Array, codes: Array, config: ConfigDict) -> Array:
    """Paints images [n, H, W] in [0, 1] of one task, whose pixels have codes [n, H, W] (int32); float32 in [0, 1]."""
    count, size, _ = images.shape
    scale, nodes = size / PUBLISHED_SIZE, config.nodes
    keys = random.split(key, 5)
    per_task, per_code = warp.uniforms(keys[0], count=4), warp.uniforms(keys[1], (CODES, 1), 5)
    codes = jnp.where(codes < CODES, codes, 2 + (codes - 2) % (CODES - 2))

    unlabelled = np.arange(CODES)[:, None] == 0
    spread = jnp.where(unlabelled, per_code(config.background_spread), per_code(config.spread))
    curves = per_code() + spread * random.uniform(keys[2], (CODES, nodes), minval=-1.0)
    curves = curves[None] + per_task(config.subject_std) * random.normal(keys[3], (count, CODES, nodes))
    strength = jnp.where(per_code() < config.texture, per_code(config.texture_std), 0.0)[:, 0]
    shared = per_task() < config.shared
    curves, strength = jnp.where(shared, curves[:, :1], curves), jnp.where(shared, strength[:1], strength)
    position = images * (nodes - 1)
    node = jnp.minimum(position.astype(jnp.int32), nodes - 2)
    place, rest = codes * nodes + node, position - node
    read = jax.vmap(lambda curve, at: curve.reshape(-1).at[at].get(mode="promise_in_bounds"))
    images = read(curves, place) * (1 - rest) + read(curves, place + 1) * rest

    cells = warp.spaced_matrix(size, jnp.maximum(per_task(config.texture_cell) * scale, 1.0), size)
    images = images + strength[codes] * warp.separable(cells, random.normal(keys[4], images.shape))
    return warp.minmax(warp.blur(images, per_task(config.blur) * scale))
