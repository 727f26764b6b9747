"""The result of `check` as text and as an HTML page."""

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from universeg_jax.prediction.support import Support
from universeg_jax.reports.html import image, table, write_page
from universeg_jax.reports.overlay import draw_outlines

STYLE = "figure{display:inline-block;width:260px;margin:4px;vertical-align:top}figcaption{font-size:12px}"
SIDE = 256  # pixels of an example on the page
DARK = 0.4  # brightness of pixels without a label


def check_text(result: dict[str, Any]) -> str:
    """What was understood, leave-one-out Dice, the learning curve and one line per finding."""
    low, high = 100 * result["ci_low"], 100 * result["ci_high"]
    lines = [
        *result.get("understood", ()),
        *result.get("notes", ()),
        f"leave-one-out Dice {100 * result['dice']:.1f} (95 % interval {low:.1f} to {high:.1f}) over "
        f"{len(result['examples'])} examples of {result['subjects']} subjects, each from "
        f"{result['curve'][-1]['support_size']} others",
        *curve_lines(result),
    ]
    findings = [f"{f['example'] or 'the set'}: {f['kind']}: {f['message']}" for f in result["findings"]]
    return "\n".join([*lines, *(findings or ["no mistakes found"])])


def curve_lines(result: dict[str, Any]) -> list[str]:
    """The learning curve and the best number of examples, where they were measured (`check --curve`)."""
    if len(result["curve"]) < 2:
        return []
    curve, gain = result["curve"], 100 * (result["curve"][-1]["dice"] - result["curve"][-2]["dice"])
    lines = [
        "by number of labelled examples: " + _by_size(curve),
        f"the last step of this curve gained {gain:+.1f}; expect at most that from twice as many examples",
    ]
    if len(sizes := result.get("support_sizes", ())) > 1:
        used = curve[-1]["support_size"]
        better = [each for each in sizes if each.get("gain", 0) > 2 * each.get("error", 0)]
        best = max(better, key=lambda each: each["gain"])["support_size"] if better else used
        lines.append(f"by --support_size, of the examples nearest to each: {_by_size(sizes)}")
        lines.append(
            f"no number of examples is clearly better than the default, {used}"
            if best == used
            else f"--support_size {best} is better for this set than the default, {used}"
        )
    return lines


def _by_size(scores: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{each['support_size']}: {100 * each['dice']:.1f}" for each in scores)


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
        seen = np.where(support.known_of(i), support.images[i], np.float32(DARK) * support.images[i])
        grey = np.asarray(255 * seen, np.uint8)
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
