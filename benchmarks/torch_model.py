"""The released architecture in PyTorch, written from its published description, to measure against.

Channels first, `[B, S, C, H, W]`, with the released parameter names, so that a released state_dict loads into it:
every support entry is concatenated to a repeated query and convolved, block by block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Block = tuple[int, int]


class Conv(nn.Module):
    """A 3x3 convolution with its LeakyReLU, of [B, C, H, W] or, entry by entry, of [B, S, C, H, W]."""

    def __init__(self, features_in: int, features: int, size: int = 3, activate: bool = True):
        super().__init__()
        self.activate = activate
        conv = nn.Conv2d(features_in, features, size, padding="same")
        if activate:
            self.vmapped = nn.ModuleDict({"conv": conv})  # the released parameter names
        else:
            self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.vmapped["conv"] if self.activate else self.conv
        y = conv(x.flatten(0, -4)).unflatten(0, x.shape[:-3])
        return functional.leaky_relu(y, 0.01) if self.activate else y


class Cross(nn.Module):
    def __init__(self, features_in: int, features: int):
        super().__init__()
        self.cross_conv = nn.Conv2d(features_in, features, 3, padding="same")

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """z_i = conv([u, v_i]) for u [B, C, H, W], v [B, S, C, H, W]."""
        pairs = torch.cat([u[:, None].expand(-1, v.shape[1], -1, -1, -1), v], dim=2)
        return self.cross_conv(pairs.flatten(0, 1)).unflatten(0, v.shape[:2])


class CrossBlock(nn.Module):
    def __init__(self, features_in: int, widths: Block):
        super().__init__()
        cross, conv = widths
        self.cross = Cross(features_in, cross)
        self.target = Conv(cross, conv)
        self.support = Conv(cross, conv)

    def forward(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        z = self.cross(u, v)
        return self.target(z.mean(dim=1)), self.support(z)


class UniverSeg(nn.Module):
    def __init__(self, encoder_blocks: Sequence[Block] = ((64, 64),) * 4, decoder_blocks: Sequence[Block] = ()):
        super().__init__()
        encoder, decoder = list(encoder_blocks), list(decoder_blocks) or list(encoder_blocks[-2::-1])
        before = [3, *(2 * conv for _, conv in encoder[:-1])]
        self.enc_blocks = nn.ModuleList(CrossBlock(n, widths) for n, widths in zip(before, encoder, strict=True))
        skips = [conv for _, conv in encoder[-2::-1]]
        below = [encoder[-1][1], *(conv for _, conv in decoder[:-1])]
        self.dec_blocks = nn.ModuleList(
            CrossBlock(2 * (b + s), widths) for b, s, widths in zip(below, skips, decoder, strict=True)
        )
        self.out_conv = Conv(decoder[-1][1], 1, size=1, activate=False)

    def forward(self, query: Tensor, support_images: Tensor, support_labels: Tensor) -> Tensor:
        """Logits [B, 1, H, W] of query [B, 1, H, W] by support [B, S, 1, H, W]."""
        u, v = query, torch.cat([support_images, support_labels], dim=2)
        skips = []
        for level, block in enumerate(self.enc_blocks):
            if level:
                u, v = functional.max_pool2d(u, 2), over_entries(functional.max_pool2d, v, 2)
            u, v = block(u, v)
            skips.append((u, v))
        resize = {"scale_factor": 2, "mode": "bilinear", "align_corners": True}
        for block, (skip_u, skip_v) in zip(self.dec_blocks, skips[-2::-1], strict=True):
            u = torch.cat([functional.interpolate(u, **resize), skip_u], dim=1)
            v = torch.cat([over_entries(functional.interpolate, v, **resize), skip_v], dim=2)
            u, v = block(u, v)
        return self.out_conv(u)


def over_entries(function, x: Tensor, *args, **kwargs) -> Tensor:
    """Applies a function of [N, C, H, W] to [B, S, C, H, W]."""
    return function(x.flatten(0, 1), *args, **kwargs).unflatten(0, x.shape[:2])
