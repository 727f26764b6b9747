"""The one data structure that every room shares: an episode."""

from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray


class Episode(NamedTuple):
    """One task seen once: a query to segment and the support set that defines the task.

    With a leading batch axis B everywhere, or without it where a function says so. On the host the arrays are
    uint8 (labels and mask 0/1, images 0..255), on the device float32 in [0, 1].
    """

    query_image: Array  # [B, H, W, 1]
    query_label: Array  # [B, H, W, 1]
    support_images: Array  # [B, S, H, W, 1]
    support_labels: Array  # [B, S, H, W, 1]
    support_mask: Array  # [B, S]; 1 for an entry, 0 for padding
