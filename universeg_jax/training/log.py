"""Logs of a run: metrics.jsonl, the progress line, optional TensorBoard files and traces."""

import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from universeg_jax.reports.files import JsonLines

ESTIMATE = 20  # steps after which the expected end is printed
WARM, TRACED = 10, 5  # steps before a trace, and in it


class NotFinite(FloatingPointError):
    """A loss, gradient or parameter that is not finite; `episodes` are the global indices that may have caused it."""

    def __init__(self, step: int, values: dict[str, float], episodes: list[int]):
        super().__init__(
            f"loss {values['loss']}, gradient norm {values['grad_norm']}, parameter norm {values['param_norm']} "
            f"at step {step}, "
            f"{'episode' if len(episodes) == 1 else 'episodes'} {', '.join(map(str, episodes))}; "
            "lower config.optimizer.learning_rate or set config.optimizer.clip_norm"
        )
        self.episodes = episodes


class StepLog:
    """Fetches the metrics of step t-1 once step t is dispatched, so that the device never waits for the log.

    Hosts other than the first check the metrics and write nothing.
    """

    def __init__(self, workdir: Path, config: ConfigDict, first_step: int):
        self.config, self.writes = config, jax.process_index() == 0
        self.lines = JsonLines(workdir / "metrics.jsonl", first_step) if self.writes else None
        self.board = _tensorboard(workdir, first_step) if self.writes and config.tensorboard else None
        self.progress = tqdm(
            total=config.num_steps,
            initial=first_step,
            desc="compile",  # at the start of the first step
            unit="step",
            mininterval=1.0,
            disable=not self.writes,
        )
        self.first_step, self.started, self.waited = first_step, time.time(), 0.0
        self.pending: tuple[int, dict[str, Any], float] | None = None

    def dispatched(self, step: int, sums: dict[str, Any], waited: float) -> None:
        self.flush()
        self.pending = step, sums, waited
        self.waited += waited
        self.progress.set_description("train", refresh=False)
        self.progress.update()

    def flush(self) -> None:
        """Writes the pending metrics. Raises NotFinite."""
        if self.pending is None:
            return
        (step, sums, waited), self.pending = self.pending, None
        sums = jax.device_get(sums)
        episodes, losses = sums.pop("episodes"), sums.pop("losses")
        values = {name: float(total / count) for name, (total, count) in sums.items()}
        if not np.isfinite([values["loss"], values["grad_norm"], values["param_norm"]]).all():
            bad = episodes[~np.isfinite(losses)] if not np.isfinite(losses).all() else episodes
            raise NotFinite(step, values, sorted(bad.tolist()))
        passed = time.time() - self.started
        rate = (self.progress.format_dict["rate"] or 0.0) * self.config.batch_size
        shown = {"loss": f"{values['loss']:.3f}", "dice": f"{values['dice']:.3f}", "episodes/s": f"{rate:.3g}"}
        self.progress.set_postfix(shown, waiting=f"{self.waited / passed:.0%}", refresh=False)
        if self.lines and step % self.config.log_every == 0:
            seconds = {"seconds_waiting": round(waited, 6), "time": round(passed, 3)}
            self.lines.write({"step": step, **values, **seconds})
            if self.board:
                for name, value in values.items():
                    self.board.add_scalar(f"train/{name}", value, step + 1)  # by steps done, as for evaluations
        if step == self.first_step and self.writes:
            tqdm.write(f"first step after {passed:.0f} s; {peak_memory()}", file=sys.stderr)
            self.first_done = passed
        if step == self.first_step + ESTIMATE and self.writes:
            end = time.time() + (passed - self.first_done) / ESTIMATE * (self.config.num_steps - step)
            stamp = time.strftime("%Y-%m-%d %H:%M", time.localtime(end))
            tqdm.write(f"expected end {stamp}, evaluations not counted", file=sys.stderr)

    def evaluated(self, step: int, summary: dict[str, Any], sheet: Path | None) -> None:
        """Writes held-out Dice and masks to TensorBoard."""
        if self.board:
            self.board.add_scalar("val/mean_dice", summary["mean_dice"], step)
            for name, dataset in summary["datasets"].items():
                self.board.add_scalar(f"val/{name}", dataset["dice"], step)
            if sheet:
                self.board.add_image("val/masks", np.asarray(Image.open(sheet).convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.flush()
        self.progress.close()
        for writer in (self.lines, self.board):
            if writer:
                writer.close()


class Profile:
    """A trace of five steps after the first ten; open it with TensorBoard or Perfetto."""

    def __init__(self, directory: Path):
        self.directory, self.running, self.traced, self.reported = directory, False, 0, False

    def after(self, dispatched: int) -> None:
        """Counts a step; `dispatched` is the number of steps of this process."""
        if self.running:
            self.traced += 1
        if dispatched == WARM:
            jax.profiler.start_trace(str(self.directory))
            self.running = True
        elif self.traced == TRACED:
            self.close()

    def close(self) -> None:
        """Ends a running trace and prints how many steps it holds, or that there is none."""
        if self.running:
            jax.profiler.stop_trace()
        if not self.reported:
            steps = f"{self.traced} step{'s' if self.traced > 1 else ''}"
            few = f"no trace: it needs {WARM + 1} steps or more"
            tqdm.write(f"trace of {steps} in {self.directory}" if self.traced else few, file=sys.stderr)
        self.running, self.reported = False, True


def _tensorboard(workdir: Path, first_step: int) -> Any:
    from tensorboardX import SummaryWriter  # slow to import

    # Hides what a killed run wrote after its last checkpoint, but not the evaluation at that checkpoint.
    return SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)


def peak_memory() -> str:
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return f"{stats['peak_bytes_in_use'] / 1e9:.1f} GB of device memory at most"
    if sys.platform == "win32":
        return "memory is not measured on Windows"
    import resource

    unit = 1e9 if sys.platform == "darwin" else 1e6  # macOS counts bytes, Linux kilobytes
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.1f} GB of memory at most"
