"""Train, evaluate and use UniverSeg: in-context segmentation of biomedical images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from universeg_jax.prediction.predictor import Predictor

__version__ = "0.2.0"
__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on first use: processes that only build data need no JAX.
    if name == "Predictor":
        from universeg_jax.prediction.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
