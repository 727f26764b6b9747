"""Time and memory from image files to mask files, one JSON object per line.

    python -m benchmarks.predict --out results.jsonl                     # minutes; throughput needs torch
    python -m benchmarks.predict --parts=second,start,volume             # without torch
    python -m benchmarks.predict --parts=mask,prepare --checkpoint small --support 64

The weights are random and of the base size, or those of --checkpoint; the support set has `--support` synthetic images
of 128x128.

* second: one query from its file to its mask file, with a prepared support and a compiled program
* start: a whole new process for one query: imports, weights, cached compilation
* throughput: `--queries` images against the same network in PyTorch, called in a loop as in its release
* mask, prepare: one query from and to memory, with a prepared support; preparing the support, in memory too
* volume: `universeg predict` on a volume, with the peak memory of its process
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from benchmarks.lines import write_line
from universeg_jax.checkpoints import store
from universeg_jax.configuration import to_dict
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.prediction.files import predict_file
from universeg_jax.prediction.options import Options
from universeg_jax.prediction.predictor import Predictor, Segmenter
from universeg_jax.prediction.support import read_support_folder
from universeg_jax.startup import use_compilation_cache

PARTS = ("second", "start", "throughput", "volume")  # by default
EVERY = (*PARTS, "mask", "prepare")
SIZE = 128
REPEATS = 5


def disc_image(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(image, label) uint8 [128, 128]: a bright disc on noise."""
    y, x = np.mgrid[:SIZE, :SIZE]
    centre = rng.uniform(SIZE / 3, 2 * SIZE / 3, 2)
    label = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < rng.uniform(15, 35) ** 2).astype(np.uint8)
    return (rng.integers(0, 80, (SIZE, SIZE)) + 120 * label).astype(np.uint8), label


def write_inputs(folder: Path, args: argparse.Namespace) -> None:
    """support/, query.png, volume.nii.gz and the checkpoint weights/."""
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / "support" / part).mkdir(parents=True)
    for i in range(args.support):
        for part, array in zip(("images", "labels"), disc_image(rng), strict=True):
            Image.fromarray(array).save(folder / "support" / part / f"s{i}.png")
    Image.fromarray(disc_image(rng)[0]).save(folder / "query.png")
    voxels = rng.integers(0, 500, _numbers(args.volume)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / "volume.nii.gz")
    if args.checkpoint:
        return
    config = ConfigDict({"model": {"encoder_blocks": _numbers(args.features)}, "image_size": args.image_size})
    params = init_params(build_model(config.model), 0)
    store.write_params(folder / "weights", params, {"config": to_dict(config), "lineage": {}})


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def command(folder: Path, query: str, out: str, support: int, checkpoint: str = "") -> tuple[float, float]:
    """(seconds, peak MB) of a `universeg predict` process."""
    files = [checkpoint or folder / "weights", folder / "support", folder / query]
    arguments = [x for pair in zip(("--checkpoint", "--support", "--queries"), files, strict=True) for x in pair]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "universeg_jax.cli", "predict", *map(str, arguments), "--out", str(folder / out),
         f"--support_size={support}", "--overwrite"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)  # memory of this child alone
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"universeg predict ended with {process.returncode}; see its message above")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def timed(function: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each call after a warm-up call."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def second(folder: Path, segmenter: Segmenter, args: argparse.Namespace) -> list[dict]:
    targets = [folder / "query_mask.png"]
    seconds = timed(lambda: predict_file(segmenter, folder / "query.png", targets, None, False), args.repeats)
    return [{"name": "second query, file to file", **spread(seconds)}]


def start(folder: Path, segmenter: Segmenter, args: argparse.Namespace) -> list[dict]:
    seconds = timed(lambda: command(folder, "query.png", "start", args.support, args.checkpoint), args.repeats)
    return [{"name": "first prediction in a new process, warm cache", **spread(seconds)}]


def volume(folder: Path, segmenter: Segmenter, args: argparse.Namespace) -> list[dict]:
    seconds, peak = command(folder, "volume.nii.gz", "volume", args.support, args.checkpoint)
    return [{"name": f"a volume of {args.volume} in a new process", "seconds": seconds, "peak_mb": round(peak)}]


def mask(folder: Path, segmenter: Segmenter, args: argparse.Namespace) -> list[dict]:
    query = disc_image(np.random.default_rng(1))[0][None].astype(np.float32) / 255
    return [{"name": "a mask, support prepared", **spread(timed(lambda: segmenter.probabilities(query), args.repeats))}]


def prepare(folder: Path, segmenter: Segmenter, args: argparse.Namespace) -> list[dict]:
    make = segmenter.predictor.segmenter
    seconds = timed(lambda: make(segmenter.support, segmenter.options), args.repeats)
    return [{"name": "preparing the support", **spread(seconds)}]


def throughput(folder: Path, segmenter: Segmenter, args: argparse.Namespace) -> list[dict]:
    import torch

    from benchmarks.torch_model import UniverSeg

    rng = np.random.default_rng(1)
    queries = np.stack([disc_image(rng)[0] for _ in range(args.queries)]).astype(np.float32) / 255
    features = _numbers(args.features)
    net = UniverSeg([(n, n) for n in features]).eval()
    images, labels = (
        torch.from_numpy(np.asarray(x, np.float32)[None, :, None, ..., 0])
        for x in (segmenter.images, segmenter.masks[0])
    )

    def loop() -> None:
        with torch.inference_mode():
            for query in torch.from_numpy(queries)[:, None, None]:
                torch.sigmoid(net(query, images, labels))

    ours = statistics.median(timed(lambda: segmenter.probabilities(queries), args.repeats))
    theirs = statistics.median(timed(loop, args.repeats))
    rates = {"queries_a_second": round(args.queries / ours, 3), "torch": round(args.queries / theirs, 3)}
    return [{"name": f"{args.queries} queries", **rates, "ratio": round(theirs / ours, 2)}]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"seconds": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated (default: %(default)s)")
    parser.add_argument(
        "--features", default="64,64,64,64", help="features of each level (default: %(default)s, the base size)"
    )
    parser.add_argument("--checkpoint", default="", help="weights to measure, in place of random ones")
    parser.add_argument("--image_size", type=int, default=SIZE)
    parser.add_argument("--support", type=int, default=16)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--volume", default="240,240,155", help="shape in voxels of 1 mm")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", help="append the lines there too")
    args = parser.parse_args(argv)
    if unknown := set(args.parts.split(",")) - set(EVERY):
        parser.error(f"--parts: {', '.join(unknown)} is not one of {', '.join(EVERY)}")
    if args.checkpoint and "throughput" in args.parts:
        parser.error("--parts=throughput compares the released architecture with PyTorch; leave --checkpoint out")
    use_compilation_cache()
    functions = {
        "second": second, "start": start, "throughput": throughput, "volume": volume, "mask": mask, "prepare": prepare
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, args)
        segmenter = Predictor.from_checkpoint(args.checkpoint or folder / "weights").segmenter(
            read_support_folder(folder / "support"), Options(support_size=args.support)
        )
        for part in args.parts.split(","):
            load = os.getloadavg()[0]
            about: dict[str, object] = {"support": args.support}
            about |= {"checkpoint": args.checkpoint} if args.checkpoint else {"features": args.features}
            about["image_size"] = segmenter.predictor.config.image_size
            machine = {"cores": os.cpu_count(), "load": round(load, 1), "jax": jax.__version__}
            for row in functions[part](folder, segmenter, args):
                rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
                write_line({"benchmark": "predict", **rounded, **about, **machine}, args.out)


if __name__ == "__main__":
    main()
