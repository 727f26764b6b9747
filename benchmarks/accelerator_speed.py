"""Stage speed: the released architecture against PyTorch on this device, forward and gradient step, in one run.

Seconds are medians over rounds of calls that are dispatched without waiting. `share_of_peak` is what XLA counts for the
program as it is written, over the seconds, over the chip's documented dense bfloat16 rate: 989 TFLOP/s of an H100 or
H200 SXM, for float32 too. PyTorch is given the FLOPs of the definition, which it computes. `faster_than` is PyTorch's
time over ours for the same sizes. What matters most comes first; what there is no time for is named.
"""

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import accelerator_torch
from benchmarks.accelerator_stage import Stage, about_device, drawn_params, profiled, seconds_of, start
from universeg_jax.model.factory import build_model, param_shapes
from universeg_jax.training.losses import soft_dice

PEAK_TFLOPS = {"H100": 989, "H200": 989}  # dense bfloat16 of the SXM modules, from the vendor's data sheet
GUESS = {"jax": 2.0, "torch eager": 3.0, "torch compile": 25.0}  # seconds of a case, until one like it was measured
MARGIN, DRAWING = 1.2, 5.0  # what must be left: times the last case like it, and seconds for the figure


class Case(NamedTuple):
    by: str  # key of GUESS
    kind: str  # "forward" or "gradient"
    support: int
    batch: int
    dtype: str

    def same_work(self, other: "Case") -> bool:
        return self[1:] == other[1:]


class Sizes(NamedTuple):
    """Of images, model, supports and batches."""

    image: int
    blocks: tuple[int, ...]
    supports: tuple[int, int]
    batches: tuple[int, ...]


FULL = Sizes(128, (64, 64, 64, 64), (64, 16), (1, 16, 4))
TINY = Sizes(32, (4, 4), (3, 2), (1, 2))


def cases(sizes: Sizes) -> list[Case]:
    """In the order of what must be known."""
    large, small = sizes.supports
    both = ("forward", "gradient")
    wanted = []
    for kind in both:
        for by in ("jax", "torch eager", "torch compile"):
            wanted += [Case(by, kind, large, batch, "bfloat16") for batch in sizes.batches]
    for kind, by in itertools.product(both, ("jax", "torch eager")):
        wanted += [Case(by, kind, large, batch, "float32") for batch in sizes.batches[:2]]
    for kind, by in itertools.product(both, ("jax", "torch eager", "torch compile")):
        wanted += [Case(by, kind, small, batch, "bfloat16") for batch in sizes.batches[:2]]
    return wanted


def inputs_of(case: Case, image: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    query = rng.random((case.batch, image, image, 1), np.float32)
    images = rng.random((case.batch, case.support, image, image, 1), np.float32)
    return [query, images, (images > 0.5).astype(np.float32), (query > 0.5).astype(np.float32)]


def program(case: Case, sizes: Sizes) -> Callable[..., Any]:
    """Of (parameters, query label, query, support images, support labels): logits, or parameters after a step."""
    model = build_model({"encoder_blocks": sizes.blocks}, dtype=case.dtype, support_chunk=0)

    def forward(params: Any, label: Any, *arrays: Any) -> Any:
        return model.apply({"params": params}, *arrays)

    def step(params: Any, label: Any, *arrays: Any) -> Any:
        grads = jax.grad(lambda p: soft_dice(forward(p, label, *arrays), label).mean())(params)
        return jax.tree.map(lambda p, g: p - 1e-4 * g, params, grads)

    return step if case.kind == "gradient" else forward


def shapes_of(case: Case, sizes: Sizes, sharding: Any = None) -> tuple[Any, ...]:
    """What `program` is compiled for."""
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=np.float32, sharding=sharding)
    query, entries = (case.batch, sizes.image, sizes.image, 1), (case.batch, case.support, sizes.image, sizes.image, 1)
    params = param_shapes(build_model({"encoder_blocks": sizes.blocks}))
    return jax.tree.map(lambda x: shape(x.shape), params), shape(query), shape(query), shape(entries), shape(entries)


@functools.cache
def episode_gflop(kind: str, support: int, sizes: Sizes) -> float:
    """XLA's count for one episode of the program as it is written; an accelerator's own client offers none."""
    case = Case("jax", kind, support, 1, "bfloat16")
    on_cpu = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    lowered = jax.jit(program(case, sizes)).lower(*shapes_of(case, sizes, on_cpu))
    return lowered.cost_analysis()["flops"] / 1e9


def definition_gflop(support: int, sizes: Sizes) -> float:
    """XLA's count for one forward pass of the definition, which is what PyTorch computes."""
    model = build_model({"encoder_blocks": sizes.blocks}, form="plain")
    on_cpu = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    side = sizes.image
    arrays = (jax.ShapeDtypeStruct(x, "float32") for x in ((1, side, side, 1), *[(1, support, side, side, 1)] * 2))
    inputs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_cpu), ({"params": param_shapes(model)}, *arrays)
    )
    return jax.jit(model.apply).lower(*inputs).cost_analysis()["flops"] / 1e9


