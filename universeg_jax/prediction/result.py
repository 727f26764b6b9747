"""The result of a prediction: masks, probabilities, uncertainty and warnings."""

from dataclasses import dataclass

import numpy as np

from universeg_jax.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """The segmentation of one query at the query's own size: [H, W] for an image, [X, Y, Z] for a volume.

    - `mask`: label ids, 0 is background; uint8, or uint16 or int32 where an id needs it. With the option `overlap`
      and L > 1 labels: uint8 0/1 [L, ...], one mask per label.
    - `probabilities`: float32 in [0, 1]; [L, ...] for L > 1 labels.
    - `uncertainty`: float32 in [0, 1], the entropy of the probabilities in bits, clipped at one bit.
    - `labels`: the L label ids, in the order of the first axis.
    - `warnings`: reasons to distrust the mask; () if there are none.
    - `seen`: float32 [N, 128, 128] in [0, 1], the network's input: the preprocessed image (N = 1) or slices.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    uncertainty: np.ndarray
    labels: tuple[int, ...]
    warnings: tuple[str, ...] = ()
    seen: np.ndarray | None = None

    def of(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        """One label's mask, bool [...], and probabilities, float32 [...]. Raises UserError for an unknown label."""
        if label not in self.labels:
            raise UserError(
                f"label {label} is not in this prediction; its labels are {', '.join(map(str, self.labels))}"
            )
        i = self.labels.index(label)
        probabilities = self.probabilities if len(self.labels) == 1 else self.probabilities[i]
        return (self.mask[i] > 0 if self.mask.ndim > probabilities.ndim else self.mask == label), probabilities

    def confidence(self, label: int) -> float:
        """The Dice score that the model expects for a label, 2 Σ p m / (Σ p + Σ m); 0 if the mask is empty."""
        mask, p = self.of(label)
        return float(2 * p[mask].sum() / (p.sum() + mask.sum())) if mask.any() else 0.0
