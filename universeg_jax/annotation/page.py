"""The page of `universeg demo` in Gradio: its components and events; workspace.py computes what they show.

The page is served only to this machine and reads only files that a browser uploads. What is accepted is in the project
at once; a tab has nothing of its own but which image it shows, so that it can be loaded again at any time.
"""

import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from universeg_jax.annotation import canvas
from universeg_jax.annotation.layers import corrections_of
from universeg_jax.annotation.workspace import Workspace
from universeg_jax.errors import UserError
from universeg_jax.prediction.corrections import UNSAID
from universeg_jax.readers.file_names import DICOM_EXTENSIONS, IMAGE_EXTENSIONS, VOLUME_EXTENSIONS
from universeg_jax.reports.overlay import COLOUR_NAMES, COLOURS

HOST = "127.0.0.1"
MAX_FILE_SIZE = 1_000_000_000  # bytes of one upload
DELETE_EVERY, DELETE_AFTER = 600, 3600  # seconds; files of images on the page
BUTTONS = ("Skip", "Undo", "Redo")
READABLE = sorted({f".{end.rsplit('.', 1)[1]}" for end in (*IMAGE_EXTENSIONS, *VOLUME_EXTENSIONS, *DICOM_EXTENSIONS)})


def serve(workspace: Workspace, port: int) -> None:
    """Serves the page until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # removes the folder then, too
    with tempfile.TemporaryDirectory(prefix="universeg_demo_") as folder:
        page = launch(workspace, Path(folder), port)
        print(f"http://{HOST}:{page.server_port}  (project {workspace.path}; Ctrl-C stops)", flush=True)
        try:
            page.block_thread()
        finally:
            page.close()


def launch(workspace: Workspace, folder: Path, port: int = 0) -> Any:
    """Serves the page in the background on a port (0: a free one from 7860), with its own files in `folder`.

    Raises UserError if Gradio is not installed or the port is taken.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # read when Gradio makes components
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise UserError("the page needs Gradio: pip install 'universeg_jax[demo]'") from error
    page = build_page(workspace, folder)
    try:
        page.queue(default_concurrency_limit=1).launch(
            server_name=HOST,
            server_port=port or None,
            share=False,
            allowed_paths=[],
            max_file_size=MAX_FILE_SIZE,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            prevent_thread_lock=True,
            quiet=True,
            # System fonts: the default theme loads fonts from another host.
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )
    except OSError as error:
        where = f"port {port} of {HOST} is taken" if port else f"no port of {HOST} from 7860 is free"
        raise UserError(f"{where}; choose another with --port") from error
    return page


def build_page(workspace: Workspace, folder: Path) -> Any:
    import gradio as gr

    colours = list(workspace.colours().values()) or list(COLOURS)
    with gr.Blocks(title="UniverSeg", analytics_enabled=False, delete_cache=(DELETE_EVERY, DELETE_AFTER)) as page:
        # `sent`: the mask in the editor before any edit; `drawn_on`: which editor content that was; `said`: corrections
        # that guided this mask
        tab = gr.State({"unit": "", "skipped": [], "sent": None, "drawn_on": "", "said": None})
        gr.Markdown("## UniverSeg: label a few, predict the rest")
        inputs = _inputs(workspace)
        view = _view(colours)
        on = _changes(workspace, [tab, *view.shown], view)

        def upload(tab: dict[str, Any], images: list[str] | None, masks: list[str] | None, labels: str) -> str:
            return workspace.add(_uploaded(images, folder), _uploaded(masks, folder), labels)

        on(page.load, lambda tab: tab["unit"] or workspace.first())
        on(inputs.add.click, upload, [inputs.images, inputs.masks, inputs.labels], [inputs.images, inputs.masks])
        on(view.choose.input, lambda tab, name: _units(workspace, name)[0], [view.choose])
        on(view.number.release, lambda tab, k: f"{_name(workspace, tab['unit'])}/{int(k)}", [view.number])
        on(view.accept.click, lambda tab, *drawn: _accept(workspace, tab, *drawn), [view.editor, view.drawn_on])
        on(view.again.click, lambda tab, *drawn: _again(workspace, tab, *drawn), [view.editor, view.drawn_on])
        on(view.skip.click, lambda tab: _next(workspace, tab, [*tab["skipped"], tab["unit"]]))
        on(view.undo.click, lambda tab: workspace.opened()[0].undo()[0])
        on(view.redo.click, lambda tab: workspace.opened()[0].redo()[0])
        on(view.complete.click, lambda tab: _complete(workspace, tab))
        view.rest.click(
            _told(lambda: gr.File(str(workspace.predict_rest(folder)), visible=True)),
            None,
            view.file,
            api_visibility="private",
            concurrency_id="session",
        )
    return page


class Inputs(NamedTuple):
    images: Any
    masks: Any
    labels: Any
    add: Any


