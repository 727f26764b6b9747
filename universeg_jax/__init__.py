"""Train, evaluate and use UniverSeg: in-context segmentation of biomedical images."""

__version__ = "0.1.0"

from universeg_jax.predictor import Predictor

__all__ = ["Predictor", "__version__"]
