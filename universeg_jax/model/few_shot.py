"""Parts that the trained baselines share: checked inputs, convolutions, prototypes and cosine similarity.

The baselines are called like UniverSeg, so the same episodes, loop, losses, checkpoints and evaluation serve them.
Backbones start at random, where PANet and ALPNet start from ImageNet and COCO: UniverSeg starts at random too. Their
alignment loss, which segments the support by the query, is left out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from universeg_jax.model.layers import check_shapes, chunked, conv, map_sum

Array = jax.Array
SIMILARITY_SCALE = 20.0  # of the cosine, in PANet and in ALPNet


def check_stride(stride: int, first: int, stages: int) -> int:
    """Number of halvings for `stride`; the first stage has stride `first`, and each further stage may double it."""
    most = first << (stages - 1)
    if not first <= stride <= most or stride & (stride - 1):
        raise ValueError(
            f"config.model.stride={stride}: a power of two from {first} to {most} is needed for {stages} encoder blocks"
        )
    return stride.bit_length() - 1


def prepare(
    query: Array, images: Array, labels: Array, mask: Array | None, halvings: int, dtype: str
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Checks the inputs; returns the query and entries (images, labels, weights [B, S] that sum to 1)."""
    check_shapes(query, images, labels, mask, halvings + 1)
    count = jnp.ones(images.shape[:2], jnp.float32) if mask is None else mask
    count = count.astype(jnp.promote_types(jnp.float32, dtype))
    there = jnp.expand_dims(count > 0, (2, 3, 4))
    images, labels = (jnp.where(there, x, 0).astype(dtype) for x in (images, labels))  # padding may hold NaN
    return query.astype(dtype), (images, labels, count / count.sum(1, keepdims=True))


def over_entries(function: Callable[[Any], tuple[Any, Any]], entries: Any, chunk: int) -> tuple[Any, Any]:
    """Applies `function` to chunks of entries; returns the sum of its first results and all of its second ones.

    The second results are [B, S', ...], where S' is S padded to whole chunks with entries of weight 0.
    """
    total, kept = map_sum(function, chunked(entries, chunk))
    return total, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape((x.shape[1], -1, *x.shape[3:])), kept)


def each_entry(function: Callable[[Array], Array], x: Array) -> Array:
    """Applies a function of [N, ...] to [B, S, ...]."""
    y = function(x.reshape((-1, *x.shape[2:])))
    return y.reshape((*x.shape[:2], *y.shape[1:]))


class Convolution(nn.Module):
    """Zero-padded convolution of [..., H, W, C], Kaiming-normal for the rectifier after it; strided or dilated."""

    features_in: int
    features: int
    size: int = 3
    stride: int = 1
    dilation: int = 1
    use_bias: bool = True

    def setup(self):
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        self.kernel = self.param("kernel", init, (self.size, self.size, self.features_in, self.features))
        if self.use_bias:
            self.bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))

    def __call__(self, x: Array) -> Array:
        bias = self.bias if self.use_bias else None
        if self.stride == self.dilation == 1:
            return conv(x, self.kernel, bias)
        reach = self.dilation * (self.size // 2)
        y = lax.conv_general_dilated(
            x.reshape((-1, *x.shape[-3:])),
            self.kernel.astype(x.dtype),
            (self.stride, self.stride),
            [(reach, reach)] * 2,
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = y.reshape((*x.shape[:-3], *y.shape[1:]))
        return y if bias is None else y + jnp.expand_dims(bias.astype(y.dtype), range(y.ndim - 1))


class ConvBlock(nn.Module):
    """Convolution, per-pixel layer normalisation if `norm` is "layer", and an activation."""

    features_in: int
    features: int
    size: int = 3
    dilation: int = 1
    norm: str = "none"
    activation: Callable[[Array], Array] = nn.relu

    def setup(self):
        self.conv = Convolution(self.features_in, self.features, self.size, dilation=self.dilation)
        if self.norm == "layer":
            self.layer_norm = nn.LayerNorm()

    def __call__(self, x: Array) -> Array:
        y = self.conv(x)
        return self.activation(self.layer_norm(y).astype(y.dtype) if self.norm == "layer" else y)


def unit(x: Array) -> Array:
    """x / |x| along the last axis, in float32 or wider; 0 stays 0, with a finite gradient."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-8)


def gathered(mask: Array, size: Sequence[int]) -> Array:
    """mask [..., H, W, 1] → [..., *size]: each coarse pixel's share in the mask's, by bilinear upsampling.

    Σ_p upsample(f)_p mask_p = Σ_q f_q gathered(mask)_q, so features need not be brought to the mask's size.
    """

    def matrix(fine: int, coarse: int) -> Array:
        return jax.image.resize(jnp.eye(coarse, dtype=mask.dtype), (fine, coarse), "linear")

    rows, columns = (matrix(*sizes) for sizes in zip(mask.shape[-3:-1], size, strict=True))
    return jnp.einsum("Hh,...HW,Ww->...hw", rows, mask[..., 0], columns)


def masked_mean(features: Array, mask: Array) -> Array:
    """Masked average pooling of features [..., h, w, C] by mask [..., H, W, 1]: [..., C]; 0 where the mask is empty."""
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    weights = gathered(mask.astype(dtype), features.shape[-3:-1])
    total = jnp.einsum("...hw,...hwc->...c", weights, features.astype(dtype))
    return total / (weights.sum((-2, -1))[..., None] + 1e-5)


def to_image(scores: Array, like: Array) -> Array:
    """Scores [B, h, w] → logits [B, H, W, 1] of the size of `like`, bilinearly."""
    return jax.image.resize(scores, like.shape[:3], "linear")[..., None]
