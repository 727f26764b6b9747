"""U-Net (Ronneberger et al., MICCAI 2015) as the traditional workflow has it: one net for each task.

Two convolutions a level, each with instance normalisation and LeakyReLU as in nnU-Net (Isensee et al., 2021).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from universeg_jax.model.few_shot import Convolution
from universeg_jax.model.layers import Array, activate, concat, max_pool


class Block(nn.Module):
    """Two convolutions of [N, H, W, C]."""

    features_in: int
    features: int

    def setup(self):
        self.convs = [Convolution(self.features_in, self.features), Convolution(self.features, self.features)]
        self.norms = [nn.InstanceNorm() for _ in self.convs]

    def __call__(self, x: Array) -> Array:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = activate(norm(conv(x)))
        return x


class UNet(nn.Module):
    """Logits [N, H, W, 1] of images [N, H, W, 1] in [0, 1]; H and W multiples of 2^(levels - 1).

    It has UniverSeg's call, so that one evaluation serves both, and does not look at the support.
    """

    features: Sequence[int] = (16, 32, 64, 128, 128)  # of each level

    def setup(self):
        before = [1, *self.features[:-1]]
        self.encoder = [Block(b, f) for b, f in zip(before, self.features, strict=True)]
        up = zip(self.features[:0:-1], self.features[-2::-1], strict=True)
        self.decoder = [Block(below + skip, skip) for below, skip in up]
        self.out = Convolution(self.features[0], 1, 1)

    def __call__(
        self,
        query_image: Array,
        support_images: Array | None = None,
        support_labels: Array | None = None,
        support_mask: Array | None = None,
    ) -> Array:
        step = 2 ** (len(self.features) - 1)
        height, width = query_image.shape[1:3]
        if height % step or width % step:
            raise ValueError(
                f"image size {height}x{width}: a U-Net of {len(self.features)} levels needs multiples of {step}"
            )
        x, skips = query_image.astype(jnp.float32), []
        for level, block in enumerate(self.encoder):
            x = block(max_pool(x) if level else x)
            skips.append(x)
        for block, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = block(concat((x, skip)))
        return self.out(x)
