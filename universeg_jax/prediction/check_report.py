"""What `check` found, as text and as a page."""

import html
import io
from typing import Any

import numpy as np
from PIL import Image

from universeg_jax.prediction.support import Support
from universeg_jax.reports.html import STYLE, image, table
from universeg_jax.reports.overlay import COLOURS, outline


def as_text(result: dict[str, Any]) -> str:
    """What the command prints."""
    low, high = 100 * result["ci_low"], 100 * result["ci_high"]
    lines = [
        f"leave-one-out Dice {100 * result['dice']:.1f} ({low:.1f} to {high:.1f}) over {len(result['examples'])} "
        f"examples of {result['subjects']} subjects",
        "by number of examples: " + ", ".join(f"{c['support_size']}: {100 * c['dice']:.1f}" for c in result["curve"]),
    ]
    if len(result["curve"]) > 1:
        gain = 100 * (result["curve"][-1]["dice"] - result["curve"][-2]["dice"])
        lines.append(f"the last step brought {gain:+.1f}: twice as many examples would bring about that or less")
    findings = [f"{f['example'] or 'the set'}: {f['kind']}: {f['message']}" for f in result["findings"]]
    return "\n".join([*lines, *(findings or ["nothing looks wrong"])])


def as_page(result: dict[str, Any], support: Support) -> str:
    """The same as one HTML page, with every example and its labels' outlines, the worst first."""
    remarks: dict[str, list[str]] = {}
    for f in result["findings"]:
        remarks.setdefault(f["example"], []).append(f"{f['kind']}: {f['message']}")
    order = sorted(
        range(len(support)),
        key=lambda i: min([d for d in result["examples"][i]["dice"].values() if d is not None], default=0),
    )
    cards = []
    for i in order:
        name = support.names[i]
        canvas = np.repeat((255 * support.images[i]).astype(np.uint8)[..., None], 3, -1)
        for mask, colour in zip(support.masks[:, i], COLOURS * 20, strict=False):
            canvas[outline(mask > 0)] = colour
        png = io.BytesIO()
        Image.fromarray(canvas).resize((256, 256), Image.Resampling.NEAREST).save(png, format="PNG")
        dice = ", ".join("-" if d is None else f"{100 * d:.0f}" for d in result["examples"][i]["dice"].values())
        text = "<br>".join(html.escape(t) for t in (f"{name}: Dice {dice}", *remarks.get(name, [])))
        cards.append(f"<figure>{image(png.getvalue())}<figcaption>{text}</figcaption></figure>")
    curve = table(
        ["examples", "leave-one-out Dice (%)"], [[c["support_size"], f"{100 * c['dice']:.1f}"] for c in result["curve"]]
    )
    style = STYLE + "figure{display:inline-block;width:260px;margin:4px;vertical-align:top}figcaption{font-size:12px}"
    text = "<br>".join(map(html.escape, as_text(result).splitlines()))
    head = f"<!doctype html><meta charset=utf-8><title>support</title><style>{style}</style>"
    return f"{head}<p>{text}</p>{curve}{''.join(cards)}\n"
