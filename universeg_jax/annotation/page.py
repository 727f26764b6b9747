"""The page of `universeg demo`, in Gradio: components and what happens on a click; demo.py has what it does.

It is served to this machine alone, reads no file but what a browser uploaded, and keeps those in a folder of its own
that goes when it stops.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from universeg_jax.annotation import session as demo
from universeg_jax.annotation.session import Session
from universeg_jax.errors import UserError
from universeg_jax.prediction.predictor import Prediction, Predictor
from universeg_jax.readers.file_names import IMAGE_EXTENSIONS

HOST = "127.0.0.1"
MAX_FILE_SIZE = 100_000_000  # bytes of one upload
DELETE_EVERY, DELETE_AFTER = 600, 3600  # seconds; pictures that the page showed
IDLE = 7200  # seconds after which a closed tab's session is forgotten


def serve(predictor: Predictor, port: int) -> None:
    """Serves the page until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder goes then, too
    with tempfile.TemporaryDirectory(prefix="universeg_demo_") as folder:
        page = launch(predictor, Path(folder), port)
        print(f"http://{HOST}:{page.server_port}  (Ctrl-C ends it)", flush=True)
        try:
            page.block_thread()
        finally:
            page.close()


def launch(predictor: Predictor, folder: Path, port: int = 0) -> Any:
    """The page, served in the background on a port (0: a free one from 7860 on), with all its files in `folder`.

    Raises UserError where Gradio is absent or the port is taken.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # read when Gradio makes components
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise UserError("the page needs Gradio: pip install 'universeg_jax[demo]'") from error
    page = build_page(predictor, folder)
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
            # Fonts of the system: the default theme asks another host for its own.
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )
    except OSError as error:
        where = f"port {port} of {HOST} is taken" if port else f"no port of {HOST} from 7860 on is free"
        raise UserError(f"{where}; choose another by --port") from error
    return page


def build_page(predictor: Predictor, folder: Path) -> Any:
    import gradio as gr

    with gr.Blocks(title="UniverSeg", analytics_enabled=False, delete_cache=(DELETE_EVERY, DELETE_AFTER)) as page:
        session = gr.State(Session(), time_to_live=IDLE)
        shown = gr.State(None, time_to_live=IDLE)  # the mask that the editor was given
        gr.Markdown("## UniverSeg: segment by example")
        inputs = _inputs()
        view = _view()
        files = _downloads()
        on = _changes(predictor, session, [session, shown, *view[:5]], view.effects)

        def upload(paths: list[str] | None, is_label: bool = False) -> dict[str, np.ndarray]:
            return demo.read_uploads(paths or [], folder, is_label)

        on(
            inputs.add.click,
            lambda state, images, masks: demo.add_examples(state, upload(images), upload(masks, is_label=True)),
            [inputs.images, inputs.masks],
            [inputs.images, inputs.masks],
        )
        on(inputs.remove.click, lambda state: replace(state, examples=state.examples[:-1]))
        on(
            inputs.queries.upload,
            lambda state, paths: demo.add_queries(state, upload(paths)),
            [inputs.queries],
            [inputs.queries],
        )
        on(inputs.back.click, lambda state: demo.step(state, -1))
        on(inputs.forward.click, lambda state: demo.step(state, 1))
        on(view.take.click, _accept, [view.editor, shown])
        for button, name, content in (
            (files.support, "support.zip", lambda state: demo.support_zip(state.examples)),
            (files.masks, "masks.zip", lambda state: demo.masks_zip(_all_masks(predictor, state))),
        ):
            button.click(_saver(folder, name, content), session, files.file, api_visibility="private")
    return page


class Inputs(NamedTuple):
    images: Any
    masks: Any
    add: Any
    remove: Any
    queries: Any
    back: Any
    forward: Any


def _inputs() -> Inputs:
    """The first row: examples and images to segment."""
    import gradio as gr

    pictures = {"file_count": "multiple", "file_types": list(IMAGE_EXTENSIONS), "height": 130}
    with gr.Row():
        with gr.Column(scale=2):
            gr.Markdown("**1. Examples**: images and their masks, with the same file names. Or draw the first below.")
            with gr.Row():
                images = gr.File(label="Images", elem_id="images", **pictures)
                masks = gr.File(label="Masks (0 is background)", elem_id="masks", **pictures)
            with gr.Row():
                add = gr.Button("Add examples", variant="primary", elem_id="add")
                remove = gr.Button("Remove the last")
        with gr.Column(scale=1):
            gr.Markdown("**2. Images to segment**")
            queries = gr.File(label="Images", elem_id="queries", **pictures)
            with gr.Row():
                back, forward = gr.Button("Previous"), gr.Button("Next")
    return Inputs(images, masks, add, remove, queries, back, forward)


class View(NamedTuple):
    support: Any
    status: Any
    result: Any
    doubt: Any
    editor: Any
    take: Any
    effects: Any


def _view() -> View:
    """What the session looks like; the first five show it, and the editor is for drawing on."""
    import gradio as gr

    colours = [(f"rgb({r}, {g}, {b})", demo.OPACITY) for r, g, b in demo.PALETTE]
    gallery = {"fit_columns": False, "object_fit": "contain", "format": "png", "buttons": [], "interactive": False}
    picture = {"format": "png", "interactive": False, "buttons": ["fullscreen"], "height": 330}
    support = gr.Gallery(label="Examples", elem_id="support", columns=8, height=180, **gallery)
    status = gr.Markdown("No images yet.", elem_id="status")
    with gr.Row():
        with gr.Column(scale=2):
            result = gr.Image(label="Prediction", elem_id="result", **picture)
            doubt = gr.Image(label="Uncertainty (bright: not sure)", elem_id="doubt", **picture)
        with gr.Column(scale=3):
            editor = gr.ImageEditor(
                label="3. Draw or correct",
                elem_id="editor",
                format="png",
                height=675,
                canvas_size=(demo.VIEW, demo.VIEW),
                sources=(),
                transforms=(),
                layers=False,
                buttons=[],
                brush=gr.Brush(colors=colours, default_color=colours[0], color_mode="fixed", default_size=12),
                eraser=gr.Eraser(default_size=12),
            )
    take = gr.Button("4. Accept into the examples, next image", variant="primary", elem_id="accept")
    effects = gr.Gallery(
        label="What each added example changes (Δ: in pixels)", elem_id="effects", columns=6, height=220, **gallery
    )
    return View(support, status, result, doubt, editor, take, effects)


class Downloads(NamedTuple):
    support: Any
    masks: Any
    file: Any


def _downloads() -> Downloads:
    import gradio as gr

    with gr.Row():
        support = gr.Button("Save examples as a support folder", elem_id="save_support")
        masks = gr.Button("Save masks of all images", elem_id="save_masks")
        file = gr.File(label="Download", elem_id="files", interactive=False, visible=False)
    return Downloads(support, masks, file)


def _changes(predictor: Predictor, session: Any, outputs: list[Any], effects: Any) -> Callable[..., None]:
    """on(trigger, change, inputs, cleared): changes the session and shows it in `outputs`, in the order of `_shower`;
    then what each example did to the image that is shown.
    """
    import gradio as gr

    show = _shower(predictor)

    def on(trigger: Any, change: Callable[..., Session], inputs: list[Any] = (), cleared: list[Any] = ()) -> None:
        def changed(state: Session, *values: Any) -> tuple[Any, ...]:
            try:
                state = change(state, *values)
            except UserError as error:
                gr.Warning(str(error))
                return tuple([gr.skip()] * len(outputs) + [None] * len(cleared))
            return (*show(state), *[None] * len(cleared))

        event = trigger(
            changed, [session, *inputs], [*outputs, *cleared], api_visibility="private", show_progress_on=outputs[4]
        )
        event.success(
            lambda state: demo.effects(predictor, state),
            session,
            effects,
            api_visibility="private",
            trigger_mode="always_last",
        )

    return on


def _saver(folder: Path, name: str, content: Callable[[Session], bytes]) -> Callable[[Session], Any]:
    import gradio as gr

    def saved(state: Session) -> Any:
        try:
            return gr.File(_write(folder, name, content(state)), visible=True)
        except UserError as error:
            gr.Warning(str(error))
            return gr.skip()

    return saved


def _shower(predictor: Predictor) -> Callable[[Session], tuple[Any, ...]]:
    """session → the values of all that shows it."""
    import gradio as gr

    def show(session: Session) -> tuple[Any, ...]:
        gallery = [(demo.overlay(e.image, e.label), e.name) for e in session.examples]
        if session.query is None:
            return session, None, gallery, "No images yet.", None, None, None
        name, image = session.query
        try:
            prediction = demo.predict(predictor, session)
        except UserError as error:  # of examples that cannot be used; what was done to the session stays
            gr.Warning(str(error))
            prediction = None
        mask = session.masks.get(name, None if prediction is None else prediction.mask)
        result = None if prediction is None else demo.overlay(image, prediction.mask)
        doubt = None if prediction is None else demo.heat(prediction.uncertainty)
        return session, mask, gallery, _status(session, prediction), result, doubt, demo.editor_value(image, mask)

    return show


def _status(session: Session, prediction: Prediction | None) -> str:
    name, image = session.query
    place = f"Image {session.current + 1} of {len(session.queries)}, `{name}`, {image.shape[1]}x{image.shape[0]}"
    if prediction is None:
        return f"{place}: no examples yet. Upload some, or draw the structure in the editor and accept it."
    count, area = len(demo.support_for(session)), np.count_nonzero(prediction.mask)
    accepted = "; the editor shows the mask that you accepted" if name in session.masks else ""
    return f"{place}: {area} pixels marked by {count} example{'s' if count > 1 else ''}{accepted}."


def _accept(session: Session, value: dict[str, Any] | None, shown: np.ndarray | None) -> Session:
    if session.query is None or value is None:
        raise UserError("there is no image to accept; upload one")
    return demo.accept(session, demo.edited_mask(value, session.query[1], shown))


def _all_masks(predictor: Predictor, session: Session) -> dict[str, np.ndarray]:
    """Accepted masks, and predictions of the other images."""
    masks = dict(session.masks)
    for i, (name, _) in enumerate(session.queries):
        if name not in masks and (prediction := demo.predict(predictor, replace(session, current=i))):
            masks[name] = prediction.mask
    return masks


def _write(folder: Path, name: str, content: bytes) -> str:
    path = Path(tempfile.mkdtemp(dir=folder)) / name
    path.write_bytes(content)
    return str(path)
