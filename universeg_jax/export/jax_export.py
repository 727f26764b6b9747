"""Export a checkpoint to one zip file that runs without this package.

- `model.jaxexport`: the program, by jax.export: any number of queries and support entries, for CPU, CUDA and TPU
- `meta.json`: image size, preprocessing, versions, configuration and lineage
- `run_exported.py`: the runner, which needs only jax and NumPy; `__main__.py` makes `python FILE` call it
"""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

import universeg_jax
from universeg_jax.checkpoints import store
from universeg_jax.configuration import to_dict
from universeg_jax.episode import OFFICIAL_SIZE
from universeg_jax.errors import UserError
from universeg_jax.export import run_exported
from universeg_jax.export.run_exported import ExportedModel
from universeg_jax.model.factory import build_model
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.reports.files import atomic_write

PLATFORMS = ("cpu", "cuda", "tpu")
INPUTS = {
    "query_image": "float32 [B, image_size, image_size, 1] in [0, 1]",
    "support_images": "float32 [B, S, image_size, image_size, 1] in [0, 1]",
    "support_labels": "float32 0/1, as support_images",
    "support_mask": "float32 [B, S]: 1 for an entry, 0 for padding",
}
PREPROCESSING = {
    "size": OFFICIAL_SIZE,
    "steps": [
        "grey by ITU-R 601 luma",
        "min-max to [0, 1]",
        "zero-pad to a centred square",
        "Gaussian blur, sigma a quarter of old/new pixels",
        "linear resize at half-pixel centres to `size`; masks cut at 0.5",
        "linear resize to `image_size`, if it differs; masks cut at 0.5",
    ],
}


def export_checkpoint(checkpoint: str | Path, out: str | Path) -> str:
    """Writes a checkpoint to a new file and returns a summary. Raises UserError if the file exists."""
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already; use another name")
    path = store.resolve(checkpoint)
    predictor = Predictor.from_checkpoint(checkpoint)
    program = bytes(export_model(predictor.params, predictor.config).serialize())
    meta = {
        "format": run_exported.FORMAT,
        "image_size": predictor.config.image_size,
        "inputs": INPUTS,
        "output": "logits float32 [B, image_size, image_size, 1]",
        "preprocessing": PREPROCESSING,
        "platforms": PLATFORMS,
        "version": universeg_jax.__version__,
        "jax_version": jax.__version__,
        "sha256": hashlib.sha256(program).hexdigest(),
        "model": to_dict(predictor.config)["model"],
        "lineage": store.read_metadata(path).get("lineage", {}),
    }
    _write_zip(
        out,
        {
            run_exported.META: json.dumps(meta, indent=2).encode(),
            run_exported.MODEL: program,
            "run_exported.py": Path(run_exported.__file__).read_bytes(),
            "__main__.py": b"import sys\n\nfrom run_exported import main\n\nsys.exit(main())\n",
        },
    )
    return f"{path} → {out}: {out.stat().st_size / 1e6:.1f} MB for {', '.join(PLATFORMS)}"


def export_model(params: Any, config: Any, platforms: Sequence[str] = PLATFORMS) -> jax_export.Exported:
    """Exports the fast form with `params` inside, for symbolic batch and support sizes b and s."""
    model = build_model(config.model, form="fast", support_chunk=0, support_axis="")
    b, s = jax_export.symbolic_shape("b, s")
    query = jax.ShapeDtypeStruct((b, config.image_size, config.image_size, 1), jnp.float32)
    support = jax.ShapeDtypeStruct((b, s, *query.shape[1:]), jnp.float32)
    mask = jax.ShapeDtypeStruct((b, s), jnp.float32)
    function = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs))
    return jax_export.export(function, platforms=platforms)(query, support, support, mask)


def load_exported(path: str | Path) -> ExportedModel:
    """Like `run_exported.load_exported`, but raises UserError."""
    try:
        return run_exported.load_exported(path)
    except ValueError as error:
        raise UserError(str(error)) from error


def _write_zip(out: Path, members: dict[str, bytes]) -> None:
    with atomic_write(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
