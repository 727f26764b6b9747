"""Makes the screenshots of the documentation anew, from synthetic images and the packaged weights.

    pip install -e '.[docs,train]'
    python -m tools.screenshots                     # minutes; the HTML pages need Chromium on the path
    pip install -e '.[demo]' selenium
    python -m tools.screenshots --page              # needs Chromium and chromedriver
    pip install -e '.[napari]' pyqt6
    xvfb-run -a -s '-screen 0 1600x1000x24' python -m tools.screenshots --napari

Terminals become docs/screens/*.svg, pages and the panel docs/screens/*.png, the annotation page page.jpg. The images
are synthetic, so no licence applies.
"""

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.console import Console
from rich.text import Text

from tools.browser import Tab, find_browser
from universeg_jax.annotation.napari_sample import make_sample, subjects
from universeg_jax.errors import UserError
from universeg_jax.reports.files import write_json

if TYPE_CHECKING:
    from universeg_jax.annotation.napari_dock import AnnotateWidget

ROOT = Path(__file__).parents[1]
SCREENS = ROOT / "docs" / "screens"
LIMIT = 150_000  # bytes of a screenshot
COLOURS = 64  # of a PNG: greys, and a few lines and buttons
COLUMNS = 88  # of a terminal: its letters are legible in a column of text
EXAMPLES, QUERIES = 8, 4
PAGE_WINDOW, PAGE_EXAMPLES = (1300, 1800), 5  # of the annotation page: pixels, and examples
PAGE_WIDTH = 1000  # pixels of its screenshot
SHIFTED = "p2_1.png"  # the label that `check` is to find
ANNOTATION = (
    "annotate new my_project --images new_scans --labels 1=structure",
    "annotate accept my_project p8_1 truth/p8_1.png",
    "annotate accept my_project p9_1 truth/p9_1.png",
    "annotate next my_project",
    "annotate status my_project",
)


def write_scans(folder: Path) -> None:
    """Writes `my_scans` with labels, one of them shifted; `new_scans` without, whose labels are in `truth`."""
    for part in ("my_scans/images", "my_scans/labels", "new_scans", "truth"):
        (folder / part).mkdir(parents=True)
    for i, (image, label) in enumerate(subjects(EXAMPLES + QUERIES)):
        name = f"p{i}_1.png"
        images, labels = ("my_scans/images", "my_scans/labels") if i < EXAMPLES else ("new_scans", "truth")
        Image.fromarray(image).save(folder / images / name)
        Image.fromarray(np.roll(label, 24, axis=1) if name == SHIFTED else label).save(folder / labels / name)
    write_json(folder / "my_scans" / "meta.json", {"labels": {"1": "structure"}})


def run(folder: Path, *commands: str) -> list[tuple[str, str]]:
    """Runs `universeg COMMAND` in the folder: (command, what it printed) of each. Raises UserError if one fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    printed = []
    for command in commands:
        arguments = [sys.executable, "-m", "universeg_jax.cli", *command.split()]
        done = subprocess.run(
            arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        output = settled(done.stdout.decode())
        if done.returncode:
            raise UserError(f"universeg {command}: exit code {done.returncode}\n{output}")
        printed.append((f"universeg {command}", output))
    return printed


def settled(output: str) -> str:
    """Leaves out progress bars, and the wait for the compiler, which only the first call has."""
    lines = re.split(r"[\r\n]+", output)
    return "\n".join(
        line for line in lines if line.strip() and not re.match(r"[\w ]+: +\d+%\||compiling the model", line)
    )


def terminal(printed: Sequence[tuple[str, str]], name: str) -> str:
    """Draws commands and what they printed as SVG. `name` keeps its ids apart from those of other terminals."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for i, (command, output) in enumerate(printed):
        console.print(Text(("\n" if i else "") + f"$ {command}", style="bold cyan"))
        console.print(Text(output))
    svg = console.export_svg(title="universeg", unique_id=f"screen-{name}")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # which would be fetched from another host


def save(image: Image.Image, target: Path) -> None:
    """Saves an image, as PNG in few colours or as JPEG. Raises UserError if the file is larger than LIMIT."""
    image = image.convert("RGB")
    image.quantize(COLOURS).save(target, optimize=True) if target.suffix == ".png" else image.save(target, quality=75)
    if target.stat().st_size > LIMIT:
        raise UserError(f"{target} has {target.stat().st_size} bytes, more than {LIMIT}: take fewer pixels")


