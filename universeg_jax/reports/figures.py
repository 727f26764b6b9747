"""Matplotlib figures without the global state of pyplot."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from universeg_jax.reports.files import read_json_lines

if TYPE_CHECKING:  # matplotlib takes a third of a second to import, and no training step plots
    from matplotlib.figure import Figure


def figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple["Figure", np.ndarray]:
    """A figure of width x height inches and its axes [rows, columns]."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False)


def plot_curves(workdir: Path, path: Path) -> None:
    """Plots training loss and validation Dice over steps, from the metrics of a run."""
    train, validation = read_json_lines(workdir / "metrics.jsonl"), read_json_lines(workdir / "eval" / "metrics.jsonl")
    save_figure(curves_figure(train, validation), path)


def curves_figure(train: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]]) -> "Figure":
    """Plots the lines of metrics.jsonl and of eval/metrics.jsonl."""
    from matplotlib import colormaps

    fig, ((left, right),) = figure(11, 4, columns=2)
    steps, loss = [row["step"] for row in train], np.array([row["loss"] for row in train])
    window = max(1, len(loss) // 25)
    left.plot(steps, loss, lw=0.4, alpha=0.4, color="tab:blue")
    smooth = np.convolve(loss, np.ones(window) / window, "valid")
    left.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"mean of {window} steps")
    left.set(xlabel="step", ylabel="training loss")
    left.legend()
    evaluated = [row["step"] for row in validation]
    right.set_prop_cycle(color=colormaps["tab20"](range(20)))  # the default cycle has only ten colours
    for name in validation[-1]["datasets"] if validation else ():
        right.plot(evaluated, [100 * r["datasets"][name] for r in validation], ".-", lw=0.8, label=name)
    right.plot(evaluated, [100 * r["mean_dice"] for r in validation], "k.-", lw=2, label="mean")
    right.set(xlabel="step", ylabel="Dice on val (%)", ylim=(0, 100))
    right.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves
    return fig


def plot_support_sizes(results: dict[str, dict[int, float]], path: Path) -> None:
    """Plots mean Dice against support size for each method."""
    fig, ((axes,),) = figure(5, 4)
    for method, by_size in results.items():
        axes.plot(list(by_size), [100 * v for v in by_size.values()], "o-", label=method.replace("_", " "))
    axes.set(xlabel="support size", ylabel="mean Dice (%)", xscale="log", ylim=(0, 100))
    axes.set_xticks(list(by_size), [str(size) for size in by_size])
    axes.minorticks_off()
    axes.legend()
    save_figure(fig, path)


def plot_sheet(cases: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Writes `sheet_figure` to a file."""
    save_figure(sheet_figure(cases, title), path)


def sheet_figure(cases: Sequence[dict[str, Any]], title: str) -> "Figure":
    """One row per case: up to four support images with their labels, the query, its truth, the prediction.

    A case is {"support_images" [S, H, W], "support_labels", "query_image" [H, W], "query_label", "probabilities",
    "dice", "task"}.
    """
    shown = min(4, len(cases[0]["support_images"]))
    fig, axes = figure(1.5 * (shown + 3), 1.6 * len(cases) + 0.4, columns=shown + 3, rows=len(cases))
    for row, case in zip(axes, cases, strict=True):
        for i in range(shown):
            _show(row[i], case["support_images"][i], case["support_labels"][i], "tab:cyan", f"support {i + 1}")
        _show(row[shown], case["query_image"], None, "", "query")
        _show(row[shown + 1], case["query_image"], case["query_label"], "lime", "truth")
        _show(row[shown + 2], case["query_image"], case["probabilities"] >= 0.5, "red", f"Dice {case['dice']:.2f}")
        row[0].set_ylabel(case["task"], fontsize=6)
    fig.suptitle(title, fontsize=9)
    return fig


def plot_rows(rows: Sequence[tuple[str, np.ndarray, np.ndarray]], path: Path, title: str = "") -> None:
    """Plots one row per (title, images [n, H, W] in [0, 1], labels [n, H, W]), with outlined and tinted labels.

    `title` is the title of the figure. An image of NaN leaves its axes empty.
    """
    columns = len(rows[0][1])
    fig, axes = figure(1.3 * columns, 1.3 * len(rows), columns=columns, rows=len(rows))
    for row, (name, images, labels) in zip(axes, rows, strict=True):
        for ax, image, label in zip(row, images, labels, strict=True):
            _show(ax, image, label, "tab:cyan", "", white=1.0)
            ax.imshow(np.ma.masked_less(label, 0.5), cmap="cool", vmin=0, alpha=0.15)  # shows inverted labels
            if np.isnan(image).all():
                ax.set_axis_off()
        row[0].set_ylabel(name, fontsize=6)
    if title:
        fig.suptitle(title, fontsize=9)
    save_figure(fig, path)


def _show(axes: Any, image: np.ndarray, mask: np.ndarray | None, colour: str, title: str, white: float = 0.0) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=white or image.max())
    if mask is not None and mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=colour, linewidths=0.8)
    axes.set_title(title, fontsize=7)
    axes.set(xticks=[], yticks=[])


def png_of(fig: "Figure") -> bytes:
    """The figure as PNG."""
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=110)
    return file.getvalue()


def save_figure(fig: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)
