"""Everything that is to be measured on an accelerator, by one command, from a kit of `benchmarks.pack`.

    python -m benchmarks.accelerator --kit .kit --out OUT --minutes 9
    python -m benchmarks.accelerator --kit .kit --out OUT --minutes 4 --tiny      # a rehearsal on a CPU

Installs the kit's wheels beside this interpreter's packages, builds its datasets again, and runs the stages in order,
each in a process of its own with a time box; what one leaves, `train` gets. Results are lines of OUT/results.jsonl,
each on disk before the next measurement begins, so that a kill costs what is being measured and nothing before it.
docs/performance.md says what each stage measures. OUT gets at most eight files of at most 16 MB. This module needs the
standard library and `packaging` alone.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from benchmarks.kit import CACHE, KitError, environment, install, read_manifest
from benchmarks.lines import write_line

STAGES = ("parity", "speed", "loop", "train")
BOXES = {"parity": 60, "speed": 150, "loop": 60}  # seconds; train has the rest
TINY_BOXES = {"parity": 120, "speed": 60, "loop": 160}  # a CPU compiles slowly and has little to measure
FULL_MINUTES = 9  # with train: in less time every box is smaller in proportion
SETUP = 30  # seconds for installing and unpacking, beside the boxes, of a run without train
RESULTS, LOG = "results.jsonl", "log.txt"
FILES, FILE_MB = 8, 16
GRACE = 3.0  # seconds after its box that a stage may take to end, after a SIGTERM and before a SIGKILL
LAST = 4.0  # seconds at the end for the compilation cache
QUICK = "--xla_backend_optimization_level=0"  # of a rehearsal: compiling takes most of its time


class Run:
    """The clock, the lines and the log of a whole run."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.started = args, time.time()
        self.until = self.started + 60 * args.minutes
        self.measuring = self.started  # when the first stage began
        self.last_words: dict[int, str] = {}  # of processes
        args.out.mkdir(parents=True, exist_ok=True)

    def line(self, **row: Any) -> None:
        write_line({"stage": "run", "at": round(time.time() - self.started, 1), **row}, self.args.out / RESULTS)

    def box(self, stage: str) -> float:
        """When a stage must end, in seconds since the epoch: it may use what the stages before it have left."""
        end, full = self.until - LAST, TINY_BOXES if self.args.tiny else BOXES
        if stage == "train":
            return end
        alone = SETUP + sum(full.get(name, 0) for name in self.args.stages)
        share = min(1.0, 60 * self.args.minutes / (60 * FULL_MINUTES if "train" in self.args.stages else alone))
        boxes = {name: share * box for name, box in full.items()}
        before = self.args.stages[: self.args.stages.index(stage) + 1]
        return min(end, max(time.time() + boxes[stage], self.measuring + sum(boxes[name] for name in before)))

    def start(self, module: str, env: dict[str, str], *flags: str) -> tuple[subprocess.Popen, threading.Thread]:
        """A process whose output goes to the log, and its lines to the console too."""
        command = [sys.executable, "-m", module, *flags]
        root = Path(__file__).parents[1]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, cwd=root, start_new_session=True
        )
        thread = threading.Thread(target=self._tell, args=(process.pid, process.stdout), daemon=True)
        thread.start()
        return process, thread

    def _tell(self, number: int, output: IO[bytes]) -> None:
        with (self.args.out / LOG).open("ab", buffering=0) as log:
            for line in output:
                if log.tell() < FILE_MB * 1e6 - 1e6:
                    log.write(line)
                if line.strip():
                    self.last_words[number] = line.decode(errors="replace").strip()[:300]
                if line.startswith(b"{"):
                    sys.stdout.write(line.decode())
                    sys.stdout.flush()

    def stage(self, name: str, env: dict[str, str], flags: list[str]) -> None:
        until, began = self.box(name), time.time()
        if until - began < 5:
            self.line(skipped=name, seconds_left=round(until - began, 1))
            return
        process, thread = self.start(f"benchmarks.accelerator_{name}", env, *flags, f"--until={until}")
        ended = wait(process, until)
        thread.join(5)
        words = {} if process.returncode == 0 else {"last_words": self.last_words.get(process.pid)}
        seconds = round(time.time() - began, 1)
        self.line(of=name, status=process.returncode, seconds=seconds, ended=ended, **words)


def wait(process: subprocess.Popen, until: float) -> str:
    """Waits for a process; ends it, and what it has started, some seconds after `until`. How it ended, in a word."""
    for how, signal_number in (("by itself", signal.SIGTERM), ("SIGTERM", signal.SIGKILL), ("SIGKILL", None)):
        try:
            process.wait(max(until - time.time(), 0) + GRACE)
            return how
        except subprocess.TimeoutExpired:
            until = time.time()
            if signal_number:
                os.killpg(process.pid, signal_number)
    return "not at all"