def _inputs(workspace: Workspace) -> Inputs:
    """Adds the first row: images, and masks of some of them."""
    import gradio as gr

    upload = {"file_count": "multiple", "file_types": READABLE, "height": 130}
    known = ", ".join(f"{i}={label.name}" for i, label in workspace.labels.items())
    with gr.Accordion("1. Add images, and masks of those that are labelled already", open=True), gr.Row():
        images = gr.File(label="Images or volumes", elem_id="images", **upload)
        masks = gr.File(label="Masks of the same names (0 is background), if any", elem_id="masks", **upload)
        with gr.Column():
            labels = gr.Textbox(
                known,
                label="What is labelled",
                placeholder="liver, or 1=liver, 2=tumour",
                info="Named once, with the first images",
                interactive=not known,
                elem_id="labels",
            )
            add = gr.Button("Add", variant="primary", elem_id="add")
    return Inputs(images, masks, labels, add)


class View(NamedTuple):
    shown: list[Any]  # what `_values` gives the values of
    editor: Any
    drawn_on: Any  # what the browser drew on when a button was pressed
    choose: Any
    number: Any
    accept: Any
    again: Any
    skip: Any
    undo: Any
    redo: Any
    complete: Any
    rest: Any
    file: Any
    effects: Any


def _view(colours: Sequence[tuple[int, int, int]]) -> View:
    """Adds the image with its mask, and what can be done with it."""
    import gradio as gr

    brushes = [(f"rgb({r}, {g}, {b})", canvas.OPACITY) for r, g, b in colours]
    gallery = {"fit_columns": False, "object_fit": "contain", "format": "png", "buttons": [], "interactive": False}
    image = {"format": "png", "interactive": False, "buttons": ["fullscreen"], "height": 330}
    status = gr.Markdown("No images yet.", elem_id="status")
    drawn_on = gr.Textbox(visible=False)
    with gr.Row():
        with gr.Column(scale=2):
            choose = gr.Dropdown([], label="Image (✓: labelled)", elem_id="choose", interactive=True)
            number = gr.Slider(0, 1, 0, step=1, label="Slice", elem_id="slice", visible=False, interactive=True)
            result = gr.Image(label="Mask", elem_id="result", **image)
            uncertainty = gr.Image(label="Uncertainty (bright: not sure)", elem_id="uncertainty", **image)
        with gr.Column(scale=3):
            editor = gr.ImageEditor(
                label="2. Draw or correct",
                elem_id="editor",
                format="png",
                height=675,
                canvas_size=(canvas.VIEW, canvas.VIEW),
                sources=(),
                transforms=(),
                layers=False,
                buttons=[],
                brush=gr.Brush(colors=brushes, default_color=brushes[0], color_mode="fixed", default_size=12),
                eraser=gr.Eraser(default_size=12),
            )
            again = gr.Button("Predict again from what I drew", elem_id="again")
            with gr.Row():
                accept = gr.Button("3. Accept and next", variant="primary", elem_id="accept", scale=2, min_width=200)
                skip, undo, redo = (gr.Button(word, elem_id=word.lower(), min_width=80) for word in BUTTONS)
            with gr.Row():
                complete = gr.Button("Complete this volume", elem_id="complete", visible=False)
                rest = gr.Button("4. Predict all that is left and download the masks", elem_id="rest")
            file = gr.File(label="Download", elem_id="files", interactive=False, visible=False)
    examples = gr.Gallery(
        label="Examples of this prediction, most alike first", elem_id="support", columns=8, height=180, **gallery
    )
    effects = gr.Gallery(
        label="What each example changes (Δ: in pixels)", elem_id="effects", columns=6, height=220, **gallery
    )
    shown = [status, choose, number, result, uncertainty, editor, drawn_on, examples, complete]
    return View(shown, editor, drawn_on, choose, number, accept, again, skip, undo, redo, complete, rest, file, effects)


def _changes(workspace: Workspace, outputs: list[Any], view: View) -> Callable[..., None]:
    """Returns on(trigger, change, inputs, cleared), which connects an event to what the page shows after it.

    `change(tab, *inputs)` returns the image or slice to show. What the examples change is computed afterwards.
    """
    import gradio as gr

    def on(trigger: Any, change: Callable[..., str], inputs: Sequence[Any] = (), cleared: Sequence[Any] = ()) -> None:
        def changed(tab: dict[str, Any], *arguments: Any) -> tuple[Any, ...]:
            now = dict(tab)  # Gradio's own must not change where anything fails
            try:
                unit = change(now, *arguments)  # which may change the tab's other entries
                values = _values(workspace, {**now, "unit": unit})
            except UserError as error:
                gr.Warning(str(error))
                return tuple([gr.skip()] * len(outputs) + [None] * len(cleared))
            return (*values, *[None] * len(cleared))

        event = trigger(
            changed,
            [outputs[0], *inputs],
            [*outputs, *cleared],
            api_visibility="private",
            concurrency_id="session",
            show_progress_on=view.editor,
        )
        event.success(
            _told(lambda tab: workspace.effects(tab["unit"]) if tab["unit"] else []),
            outputs[0],
            view.effects,
            api_visibility="private",
            concurrency_id="session",
            trigger_mode="always_last",
        )

    return on


