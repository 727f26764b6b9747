"""Masks over images: display intensities, outlines and their colours."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = ((230, 60, 60), (60, 160, 240), (70, 200, 90), (240, 190, 40), (190, 90, 220), (60, 210, 210))
COLOUR_NAMES = ("red", "blue", "green", "yellow", "purple", "turquoise")
SHOWN = 384  # pixels; a smaller slice is enlarged to about that
LINE = 16  # pixels high, of a legend
OVERLAY = "_overlay.png"  # at the end of the names that `predict --overlay` writes
PERCENTILES = (0.5, 99.5)  # of the intensities, shown as black and white


def is_overlay(file: Path) -> bool:
    """Whether `predict --overlay` wrote a file, beside its masks."""
    return file.name.endswith(OVERLAY) and (file.parent / "predict.json").is_file()


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a boolean mask [H, W] that have a neighbour outside it."""
    padded = np.pad(mask, 1)
    return mask & ~(padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2])


def to_display(image: np.ndarray) -> np.ndarray:
    """Intensities of any range → uint8, clipped at PERCENTILES."""
    low, high = np.percentile(image, PERCENTILES)
    if high <= low:
        low, high = image.min(), image.max()
    return np.round(255 * np.clip((image - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def draw_outlines(grey: np.ndarray, masks: Iterable[np.ndarray]) -> np.ndarray:
    """uint8 [H, W, 3]: a grey image, uint8 [H, W], with the outline of each boolean mask in its colour."""
    canvas = np.repeat(grey[..., None], 3, -1)
    for mask, colour in zip(masks, cycle(COLOURS), strict=False):
        canvas[outline(mask)] = colour
    return canvas


def colours_text(names: Sequence[str]) -> str:
    """ "liver red, spleen blue": the colour of each label's outline."""
    return ", ".join(f"{name} {colour}" for name, colour in zip(names, cycle(COLOUR_NAMES), strict=False))


def enlarge(grey: np.ndarray, masks: Iterable[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Image [H, W] and masks a whole number of times larger, so that the longer side is at most SHOWN pixels."""
    times = max(1, SHOWN // max(grey.shape))
    large = [np.repeat(np.repeat(x, times, 0), times, 1) for x in (grey, *masks)]
    return large[0], large[1:]


def with_legend(canvas: np.ndarray, names: Sequence[str]) -> Image.Image:
    """An image uint8 [H, W, 3] above one line a label: a square of its colour, its name and the colour's."""
    height, width = canvas.shape[:2]
    lines = [f"{name} ({colour})" for name, colour in zip(names, cycle(COLOUR_NAMES), strict=False)]
    image = Image.new("RGB", (max(width, LINE + 8 * max(map(len, lines))), height + LINE * len(lines)))
    image.paste(Image.fromarray(canvas))
    draw = ImageDraw.Draw(image)
    for i, (line, colour) in enumerate(zip(lines, cycle(COLOURS), strict=False)):
        top = height + i * LINE
        draw.rectangle((3, top + 3, LINE - 4, top + LINE - 4), fill=colour)
        draw.text((LINE + 2, top + 2), line, fill=(255, 255, 255))
    return image
