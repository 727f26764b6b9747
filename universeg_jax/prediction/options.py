"""Options of a prediction."""

from dataclasses import dataclass

import numpy as np

from universeg_jax.errors import UserError
from universeg_jax.prediction.selection import CHOICES
from universeg_jax.prediction.support import Support
from universeg_jax.prediction.tiles import MAX_MAGNIFICATION

OF_IMAGES, OF_SLICES = 16, 8  # examples per forward pass for an image and for a slice of a volume (docs/predict.md)


def default_support_size(support: Support) -> int:
    return OF_IMAGES if support.positions is None else OF_SLICES


@dataclass(frozen=True)
class Options:
    """Options of prediction from a support set. Raises UserError for a value out of range."""

    support_size: int | None = None  # examples per forward pass; None: `default_support_size`
    ensemble: int = 1  # support samples to average, if the support set holds more than `support_size` examples
    choose: str = "nearest"  # how to select examples: "nearest" | "random" | "diverse"
    flips: bool = False  # average over the four flips of query and support; four times the work
    overlap: bool = False  # threshold each label at 0.5 by itself, so that labels may overlap
    seed: int = 0  # of the support samples
    smooth: float = 0.0  # standard deviation, mm, of a Gaussian across the slices of a volume; 0: none
    tiles: int = 0  # magnification of a second pass over overlapping tiles, 2 to 16, for images only; 0: none

    def __post_init__(self) -> None:
        if self.tiles and not 2 <= self.tiles <= MAX_MAGNIFICATION:
            raise UserError(f"tiles={self.tiles}: use 0 for none, or a magnification from 2 to {MAX_MAGNIFICATION}")
        if not 0 <= self.smooth < np.inf:
            raise UserError(f"smooth={self.smooth}: use millimetres, 0 or more")
        if (self.support_size is not None and self.support_size < 1) or self.ensemble < 1:
            raise UserError(f"support_size={self.support_size}, ensemble={self.ensemble}: both must be at least 1")
        if self.choose not in CHOICES:
            raise UserError(f"choose={self.choose!r}: use one of {', '.join(CHOICES)}")
