"""Stage speed: the released architecture against PyTorch on this device, forward and gradient step, in one run.

Seconds are medians over rounds of calls that are dispatched without waiting. `share_of_peak` is what XLA counts for the
program as it is written, over the seconds, over the chip's documented dense bfloat16 rate: 989 TFLOP/s of an H100 or
H200 SXM. PyTorch is given the FLOPs of the definition, which it computes. `faster_than` on a line of ours is PyTorch's
time over ours for the same sizes. What matters most comes first; what there is no time for is named as skipped.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import accelerator_torch
from benchmarks.accelerator_stage import Stage, about_device, profiled, seconds_of, start
from universeg_jax.flops import forward_flops
from universeg_jax.losses import soft_dice
from universeg_jax.networks import build_model, init_params

PEAK_TFLOPS = {"H100": 989, "H200": 989}  # dense bfloat16 of the SXM modules, from the vendor's data sheet
GUESS = {"jax": 12.0, "torch eager": 3.0, "torch compile": 25.0}  # seconds of a case, until one like it was measured
MARGIN, DRAWING = 1.2, 3.0  # what must be left: times the last case like it, and seconds for the figure


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


def measure_jax(stage: Stage, case: Case, sizes: Sizes) -> dict[str, Any]:
    model = build_model({"encoder_blocks": sizes.blocks}, dtype=case.dtype, support_chunk=0)
    params = init_params(model, 0)
    *arrays, label = (jnp.asarray(x) for x in inputs_of(case, sizes.image))

    def forward(params: Any, *arrays: Any) -> Any:
        return model.apply({"params": params}, *arrays)

    def step(params: Any, label: Any, *arrays: Any) -> Any:
        grads = jax.grad(lambda p: soft_dice(forward(p, *arrays), label).mean())(params)
        return jax.tree.map(lambda p, g: p - 1e-4 * g, params, grads)

    given = (params, label, *arrays) if case.kind == "gradient" else (params, *arrays)
    compiled, about = stage.compile(str(case), step if case.kind == "gradient" else forward, *given)
    seconds = seconds_of(lambda: compiled(*given))
    return {**times(seconds), **about, **rate(about["gflop"], seconds[0])}


def measure_torch(case: Case, sizes: Sizes) -> dict[str, Any]:
    accelerator_torch.forget()
    gradient, compiled = case.kind == "gradient", case.by == "torch compile"
    run, wait = accelerator_torch.make(inputs_of(case, sizes.image), gradient, case.dtype, compiled, sizes.blocks)
    seconds = seconds_of(run, wait)
    model = build_model({"encoder_blocks": sizes.blocks}, support_chunk=0)
    gflop = case.batch * forward_flops(model, sizes.image, case.support)[1] * (3 if gradient else 1) / 1e9
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
    last: dict[tuple[str, str], float] = {}

    def one(case: Case) -> dict[str, Any]:
        found = measure_jax(stage, case, sizes) if case.by == "jax" else measure_torch(case, sizes)
        others = {c.by: row["seconds"] for c, row in done if c.same_work(case)}
        mine = found["seconds"] if case.by == "jax" else others.pop("jax", None)
        others = others if case.by == "jax" else {case.by: found["seconds"]}
        ratios = {by: round(seconds / mine, 3) for by, seconds in others.items()} if mine else {}
        return stage.line(**case._asdict(), **found, **({"faster_than": ratios} if ratios else {}))

    for case in cases(sizes):
        if case.by != "jax" and not there:
            continue
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
    """A trace of some gradient steps at the middle batch; the program is compiled for it alone."""
    case = Case("jax", "gradient", sizes.supports[0], sizes.batches[-1], "bfloat16")
    model = build_model({"encoder_blocks": sizes.blocks}, dtype=case.dtype, support_chunk=0)
    params, (*arrays, label) = init_params(model, 0), map(jnp.asarray, inputs_of(case, sizes.image))
    step = jax.jit(jax.grad(lambda p, *x: soft_dice(model.apply({"params": p}, *x[:-1]), x[-1]).mean()))
    jax.block_until_ready(step(params, *arrays, label))
    with profiled(stage):
        jax.block_until_ready([step(params, *arrays, label) for _ in range(3)])


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
