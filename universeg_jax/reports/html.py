"""Static HTML pages: one file with its style, tables and images inside."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from universeg_jax.reports.files import atomic_write

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:left}"
    "summary h2{display:inline}td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%}"
)


def write_page(path: Path, title: str, parts: Sequence[str]) -> Path:
    """One static file, whole or not at all."""
    page = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    with atomic_write(path) as temporary:
        temporary.write_text(page + "\n".join(parts) + "\n")
    return path


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any], tag: str) -> str:
        marks = [" class=n" if tag == "td" and is_number(cell) else "" for cell in cells]
        return "<tr>" + "".join(f"<{tag}{m}>{html.escape(str(c))}</{tag}>" for c, m in zip(cells, marks, strict=True))

    return "<table>" + "\n".join([line(head, "th"), *(line(row, "td") for row in rows)]) + "</table>"


def is_number(cell: Any) -> bool:
    return str(cell).replace(".", "", 1).replace("-", "", 1).isdigit()


def image(png: bytes) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}">'
