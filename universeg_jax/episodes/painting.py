"""Real episodes in another contrast: every label of the images, and what is around them, gets new intensities.

`painted_episode(key, images, codes, mask, config)` is a pure function of a threefry2x32 key and real examples with all their
labels. Anatomy, positions and the task stay; intensities are no longer those of a modality (as in SynthSeg, Billot et
al., 2023, which paints label maps alone; here the unlabelled rest of an image keeps its structures).

A task samples one curve per label from old to new intensities, which need not be monotone, so that edges inside a
region appear, vanish or turn over. With probability `config.shared` all labels take the curve of the background: then
only the contrast is new, and a border is visible only where the image shows one. Each subject's curves move a little.
Then follow texture of its own in some labels, a blur, and the stretch to [0, 1].
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from ml_collections import ConfigDict

from universeg_jax.episodes import warp
from universeg_jax.episode import Episode, split_query

Array = jax.Array

CODES = 16  # 0 nothing labelled, 1 the label of the task, from 2 on other labels
PUBLISHED_SIZE = 128  # of lengths in pixels


def get_config() -> ConfigDict:
    """Our own choices. Intensities are of an image in [0, 1], pixels (px) of 128."""
    config = ConfigDict()
    config.nodes = 6  # of a curve, evenly spread over the old intensities
    config.shared = 0.4  # probability that all labels have the curve of the background
    config.spread = (0.05, 0.5)  # new intensity; half the range of a label's curve about its mean
    config.background_spread = (0.3, 0.6)  # the same of the background
    config.subject_std = (0.0, 0.06)  # new intensity; how far a node moves between subjects
    config.texture = 0.3  # probability that a label has texture of its own
    config.texture_std = (0.02, 0.15)  # intensity
    config.texture_cell = (1.0, 8.0)  # px
    config.blur = (0.0, 1.0)  # px
    return config


def painted_episode(key: Array, images: Array, codes: Array, support_mask: Array, config: ConfigDict) -> Episode:
    """Makes an episode without batch axis of images [1 + S, H, W] in [0, 1] and codes [1 + S, H, W] (int32), the query first."""
    painted = paint(key, images, codes, config)
    return split_query(painted[..., None], (codes == 1).astype(jnp.float32)[..., None], support_mask)


def paint(key: Array, images: Array, codes: Array, config: ConfigDict) -> Array:
    """New intensities in [0, 1] for images [n, H, W] in [0, 1] with codes [n, H, W] below CODES."""
    count, size, _ = images.shape
    scale, nodes = size / PUBLISHED_SIZE, config.nodes
    keys = random.split(key, 5)
    per_task, per_code = warp.uniforms(keys[0], count=8), warp.uniforms(keys[1], (CODES, 1), 8)
    background = np.arange(CODES)[:, None] == 0
    spread = jnp.where(background, per_code(config.background_spread), per_code(config.spread))
    curves = per_code() + spread * random.uniform(keys[2], (CODES, nodes), minval=-1.0)
    curves = jnp.where(per_task() < config.shared, curves[:1], curves)
    moved = per_task(config.subject_std) * random.normal(keys[3], (count, CODES, nodes))
    tables = (curves + moved).reshape(count, -1)

    place = jnp.clip(images, 0, 1) * (nodes - 1)
    whole = jnp.minimum(jnp.floor(place), nodes - 2)
    index, rest = codes * nodes + whole.astype(jnp.int32), place - whole
    lookup = jax.vmap(lambda table, at: table.at[at].get(mode="promise_in_bounds"))
    new = lookup(tables, index) * (1 - rest) + lookup(tables, index + 1) * rest

    strength = jnp.where(per_code() < config.texture, per_code(config.texture_std), 0.0)[:, 0]
    cell = jnp.maximum(per_task(config.texture_cell) * scale, 1.0)
    noise = random.normal(keys[4], (count, size, size))
    matrix = warp.spaced_matrix(size, cell, size)
    new = new + strength[codes] * warp.separable(matrix, noise)
    return warp.minmax(warp.blur(new, per_task(config.blur) * scale))