def unpack_cache(kit: Path, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    if (kit / CACHE).exists():
        with tarfile.open(kit / CACHE) as tar:
            tar.extractall(cache, filter="data")


def pack_cache(run: Run, cache: Path) -> None:
    """What was compiled, for the kit of a next time: `benchmarks.pack --cache OUT/cache.tar`.

    The latest first, as much as one file may hold: what trains is compiled last and takes longest.
    """
    files = sorted((p for p in cache.rglob("*") if p.is_file()), key=lambda p: p.stat().st_mtime, reverse=True)
    packed, total, left_out = run.args.out / f"{CACHE}.tmp", 0, 0
    with tarfile.open(packed, "w") as tar:
        for file in files:
            total += file.stat().st_size + 2 * tarfile.BLOCKSIZE
            if total > (FILE_MB - 1) * 1e6:
                left_out += 1
                continue
            tar.add(file, arcname=str(file.relative_to(cache)))
    packed.replace(run.args.out / CACHE)
    if left_out:
        run.line(programs_left_out_of=CACHE, count=left_out)


def check_out(run: Run) -> None:
    """Says what came out, and what is more than comes back."""
    files = {str(p.relative_to(run.args.out)): p.stat().st_size for p in run.args.out.rglob("*") if p.is_file()}
    too_much = [name for name, size in files.items() if size > FILE_MB * 1e6 or name.count("/") > 2]
    run.line(files=files, too_much=too_much + sorted(files)[FILES:])


def prepare(run: Run, manifest: dict[str, Any], site: Path) -> dict[str, str]:
    """Installs; returns the stages' environment."""
    began = time.time()
    installed = install(run.args.kit, manifest, site / "packages")
    unpack_cache(run.args.kit, site / "cache")
    env = environment(site / "packages", site / "cache")
    env.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch and child processes need memory too
    if run.args.tiny:
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {QUICK}".strip()
    run.line(installed=[Path(name).name for name in installed], seconds=round(time.time() - began, 1))
    return env


def measure(run: Run, manifest: dict[str, Any], site: Path) -> None:
    env, args = prepare(run, manifest, site), run.args
    data_dir = args.data_dir or site / "data"
    flags = [f"--kit={args.kit}", f"--out={args.out}", f"--data_dir={data_dir}"]
    flags += [f"--checkpoint={args.checkpoint}"] if args.checkpoint else []
    flags += [f"--{name}" for name in ("tiny", "profile") if getattr(args, name)]
    unpacking, run.measuring = None, time.time()
    if not args.data_dir and {"loop", "train"} & set(args.stages):
        # Beside parity, where nothing is timed.
        began = time.time()
        unpacking = run.start("benchmarks.kit", env, f"--kit={args.kit}", f"--data_dir={data_dir}")
    for name in args.stages:
        if unpacking and name != "parity":
            wait(unpacking[0], run.until)
            unpacking[1].join(5)
            row = {"seconds": round(time.time() - began, 1), "status": unpacking[0].returncode}
            run.line(of="datasets", **row, last_words=run.last_words.get(unpacking[0].pid))
            unpacking = None
        run.stage(name, env, flags)
        if not args.profile:  # whose traces take the cache's place among the files that may come back
            pack_cache(run, site / "cache")  # at once: a kill may come before the next one ends


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, default=Path(".kit"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="a file of weights or a workdir in place of the kit's")
    parser.add_argument("--minutes", type=float, default=FULL_MINUTES, help="of all, from now")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated, in this order")
    parser.add_argument("--profile", action="store_true", help="traces to OUT, longest kernels to lines")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to rehearse on a CPU")
    parser.add_argument("--data_dir", type=Path, help="built datasets in place of the kit's")
    args = parser.parse_args()
    args.stages = [name for name in STAGES if name in args.stages.split(",")]
    if not args.stages:
        parser.error(f"--stages: choose from {', '.join(STAGES)}")
    args.kit, args.out = args.kit.resolve(), args.out.resolve()
    if args.checkpoint:
        args.checkpoint = args.checkpoint.resolve()
        if not args.checkpoint.exists():
            parser.error(f"--checkpoint: {args.checkpoint} does not exist")
    return args


def main() -> None:
    args = parse()
    run = Run(args)
    try:
        manifest = read_manifest(args.kit)
        checkpoint = {key: manifest["checkpoint"][key] for key in ("name", "step", "params_hash")}
        checkpoint = {"name": args.checkpoint.name} if args.checkpoint else checkpoint
        about = {"packed_from": manifest["code_version"], "checkpoint": checkpoint, "python": platform.python_version()}
        run.line(minutes=args.minutes, stages=args.stages, **about, tiny=args.tiny)
        with tempfile.TemporaryDirectory(prefix="universeg_kit_") as site:
            measure(run, manifest, Path(site))
    except KitError as error:
        run.line(failed=str(error))
        sys.exit(f"accelerator: {error}")
    check_out(run)


if __name__ == "__main__":
    main()
