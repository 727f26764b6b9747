"""UniverSeg's fast form: the function that universeg.py defines, of the same parameters, rewritten.

* The cross kernel is split, conv([u, v_i]) = Wq*u + Ws*v_i, so that the query's half is computed once.
* With a linear CrossConv (`cross_activation="none"`) the mean moves inside, mean_i z_i = Wq*u + Ws*mean_i(v_i) + b:
  the query path never sees S entries, and the last block needs only a mean of its support.
* The first block's two convolutions of a support entry, 2 → F → F channels, become one over its zero-padded 3x3
  patches, 18 → F. This is exact at the borders too, since zero-padding the patches is zero-padding z.
* The last block's support output never reaches the logits and is not computed.
* Support entries are streamed in chunks [n, B, chunk, ...]: a block holds the features of one chunk at a time.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from universeg_jax.model.layers import (
    Array,
    MapSum,
    add_to_each,
    all_sum,
    concat,
    conv,
    map_sum,
    max_pool,
    patches,
    weighted_sum,
)

Keep = Callable[[Array], tuple[Any, Any]]  # v' of a chunk → (what to average over entries, what to store)


def forward(
    model: nn.Module,
    u: Array,
    entries: Any,
    weights: Any,
    over: MapSum = map_sum,
    query_keys: Any = None,
    support_keys: Any = None,
) -> Array:
    """Features of the query [B, H, W, F] before the last convolution.

    u [B, H, W, 1]; entries [n, B, chunk, H, W, 2] and weights [n, B, chunk], or what else `over` takes; keys of
    the support in chunks likewise. `model` is bound.
    """
    linear = model.cross_activation == "none"
    keys = query_keys, support_keys
    added = model.recognized(u, entries, weights, keys, over)
    u = model.matched(u, entries, weights, keys, over)
    # A linear last block needs only the means of its two inputs: what comes from the block below it, and the
    # full-resolution features of the first block, never exist for all entries at once.
    below_last = [*model.encoder, *model.decoder][-2] if linear and model.decoder else None
    skips: list[tuple[Array, Any]] = []
    mean: Any = None
    mean_skip: Any = None
    for level, block in enumerate(model.encoder):
        keep: Keep | None = lambda out: (None, (max_pool(out), out))  # noqa: E731
        if block is below_last and level:
            keep = lambda out: (out, (None, None))  # noqa: E731
        elif block is model.encoder[-1]:
            keep = (lambda out: (None, (out, None))) if model.decoder else None
        elif level == 0 and linear:
            keep = lambda out: (out, (max_pool(out), None))  # noqa: E731
        u = max_pool(u) if level else u
        join = image_and_label if level == 0 else lambda entry: entry
        u, mean, stored = cross_block(block, u, entries, weights, keep, over, join, compose=level == 0)
        u = u + added[level] if added else u
        mean_skip = mean if level == 0 else mean_skip
        if stored is not None:
            entries, skip = stored
            skips.append((u, skip))
    for block, (skip_u, skip_v) in zip(model.decoder, skips[-2::-1], strict=True):
        u, last = concat((u, skip_u)), block is model.decoder[-1]
        if last and linear:
            u = query_from_mean(block, u, concat((mean, mean_skip)))
        else:
            store: Keep = lambda out: (None, out)  # noqa: E731
            keep = None if last else (lambda out: (out, None)) if block is below_last else store
            u, mean, entries = cross_block(block, u, (entries, skip_v), weights, keep, over, join=concat)
    return u


def cross_block(
    block: nn.Module,
    u: Array,
    entries: Any,
    weights: Any,
    keep: Keep | None,
    over: MapSum,
    join: Callable[[Any], Array] = lambda entry: entry,
    compose: bool = False,
) -> tuple[Array, Any, Any]:
    """(u', average over entries, store [n, B, chunk, ...]) of one block, streamed by `over`.

    v_i = join(entry_i), where join is linear. `keep` says what of v'_i to average and to store; None where nothing of
    the support is needed any more. `compose` makes one convolution of the two of a support entry, which saves work
    where v has few channels.
    """
    linear = block.cross_activation == "none"
    kernel_q, kernel_s = split_kernel(block)
    z_query = conv(u, kernel_q, block.cross.bias)
    if compose := compose and linear:
        composed = jnp.einsum("ijcf,klfg->klijcg", kernel_s, block.support.kernel)
        composed = composed.reshape((3, 3, 9 * block.support_in, block.conv_features))
        out_query = block.support(z_query)

    def chunk(x: tuple[Any, Array]) -> tuple[Any, Any]:
        entry, weight = x
        v = join(entry)
        if compose:
            out = add_to_each(out_query, conv(patches(v), composed))
        else:
            z = block.cross_activate(add_to_each(z_query, conv(v, kernel_s)))
            out = block.support(z) if keep else z
        averaged, stored = keep(block.support_out(v, out)) if keep else (None, None)
        return weighted_sum(weight, (entry if linear else z, averaged)), stored

    partial, stored = over(jax.checkpoint(chunk) if block.remat else chunk, (entries, weights))
    mean, averaged = all_sum(partial, block.support_axis, u.dtype)
    return query_from_mean(block, u, join(mean)) if linear else block.query_out(u, mean), averaged, stored


def image_and_label(entry: Array) -> Array:
    """Entries [..., 2 or 3] without how far each label counts, which is for matching alone."""
    return entry if entry.shape[-1] == 2 else entry[..., :2]


def split_kernel(block: nn.Module) -> list[Array]:
    """The cross kernel's halves for the query and for the support."""
    return jnp.split(block.cross.kernel, [block.query_in], axis=2)


def query_from_mean(block: nn.Module, u: Array, mean: Array) -> Array:
    """u' of a linear CrossConv from mean_i v_i [B, H, W, C]."""
    kernel_q, kernel_s = split_kernel(block)
    return block.query_out(u, conv(u, kernel_q, block.cross.bias) + conv(mean, kernel_s))