def compile_all(stage: Stage, wanted: list[Case], sizes: Sizes) -> dict[Case, Future]:
    """Compiles our programs side by side, before anything is timed: one after another they would take minutes."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    found = {c: pool.submit(stage.compile, str(c), program(c, sizes), *shapes_of(c, sizes)) for c in wanted}
    stage.wait_for(found.values())
    return found


def measure_jax(compiled: Any, about: dict[str, Any], case: Case, sizes: Sizes) -> dict[str, Any]:
    params = jax.device_put(drawn_params(build_model({"encoder_blocks": sizes.blocks})))
    *arrays, label = (jnp.asarray(x) for x in inputs_of(case, sizes.image))
    seconds = seconds_of(lambda: compiled(params, label, *arrays))
    gflop = case.batch * episode_gflop(case.kind, case.support, sizes)
    return {**times(seconds), **about, "gflop": round(gflop, 3), **rate(gflop, seconds[0])}


def measure_torch(case: Case, sizes: Sizes) -> dict[str, Any]:
    accelerator_torch.forget()
    gradient, compiled = case.kind == "gradient", case.by == "torch compile"
    run, wait = accelerator_torch.make(inputs_of(case, sizes.image), gradient, case.dtype, compiled, sizes.blocks)
    seconds = seconds_of(run, wait)
    gflop = case.batch * definition_gflop(case.support, sizes) * (3 if gradient else 1)
    memory = accelerator_torch.peak_mb()
    return {**times(seconds), "memory_mb": memory, "gflop": round(gflop, 3), **rate(gflop, seconds[0])}


def times(seconds: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("seconds", "fastest", "slowest"), (round(x, 6) for x in seconds), strict=True))


def rate(gflop: float, seconds: float) -> dict[str, float]:
    peaks = [tflops for name, tflops in PEAK_TFLOPS.items() if name in about_device()["device"]]
    share = {"share_of_peak": round(gflop / 1e3 / seconds / peaks[0], 4)} if peaks else {}
    return {"tflops": round(gflop / 1e3 / seconds, 2), **share}


def run(stage: Stage, sizes: Sizes) -> list[tuple[Case, dict[str, Any]]]:
    """Measures case by case; each has its line before the next one begins."""
    done: list[tuple[Case, dict[str, Any]]] = []
    skipped: list[Case] = []
    there = accelerator_torch.versions()["torch"] != "missing"
    wanted = [case for case in cases(sizes) if there or case.by == "jax"]
    programs = compile_all(stage, [case for case in wanted if case.by == "jax"], sizes)
    last: dict[tuple[str, str], float] = {}

    def one(case: Case) -> dict[str, Any]:
        ours = case.by == "jax"
        if ours:
            compiled, about = stage.result(programs[case])
            found = measure_jax(compiled, about, case, sizes)
        else:
            found = measure_torch(case, sizes)
        others = {c.by: row["seconds"] for c, row in done if c.same_work(case)}
        mine = found["seconds"] if ours else others.pop("jax", None)
        others = others if ours else {case.by: found["seconds"]}
        ratios = {by: round(seconds / mine, 3) for by, seconds in others.items()} if mine else {}
        return stage.line(**case._asdict(), **found, **({"faster_than": ratios} if ratios else {}))

    for case in wanted:
        began, needed = stage.left(), last.get((case.by, case.kind), 1.0 if stage.args.tiny else GUESS[case.by])
        if began < MARGIN * needed + DRAWING:
            skipped.append(case)
        elif row := stage.part(str(case), 0, one, case):
            done.append((case, row))
            last[case.by, case.kind] = began - stage.left()
    if skipped:
        stage.line(no_time_for=[" ".join(map(str, case)) for case in skipped])
    return done


def profile(stage: Stage, sizes: Sizes) -> None:
    """A trace of some gradient steps at the middle batch; the program comes from the cache."""
    case = Case("jax", "gradient", sizes.supports[0], sizes.batches[-1], "bfloat16")
    compiled = jax.jit(program(case, sizes)).lower(*shapes_of(case, sizes)).compile()
    params = jax.device_put(drawn_params(build_model({"encoder_blocks": sizes.blocks})))
    *arrays, label = (jnp.asarray(x) for x in inputs_of(case, sizes.image))
    jax.block_until_ready(compiled(params, label, *arrays))
    with profiled(stage):
        jax.block_until_ready([compiled(params, label, *arrays) for _ in range(3)])


def draw(stage: Stage, done: list[tuple[Case, dict[str, Any]]]) -> None:
    """speed.png: seconds by batch, a panel for each kind of work."""
    from matplotlib.figure import Figure

    panels = sorted({(c.kind, c.support) for c, _ in done}, key=lambda p: (p[0], -p[1]))
    figure = Figure((4 * len(panels), 4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for case, row in done:
            if (case.kind, case.support) == panel:
                lines.setdefault(f"{case.by}, {case.dtype}", []).append((case.batch, row["seconds"]))
        for name, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), "o-", label=name)
        axes.set(title=f"{panel[0]}, S={panel[1]}", xlabel="episodes", ylabel="seconds", xscale="log", yscale="log")
        axes.legend(fontsize=7)
    figure.savefig(stage.args.out / "speed.png", dpi=110)


def main() -> None:
    stage = start("speed", __doc__)
    stage.line(**about_device(), **accelerator_torch.versions())
    sizes = TINY if stage.args.tiny else FULL
    done = run(stage, sizes)
    if stage.args.profile:
        stage.part("profile", 15, profile, stage, sizes)
    if done:
        stage.part("speed.png", 2, draw, stage, done)
    stage.end()


if __name__ == "__main__":
    main()
