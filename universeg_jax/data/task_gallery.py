"""One page of thumbnails: three examples of every task with the outline of the mask, by dataset.

It shows wrong labels, wrong orientation and wrong windows before a model learns them.
"""

import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from universeg_jax.data.dataset import Dataset
from universeg_jax.data.tasks import FIRST, SECOND, Task
from universeg_jax.reports.html import image, write_page
from universeg_jax.reports.overlay import COLOURS, outline

EXAMPLES = 3
STYLE = """
body { max-width: none }
section > div { display: flex; flex-wrap: wrap; gap: 1em }
figure { margin: 0 0 1em; width: 400px }
figure img { width: 128px; height: 128px; image-rendering: pixelated }
figcaption { font-size: 80%; overflow-wrap: anywhere }
.unusable { color: #a00 }
"""


def write_gallery(path: Path, datasets: Sequence[Dataset], tasks: Sequence[Task]) -> None:
    """Writes the HTML page task by task: memory does not grow with it."""
    write_page(path, f"{len(tasks)} tasks of {len(datasets)} datasets", _parts(datasets, tasks), STYLE)


def _parts(datasets: Sequence[Dataset], tasks: Sequence[Task]) -> Iterator[str]:
    names = [html.escape(dataset.meta.name) for dataset in datasets]
    yield f"<h1>{len(tasks)} tasks of {len(datasets)} datasets</h1>"
    yield "<ul>" + "\n".join(f'<li><a href="#{name}">{name}</a></li>' for name in names) + "</ul>"
    for name, dataset in zip(names, datasets, strict=True):
        meta = dataset.meta
        counts = f"{len(dataset)} images, {len(dataset.index.subjects)} subjects"
        words = [meta.role, meta.modality, meta.licence, counts]
        if not meta.subjects_identifiable:
            words.append("image-level split, interval optimistic")
        yield f'<section id="{name}"><h2>{name}</h2>'
        yield f"<p>{html.escape(' · '.join(word for word in words if word))}</p><div>"
        yield from (_figure(dataset, task) for task in tasks if task.dataset == meta.name)
        yield "</div></section>"


def _figure(dataset: Dataset, task: Task) -> str:
    pairs = zip(*dataset.gather(*_sample(task)), strict=True) if len(task.rows) else ()
    thumbnails = "".join(image(_png(*pair)) for pair in pairs)
    words = f"{html.escape(task.label_name)}<br>{html.escape(task.name)}<br>{len(task.rows)} examples, "
    words += f"{len(task.side(FIRST))} + {len(task.side(SECOND))}"
    if task.unusable:
        words += f'<br><span class="unusable">unusable: {html.escape(task.unusable)}</span>'
    return f"<figure>{thumbnails}<figcaption>{words}</figcaption></figure>"


def _sample(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """(rows, positions) of a few examples, spread from the first subject to the last."""
    count = len(task.rows)
    chosen = np.unique(np.linspace(0, max(count - 1, 0), min(EXAMPLES, count)).round().astype(int))
    chosen = np.argsort(task.subjects, kind="stable")[chosen]
    return task.rows[chosen], task.positions[chosen]


def _png(pixels: np.ndarray, mask: np.ndarray) -> bytes:
    """A palette PNG: 255 greys, and a colour for the mask's outline."""
    indices = np.where(outline(mask > 0), 255, np.minimum(pixels, 254)).astype(np.uint8)
    thumbnail = Image.fromarray(indices).convert("P")
    thumbnail.putpalette([value for grey in range(255) for value in (grey,) * 3] + list(COLOURS[0]))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "PNG")
    return buffer.getvalue()
