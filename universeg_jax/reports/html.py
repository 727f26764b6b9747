"""Static HTML pages: one file with its style, tables and images."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from universeg_jax.reports.files import atomic_write

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:left}"
    "summary h2{display:inline}td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%}"
)


def write_page(path: Path, title: str, parts: Iterable[str], style: str = "") -> Path:
    """Writes a page atomically, part by part: memory does not grow with an iterator of parts. `style` is more CSS."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        head = f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style>"
        file.write(f'<!doctype html><html lang="en"><meta charset="utf-8">{head}\n')
        file.writelines(f"{part}\n" for part in parts)
        file.write("</html>\n")
    return path


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A table with right-aligned numbers."""

    def line(cells: Sequence[Any], tag: str) -> str:
        classes = [" class=n" if tag == "td" and is_number(cell) else "" for cell in cells]
        return "<tr>" + "".join(f"<{tag}{k}>{html.escape(str(c))}</{tag}>" for c, k in zip(cells, classes, strict=True))

    return "<table>" + "\n".join([line(head, "th"), *(line(row, "td") for row in rows)]) + "</table>"


def is_number(cell: Any) -> bool:
    return str(cell).replace(".", "", 1).replace("-", "", 1).isdigit()


def image(png: bytes) -> str:
    """An <img> element that contains the PNG."""
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
