"""What a run says while it goes on: metrics.jsonl, the progress line, and TensorBoard where it is asked for."""

import resource
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

ESTIMATE = 20  # steps from which the expected end is told
WARM, TRACED = 10, 5  # steps before a trace, and in it


class NotFinite(FloatingPointError):
    """A loss, gradient or parameter that is not finite; `episodes` are the global indices that it may come from."""

    def __init__(self, step: int, values: dict[str, float], episodes: list[int]):
        super().__init__(
            f"loss {values['loss']}, gradient norm {values['grad_norm']}, parameter norm {values['param_norm']} "
            f"at step {step}, "
            f"{'episode' if len(episodes) == 1 else 'episodes'} {', '.join(map(str, episodes))}; "
            "lower config.optimizer.learning_rate or set config.optimizer.clip_norm"
        )
        self.episodes = episodes


class StepLog:
    """Metrics of step t-1 are fetched once step t is dispatched: the device never waits for the log.

    A host other than the first keeps the checks and writes nothing.
    """

    def __init__(self, workdir: Path, config: ConfigDict, first_step: int):
        self.config, self.writes = config, jax.process_index() == 0
        self.lines = JsonLines(workdir / "metrics.jsonl", first_step) if self.writes else None
        self.board = _tensorboard(workdir, first_step) if self.writes and config.tensorboard else None
        self.progress = tqdm(
            total=config.num_steps,
            initial=first_step,
            desc="compile",  # which the first step begins with
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
        """Writes what is pending; raises NotFinite where it is not a number."""
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
        if self.writes and step % self.config.log_every == 0:
            seconds = {"seconds_waiting": round(waited, 6), "time": round(passed, 3)}
            self.lines.write({"step": step, **values, **seconds})
            if self.board:
                for name, value in values.items():
                    self.board.add_scalar(f"train/{name}", value, step + 1)  # by steps done, as evaluations are
        if step == self.first_step and self.writes:
            tqdm.write(f"first step after {passed:.0f} s; {peak_memory()}", file=sys.stderr)
            self.first_done = passed
        if step == self.first_step + ESTIMATE and self.writes:
            end = time.time() + (passed - self.first_done) / ESTIMATE * (self.config.num_steps - step)
            stamp = time.strftime("%Y-%m-%d %H:%M", time.localtime(end))
            tqdm.write(f"expected end {stamp}, evaluations not counted", file=sys.stderr)

    def evaluated(self, step: int, summary: dict[str, Any], sheet: Path | None) -> None:
        """Held-out Dice and masks for TensorBoard."""
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
    """A trace of five steps, once ten were dispatched: open it with TensorBoard or Perfetto."""

    def __init__(self, directory: Path):
        self.directory, self.running, self.traced, self.told = directory, False, 0, False

    def after(self, dispatched: int) -> None:
        """Called after each step, with how many this process has dispatched."""
        if self.running:
            self.traced += 1
        if dispatched == WARM:
            jax.profiler.start_trace(str(self.directory))
            self.running = True
        elif self.traced == TRACED:
            self.close()

    def close(self) -> None:
        """Ends a trace that is going on; says how many steps it holds, or that there is none."""
        if self.running:
            jax.profiler.stop_trace()
        if not self.told:
            steps = f"{self.traced} step{'s' if self.traced > 1 else ''}"
            few = f"no trace: it needs {WARM + 1} steps or more"
            tqdm.write(f"trace of {steps} in {self.directory}" if self.traced else few, file=sys.stderr)
        self.running, self.told = False, True


def _tensorboard(workdir: Path, first_step: int) -> Any:
    from tensorboardX import SummaryWriter  # slow to import, and only where it is asked for

    # What a killed run wrote after its last checkpoint is hidden; the evaluation at that checkpoint is not.
    return SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)


def peak_memory() -> str:
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return f"{stats['peak_bytes_in_use'] / 1e9:.1f} GB of device memory at most"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB of memory at most"
