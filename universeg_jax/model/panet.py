"""PANet: few-shot segmentation by prototypes (Wang et al., ICCV 2019).

A VGG-16 without its classifier embeds the query and each support image. Masked average pooling gives one prototype of
the foreground and one of the background, averaged over the entries; a pixel's score for each is 20 times the cosine of
its features with the prototype, and the logit is the difference of the two scores.

Defaults are the paper's backbone: 14.71 M parameters, features at an eighth of the image's size, the last stage
dilated. Poolings are VGG's 2x2. few_shot.py says how the training differs.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from universeg_jax.model.few_shot import (
    SIMILARITY_SCALE,
    ConvBlock,
    check_stride,
    each_entry,
    masked_mean,
    over_entries,
    prepare,
    to_image,
    unit,
)
from universeg_jax.model.layers import DTYPES, NORMS, Array, check_choice, max_pool, weighted_sum

Stage = int | tuple[int, int]  # features of two convolutions, or (features, convolutions)


def identity(x: Array) -> Array:
    return x


class VGG(nn.Module):
    """[N, H, W, 1] → [N, H / stride, W / stride, C]: stages with a pooling between them, dilated below `stride`."""

    stages: Sequence[Stage]
    stride: int
    norm: str

    def setup(self):
        layers, features_in, dilation, reached = [], 1, 1, 1
        stages = [(s, 2) if isinstance(s, int) else s for s in self.stages]
        for i, (features, count) in enumerate(stages):
            if i and reached == self.stride:
                dilation *= 2
            elif i:
                reached *= 2
            for j in range(count):
                last = i == len(stages) - 1 and j == count - 1  # signed features, so that cosines may be negative
                norm, activation = ("none", identity) if last else (self.norm, nn.relu)
                layers.append(ConvBlock(features_in, features, 3, dilation, norm, activation))
                features_in = features
        self.layers = layers

    def __call__(self, x: Array) -> Array:
        layers, reached = iter(self.layers), 1
        for i, stage in enumerate(self.stages):
            if i and reached == self.stride:
                x = nn.max_pool(x, (3, 3), (1, 1), "SAME")
            elif i:
                x, reached = max_pool(x), 2 * reached
            for _ in range(2 if isinstance(stage, int) else stage[1]):
                x = next(layers)(x)
        return x


class PANet(nn.Module):
    """Logits of the query's mask, given a support set; called as UniverSeg."""

    encoder_blocks: Sequence[Stage] = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    stride: int = 8  # of the features; stages that would go below it are dilated
    norm: str = "none"  # "none" as VGG | "layer"
    dtype: str = "float32"  # of activations; similarities are float32
    support_chunk: int = 0  # entries at a time; 0 = all

    def setup(self):
        check_choice("norm", self.norm, NORMS)
        check_choice("dtype", self.dtype, DTYPES)
        check_stride(self.stride, 1, len(self.encoder_blocks))
        self.backbone = VGG(self.encoder_blocks, self.stride, self.norm)

    def __call__(
        self, query_image: Array, support_images: Array, support_labels: Array, support_mask: Array | None = None
    ) -> Array:
        """Logits [B, H, W, 1]; H and W multiples of `stride`, otherwise as UniverSeg."""
        halvings = check_stride(self.stride, 1, len(self.encoder_blocks))
        query, entries = prepare(query_image, support_images, support_labels, support_mask, halvings, self.dtype)
        chunk = 0 if self.is_initializing() else self.support_chunk
        prototypes, _ = over_entries(self.prototypes, entries, chunk)
        features = unit(self.backbone(query))
        foreground, background = (jnp.einsum("bhwc,bc->bhw", features, unit(p)) for p in prototypes)
        return to_image(SIMILARITY_SCALE * (foreground - background), query)

    def prototypes(self, entries):
        """Weighted sums over a chunk of entries of their (foreground, background) prototypes [B, C]."""
        images, labels, weights = entries
        features = each_entry(self.backbone, images)
        return weighted_sum(weights, (masked_mean(features, labels), masked_mean(features, 1 - labels))), None
