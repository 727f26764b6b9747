"""UniverSeg: a U-Net of CrossBlocks that segments a query by example (Butoi et al., ICCV 2023, section 3.2).

    CrossConv(u, v_i)   z_i  = Conv3x3([u, v_i])                 one kernel for all support entries i
    CrossBlock(u, V)    u'   = A(Conv3x3(mean_i z_i))            A = LeakyReLU(0.01)
                        v_i' = A(Conv3x3(z_i))

The released weights use no nonlinearity after CrossConv (`cross_activation="none"`); the paper's text has one. Layer
norm, residual paths and matching are ours and off by default.

This file is the definition, and `form="plain"` computes it. `form="fast"` (the default) computes the same function of
the same parameters by the rewrites of fast.py. Arrays are channels last and named by their axes: B episodes, S support
entries, H rows, W columns, C channels.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from universeg_jax.model import fast
from universeg_jax.model.layers import (
    DTYPES,
    NORMS,
    Array,
    Conv,
    ConvKernel,
    MapSum,
    activate,
    all_sum,
    check_choice,
    check_shapes,
    chunked,
    concat,
    conv,
    map_sum,
    max_pool,
    weighted_sum,
)
from universeg_jax.model.matching import MATCHES, PixelMatching, stored
from universeg_jax.model.recognition import NETWORKS, Columns, Keys, Probe, Recognition

Block = int | tuple[int, int]  # features, or (cross_features, conv_features)

CROSS_ACTIVATIONS = ("none", "leaky_relu")
RESIDUALS = ("none", "support", "both")
FORMS = ("plain", "fast")
UNKNOWN = 1e-4  # how far a label counts that is not known: enough where nothing else is alike
BLOCK_OPTIONS = ("cross_activation", "norm", "residual", "support_axis", "remat")  # that a network hands its blocks


class CrossConv(ConvKernel):
    """z = Conv3x3([u, v]) for one support entry. Owns the kernel [3, 3, Cu + Cv, F], query channels first."""

    def __call__(self, u_BHWC: Array, v_BHWC: Array) -> Array:
        return conv(jnp.concatenate([u_BHWC, v_BHWC], axis=-1), self.kernel, self.bias)


CrossConvOverSupport = nn.vmap(  # (u_BHWC, v_BSHWC) → z_BSHWF
    CrossConv,
    in_axes=(None, 1),
    out_axes=1,
    variable_axes={"params": None},
    split_rngs={"params": False},
    methods=["__call__"],
)


class CrossBlock(nn.Module):
    """One interaction of the query with the support set."""

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
        self.cross = CrossConvOverSupport(self.query_in + self.support_in, self.cross_features, cross_gain)
        self.query = Conv(self.cross_features, self.conv_features, np.sqrt(2))
        self.support = Conv(self.cross_features, self.conv_features, np.sqrt(2))
        if self.norm == "layer":  # per entry and pixel, over channels: every rewrite of the fast form stays exact
            self.query_norm = nn.LayerNorm()
            self.support_norm = nn.LayerNorm()
        if self.residual != "none" and self.support_in != self.conv_features:
            self.support_skip = Conv(self.support_in, self.conv_features, 1.0, size=1)
        if self.residual == "both" and self.query_in != self.conv_features:
            self.query_skip = Conv(self.query_in, self.conv_features, 1.0, size=1)

    def __call__(self, u_BHWC: Array, v_BSHWC: Array, weights_BS: Array) -> tuple[Array, Array]:
        """(u', v'); `weights_BS` sum to 1 over the entries that count."""
        z_BSHWF = self.cross_activate(self.cross(u_BHWC, v_BSHWC))
        mean_BHWF = all_sum(weighted_sum(weights_BS, z_BSHWF), self.support_axis, u_BHWC.dtype)
        return self.query_out(u_BHWC, mean_BHWF), self.support_out(v_BSHWC, self.support(z_BSHWF))

    def cross_activate(self, z: Array) -> Array:
        return z if self.cross_activation == "none" else activate(z)

    def query_out(self, u_BHWC: Array, mean_BHWF: Array) -> Array:
        """u' from the block's input and the mean of all z_i."""
        x_BHWF = self.query(mean_BHWF)
        out_BHWF = activate(self.query_norm(x_BHWF).astype(x_BHWF.dtype) if self.norm == "layer" else x_BHWF)
        if self.residual != "both":
            return out_BHWF
        return out_BHWF + (u_BHWC if u_BHWC.shape == out_BHWF.shape else self.query_skip(u_BHWC))

    def support_out(self, v_BSHWC: Array, x_BSHWF: Array) -> Array:
        """v' from the block's input and the support convolution of all z_i."""
        out_BSHWF = activate(self.support_norm(x_BSHWF).astype(x_BSHWF.dtype) if self.norm == "layer" else x_BSHWF)
        if self.residual == "none":
            return out_BSHWF
        return out_BSHWF + (v_BSHWC if v_BSHWC.shape == out_BSHWF.shape else self.support_skip(v_BSHWC))


class UniverSeg(nn.Module):
    """Logits of the query's mask, given a support set.

    Defaults are the released architecture: 1,182,785 parameters. Blocks are features, or (cross, conv) features.
    """

    encoder_blocks: Sequence[Block] = (64, 64, 64, 64)
    decoder_blocks: Sequence[Block] = ()  # () mirrors the encoder: encoder_blocks[-2::-1]
    cross_activation: str = "none"  # "none" (release) | "leaky_relu" (paper)
    norm: str = "none"  # "none" (release) | "layer": of each block's outputs, before their activation
    residual: str = "none"  # "none" (release) | "support" | "both": paths that add a block's input to its output
    matching: int = 0  # heads that match the query to the support by appearance (matching.py); 0 (release) = none
    keys: str = "none"  # "none" (release) | "lite0": match by pretrained features too (recognition.py)
    key_heads: int = 4  # of that matching
    key_columns: bool = False  # match by these features as they are, too
    key_probe: bool = False  # fit a linear probe of them to the support (probe.py), too
    dtype: str = "float32"  # of activations; parameters, means over the support and logits stay float32
    remat: bool = False  # recompute each block's activations in the backward pass
    form: str = "fast"  # "fast" | "plain": the same function
    support_chunk: int = 1  # entries streamed at a time by the fast form; 1 is best on a CPU, 0 = all at once
    support_axis: str = ""  # mesh axis over which S is sharded inside shard_map; "" = not sharded

    def setup(self):
        check_choice("cross_activation", self.cross_activation, CROSS_ACTIVATIONS)
        check_choice("norm", self.norm, NORMS)
        check_choice("residual", self.residual, RESIDUALS)
        check_choice("keys", self.keys, NETWORKS)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("form", self.form, FORMS)
        encoder = [(b, b) if isinstance(b, int) else (b[0], b[1]) for b in self.encoder_blocks]
        decoder = [(b, b) if isinstance(b, int) else (b[0], b[1]) for b in self.decoder_blocks] or encoder[-2::-1]
        if len(decoder) != len(encoder) - 1:
            raise ValueError(
                f"config.model.decoder_blocks has {len(decoder)} blocks; {len(encoder)} encoder blocks need "
                f"{len(encoder) - 1}, or () to mirror the encoder"
            )
        block_class = nn.remat(CrossBlock) if self.remat else CrossBlock

        def block(query_in: int, support_in: int, widths: tuple[int, int]) -> CrossBlock:
            options = {name: getattr(self, name) for name in BLOCK_OPTIONS}
            return block_class(query_in, support_in, *widths, **options)

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
        if self.key_columns and self.keys == "none":
            raise ValueError("config.model.key_columns needs config.model.keys, such as lite0")
        if self.key_probe and not self.key_columns:
            raise ValueError("config.model.key_probe needs config.model.key_columns, whose features it reads")
        if self.keys != "none":
            self.columns = Columns(outputs) if self.key_columns else None
            self.probe = Probe(outputs) if self.key_probe else None
            self.recognition = Recognition(self.key_heads, outputs, self.support_axis, self.columns, self.probe)

    def __call__(
        self,
        query_image: Array,
        support_images: Array,
        support_labels: Array,
        support_mask: Array | None = None,
        query_keys: Keys | None = None,
        support_keys: Keys | None = None,
        over: MapSum = map_sum,
        support_known: Array | None = None,
    ) -> Array:
        """Logits [B, H, W, 1] in float32 (or float64).

        query_image [B, H, W, 1], support_images and support_labels [B, S, H, W, 1], all in [0, 1]; H and W multiples
        of 2^(levels - 1). support_mask [B, S]: 1 for an entry, 0 for padding, whose content then has no effect;
        at least one entry of each episode must count. support_known, as support_labels: 1 for a pixel whose label is
        known, 0 for one whose label then has no effect. Raises ValueError for shapes that do not fit.

        With `keys` or `matching`, the keys of the images may be passed as `keys_of` gave them; otherwise they are
        computed. `over` sums over the support in the fast form: `sum_of_first` leaves padding out of the work.
        """
        check_shapes(query_image, support_images, support_labels, support_mask, len(self.encoder), support_known)
        dtype = jnp.dtype(self.dtype)
        u_BHWC = query_image.astype(dtype)
        v_BSHWC = jnp.concatenate([support_images, support_labels], axis=-1).astype(dtype)
        if support_mask is None:
            support_mask = jnp.ones(v_BSHWC.shape[:2], jnp.float32)
        count_BS = support_mask.astype(jnp.promote_types(jnp.float32, dtype))
        v_BSHWC = jnp.where(jnp.expand_dims(count_BS > 0, (2, 3, 4)), v_BSHWC, 0)  # padding may hold anything, NaN too
        total_B1 = count_BS.sum(1, keepdims=True)
        weights_BS = count_BS / (lax.psum(total_B1, self.support_axis) if self.support_axis else total_B1)
        if support_known is not None:
            v_BSHWC = self.with_known(v_BSHWC, support_known, count_BS, weights_BS)
        if self.form == "plain" or self.is_initializing():  # the definition touches every parameter
            u_BHWC = self.plain(u_BHWC, v_BSHWC, weights_BS, query_keys, support_keys)
        else:
            entries, weights, key_chunks = chunked((v_BSHWC, weights_BS, support_keys), self.support_chunk)
            u_BHWC = fast.forward(self, u_BHWC, entries, weights, over, query_keys, key_chunks)
        return self.out(u_BHWC.astype(jnp.promote_types(jnp.float32, dtype)))

    def with_known(self, v_BSHWC: Array, known_BSHW1: Array, count_BS: Array, weights_BS: Array) -> Array:
        """Images, labels and how far each label counts, [B, S, H, W, 3].

        A label that is not known becomes the share of foreground among those that are, and counts for next to nothing.
        """
        known = (known_BSHW1 > 0) & jnp.expand_dims(count_BS > 0, (2, 3, 4))
        labels = jnp.where(known, v_BSHWC[..., 1:], 0)
        sums = weighted_sum(weights_BS, (labels, known.astype(labels.dtype)))
        dtype = jnp.promote_types(jnp.float32, labels.dtype)
        foreground, count = all_sum(jax.tree.map(lambda x: x.sum((1, 2, 3)), sums), self.support_axis, dtype)
        share = jnp.expand_dims(foreground / jnp.maximum(count, 1e-12), (1, 2, 3, 4)).astype(labels.dtype)
        counts = jnp.where(known, 1, UNKNOWN).astype(labels.dtype)
        return jnp.concatenate([v_BSHWC[..., :1], jnp.where(known, labels, share), counts], axis=-1)

    @property
    def has_keys(self) -> bool:
        """Whether `keys_of` returns any keys."""
        return self.keys != "none" or self.matching > 0

    def keys_of(self, images: Array, support: bool = False, light: bool = False) -> tuple[Array | None, ...]:
        """The `query_keys` of images [B, H, W, 1], or the `support_keys` of images [B, S, H, W, 1].

        First those of `matching`, one for each of MATCHES, then those of the pretrained features. Those of a support
        are in float16, or float64. `light`: None in place of the pixels' kinds, more than half of all, which the model
        then computes itself; for batches, which repeat the keys of an image for every query, label and sample.
        """
        images = images.astype(jnp.dtype(self.dtype))
        found: list[Array | None] = []
        for match in self.matches if self.matching else []:
            if light and isinstance(match, PixelMatching):
                found.append(None)
            else:
                found.append(match.support_keys(images) if support else match.keys(images))
        if self.keys != "none":
            found += self.recognition.support_keys(images) if support else self.recognition.keys(images)
        return tuple(jax.tree.map(stored, found)) if support else tuple(found)

    def matched(self, u: Array, entries: Any, weights: Any, keys: tuple[Any, Any], over: MapSum) -> Array:
        """The query, with the labels of similar places in the support as further channels where there is `matching`."""
        if not self.matching:
            return u
        own = [(None,) * len(MATCHES) if each is None else each[: len(MATCHES)] for each in keys]
        matches = zip(self.matches, *own, strict=True)
        return jnp.concatenate([u, *(match(u, q, entries, v, weights, over) for match, q, v in matches)], axis=-1)

    def recognized(self, u: Array, entries: Any, weights: Any, keys: tuple[Any, Any], over: MapSum) -> list[Any]:
        """What to add to the query after each encoder block; nothing without `keys`."""
        if self.keys == "none":
            return []
        of_query, of_support = (each and each[len(MATCHES) if self.matching else 0 :] for each in keys)
        return self.recognition(u, of_query, entries, of_support, weights, over)

    def plain(
        self,
        u_BHWC: Array,
        v_BSHWC: Array,
        weights_BS: Array,
        query_keys: Keys | None = None,
        support_keys: Keys | None = None,
    ) -> Array:
        """Features of the query [B, H, W, F] before the last convolution."""
        keys = query_keys, jax.tree.map(lambda k: k[None], support_keys)
        added = self.recognized(u_BHWC, v_BSHWC[None], weights_BS[None], keys, map_sum)
        u_BHWC = self.matched(u_BHWC, v_BSHWC[None], weights_BS[None], keys, map_sum)
        v_BSHWC = fast.image_and_label(v_BSHWC)
        skips = []
        for level, block in enumerate(self.encoder):
            if level:
                u_BHWC, v_BSHWC = max_pool(u_BHWC), max_pool(v_BSHWC)
            u_BHWC, v_BSHWC = block(u_BHWC, v_BSHWC, weights_BS)
            u_BHWC = u_BHWC + added[level] if added else u_BHWC
            skips.append((u_BHWC, v_BSHWC))
        for block, (skip_u, skip_v) in zip(self.decoder, skips[-2::-1], strict=True):
            u_BHWC, v_BSHWC = block(concat((u_BHWC, skip_u)), concat((v_BSHWC, skip_v)), weights_BS)
        return u_BHWC
