"""Export a checkpoint to an ONNX file for one query and a fixed number of support entries, by jax2onnx.

The model is traced to JAX primitives first, because jax2onnx replaces functions of flax and JAX while it traces, and
its LayerNorm gives float64. The numbers of queries and entries are fixed because jax2onnx 0.17.1 loses symbolic sizes
where an array is repeated. ONNX Runtime runs the result, and a file that differs from the model is not written.
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
from universeg_jax.model import pretrained
from universeg_jax.model.factory import build_model
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.reports.files import atomic_write

NAMES = tuple(INPUTS)
TOLERANCE = 1e-3  # largest difference of logits: another order of sums rounds pretrained keys to another float16
INSTALL = "pip install 'universeg_jax[onnx]' && pip install --no-deps 'jax2onnx>=0.17,<0.18'"


def export_onnx(checkpoint: str | Path, out: str | Path, support_size: int) -> str:
    """Writes a checkpoint to a new file and returns a summary. Raises UserError if it exists or differs."""
    jax2onnx, onnx, onnxruntime = _require_packages()
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already; use another name")
    if support_size < 1:
        raise UserError(f"support_size={support_size}: use at least 1")
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
    difference = float(np.abs(logits - np.asarray(predictor.logits(*inputs.values()))).max())
    if not difference <= TOLERANCE:
        raise UserError(f"ONNX Runtime's logits differ by {difference:.1e}, above {TOLERANCE:g}; export without .onnx")
    with atomic_write(out) as temporary:
        temporary.write_bytes(content)
    size = f"{len(content) / 1e6:.1f} MB, {support_size} entries"
    return f"{path} → {out}: {size}, logits within {difference:.0e} of the model's"


def example_inputs(size: int, support_size: int) -> dict[str, np.ndarray]:
    """Random inputs; the last of several entries is masked as padding."""
    rng = np.random.default_rng(0)
    query, images = (rng.random((*shape, size, size, 1), np.float32) for shape in ((1,), (1, support_size)))
    mask = np.ones((1, support_size), np.float32)
    mask[:, 1:][:, -1:] = 0
    return dict(zip(NAMES, (query, images, (images > 0.5).astype(np.float32), mask), strict=True))


def convert(jax2onnx: Any, params: Any, config: ConfigDict, inputs: dict[str, np.ndarray]) -> Any:
    """Converts the fast form with its parameters to an ONNX ModelProto."""
    model = build_model(config.model, form="fast", support_chunk=0, support_axis="")
    with pretrained.all_at_once():
        primitives = jaxpr_as_fun(jax.make_jaxpr(lambda *x: model.apply({"params": params}, *x))(*inputs.values()))
    return jax2onnx.to_onnx(
        lambda *x: primitives(*x)[0],
        inputs=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs.values()],
        model_name="universeg",
        input_names=NAMES,
        output_names=("logits",),
    )


def _require_packages() -> tuple[Any, Any, Any]:
    for name in ("jax2onnx", "onnx_ir"):  # they warn about missing optional packages
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import jax2onnx
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"ONNX export needs more packages ({error}): {INSTALL}") from error
    return jax2onnx, onnx, onnxruntime
