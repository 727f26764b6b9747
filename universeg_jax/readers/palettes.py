"""Palettes of label files: the colour in which an index is shown, where it says that the index is not the class.

The values of a label count as stored. A program that reduces colours numbers them as it likes, in each file anew: white
may be 0, and red 1 in one file and 2 in the next. Such files are refused, with the table `"colours"` of meta.json that
reads them by their colours.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from universeg_jax.readers.colours import BLACK, Colour, shown
from universeg_jax.readers.errors import FolderError, ImageError
from universeg_jax.readers.notes import note

FORMATS = ("PNG", "TIFF", "BMP", "GIF")  # that may have a palette
DARK = 16  # up to this value of its brightest channel, a colour counts as black
LIGHT = 250  # from this value on a grey shows the only structure of a mask
SOME_COLOURS = 8  # that a message lists
RAMP = np.arange(256)[:, None]


@dataclass(frozen=True)
class _Palette:
    file: str
    colours: tuple[Colour, ...]  # index → colour

    def get(self, i: int) -> Colour | None:
        return self.colours[i] if i < len(self.colours) else None


def check_palette(path: Any, colours: np.ndarray, occurring: Iterable[int]) -> None:
    """Refuses a palette [N, 3] of 8 bits that shows 0 as a colour and another occurring id as black.

    ImageJ's inverting palette, which shows each value as its inverse, is no such case.
    """
    ids = [int(i) for i in occurring if i < len(colours)]
    _note_greys(path, colours, ids)
    if not ids or 0 not in ids or colours[0].max() <= DARK:
        return
    if _is_inverting(colours):
        note(path, "its palette shows 0 as white; its values count as stored, so that 0 is the background")
        return
    black = [i for i in ids if colours[i].max() <= DARK]
    if black:
        detail = f"0 is shown as {tuple(map(int, colours[0]))}, {black[0]} as black; save grey ids, 0 = background"
        raise ImageError(path, "its palette shows another id than 0 as the background", detail)


def _note_greys(path: Any, colours: np.ndarray, ids: Sequence[int]) -> None:
    """A note where a palette shows ids as other greys: programs number the colours of a GIF anew."""
    above = [i for i in ids if i]
    if not above or any(np.ptp(colours[i]) for i in ids) or _is_inverting(colours) or colours[0].max() > 0:
        return
    other = [i for i in above if colours[i, 0] != i and (len(above) > 1 or colours[i, 0] < LIGHT)]
    if other:
        what = f"its palette shows id {other[0]} as grey {colours[other[0], 0]}"
        note(path, f"{what}: the ids count; a GIF numbers them anew, so save labels as PNG")


def check_transparency(path: Any, transparency: Any, occurring: Iterable[int]) -> None:
    """Refuses a palette or grey label in which 0 is opaque and another occurring id is transparent.

    `transparency`: as Pillow gives it, the transparent value or the alpha of each.
    """
    alpha = dict(enumerate(transparency)) if isinstance(transparency, bytes) else {transparency: 0}
    clear = [int(i) for i in occurring if alpha.get(int(i), 255) == 0]
    if clear and 0 not in clear and 0 in map(int, occurring):
        detail = f"0 is opaque, {clear[0]} transparent; save grey ids without transparency, 0 = background"
        raise ImageError(path, "its transparency shows another id than 0 as the background", detail)


def check_palettes(files: Iterable[str | Path], has_table: bool = True) -> None:
    """Compares the palettes of the label files of a folder, of which most have none.

    Raises FolderError where a colour means different ids in two files, with the table of colours that reads them where
    `has_table` says that the folder may have one. A note names an id that has two colours, without
    any other conflict, because then nothing says that the ids are wrong.
    """
    palettes = [palette for file in files if (palette := _read(file)) is not None]
    if len({palette.colours for palette in palettes}) < 2:
        return
    used = {palette.file: _occurring(palette) for palette in palettes}
    owners: dict[Colour, list[tuple[int, _Palette]]] = {}
    first: dict[int, tuple[Colour, str]] = {}
    recoloured = ""
    for palette in palettes:
        for i in used[palette.file]:
            colour = palette.colours[i]
            for j, other in owners.setdefault(colour, []):
                if j != i and not palette.get(j) == colour == other.get(i):
                    table = _table(palettes[0].colours, [*used[palettes[0].file], *used[palette.file]])
                    remedy = f"where colours mean classes, write {table} into meta.json, and the ids follow the colours"
                    raise FolderError(
                        f"{palette.file}: its palette gives {shown(colour)} the id {i}, that of {other.file} gives it "
                        f"the id {j}; {remedy + '; ' if has_table else ''}where ids count, save the labels in grey"
                    )
            if i not in {j for j, _ in owners[colour]}:
                owners[colour].append((i, palette))
            before, other_file = first.setdefault(i, (colour, palette.file))
            if before != colour and i and not recoloured:
                recoloured = f"id {i} is {shown(before)} in {Path(other_file).name}, {shown(colour)} in others"
    if recoloured:
        note(palettes[0].file, f"palettes of the labels differ: {recoloured}; the ids count, not the colours")


def colour_table(colours: np.ndarray) -> str:
    """The table of meta.json for the colours of a label, uint8 [..., 3], in the order of their frequency."""
    found, counts = np.unique(colours.reshape(-1, 3), axis=0, return_counts=True)
    ordered = [(int(r), int(g), int(b)) for r, g, b in found[np.argsort(-counts)][: SOME_COLOURS + 1]]
    return _as_json([colour for colour in ordered if colour != BLACK][:SOME_COLOURS])


def _table(colours: tuple[Colour, ...], ids: Iterable[int]) -> str:
    wanted = dict.fromkeys(colours[i] for i in sorted(set(ids)) if i < len(colours) and colours[i] != BLACK)
    return _as_json([*wanted][:SOME_COLOURS])


def _as_json(colours: Iterable[Colour]) -> str:
    return '"colours": {' + ", ".join(f'"{i}": "{shown(colour)}"' for i, colour in enumerate(colours, 1)) + "}"


def _read(file: str | Path) -> _Palette | None:
    """The palette of a file; None without one, for grey ramps, and for what the label's reader will refuse."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            colours = np.array(image.getpalette("RGB") if image.mode == "P" else [], int).reshape(-1, 3)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    if not len(colours) or _is_inverting(colours) or (colours == RAMP[: len(colours)]).all():
        return None
    return _Palette(str(file), tuple((int(r), int(g), int(b)) for r, g, b in colours))


def _occurring(palette: _Palette) -> list[int]:
    try:
        with Image.open(palette.file, formats=FORMATS) as image:
            return [int(i) for i in np.flatnonzero(image.histogram()) if i < len(palette.colours)]
    except (OSError, ValueError, Image.DecompressionBombError):
        return []


def _is_inverting(colours: np.ndarray) -> bool:
    return len(colours) == 256 and bool((colours == 255 - RAMP).all())
