"""Writes a page with three examples of every task, each with the outline of its mask.

It shows wrong labels, orientations and intensity windows before a model learns them.
"""

import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from universeg_jax.data.dataset import Dataset
from universeg_jax.data.tasks import FIRST, SECOND, Task
from universeg_jax.reports.html import image
from universeg_jax.reports.html import write_page as write_html
from universeg_jax.reports.overlay import outline

EXAMPLES = 3
OUTLINE = (255, 60, 0)
STYLE = """
section > div { display: flex; flex-wrap: wrap; gap: 1em }
figure { margin: 0 0 1em; width: 400px }
figure img { width: 128px; height: 128px; image-rendering: pixelated }
figcaption { font-size: 80%; overflow-wrap: anywhere }
.unusable { color: #a00 }
"""


def write_page(path: Path, datasets: Sequence[Dataset], tasks: Sequence[Task]) -> None:
    """Writes the HTML page task by task, so that memory does not grow with it."""
    write_html(path, "Tasks", _lines(datasets, tasks), STYLE)


def _lines(datasets: Sequence[Dataset], tasks: Sequence[Task]) -> Iterator[str]:
    yield f"<h1>{len(tasks)} tasks of {len(datasets)} datasets</h1>\n<ul>"
    for dataset in datasets:
        name = html.escape(dataset.meta.name)
        yield f'<li><a href="#{name}">{name}</a></li>'
    yield "</ul>"
    for dataset in datasets:
        meta = dataset.meta
        words = [
            meta.role,
            meta.modality,
            meta.licence,
            f"{len(dataset)} images, {len(dataset.index.subjects)} subjects",
        ]
        if not meta.subjects_identifiable:
            words.append("image-level split, interval optimistic")
        yield f'<section id="{html.escape(meta.name)}"><h2>{html.escape(meta.name)}</h2>'
        yield f"<p>{html.escape(' · '.join(word for word in words if word))}</p><div>"
        yield from (_figure(dataset, task) for task in tasks if task.dataset == meta.name)
        yield "</div></section>"


def _figure(dataset: Dataset, task: Task) -> str:
    pairs = zip(*dataset.gather(*_some(task)), strict=True) if len(task.rows) else ()
    images = "".join(image(_png(*pair)) for pair in pairs)
    words = f"{html.escape(task.label_name)}<br>{html.escape(task.name)}<br>{len(task.rows)} examples, "
    words += f"{len(task.side(FIRST))} + {len(task.side(SECOND))}"
    if task.unusable:
        words += f'<br><span class="unusable">unusable: {html.escape(task.unusable)}</span>'
    return f"<figure>{images}<figcaption>{words}</figcaption></figure>"


def _some(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """(rows, positions) of EXAMPLES examples, from the first subject to the last."""
    count = len(task.rows)
    chosen = np.unique(np.linspace(0, max(count - 1, 0), min(EXAMPLES, count)).round().astype(int))
    chosen = np.argsort(task.subjects, kind="stable")[chosen]
    return task.rows[chosen], task.positions[chosen]


def _png(pixels: np.ndarray, mask: np.ndarray) -> bytes:
    """A palette PNG: 255 greys and a colour for the outline of the mask."""
    indices = np.where(outline(mask > 0), 255, np.minimum(pixels, 254)).astype(np.uint8)
    palette_image = Image.fromarray(indices).convert("P")
    palette_image.putpalette([value for grey in range(255) for value in (grey,) * 3] + list(OUTLINE))
    out = io.BytesIO()
    palette_image.save(out, "PNG")
    return out.getvalue()
