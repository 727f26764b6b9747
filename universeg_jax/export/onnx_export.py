"""A checkpoint as an ONNX file for one query and a fixed number of support entries, by jax2onnx.

jax2onnx puts its own versions of flax's and JAX's functions in place while it traces, and its LayerNorm gives float64;
so the model is traced before, and jax2onnx sees a program of JAX's primitives alone. The numbers of queries and entries
are fixed because it loses symbolic ones where an array is repeated (0.17.1). What it writes is run by ONNX Runtime and
compared with the model before it is kept.
"""

import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun
from ml_collections import ConfigDict

import universeg_jax
from universeg_jax.checkpoints import store
from universeg_jax.configuration import to_dict
from universeg_jax.errors import UserError
from universeg_jax.export.jax_export import INPUTS, PREPROCESSING
from universeg_jax.model.factory import build_model
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.reports.files import atomic_write

NAMES = tuple(INPUTS)
TOLERANCE = 1e-4  # of logits
INSTALL = "pip install 'universeg_jax[onnx]' && pip install --no-deps 'jax2onnx>=0.17,<0.18'"


def export_onnx(checkpoint: str | Path, out: str | Path, support_size: int) -> str:
    """Writes a checkpoint to a new file `out`. Raises UserError where it exists, or the program differs."""
    jax2onnx, onnx, onnxruntime = _require_packages()
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already; take another name")
    if support_size < 1:
        raise UserError(f"support_size={support_size}: at least 1 is needed")
    path = store.resolve(checkpoint)
    predictor = Predictor.from_checkpoint(checkpoint)
    inputs = example_inputs(predictor.config.image_size, support_size)
    program = convert(jax2onnx, predictor.params, predictor.config, inputs)
    meta = {
        "image_size": predictor.config.image_size,
        "support_size": support_size,
        "inputs": INPUTS,
        "preprocessing": PREPROCESSING,
        "version": universeg_jax.__version__,
        "model": to_dict(predictor.config)["model"],
        "lineage": store.read_metadata(path).get("lineage", {}),
    }
    onnx.helper.set_model_props(program, {"universeg_jax": json.dumps(meta)})
    content = program.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, inputs)
    apart = float(np.abs(logits - np.asarray(predictor.logits(*inputs.values()))).max())
    if not apart <= TOLERANCE:
        raise UserError(
            f"ONNX Runtime's logits differ by {apart:.1e}, above {TOLERANCE:g}; use `universeg export` alone"
        )
    with atomic_write(out) as temporary:
        temporary.write_bytes(content)
    return (
        f"{path} → {out}: {len(content) / 1e6:.1f} MB, {support_size} entries, logits within {apart:.0e} of the model's"
    )


def example_inputs(size: int, support_size: int) -> dict[str, np.ndarray]:
    """Noise, with the last entry masked where there are several."""
    rng = np.random.default_rng(0)
    query, images = (rng.random((*shape, size, size, 1), np.float32) for shape in ((1,), (1, support_size)))
    mask = np.ones((1, support_size), np.float32)
    mask[:, 1:][:, -1:] = 0
    return dict(zip(NAMES, (query, images, (images > 0.5).astype(np.float32), mask), strict=True))


def convert(jax2onnx: Any, params: Any, config: ConfigDict, inputs: dict[str, np.ndarray]) -> Any:
    """The fast form with its parameters as an ONNX ModelProto."""
    model = build_model(config.model, form="fast", support_chunk=0, support_axis="")
    primitives = jaxpr_as_fun(jax.make_jaxpr(lambda *x: model.apply({"params": params}, *x))(*inputs.values()))
    return jax2onnx.to_onnx(
        lambda *x: primitives(*x)[0],
        inputs=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs.values()],
        model_name="universeg",
        input_names=NAMES,
        output_names=("logits",),
    )


def _require_packages() -> tuple[Any, Any, Any]:
    for name in ("jax2onnx", "onnx_ir"):  # which warn of every example of theirs that needs another package
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import jax2onnx
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"ONNX needs other packages ({error}): {INSTALL}") from error
    return jax2onnx, onnx, onnxruntime
