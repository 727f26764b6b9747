"""ALPNet: few-shot segmentation by adaptive local prototypes (Ouyang et al., ECCV 2020).

A dilated ResNet-101 and a 1x1 convolution embed the query and each support image. The support's features are averaged
in the cells of a grid; a cell that the label covers to 95 % is a local prototype of the foreground, one that it covers
to at most 5 % of the background. The foreground has each entry's masked average besides. With d_k = 20 cos(pixel,
prototype k), a pixel's score is Σ_k softmax(d)_k d_k over the prototypes of a class, and the logit is the difference of
the two scores. A class without a local prototype has one alone, the masked average over all entries.

Defaults are the paper's backbone: 43.02 M parameters, features at an eighth of the image's size. Group normalisation
replaces batch normalisation, because it needs no statistics of other episodes. few_shot.py says how training differs.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from universeg_jax.model.few_shot import (
    SIMILARITY_SCALE,
    Convolution,
    check_stride,
    each_entry,
    masked_mean,
    over_entries,
    prepare,
    to_image,
    unit,
)
from universeg_jax.model.layers import DTYPES, Array, check_choice, max_pool, weighted_sum

Stage = int | tuple[int, int]  # features of two bottlenecks, or (features, bottlenecks)

COVERED = 0.95  # share of a cell that a class must cover
EXPANSION = 4  # output features of a bottleneck block / its features
STEM_STRIDE = 4


class ConvNorm(nn.Module):
    """Convolution and group normalisation of [N, H, W, C]."""

    features_in: int
    features: int
    size: int
    stride: int = 1
    dilation: int = 1

    def setup(self):
        self.conv = Convolution(self.features_in, self.features, self.size, self.stride, self.dilation, use_bias=False)
        self.norm = nn.GroupNorm(num_groups=math.gcd(32, self.features))

    def __call__(self, x: Array) -> Array:
        y = self.conv(x)
        return self.norm(y).astype(y.dtype)


class Bottleneck(nn.Module):
    """x + 1x1 → 3x3 → 1x1 of `features`, `features`, 4 `features`."""

    features_in: int
    features: int
    stride: int
    dilation: int

    def setup(self):
        out = EXPANSION * self.features
        self.reduce = ConvNorm(self.features_in, self.features, 1)
        self.middle = ConvNorm(self.features, self.features, 3, self.stride, self.dilation)
        self.expand = ConvNorm(self.features, out, 1)
        if self.stride > 1 or self.features_in != out:
            self.skip = ConvNorm(self.features_in, out, 1, self.stride)

    def __call__(self, x: Array) -> Array:
        y = self.expand(nn.relu(self.middle(nn.relu(self.reduce(x)))))
        skip = self.skip(x) if self.stride > 1 or x.shape[-1] != y.shape[-1] else x
        return nn.relu(skip + y)


class ResNet(nn.Module):
    """[N, H, W, 1] → [N, H / stride, W / stride, embedding]; stages that would go below `stride` are dilated."""

    stages: Sequence[tuple[int, int]]
    stride: int
    embedding: int

    def setup(self):
        width = self.stages[0][0]
        self.stem = ConvNorm(1, width, 7, stride=2)
        blocks, features_in, dilation, reached = [], width, 1, STEM_STRIDE
        for i, (features, count) in enumerate(self.stages):
            stride = 2 if i and reached < self.stride else 1
            dilation *= 2 if i and stride == 1 else 1
            reached *= stride
            for j in range(count):
                blocks.append(Bottleneck(features_in, features, 1 if j else stride, dilation))
                features_in = EXPANSION * features
        self.blocks = blocks
        self.out = Convolution(features_in, self.embedding, 1, use_bias=False)

    def __call__(self, x: Array) -> Array:
        x = max_pool(nn.relu(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.out(x)


class ALPNet(nn.Module):
    """Logits of the query's mask, given a support set; called as UniverSeg."""

    encoder_blocks: Sequence[Stage] = ((64, 3), (128, 4), (256, 23), (512, 3))
    stride: int = 8  # of the features
    embedding: int = 256  # features that are compared
    prototype_grid: int = 8  # cells a side
    dtype: str = "float32"  # of activations; similarities are float32
    support_chunk: int = 0  # entries at a time; 0 = all

    def setup(self):
        check_choice("dtype", self.dtype, DTYPES)
        check_stride(self.stride, STEM_STRIDE, len(self.encoder_blocks))
        stages = tuple((s, 2) if isinstance(s, int) else s for s in self.encoder_blocks)
        self.backbone = ResNet(stages, self.stride, self.embedding)

    def __call__(
        self, query_image: Array, support_images: Array, support_labels: Array, support_mask: Array | None = None
    ) -> Array:
        """Logits [B, H, W, 1]; H and W multiples of `stride`, otherwise as UniverSeg."""
        halvings = check_stride(self.stride, STEM_STRIDE, len(self.encoder_blocks))
        query, entries = prepare(query_image, support_images, support_labels, support_mask, halvings, self.dtype)
        chunk = 0 if self.is_initializing() else self.support_chunk
        means, (local, share, own, counts) = over_entries(self.prototypes, entries, chunk)
        features = unit(self.backbone(query))
        counts = counts > 0  # [B, S]
        marked = counts & (share.max(-1) > 0)
        foreground = class_score(features, local, counts[..., None] & (share >= COVERED), own, marked, means[0])
        nothing = jnp.zeros_like(marked)
        background = class_score(features, local, counts[..., None] & (share <= 1 - COVERED), own, nothing, means[1])
        return to_image(foreground - background, query)

    def prototypes(self, entries):
        """Prototypes of a chunk of entries.

        Returns the sums of (foreground, background) averages [B, C]; then per entry its cells [B, S, cells, C], the
        share of each cell that the label covers, the foreground average [B, S, C] and the weight.
        """
        images, labels, weights = entries
        features = each_entry(self.backbone, images)
        dtype = jnp.promote_types(features.dtype, jnp.float32)
        coarse = jax.image.resize(labels.astype(dtype), (*features.shape[:-1], 1), "linear")
        window = tuple(max(size // self.prototype_grid, 1) for size in features.shape[-3:-1])
        local, share = (
            each_entry(lambda x: nn.avg_pool(x, window, window), x.astype(dtype)) for x in (features, coarse)
        )
        own = masked_mean(features, labels)
        cells = (*local.shape[:2], local.shape[2] * local.shape[3])
        kept = (local.reshape((*cells, -1)), share.reshape(cells), own, weights)
        return weighted_sum(weights, (own, masked_mean(features, 1 - labels))), kept


def class_score(features: Array, local: Array, usable: Array, own: Array, marked: Array, mean: Array) -> Array:
    """Scores [B, h, w] of unit features [B, h, w, C] for a class.

    Its prototypes are the usable of local [B, S, cells, C] and the marked of own [B, S, C], or `mean` [B, C] alone
    where no local one is usable.
    """
    batch, _, _, channels = local.shape
    usable = usable.reshape((batch, -1))
    any_local = usable.any(1, keepdims=True)
    prototypes = jnp.concatenate([local.reshape((batch, -1, channels)), own, mean[:, None]], 1)
    valid = jnp.concatenate([usable, marked & any_local, ~any_local], 1)[:, None, None]
    scores = SIMILARITY_SCALE * jnp.einsum("bhwc,bkc->bhwk", features, unit(prototypes))
    weights = jax.nn.softmax(jnp.where(valid, scores, -1e9), -1)
    return (weights * scores).sum(-1)
