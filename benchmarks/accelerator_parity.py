"""Stage parity: whether the accelerator computes what the CPU and the released code do.

Products and convolutions of float32 are rounded to TF32 (10 bits) on such a GPU unless told otherwise:
`jax_default_matmul_precision` is None there, and XLA gives convolutions the same precision as products. So each check
is made under "highest", where it must hold, and under the default, where the line tells what TF32 does.

golden         logits and gradients of the released architecture, tests/golden, for both forms
sharded        the same with the support split over a mesh of one device
checkpoint     the kit's own model, matching and all, against this machine's CPU; TF32 and bfloat16 too
step           the loss and gradient of a training step against the CPU's
deterministic  the bits of three steps by one program, and of another process
"""

import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks.accelerator_stage import DETERMINISTIC, LIGHT, Stage, about_device, drawn_params, shrink, start, without
from universeg_jax.checkpoints import store
from universeg_jax.checkpoints.convert import config_for, from_release
from universeg_jax.configs import accelerator
from universeg_jax.episode import Episode
from universeg_jax.episodes.sampler import Batch
from universeg_jax.model.factory import build_model
from universeg_jax.model.large_support import sharded_logits
from universeg_jax.training import losses
from universeg_jax.training.optimizer import make_optimizer
from universeg_jax.training.step import init_state, train_step

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
VECTORS = [
    ("universeg_mixed_s3_grad", "fast", "highest"),
    ("universeg_mixed_s3_grad", "plain", "highest"),
    ("universeg_mixed_s3_grad", "fast", "default"),
    ("universeg_nf8_ties_grad", "fast", "highest"),
    ("universeg_nf8_s5_grad", "fast", "highest"),
]
LOGITS, GRADIENT = 1e-4, 1e-3  # largest errors under "highest": of logits; of a gradient, relative to its largest entry


def golden(name: str) -> tuple[ConfigDict, Any, list[np.ndarray], np.ndarray, np.ndarray, Any]:
    """(config, parameters, inputs, label, logits, gradients) of a vector, channels last."""
    arrays, state = np.load(GOLDEN / f"{name}.npz"), dict(np.load(GOLDEN / f"{name}_params.npz"))
    config = config_for(state)
    images = [arrays["target_image"], arrays["support_images"], arrays["support_labels"].astype(np.float32)]
    label, logits = (np.moveaxis(arrays[key], -3, -1) for key in ("target_label", "logits"))
    grads = {key.removeprefix("grad/"): arrays[key] for key in arrays if key.startswith("grad/")}
    params, grads = from_release(state, config), from_release(grads, config)
    return config, params, [np.moveaxis(x, -3, -1) for x in images], label.astype(np.float32), logits, grads


def apart(there: Any, wanted: Any) -> float:
    """The largest difference between two trees, each leaf relative to its largest entry in `wanted`."""

    def one(a: Any, b: Any) -> float:
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))

    return max(jax.tree.leaves(jax.tree.map(one, there, wanted)))


def check_golden(stage: Stage, name: str, form: str, precision: str) -> None:
    config, params, inputs, label, logits, grads = golden(name)
    model = build_model(config.model, form=form, support_chunk=0)

    def run(params: Any, label: Any, *inputs: Any) -> Any:
        def loss(params: Any) -> Any:
            found = model.apply({"params": params}, *inputs)
            return losses.soft_dice(found, label, squared=False).mean(), found

        (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return found, gradient

    with jax.default_matmul_precision(precision):
        compiled, about = stage.compile(f"{name} {form} {precision}", run, params, label, *inputs)
    found, gradient = compiled(params, label, *inputs)
    error, of_gradient = float(np.abs(np.asarray(found) - logits).max()), apart(gradient, grads)
    row = {"vector": name, "form": form, "precision": precision, "logits_error": error, "gradient_error": of_gradient}
    ok = {"ok": error <= LOGITS and of_gradient <= GRADIENT} if precision == "highest" else {}
    stage.line(check="golden", **row, **ok, compile_seconds=about["compile_seconds"])


def check_sharded(stage: Stage) -> None:
    config, params, inputs, _, logits, _ = golden("universeg_nf8_s5_grad")
    mesh = Mesh(np.array(jax.devices()[:1]), ("support",))
    run = sharded_logits(build_model(config.model, support_chunk=0), mesh, "support")
    with jax.default_matmul_precision("highest"):
        found = run(params, *inputs, np.ones(inputs[1].shape[:2], np.float32))
    error = float(np.abs(np.asarray(found) - logits).max())
    stage.line(check="sharded", devices=1, logits_error=error, ok=error <= LOGITS)


def drawn_inputs(size: int, support: int) -> list[np.ndarray]:
    """A query and a support of noisy discs [1, ...]: structured enough for matching to have something to find."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    centres, radii = rng.uniform(0.3, 0.7, (support + 1, 2)), rng.uniform(0.1, 0.25, support + 1)
    label = np.stack([(y - a) ** 2 + (x - b) ** 2 < r**2 for (a, b), r in zip(centres, radii, strict=True)])
    image = np.clip(0.3 + 0.4 * label + 0.1 * rng.standard_normal(label.shape), 0, 1).astype(np.float32)
    image, label = image[..., None], label.astype(np.float32)[..., None]
    return [image[:1], image[None, 1:], label[None, 1:]]


def check_checkpoint(stage: Stage) -> None:
    """The kit's model on the device, in three precisions, against its float32 on the CPU."""
    params, config = store.load(stage.args.checkpoint)
    params = jax.device_get(params)
    inputs = drawn_inputs(32 if stage.args.tiny else config.image_size, 4)
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]

    def logits(dtype: str, precision: str, where: Any) -> np.ndarray:
        model = build_model(config.model, dtype=dtype, support_chunk=0)
        placed = jax.device_put((params, *inputs), where)
        with jax.default_matmul_precision(precision):
            name = f"checkpoint {dtype} {precision} {where.platform} {where is cpu}"
            apply = lambda params, *x: model.apply({"params": params}, *x)  # noqa: E731
            compiled, _ = stage.compile(name, apply, *placed, quick=where is not device)
        return np.asarray(compiled(*placed))

    wanted = logits("float32", "highest", cpu)
    row = {"check": "checkpoint", "matching": config.model.matching, "largest_logit": float(np.abs(wanted).max())}
    for dtype, precision in (("float32", "highest"), ("float32", "default"), ("bfloat16", "default")):
        if device is cpu and (dtype, precision) == ("float32", "highest"):
            continue  # the reference itself
        found = logits(dtype, precision, device)
        error, turned = float(np.abs(found - wanted).max()), float(((found >= 0) != (wanted >= 0)).mean())
        ok = {"ok": error <= 1e-3 * max(row["largest_logit"], 1)} if precision == "highest" else {}
        stage.line(**row, dtype=dtype, precision=precision, logits_error=error, mask_pixels_turned=turned, **ok)


