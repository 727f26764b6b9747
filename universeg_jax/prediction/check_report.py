"""The result of `check` as text and as an HTML page."""

import html
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from universeg_jax.prediction.support import Support
from universeg_jax.reports.html import image, table, write_page
from universeg_jax.reports.overlay import draw_outlines

STYLE = "figure{display:inline-block;width:260px;margin:4px;vertical-align:top}figcaption{font-size:12px}"
SIDE = 256  # pixels of an example on the page


def check_text(result: dict[str, Any]) -> str:
    """What was understood, leave-one-out Dice, the learning curve and one line per finding."""
    low, high = 100 * result["ci_low"], 100 * result["ci_high"]
    lines = [
        *result.get("understood", ()),
        *result.get("notes", ()),
        f"leave-one-out Dice {100 * result['dice']:.1f} (95 % interval {low:.1f} to {high:.1f}) over "
        f"{len(result['examples'])} examples of {result['subjects']} subjects",
        "by support size: " + ", ".join(f"{c['support_size']}: {100 * c['dice']:.1f}" for c in result["curve"]),
    ]
    if len(result["curve"]) > 1:
        gain = 100 * (result["curve"][-1]["dice"] - result["curve"][-2]["dice"])
        lines.append(f"the last step of this curve gained {gain:+.1f}; expect at most that from twice as many examples")
    findings = [f"{f['example'] or 'the set'}: {f['kind']}: {f['message']}" for f in result["findings"]]
    return "\n".join([*lines, *(findings or ["no mistakes found"])])


def write_check_page(path: Path, result: dict[str, Any], support: Support) -> None:
    """Writes the text, the learning curve and every example with its labels outlined, lowest Dice first."""
    remarks: dict[str, list[str]] = {}
    for f in result["findings"]:
        remarks.setdefault(f["example"], []).append(f"{f['kind']}: {f['message']}")
    order = sorted(
        range(len(support)),
        key=lambda i: min([d for d in result["examples"][i]["dice"].values() if d is not None], default=0),
    )
    figures = []
    for i in order:
        grey = np.asarray(255 * support.images[i], np.uint8)
        outlined = Image.fromarray(draw_outlines(grey, support.masks[:, i] > 0))
        png = io.BytesIO()
        outlined.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(png, format="PNG")
        name = support.names[i]
        dice = ", ".join("-" if d is None else f"{100 * d:.0f}" for d in result["examples"][i]["dice"].values())
        caption = "<br>".join(html.escape(line) for line in (f"{name}: Dice {dice}", *remarks.get(name, [])))
        figures.append(f"<figure>{image(png.getvalue())}<figcaption>{caption}</figcaption></figure>")
    rows = [[c["support_size"], f"{100 * c['dice']:.1f}"] for c in result["curve"]]
    text = "<br>".join(map(html.escape, check_text(result).splitlines()))
    curve = table(["support size", "leave-one-out Dice (%)"], rows)
    write_page(path, "support set", [f"<p>{text}</p>", curve, *figures], STYLE)