def html_page(html: Path, target: Path, size: tuple[int, int], browser: str) -> None:
    """Saves what a browser window of `size` (width and height in pixels) shows of an HTML file."""
    shot = html.with_suffix(".png")
    flags = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={size[0]},{size[1]}"]
    subprocess.run([browser, *flags, f"--screenshot={shot}", html.as_uri()], check=True, capture_output=True)
    with Image.open(shot) as image:
        save(image, target)


def overlays(folder: Path, target: Path) -> None:
    """Saves the overlays that `predict` wrote, side by side."""
    files = sorted(folder.glob("*_overlay.png"))
    save(Image.fromarray(np.hstack([np.asarray(Image.open(file).convert("RGB")) for file in files])), target)


def annotation_page(folder: Path, target: Path) -> None:
    """Adds images, and labels of most of them, to the page of `universeg demo`; saves the prediction of another."""
    from universeg_jax import Predictor
    from universeg_jax.annotation.page import HOST, launch
    from universeg_jax.annotation.workspace import Workspace

    write_scans(folder)
    (folder / "page").mkdir()
    workspace = Workspace(folder / "my_project", Predictor.from_checkpoint("small"))
    page = launch(workspace, folder / "page")
    tab = Tab(f"http://{HOST}:{page.server_port}", PAGE_WINDOW)
    try:
        labels = sorted((folder / "my_scans" / "labels").glob("*.png"))
        labels = [path for path in labels if path.name != SHIFTED][:PAGE_EXAMPLES]
        images = [folder / "my_scans" / "images" / path.name for path in labels]
        tab.upload("images", [*images, *sorted((folder / "new_scans").glob("*.png"))])
        tab.upload("masks", labels)
        tab.type("labels", "structure")
        tab.click("#add")
        tab.says(f"predicted from {len(labels)} examples")
        tab.wait(lambda: len(tab.find("#effects img")) == len(labels))
        shot = tab.screenshot()
        save(shot.resize((PAGE_WIDTH, PAGE_WIDTH * shot.height // shot.width), Image.Resampling.LANCZOS), target)
    finally:
        tab.close()
        page.close()
        workspace.close()


def napari_panel(folder: Path, target: Path) -> None:
    """Accepts three images of napari's sample in the panel and saves the window with the prediction of the fourth."""
    import napari

    from universeg_jax.annotation.napari_dock import AnnotateWidget
    from universeg_jax.annotation.napari_screen import UNCERTAINTY

    viewer = napari.Viewer()
    viewer.window.resize(1250, 850)
    for image, settings, _ in make_sample():
        viewer.add_image(image, **settings)
    truth = {f"subject{i}": label for i, (_, label) in enumerate(subjects())}
    widget = AnnotateWidget(viewer)
    viewer.window.add_dock_widget(widget, name="annotate (UniverSeg)")
    widget.labels.setText("structure")
    widget.make(folder / "my_project")
    for _ in range(3):
        widget.screen.label().data = truth[widget.unit].astype(np.int32)
        widget.accept()
        _wait(widget)
    widget.sort()
    _wait(widget)
    viewer.layers[UNCERTAINTY].visible = True
    save(Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)), target)
    viewer.close()


def _wait(widget: "AnnotateWidget") -> None:
    """Waits until the result of the network is on the screen, and its progress bar is gone."""
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + 1
    while widget.busy or time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)


def commands_and_pages(folder: Path) -> None:
    write_scans(folder)
    told = {
        "check": run(folder, "check --support my_scans --html check.html"),
        "predict": run(folder, "predict --support my_scans --queries new_scans --out masks --overlay"),
        "annotate": run(folder, *ANNOTATION),
    }
    for name, printed in told.items():
        (SCREENS / f"{name}.svg").write_text(terminal(printed, name) + "\n", encoding="utf-8")
    overlays(folder / "masks", SCREENS / "overlays.png")
    run(folder, "evaluate --predictions masks --labels truth --out scores")
    browser = find_browser()
    html_page(folder / "check.html", SCREENS / "check.png", (900, 895), browser)
    html_page(folder / "scores" / "report.html", SCREENS / "report.png", (900, 510), browser)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--page", action="store_true", help="make the screenshot of the annotation page alone")
    which.add_argument("--napari", action="store_true", help="make the screenshot of napari's panel alone")
    args = parser.parse_args()
    SCREENS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            if args.page:
                annotation_page(Path(scratch), SCREENS / "page.jpg")
            elif args.napari:
                napari_panel(Path(scratch), SCREENS / "napari.png")
            else:
                commands_and_pages(Path(scratch))
        except UserError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
