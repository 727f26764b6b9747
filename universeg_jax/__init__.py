"""Train, evaluate and use UniverSeg: in-context segmentation of biomedical images."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the processes that build data need no JAX.
    if name == "Predictor":
        from universeg_jax.prediction.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
