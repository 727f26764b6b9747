"""A page to look at: three examples of every task with the outline of the mask, by dataset.

Wrong labels, wrong orientation and wrong windows are seen there before a model learns them. The page is one file.
"""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from universeg_jax.data.dataset import Dataset
from universeg_jax.data.tasks import FIRST, SECOND, Task
from universeg_jax.reports.files import atomic_write

EXAMPLES = 3
OUTLINE = (255, 60, 0)
STYLE = """
body { font-family: sans-serif; margin: 2em; background: #fff; color: #111 }
section > div { display: flex; flex-wrap: wrap; gap: 1em }
figure { margin: 0 0 1em; width: 400px }
figure img { width: 128px; height: 128px; image-rendering: pixelated }
figcaption { font-size: 80%; overflow-wrap: anywhere }
.unusable { color: #a00 }
"""


def write_page(path: Path, datasets: Sequence[Dataset], tasks: Sequence[Task]) -> None:
    """The HTML page, written task by task: memory does not grow with it."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_lines(datasets, tasks))


def _lines(datasets: Sequence[Dataset], tasks: Sequence[Task]) -> Iterator[str]:
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Tasks</title><style>{STYLE}</style>\n'
    yield f"<h1>{len(tasks)} tasks of {len(datasets)} datasets</h1>\n<ul>\n"
    for dataset in datasets:
        name = html.escape(dataset.meta.name)
        yield f'<li><a href="#{name}">{name}</a></li>\n'
    yield "</ul>\n"
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
        yield f'<section id="{html.escape(meta.name)}"><h2>{html.escape(meta.name)}</h2>\n'
        yield f"<p>{html.escape(' · '.join(word for word in words if word))}</p><div>\n"
        yield from (_figure(dataset, task) for task in tasks if task.dataset == meta.name)
        yield "</div></section>\n"
    yield "</html>\n"


def _figure(dataset: Dataset, task: Task) -> str:
    pairs = zip(*dataset.gather(*_some(task)), strict=True) if len(task.rows) else ()
    pictures = "".join(f'<img alt="" src="data:image/png;base64,{_png(*pair)}">' for pair in pairs)
    words = f"{html.escape(task.label_name)}<br>{html.escape(task.name)}<br>{len(task.rows)} examples, "
    words += f"{len(task.side(FIRST))} + {len(task.side(SECOND))}"
    if task.unusable:
        words += f'<br><span class="unusable">unusable: {html.escape(task.unusable)}</span>'
    return f"<figure>{pictures}<figcaption>{words}</figcaption></figure>\n"


def _some(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """(rows, positions) of a few examples, from the first subject to the last."""
    count = len(task.rows)
    chosen = np.unique(np.linspace(0, max(count - 1, 0), min(EXAMPLES, count)).round().astype(int))
    chosen = np.argsort(task.subjects, kind="stable")[chosen]
    return task.rows[chosen], task.positions[chosen]


def _png(image: np.ndarray, mask: np.ndarray) -> str:
    """Base64 of a palette PNG: 255 greys, and a colour for the mask's outline."""
    drawn = np.where(outline(mask), 255, np.minimum(image, 254)).astype(np.uint8)
    picture = Image.fromarray(drawn).convert("P")
    picture.putpalette([value for grey in range(255) for value in (grey,) * 3] + list(OUTLINE))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def outline(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels of a mask with a neighbour, above, below or beside, that is not of it."""
    padded = np.pad(mask > 0, 1)
    inside = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
    return (mask > 0) & ~np.logical_and.reduce(inside)
