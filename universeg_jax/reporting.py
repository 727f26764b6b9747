"""What a run leaves to read: JSON lines, tables and pictures."""

import contextlib
import csv
import fcntl
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from universeg_jax.errors import UserError

if TYPE_CHECKING:  # a third of a second to import, and no step of a training draws
    from matplotlib.figure import Figure


class JsonLines:
    """An append-only file of one JSON object a line, each with a "step", that survives being killed.

    On opening, lines from `resume_step` on are dropped, and so is a last line cut short by a kill: the run that
    continues writes them again, so that every step stands in the file once.
    """

    def __init__(self, path: Path, resume_step: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_json_lines(path) if row["step"] < resume_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(path)
        self.file = path.open("a")

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; [] where there is no file."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last newline was cut short


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


class LockedError(UserError):
    """A folder that another process works in."""


@contextlib.contextmanager
def lock(workdir: Path | None, name: str = ".lock") -> Iterator[None]:
    """Refuses a second process in a workdir; the lock goes with the process, however it ends. None locks nothing."""
    if workdir is None:
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"another process works in {workdir}; wait for it, or take another folder") from None
        yield


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """All rows under the first one's names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose first column is text and whose others are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def percent(value: float) -> str:
    """0.5 → "50.0": tables show percent, files hold [0, 1]."""
    return f"{100 * value:.1f}"


def figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple["Figure", np.ndarray]:
    """A matplotlib figure without pyplot's global state, and its axes [rows, columns]."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False)


def plot_curves(workdir: Path, path: Path) -> None:
    """Training loss and held-out Dice over steps, from the run's own lines."""
    train, held_out = read_json_lines(workdir / "metrics.jsonl"), read_json_lines(workdir / "eval" / "metrics.jsonl")
    save_figure(curves_figure(train, held_out), path)


def curves_figure(train: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]]) -> "Figure":
    """Lines of metrics.jsonl and of eval/metrics.jsonl."""
    from matplotlib import colormaps

    fig, ((left, right),) = figure(11, 4, columns=2)
    steps, loss = [row["step"] for row in train], np.array([row["loss"] for row in train])
    window = max(1, len(loss) // 25)
    left.plot(steps, loss, lw=0.4, alpha=0.4, color="tab:blue")
    smooth = np.convolve(loss, np.ones(window) / window, "valid")
    left.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"mean of {window} steps")
    left.set(xlabel="step", ylabel="training loss")
    left.legend()
    at = [row["step"] for row in held_out]
    right.set_prop_cycle(color=colormaps["tab20"].colors)  # the usual ten colours are fewer than the datasets
    for name in held_out[-1]["datasets"] if held_out else ():
        right.plot(at, [100 * r["datasets"][name] for r in held_out], ".-", lw=0.8, label=name)
    right.plot(at, [100 * r["mean_dice"] for r in held_out], "k.-", lw=2, label="mean")
    right.set(xlabel="step", ylabel="held-out Dice (%), val", ylim=(0, 100))
    right.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves, not over them
    return fig


def plot_support_sizes(results: dict[str, dict[int, float]], path: Path) -> None:
    """Mean Dice against support size for each method."""
    fig, ((axes,),) = figure(5, 4)
    for method, by_size in results.items():
        axes.plot(list(by_size), [100 * v for v in by_size.values()], "o-", label=method.replace("_", " "))
    axes.set(xlabel="support size", ylabel="mean Dice (%)", xscale="log", ylim=(0, 100))
    axes.set_xticks(list(by_size), [str(size) for size in by_size])
    axes.minorticks_off()
    axes.legend()
    save_figure(fig, path)


def plot_sheet(cases: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """`sheet_figure` as a file."""
    save_figure(sheet_figure(cases, title), path)


def sheet_figure(cases: Sequence[dict[str, Any]], title: str) -> "Figure":
    """One row a case: four support entries with their label's outline, the query, its truth, the prediction.

    A case is {"support_images" [S, H, W], "support_labels", "query_image" [H, W], "query_label", "probabilities",
    "dice", "task"}.
    """
    shown = min(4, len(cases[0]["support_images"]))
    fig, axes = figure(1.5 * (shown + 3), 1.6 * len(cases) + 0.4, columns=shown + 3, rows=len(cases))
    for row, case in zip(axes, cases, strict=True):
        for i in range(shown):
            _picture(row[i], case["support_images"][i], case["support_labels"][i], "tab:cyan", f"support {i + 1}")
        _picture(row[shown], case["query_image"], None, "", "query")
        _picture(row[shown + 1], case["query_image"], case["query_label"], "lime", "truth")
        _picture(row[shown + 2], case["query_image"], case["probabilities"] >= 0.5, "red", f"Dice {case['dice']:.2f}")
        row[0].set_ylabel(case["task"], fontsize=6)
    fig.suptitle(title, fontsize=9)
    return fig


def plot_rows(rows: Sequence[tuple[str, np.ndarray, np.ndarray]], path: Path, title: str = "") -> None:
    """One row a (title, images [n, H, W] in [0, 1], labels [n, H, W]), each with its label outlined and tinted.

    `title` stands above them all; an image of NaN leaves its place empty.
    """
    columns = len(rows[0][1])
    fig, axes = figure(1.3 * columns, 1.3 * len(rows), columns=columns, rows=len(rows))
    for row, (name, images, labels) in zip(axes, rows, strict=True):
        for place, image, label in zip(row, images, labels, strict=True):
            _picture(place, image, label, "tab:cyan", "", brightest=1.0)
            place.imshow(np.ma.masked_less(label, 0.5), cmap="cool", vmin=0, alpha=0.15)  # tells a flipped label
            if np.isnan(image).all():
                place.set_axis_off()
        row[0].set_ylabel(name, fontsize=6)
    if title:
        fig.suptitle(title, fontsize=9)
    save_figure(fig, path)


def _picture(
    axes: Any, image: np.ndarray, mask: np.ndarray | None, colour: str, title: str, brightest: float = 0.0
) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=brightest or image.max())
    if mask is not None and mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=colour, linewidths=0.8)
    axes.set_title(title, fontsize=7)
    axes.set(xticks=[], yticks=[])


def png_of(fig: "Figure") -> bytes:
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=110)
    return file.getvalue()


def save_figure(fig: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)
