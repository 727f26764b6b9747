"""How much arithmetic the model takes: multiplications and additions of its convolutions."""

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from universeg_jax.matching import MATCHES
from universeg_jax.model import UniverSeg
from universeg_jax.networks import param_shapes


def forward_flops(model: UniverSeg, size: int, support_size: int) -> tuple[int, int]:
    """(of the model's form, of the definition as published) for one query with its support, at size² pixels.

    The definition convolves [u, v_i] for every entry of every block, the last one's support output too, which a
    compiler removes. The fast form with a linear CrossConv convolves u once a block, composes the first block's two
    convolutions of an entry, and needs a mean alone of what enters the last block.
    """
    blocks, query_in, support_in = [], 1 + 2 * model.matching, 2
    encoder = [(b, b) if isinstance(b, int) else tuple(b) for b in model.encoder_blocks]
    decoder = [(b, b) if isinstance(b, int) else tuple(b) for b in model.decoder_blocks] or encoder[-2::-1]
    outputs = [conv for _, conv in encoder]
    for level, (cross, conv) in enumerate(encoder):
        blocks.append((size >> level, query_in, support_in, cross, conv))
        query_in = support_in = conv
    for level, (cross, conv) in zip(range(len(decoder) - 1, -1, -1), decoder, strict=True):
        query_in = support_in = query_in + outputs[level]
        blocks.append((size >> level, query_in, support_in, cross, conv))
        query_in = support_in = conv

    fast, plain, published = 0, 0, 0
    linear = model.cross_activation == "none"
    for i, (side, q, s, cross, conv) in enumerate(blocks):
        taps = 2 * 9 * side**2
        last = i == len(blocks) - 1
        published += taps * (support_size * ((q + s) * cross + cross * conv) + cross * conv)
        plain += taps * (support_size * ((q + s) * cross + (0 if last else cross * conv)) + cross * conv)
        entry = s * cross + (0 if last else cross * conv)
        if linear and last:
            entry = 0
        elif linear and i == 0:
            entry = 9 * s * conv
        once = q * cross + cross * conv + (s * cross if linear else 0)  # the query's half, its output, the mean's half
        once += cross * conv if linear and i == 0 and not last else 0  # the composed block's share of the query
        fast += taps * (support_size * entry + once)
    out = 2 * size**2 * blocks[-1][-1]
    out += sum(kind(model.matching).flops(size, support_size) for kind in MATCHES) if model.matching else 0
    return (fast if model.form == "fast" else plain) + out, published + out


def counted_flops(model: nn.Module, size: int, support_size: int) -> int:
    """Of any model's forward pass for one query with its support, as the compiler counts what it is given."""
    on_cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])  # others refuse to count
    whole = model.clone(support_chunk=0)  # a loop's body would count once
    query, support = (1, size, size, 1), (1, support_size, size, size, 1)
    inputs = ({"params": param_shapes(whole)}, *(jax.ShapeDtypeStruct(x, "float32") for x in (query, support, support)))
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_cpu), inputs)
    return int(jax.jit(whole.apply).lower(*placed).cost_analysis()["flops"])


def training_flops(model: nn.Module, config: ConfigDict) -> int:
    """Of one step over all devices: three times the forward pass; recomputation and augmentation not counted."""
    queries = config.batch_size * (config.support_size + 1 if config.every_image_as_query else 1)
    if isinstance(model, UniverSeg):
        return 3 * queries * forward_flops(model, config.image_size, config.support_size)[0]
    return 3 * queries * counted_flops(model, config.image_size, config.support_size)
