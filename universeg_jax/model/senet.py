"""SENet: squeeze & excitation guided few-shot segmentation (Roy et al., Medical Image Analysis 2020).

Two encoder-decoders of the same shape. The conditioner sees a support entry [image, label]; after each of its blocks a
1x1 convolution and a sigmoid make a map in [0, 1]. The segmenter sees the query alone, and each of its blocks is
multiplied with the map from the same place: spatial squeeze & excitation. There are no skip connections, which would
copy the support's label into the mask (the paper's section 5); decoders put features back where max-pooling took them.

Published with one support entry. Here the maps of all entries are averaged, which with one entry is the published net.
Defaults are the paper's widths: 0.88 M parameters (UniverSeg's table says 0.92 M).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from universeg_jax.model.few_shot import ConvBlock, Convolution, over_entries, prepare
from universeg_jax.model.layers import DTYPES, NORMS, Array, activate, check_choice, max_pool, weighted_sum

KERNEL = 5  # pixels a side


def unpool(x: Array, before: Array) -> Array:
    """x [..., h, w, C] at the places of the maxima that pooling took from `before` [..., 2h, 2w, C], 0 elsewhere."""
    return jax.vjp(max_pool, jax.lax.stop_gradient(before))[1](x)[0]


class Arm(nn.Module):
    """An encoder-decoder with `levels` poolings; `meet(block number, its output)` returns what the next block gets."""

    features_in: int
    features: int
    levels: int
    norm: str

    def setup(self):
        def layer(features_in: int) -> ConvBlock:
            return ConvBlock(features_in, self.features, KERNEL, norm=self.norm, activation=activate)

        self.encoder = [layer(self.features if level else self.features_in) for level in range(self.levels)]
        self.bottleneck = layer(self.features)
        self.decoder = [layer(self.features) for _ in range(self.levels)]

    def __call__(self, x, meet):
        before = []
        for i, layer in enumerate(self.encoder):
            before.append(layer(x))
            x = meet(i, max_pool(before[-1]))
        x = meet(self.levels, self.bottleneck(x))
        for i, layer in enumerate(self.decoder):
            x = meet(self.levels + 1 + i, layer(unpool(x, before.pop())))
        return x


class SENet(nn.Module):
    """Logits of the query's mask, given a support set; called as UniverSeg."""

    encoder_blocks: Sequence[int] = (64, 64, 64, 64)  # the segmenter's features at each pooling: one width
    conditioner_features: int = 16
    norm: str = "none"  # "none" | "layer", in place of the paper's batch normalisation
    dtype: str = "float32"  # of activations
    support_chunk: int = 0  # entries at a time; 0 = all

    def setup(self):
        check_choice("norm", self.norm, NORMS)
        check_choice("dtype", self.dtype, DTYPES)
        if len(set(self.encoder_blocks)) != 1 or not isinstance(self.encoder_blocks[0], int):
            raise ValueError(
                f"config.model.encoder_blocks={self.encoder_blocks}: senet puts features back where pooling took them, "
                "so all its blocks need one width, as (64, 64, 64, 64)"
            )
        levels = len(self.encoder_blocks)
        self.conditioner = Arm(2, self.conditioner_features, levels, self.norm)
        self.segmenter = Arm(1, self.encoder_blocks[0], levels, self.norm)
        self.gates = [Convolution(self.conditioner_features, 1, 1) for _ in range(2 * levels + 1)]
        self.out = Convolution(self.encoder_blocks[0], 1, 1)

    def __call__(
        self, query_image: Array, support_images: Array, support_labels: Array, support_mask: Array | None = None
    ) -> Array:
        """Logits [B, H, W, 1]; H and W multiples of 2^len(encoder_blocks), otherwise as UniverSeg."""
        halvings = len(self.encoder_blocks)
        query, entries = prepare(query_image, support_images, support_labels, support_mask, halvings, self.dtype)
        chunk = 0 if self.is_initializing() else self.support_chunk
        means, _ = over_entries(self.condition, entries, chunk)
        x = self.segmenter(query, lambda i, x: x * means[i].astype(x.dtype))
        return self.out(x.astype(jnp.promote_types(jnp.float32, x.dtype)))

    def condition(self, entries):
        """Weighted sums over a chunk of entries of the maps [B, h, w, 1] of every block."""
        images, labels, weights = entries
        maps: list[Array] = []

        def keep(i, v):
            maps.append(jax.nn.sigmoid(self.gates[i](v)))
            return v

        self.conditioner(jnp.concatenate([images, labels], -1), keep)
        return weighted_sum(weights, maps), None
