"""UniverSeg: a U-Net of CrossBlocks that segments a query by example (Butoi et al., ICCV 2023, section 3.2).

    CrossConv(u, v_i)   z_i = Conv3x3([u, v_i])                  one kernel for all support entries i
    CrossBlock(u, V)    u'  = A(Conv3x3(mean_i z_i))             A = LeakyReLU(0.01)
                        v'_i = A(Conv3x3(z_i))

The released weights use no nonlinearity after CrossConv (`cross_activation="none"`); the paper's text has one.

One set of parameters, two forms that compute the same function:

* `form="plain"` is the definition: CrossConv is vmapped over the support entries.
* `form="fast"` rewrites it. The cross kernel is split, conv([u, v_i]) = Wq*u + Ws*v_i, so that the query's half is
  computed once. With a linear CrossConv the mean moves inside, mean_i z_i = Wq*u + Ws*mean_i(v_i) + b, so that the
  query path never sees S entries and the last block needs only a mean; and the first block's two convolutions of a
  support entry, 2 → F → F channels, become one over its zero-padded 3x3 patches, 18 → F (exact at the borders too:
  zero-padding the patches is zero-padding z). The last block's support output never reaches the logits and is not
  computed. Entries meet only in means, so they are streamed through each block `support_chunk` at a time.

Arrays are channels last: query [B, H, W, C], support [B, S, H, W, C].
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from universeg_jax.model.layers import (
    Array,
    Conv,
    MapSum,
    activate,
    add_to_each,
    all_sum,
    chunked,
    concat,
    conv,
    map_sum,
    max_pool,
    patches,
    weighted_sum,
)
from universeg_jax.model.matching import MATCHES

Block = int | tuple[int, int]  # features, or (cross_features, conv_features)

CROSS_ACTIVATIONS = ("none", "leaky_relu")
NORMS = ("none", "layer")
RESIDUALS = ("none", "support", "both")
DTYPES = ("float32", "bfloat16", "float64")
FORMS = ("plain", "fast")


class CrossConv(Conv):
    """z = Conv3x3([u, v]) for one support entry; UniverSeg applies it by `nn.vmap` over all of them.

    Owns the kernel in the paper's layout [3, 3, Cq + Cs, F], query channels first; the fast form reads its two halves.
    """

    def __call__(self, u: Array, v: Array) -> Array:
        return conv(jnp.concatenate([u, v], axis=-1), self.kernel, self.bias)


SupportCrossConv = nn.vmap(
    CrossConv,
    in_axes=(None, 1),
    out_axes=1,
    variable_axes={"params": None},
    split_rngs={"params": False},
    methods=["__call__"],
)


class CrossBlock(nn.Module):
    """One interaction of the query u [B, H, W, Cq] with the support v [B, S, H, W, Cs]."""

    query_in: int
    support_in: int
    cross_features: int
    conv_features: int
    cross_activation: str = "none"
    norm: str = "none"
    residual: str = "none"
    support_axis: str = ""
    remat: bool = False

    def setup(self):
        cross_gain = 1.0 if self.cross_activation == "none" else np.sqrt(2)
        self.cross = SupportCrossConv(self.query_in + self.support_in, self.cross_features, cross_gain)
        self.query = Conv(self.cross_features, self.conv_features, np.sqrt(2))
        self.support = Conv(self.cross_features, self.conv_features, np.sqrt(2))
        if self.norm == "layer":  # per entry and pixel, over channels: every rewrite of the fast form stays exact
            self.query_norm = nn.LayerNorm()
            self.support_norm = nn.LayerNorm()
        if self.residual != "none" and self.support_in != self.conv_features:
            self.support_skip = Conv(self.support_in, self.conv_features, 1.0, size=1)
        if self.residual == "both" and self.query_in != self.conv_features:
            self.query_skip = Conv(self.query_in, self.conv_features, 1.0, size=1)

    def cross_activate(self, z: Array) -> Array:
        return z if self.cross_activation == "none" else activate(z)

    def query_out(self, u: Array, z: Array) -> Array:
        """u' from the block's input u and the mean of the z_i."""
        z = self.query(z)
        out = activate(self.query_norm(z).astype(z.dtype) if self.norm == "layer" else z)
        if self.residual != "both":
            return out
        return out + (u if u.shape == out.shape else self.query_skip(u))

    def support_out(self, v: Array, z: Array) -> Array:
        """v'_i from the block's input v_i and the support convolution of z_i."""
        out = activate(self.support_norm(z).astype(z.dtype) if self.norm == "layer" else z)
        if self.residual == "none":
            return out
        return out + (v if v.shape == out.shape else self.support_skip(v))

    def plain(self, u: Array, v: Array, weights: Array) -> tuple[Array, Array]:
        """The definition; `weights` [B, S] sum to 1 over the entries that count."""
        z = self.cross_activate(self.cross(u, v))
        mean = all_sum(weighted_sum(weights, z), self.support_axis, u.dtype)
        return self.query_out(u, mean), self.support_out(v, self.support(z))

    def fast(
        self,
        u: Array,
        entries: Any,
        weights: Array,
        keep: Callable[[Array], tuple[Any, Any]] | None,
        over: MapSum,
        join: Callable[[Any], Array] = lambda entry: entry,
        compose: bool = False,
    ) -> tuple[Array, Any, Any]:
        """The same, streamed by `over` over entries stored as [n, B, chunk, ...]; weights [n, B, chunk].

        v_i = join(entry_i), where join is linear. keep(v'_i) → (what to average over i, what to store); None if
        nothing of the support is needed any more. `compose` makes one convolution of the two of a support entry,
        which saves work where v has few channels. Returns u', the average and the store [n, B, chunk, ...].
        """
        linear = self.cross_activation == "none"
        kernel_q, kernel_s = self.split_kernel()
        z_query = conv(u, kernel_q, self.cross.bias)
        if compose := compose and linear:
            composed = jnp.einsum("ijcf,klfg->klijcg", kernel_s, self.support.kernel)
            composed = composed.reshape((3, 3, 9 * self.support_in, self.conv_features))
            out_query = self.support(z_query)

        def chunk(x):
            entry, weight = x
            v = join(entry)
            if compose:
                out = add_to_each(out_query, conv(patches(v), composed))
            else:
                z = self.cross_activate(add_to_each(z_query, conv(v, kernel_s)))
                out = self.support(z) if keep else None
            averaged, stored = keep(self.support_out(v, out)) if keep else (None, None)
            return weighted_sum(weight, (entry if linear else z, averaged)), stored

        partial, stored = over(jax.checkpoint(chunk) if self.remat else chunk, (entries, weights))
        mean, averaged = all_sum(partial, self.support_axis, u.dtype)
        return self.from_mean(u, join(mean)) if linear else self.query_out(u, mean), averaged, stored

    def split_kernel(self) -> tuple[Array, Array]:
        return jnp.split(self.cross.kernel, [self.query_in], axis=2)

    def from_mean(self, u: Array, mean: Array) -> Array:
        """u' of a linear CrossConv from mean_i v_i [B, H, W, Cs]."""
        kernel_q, kernel_s = self.split_kernel()
        return self.query_out(u, conv(u, kernel_q, self.cross.bias) + conv(mean, kernel_s))


class UniverSeg(nn.Module):
    """Logits of the query's mask, given a support set.

    Defaults are the released architecture: 1,182,785 parameters. Blocks are features, or (cross, conv) features.
    """

    encoder_blocks: Sequence[Block] = (64, 64, 64, 64)
    decoder_blocks: Sequence[Block] = ()  # () mirrors the encoder: encoder_blocks[-2::-1]
    cross_activation: str = "none"  # "none" (release) | "leaky_relu" (paper)
    norm: str = "none"  # "none" (release) | "layer": of each block's outputs, before their activation
    residual: str = "none"  # "none" (release) | "support" | "both": paths that add a block's input to its output
    matching: int = 0  # heads of a first guess from what looks alike (matching.py); 0 (release) = none
    dtype: str = "float32"  # of activations; parameters, means over the support and logits stay float32
    remat: bool = False  # recompute each block's activations in the backward pass
    form: str = "fast"  # "fast" | "plain": the same function
    support_chunk: int = 1  # entries streamed at a time; 1 is best on a CPU, 0 = all at once
    support_axis: str = ""  # mesh axis over which S is sharded inside shard_map; "" = not sharded

    def setup(self):
        for field, choices in (
            ("cross_activation", CROSS_ACTIVATIONS),
            ("norm", NORMS),
            ("residual", RESIDUALS),
            ("dtype", DTYPES),
            ("form", FORMS),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(f"config.model.{field}={getattr(self, field)!r}: choose one of {', '.join(choices)}")
        encoder = [(b, b) if isinstance(b, int) else tuple(b) for b in self.encoder_blocks]
        decoder = [(b, b) if isinstance(b, int) else tuple(b) for b in self.decoder_blocks] or encoder[-2::-1]
        if len(decoder) != len(encoder) - 1:
            raise ValueError(
                f"config.model.decoder_blocks has {len(decoder)} blocks; {len(encoder)} encoder blocks need "
                f"{len(encoder) - 1}, or () to mirror the encoder"
            )
        block_class = nn.remat(CrossBlock, methods=["plain"]) if self.remat else CrossBlock

        def block(query_in: int, support_in: int, widths: tuple[int, int]) -> CrossBlock:
            return block_class(
                query_in,
                support_in,
                *widths,
                self.cross_activation,
                self.norm,
                self.residual,
                self.support_axis,
                self.remat,
            )

        outputs = [conv_features for _, conv_features in encoder]
        self.encoder = [
            block(before + 2 * self.matching * (level == 0), before + (level == 0), widths)
            for level, (before, widths) in enumerate(zip([1, *outputs[:-1]], encoder, strict=True))
        ]
        below = [outputs[-1], *(conv_features for _, conv_features in decoder)][: len(decoder)]
        self.decoder = [
            block(b + skip, b + skip, widths) for b, skip, widths in zip(below, outputs[-2::-1], decoder, strict=True)
        ]
        self.out = Conv((decoder or encoder)[-1][1], 1, gain=1.0, size=1)
        if self.matching:
            self.matches = [kind(self.matching, support_axis=self.support_axis) for kind in MATCHES]

    def __call__(
        self,
        query_image: Array,
        support_images: Array,
        support_labels: Array,
        support_mask: Array | None = None,
    ) -> Array:
        """Logits [B, H, W, 1] in float32 (or float64).

        query_image [B, H, W, 1], support_images and support_labels [B, S, H, W, 1], all in [0, 1]; H and W multiples
        of 2^(levels - 1). support_mask [B, S]: 1 for an entry, 0 for padding, whose content then has no effect;
        at least one entry of each episode must count.
        """
        check_shapes(query_image, support_images, support_labels, support_mask, len(self.encoder))
        dtype = jnp.dtype(self.dtype)
        u = query_image.astype(dtype)
        v = jnp.concatenate([support_images, support_labels], axis=-1).astype(dtype)
        if support_mask is None:
            support_mask = jnp.ones(v.shape[:2], jnp.float32)
        count = support_mask.astype(jnp.promote_types(jnp.float32, dtype))
        v = jnp.where(jnp.expand_dims(count > 0, (2, 3, 4)), v, 0)  # whatever the padding holds, NaN too
        total = count.sum(1, keepdims=True)
        weights = count / (lax.psum(total, self.support_axis) if self.support_axis else total)
        plain = self.form == "plain" or self.is_initializing()  # the definition touches every parameter
        u = self.plain(u, v, weights) if plain else self.fast(u, *chunked((v, weights), self.support_chunk))
        return self.out(u.astype(jnp.promote_types(jnp.float32, dtype)))

    def with_matches(self, u: Array, entries: Any, weights: Any, over: MapSum) -> Array:
        """The query and, with `matching`, the labels of what looks like it: [B, H, W, 1 + 2 heads]."""
        if not self.matching:
            return u
        return jnp.concatenate([u, *(match(u, entries, weights, over) for match in self.matches)], axis=-1)

    def plain(self, u: Array, v: Array, weights: Array) -> Array:
        u = self.with_matches(u, v[None], weights[None], map_sum)
        skips = []
        for level, block in enumerate(self.encoder):
            if level:
                u, v = max_pool(u), max_pool(v)
            u, v = block.plain(u, v, weights)
            skips.append((u, v))
        for block, (skip_u, skip_v) in zip(self.decoder, skips[-2::-1], strict=True):
            u, v = block.plain(concat((u, skip_u)), concat((v, skip_v)), weights)
        return u

    def fast(self, u: Array, entries: Any, weights: Array, over: MapSum = map_sum) -> Array:
        linear = self.cross_activation == "none"
        u = self.with_matches(u, entries, weights, over)
        # A last block that is linear needs nothing of the support but the means of its two inputs: what comes from the
        # block below it, and the full-resolution features of the first block, never exist for all entries at once.
        below_last = [*self.encoder, *self.decoder][-2] if linear and self.decoder else None
        skips: list[tuple[Array, Any]] = []
        mean_skip = None
        for level, block in enumerate(self.encoder):
            if block is below_last and level:
                keep = lambda out: (out, (None, None))  # noqa: E731
            elif block is self.encoder[-1]:
                keep = (lambda out: (None, (out, None))) if self.decoder else None
            elif level == 0 and linear:
                keep = lambda out: (out, (max_pool(out), None))  # noqa: E731
            else:
                keep = lambda out: (None, (max_pool(out), out))  # noqa: E731
            u = max_pool(u) if level else u
            u, mean, stored = block.fast(u, entries, weights, keep, over, compose=level == 0)
            mean_skip = mean if level == 0 else mean_skip
            if stored is not None:
                entries, skip = stored
                skips.append((u, skip))
        for block, (skip_u, skip_v) in zip(self.decoder, skips[-2::-1], strict=True):
            u, last = concat((u, skip_u)), block is self.decoder[-1]
            if last and linear:
                u = block.from_mean(u, concat((mean, mean_skip)))
            else:
                store = lambda out: (None, out)  # noqa: E731
                keep = None if last else (lambda out: (out, None)) if block is below_last else store
                u, mean, entries = block.fast(u, (entries, skip_v), weights, keep, over, join=concat)
        return u


def check_shapes(query: Array, images: Array, labels: Array, mask: Array | None, levels: int) -> None:
    """Raises ValueError naming the first shape that does not fit."""
    step = 2 ** (levels - 1)
    if query.ndim != 4 or query.shape[-1] != 1:
        raise ValueError(f"query_image has shape {query.shape}; [B, H, W, 1] is needed")
    batch, height, width, _ = query.shape
    if height % step or width % step:
        raise ValueError(f"image size {height}x{width}: with {levels} levels both sides must be multiples of {step}")
    if images.ndim != 5 or images.shape[1] == 0:
        raise ValueError(f"support_images has shape {images.shape}; [B, S, H, W, 1] with S >= 1 is needed")
    if images.shape != (batch, images.shape[1], height, width, 1):
        raise ValueError(f"support_images has shape {images.shape}, but the query has {query.shape}")
    if labels.shape != images.shape:
        raise ValueError(f"support_labels has shape {labels.shape}, but support_images has {images.shape}")
    if mask is not None and mask.shape != images.shape[:2]:
        raise ValueError(f"support_mask has shape {mask.shape}; [B, S] = {images.shape[:2]} is needed")
