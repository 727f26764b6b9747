"""Support sets too large for one device: sharded over several, or streamed through one from the host.

Support entries meet only in the means of the blocks, so they can live anywhere. `sharded_logits` makes each mean
an all-reduce over a mesh axis. `streamed_logits` takes entries chunk by chunk through one block after the other and
keeps their features on the host: for the released architecture at 128², 655 kB an entry in bfloat16, since the
full-resolution features of the first and the last block are needed as means only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from universeg_jax.model import fast
from universeg_jax.model.factory import logits_of
from universeg_jax.model.universeg import UNKNOWN, UniverSeg

Array = jax.Array | np.ndarray


def sharded_logits(model: UniverSeg, mesh: Mesh, axis: str) -> Callable[..., jax.Array]:
    """A jitted function as `model.apply`'s (params, query [B, H, W, 1], images, labels [B, S, H, W, 1], mask [B, S]).

    It may be given which labels are known, too, [B, S, H, W, 1]. S is split over `axis` of the mesh and must be a
    multiple of its size: pad with entries whose mask is 0.
    """
    local = model.clone(support_axis=axis)
    split = P(None, axis)

    def logits(params: Any, query: Array, *support: Array) -> jax.Array:
        sharded = jax.shard_map(
            lambda params, *inputs: logits_of(local, params, *inputs),
            mesh=mesh,
            in_specs=(P(), P(), *[split] * len(support)),
            out_specs=P(),
            check_vma=False,  # the fast form's scan starts from zeros that vary over no axis
        )
        return sharded(params, query, *support)

    return jax.jit(logits)


class _Once:
    """Chunks that are released once read, so that a block's output replaces its input in memory."""

    def __init__(self, chunks: list[Any]):
        self.chunks = chunks

    def take(self, i: int) -> Any:
        chunk, self.chunks[i] = self.chunks[i], None
        return chunk


def streamed_logits(
    model: UniverSeg,
    params: Any,
    query_image: Array,
    chunks: Sequence[tuple[Array, ...]],
    store: Any = jnp.bfloat16,
    progress: bool = True,
) -> jax.Array:
    """Logits [B, H, W, 1] of queries [B, H, W, 1] in [0, 1] with one support set that they share.

    chunks: (images, labels) uint8 [n, H, W, 1], images of 0..255 and labels 0 or 1, every chunk of one size; each may
    have a third array, 0 for pixels without a label. A sequence that reads them when asked keeps memory flat. Features
    wait on the host in `store`: float32 is as exact as the model, bfloat16 takes half the memory.
    """
    dtype = jnp.dtype(model.dtype)
    batch = len(query_image)
    size = len(chunks[0][0])

    share = _share_of_foreground(chunks) if len(chunks[0]) > 2 else 0.0

    def read(i: int) -> jax.Array:
        images, labels, *known = chunks[i]
        v = np.concatenate([images.astype(np.float32) / 255, labels.astype(np.float32)], axis=-1)
        if known:
            counts = np.where(known[0] > 0, np.float32(1), np.float32(UNKNOWN))
            v = np.concatenate([v[..., :1], np.where(known[0] > 0, v[..., 1:], np.float32(share)), counts], axis=-1)
        return jnp.broadcast_to(jnp.asarray(v, dtype)[None], (batch, *v.shape))

    def over(function: Callable[[Any], tuple[Any, Any]], inputs: Any) -> tuple[Any, Any]:
        leaves, treedef = jax.tree.flatten(inputs)
        step = jax.jit(lambda chunk: function(jax.tree.map(lambda x: x.astype(jnp.promote_types(x, dtype)), chunk)))
        total, kept = None, []
        for i in tqdm(range(len(chunks)), "support", unit="chunk", disable=not progress, leave=False):
            chunk = [leaf.take(i) if isinstance(leaf, _Once) else leaf(i) for leaf in leaves]
            partial, stored = step(jax.tree.unflatten(treedef, chunk))
            total = partial if total is None else jax.tree.map(jnp.add, total, partial)
            kept.append(jax.tree.map(lambda x: np.asarray(x.astype(store)), stored))
        return total, jax.tree.map(lambda *each: _Once(list(each)), *kept)

    weights = jnp.full((batch, size), 1 / (size * len(chunks)), jnp.float32)
    bound = model.bind({"params": params})
    u = fast.forward(bound, jnp.asarray(query_image, dtype), read, lambda i: weights, over)
    return bound.out(u.astype(jnp.promote_types(jnp.float32, dtype)))


def _share_of_foreground(chunks: Sequence[tuple[Array, ...]]) -> float:
    """Among the pixels that have a label, as `UniverSeg.with_known` takes it for those without."""
    foreground = count = 0
    for i in range(len(chunks)):
        _, labels, known = chunks[i]
        foreground += int(np.count_nonzero((np.asarray(labels) > 0) & (np.asarray(known) > 0)))
        count += int(np.count_nonzero(known))
    return foreground / max(count, 1)