def step_and_inputs() -> tuple[Any, Any]:
    """A training step with what compiles soon, by SGD, whose update is the gradient; and (state, batch) for it."""
    config = shrink(accelerator.get_config())
    config.model.update({"encoder_blocks": (8, 8, 8), "dtype": "float32", "matching": 4})
    config.kinds.update({"real": 1.0, "synthetic": 0.0, "superpixel": 0.0})
    without(config, [n for level in ("task", "in_task") for n in config.augment[level] if n not in LIGHT])
    config.optimizer.update({"name": "sgd", "schedule": "constant", "learning_rate": 1.0, "warmup_steps": 0})
    model, (optimizer, schedule) = build_model(config.model), make_optimizer(config)
    rng, shape = np.random.default_rng(0), (config.batch_size, config.support_size + 1, config.image_size)
    images = rng.integers(0, 256, (*shape, config.image_size, 1)).astype(np.uint8)
    labels = (images > 150).astype(np.uint8)
    mask = np.ones(shape[:2], np.uint8)[:, 1:]
    episode = Episode(images[:, 0], labels[:, 0], images[:, 1:], labels[:, 1:], mask)
    numbers = np.arange(config.batch_size, dtype=np.uint32)
    zeros = np.zeros(config.batch_size, np.uint8)
    batch = Batch(numbers, zeros, zeros.astype(np.int32), episode)

    def step(state: Any, batch: Any) -> Any:
        new, sums = train_step(
            state, batch, model=model, optimizer=optimizer, schedule=schedule, config=config, axis_name=None
        )
        return new.params, sums["loss"][0]

    state = init_state(drawn_params(model), optimizer, False)
    return step, jax.device_get((state, batch))


def check_step(stage: Stage) -> None:
    step, inputs = step_and_inputs()
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    found = []
    for place, where in (("cpu", cpu), ("device", device)):
        placed = jax.device_put(inputs, where)
        with jax.default_matmul_precision("highest"):
            compiled, _ = stage.compile(f"step {place}", step, *placed, quick=where is not device)
        found.append(jax.device_get(compiled(*placed)))
    (on_cpu, loss), (on_device, other) = found
    moved, there = (jax.tree.map(jnp.subtract, inputs[0].params, params) for params in (on_cpu, on_device))
    error = apart(there, moved)
    stage.line(check="step", loss_error=float(abs(other - loss)), gradient_error=error, ok=error <= GRADIENT)


def deterministic_part(stage: Stage) -> None:
    """In a process with the flag: three steps from one state, and what their bits are."""
    step, inputs = step_and_inputs()
    placed = jax.device_put(inputs, jax.devices()[0])
    compiled, _ = stage.compile("step", step, *placed)
    digests = []
    for _ in range(3):
        leaves = jax.tree.leaves(jax.device_get(compiled(*placed)))
        digests.append(hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).hexdigest()[:16])
    stage.line(check="deterministic", bits=sorted(set(digests)), ok=len(set(digests)) == 1)


def check_deterministic(stage: Stage) -> None:
    """Two processes with --xla_gpu_deterministic_ops, which is read when JAX starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    command = [sys.executable, "-m", "benchmarks.accelerator_parity", "--part=deterministic", f"--kit={stage.args.kit}"]
    command += [f"--out={stage.args.out}", f"--until={stage.until}"]
    runs = 2 if stage.left() > 20 else 1
    for _ in range(runs):
        subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, check=True, timeout=max(stage.left(), 1))


def main() -> None:
    stage = start("parity", __doc__, parts=True)
    if stage.args.part:
        stage.part("deterministic", 0, deterministic_part, stage)
        sys.exit(min(stage.failed, 1))
    precision = str(jax.config.jax_default_matmul_precision)  # type: ignore[attr-defined]
    stage.line(**about_device(), jax_default_matmul_precision=precision)
    checks: list[tuple[str, Callable[[], None]]] = [
        (" ".join(vector), functools.partial(check_golden, stage, *vector))
        for vector in VECTORS[: 2 if stage.args.tiny else None]
    ]
    checks[1:1] = [
        ("checkpoint", functools.partial(check_checkpoint, stage)),
        ("step", functools.partial(check_step, stage)),
        ("deterministic", functools.partial(check_deterministic, stage)),
        ("sharded", functools.partial(check_sharded, stage)),
    ]
    # Nothing is timed here, and nearly all of it is compilation.
    with ThreadPoolExecutor(1 if stage.args.tiny else 4) as pool:
        for name, check in checks:
            pool.submit(stage.part, name, 5, check)
    stage.end()


if __name__ == "__main__":
    main()
