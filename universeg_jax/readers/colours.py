"""Masks coded by colours: the table "colours" of meta.json, {"1": [255, 0, 0], "2": "#00ff00"}, id → colour."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from universeg_jax.readers.errors import ImageError

Colour = tuple[int, int, int]
BLACK: Colour = (0, 0, 0)


def parse_colours(value: Any) -> dict[int, Colour]:
    """Reads the table. Raises ValueError, also where two ids have one colour."""
    if not isinstance(value, dict) or not all(re.fullmatch("[0-9]{1,9}", str(i)) for i in value):
        raise ValueError
    table = {int(i): _colour(colour) for i, colour in value.items()}
    if len(set(table.values())) < len(table) or BLACK in (c for i, c in table.items() if i and 0 not in table):
        raise ValueError
    return table


def _colour(value: Any) -> Colour:
    if isinstance(value, str):
        if not re.fullmatch("#?[0-9a-fA-F]{6}", value):
            raise ValueError
        number = int(value.lstrip("#"), 16)
        return number >> 16, number >> 8 & 255, number & 255
    red, green, blue = value
    if not all(type(part) is int and 0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError
    return red, green, blue


def ids_of_colours(label: np.ndarray, table: Mapping[int, Colour], path: Any) -> np.ndarray:
    """[H, W, 3] 8-bit colours → int32 ids [H, W]; black is background where the table does not say otherwise.

    Raises ImageError for a colour that the table lacks.
    """
    codes = label[..., 0].astype(np.int64) << 16 | label[..., 1].astype(np.int64) << 8 | label[..., 2]
    known = {colour: i for i, colour in table.items()}
    known.setdefault(BLACK, 0)
    ids = np.full(codes.shape, -1, np.int32)
    for (red, green, blue), i in known.items():
        ids[codes == (red << 16 | green << 8 | blue)] = i
    if (ids < 0).any():
        values, counts = np.unique(codes[ids < 0], return_counts=True)
        worst = int(values[np.argmax(counts)])
        share = f"{100 * (ids < 0).mean():.3g} % of its pixels"
        detail = f"#{worst:06x} and {len(values) - 1} others, {share}; meta.json has {_shown(table)}"
        raise ImageError(path, 'holds colours that are not in "colours" of meta.json', detail)
    return ids


def shown(colour: Colour) -> str:
    """A colour as meta.json may state it: "#00ff00"."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _shown(table: Mapping[int, Colour]) -> str:
    return ", ".join(f"{i}: {shown(colour)}" for i, colour in table.items())