def _told(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Tells the user what goes wrong, and leaves the page as it is."""
    import gradio as gr

    def told(*arguments: Any) -> Any:
        try:
            return compute(*arguments)
        except UserError as error:
            gr.Warning(str(error))
            return gr.skip()

    return told


def _values(workspace: Workspace, tab: dict[str, Any]) -> tuple[Any, ...]:
    """The values of the tab's state and of `View.shown`."""
    import gradio as gr

    unit = tab["unit"]
    if not unit:
        return tab, "No images yet.", gr.skip(), gr.skip(), None, None, None, "", None, gr.skip()
    session, _ = workspace.opened()
    said = tab.pop("corrections", None)
    shown, colours = workspace.show(unit, said), workspace.colours()
    item, k = session.project.find(unit)
    choices = [(_mark(workspace, name), name) for name in session.project.items]
    slices = gr.Slider(0, max(1, item.slices - 1), k or 0, label=f"Slice of {item.name}", visible=item.volume)
    drawn_on = secrets.token_hex(8)
    return (
        {**tab, "sent": shown.mask, "drawn_on": drawn_on, "said": said},
        _status(workspace, unit, shown.source),
        gr.Dropdown(choices, value=item.name),
        slices,
        canvas.overlay(shown.grey, shown.mask, colours, shown.scale),
        None if shown.uncertainty is None else canvas.heat_map(shown.uncertainty, shown.scale),
        canvas.editor_value(shown.grey, shown.mask, colours, shown.scale),
        drawn_on,
        workspace.example_overlays(unit),
        gr.Button(visible=item.volume),
    )


def _mark(workspace: Workspace, name: str) -> str:
    session, _ = workspace.opened()
    units = session.project.items[name].units()
    done = sum(map(session.is_labelled, units))
    return f"{name} ✓" if done == len(units) else f"{name} ({done} of {len(units)} slices)" if done else name


def _status(workspace: Workspace, unit: str, source: str) -> str:
    session, _ = workspace.opened()
    done, left = len(session.labelled()), len(session.left())
    names = [f"{label.name}: {_colour_name(label.colour)}" for label in workspace.labels.values()]
    problems = "".join(f"\n\n⚠ {problem}" for problem in session.problems.values())
    return f"**`{unit}`**: {source}. {done} labelled, {left} left. {', '.join(names)}.{problems}"


def _colour_name(colour: tuple[int, int, int]) -> str:
    return COLOUR_NAMES[COLOURS.index(colour)] if colour in COLOURS else "rgb({}, {}, {})".format(*colour)


def _name(workspace: Workspace, unit: str) -> str:
    return workspace.opened()[0].project.find(unit)[0].name


def _units(workspace: Workspace, name: str) -> list[str]:
    """The units of an image or volume, those that are left first."""
    session, _ = workspace.opened()
    return sorted(session.project.items[name].units(), key=session.is_labelled)


def _drawn(workspace: Workspace, tab: dict[str, Any], value: dict[str, Any] | None, drawn_on: str) -> np.ndarray:
    """The mask that was drawn, unless another button had changed the editor's image by then. Raises UserError."""
    unit = tab["unit"]
    if not unit or value is None:
        raise UserError("there is no image to draw on: add one")
    if drawn_on != tab["drawn_on"]:
        raise UserError("nothing was done: the image changed while you pressed the button; look, and press it again")
    return canvas.edited_mask(value, tab["sent"], workspace.colours(), workspace.grey(unit)[1])


def _accept(workspace: Workspace, tab: dict[str, Any], value: dict[str, Any] | None, drawn_on: str) -> str:
    workspace.accept(tab["unit"], _drawn(workspace, tab, value, drawn_on))
    return _next(workspace, tab, tab["skipped"])


def _again(workspace: Workspace, tab: dict[str, Any], value: dict[str, Any] | None, drawn_on: str) -> str:
    """Predicts the same image or slice again, guided by all that was corrected in it."""
    drawn, sent = _drawn(workspace, tab, value, drawn_on), tab["sent"]
    workspace.check_predicted(tab["unit"])
    said = corrections_of(sent, drawn, np.full_like(sent, UNSAID) if tab["said"] is None else tab["said"])
    tab["corrections"] = said if (said != UNSAID).any() else None
    return tab["unit"]


def _next(workspace: Workspace, tab: dict[str, Any], skipped: list[str]) -> str:
    """The next image or slice; the same where no other is left."""
    import gradio as gr

    tab["skipped"] = skipped
    if unit := workspace.next(skipped):
        return unit
    tab["skipped"] = []
    gr.Info("Nothing else is left to label.")
    return workspace.next() or tab["unit"]


def _complete(workspace: Workspace, tab: dict[str, Any]) -> str:
    workspace.complete(tab["unit"])
    return tab["unit"]


def _uploaded(files: Sequence[str] | None, folder: Path) -> list[Path]:
    """The paths of files that a browser uploaded to `folder`. Raises UserError for any other."""
    paths = [Path(file).resolve() for file in files or ()]
    for path in paths:
        if not path.is_relative_to(folder.resolve()):
            raise UserError(f"{path.name} was not uploaded here; choose it again")
    return paths
