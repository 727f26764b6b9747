"""The page of `universeg demo` in Gradio: its components and events; tab.py computes what they show.

The page is served only to this machine, reads only files that a browser uploads, and keeps them in a temporary folder
until it stops.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from universeg_jax.annotation import tab as sessions
from universeg_jax.annotation.tab import Session
from universeg_jax.errors import UserError
from universeg_jax.prediction.predictor import Predictor
from universeg_jax.prediction.result import Prediction
from universeg_jax.readers.file_names import IMAGE_EXTENSIONS
from universeg_jax.reports.overlay import COLOURS

HOST = "127.0.0.1"
MAX_FILE_SIZE = 100_000_000  # bytes of one upload
DELETE_EVERY, DELETE_AFTER = 600, 3600  # seconds; files of images on the page
IDLE = 7200  # seconds after which a closed tab's session is forgotten


def serve(predictor: Predictor, port: int) -> None:
    """Serves the page until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # removes the folder then, too
    with tempfile.TemporaryDirectory(prefix="universeg_demo_") as folder:
        page = launch(predictor, Path(folder), port)
        print(f"http://{HOST}:{page.server_port}  (Ctrl-C stops it)", flush=True)
        try:
            page.block_thread()
        finally:
            page.close()


def launch(predictor: Predictor, folder: Path, port: int = 0) -> Any:
    """Serves the page in the background on a port (0: a free one from 7860), with all its files in `folder`.

    Raises UserError if Gradio is not installed or the port is taken.
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
            # System fonts: the default theme loads fonts from another host.
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )
    except OSError as error:
        where = f"port {port} of {HOST} is taken" if port else f"no port of {HOST} from 7860 is free"
        raise UserError(f"{where}; choose another with --port") from error
    return page


def build_page(predictor: Predictor, folder: Path) -> Any:
    import gradio as gr

    with gr.Blocks(title="UniverSeg", analytics_enabled=False, delete_cache=(DELETE_EVERY, DELETE_AFTER)) as page:
        session = gr.State(Session(), time_to_live=IDLE)
        shown = gr.State(None, time_to_live=IDLE)  # the mask in the editor before any edit
        gr.Markdown("## UniverSeg: segment by example")
        inputs = _inputs()
        view = _view()
        files = _downloads()
        on = _changes(predictor, session, [session, shown, *view[:5]], view.effects)

        def upload(paths: list[str] | None, is_label: bool = False) -> dict[str, np.ndarray]:
            return sessions.read_uploads(paths or [], folder, is_label)

        on(
            inputs.add.click,
            lambda state, images, masks: sessions.add_examples(state, upload(images), upload(masks, is_label=True)),
            [inputs.images, inputs.masks],
            [inputs.images, inputs.masks],
        )
        on(inputs.remove.click, lambda state: replace(state, examples=state.examples[:-1]))
        on(
            inputs.queries.upload,
            lambda state, paths: sessions.add_queries(state, upload(paths)),
            [inputs.queries],
            [inputs.queries],
        )
        on(inputs.back.click, lambda state: sessions.move(state, -1))
        on(inputs.forward.click, lambda state: sessions.move(state, 1))
        on(view.accept.click, _accept, [view.editor, shown])
        for button, name, content in (
            (files.support, "support.zip", lambda state: sessions.support_zip(state.examples)),
            (files.masks, "masks.zip", lambda state: sessions.masks_zip(_all_masks(predictor, state))),
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
    """Adds the first row: examples and images to segment."""
    import gradio as gr

    upload = {"file_count": "multiple", "file_types": list(IMAGE_EXTENSIONS), "height": 130}
    with gr.Row():
        with gr.Column(scale=2):
            gr.Markdown("**1. Examples**: images and their masks, with the same file names. Or draw the first below.")
            with gr.Row():
                images = gr.File(label="Images", elem_id="images", **upload)
                masks = gr.File(label="Masks (0 is background)", elem_id="masks", **upload)
            with gr.Row():
                add = gr.Button("Add examples", variant="primary", elem_id="add")
                remove = gr.Button("Remove the last")
        with gr.Column(scale=1):
            gr.Markdown("**2. Images to segment**")
            queries = gr.File(label="Images", elem_id="queries", **upload)
            with gr.Row():
                back, forward = gr.Button("Previous"), gr.Button("Next")
    return Inputs(images, masks, add, remove, queries, back, forward)


class Views(NamedTuple):
    support: Any
    status: Any
    result: Any
    uncertainty: Any
    editor: Any
    accept: Any
    effects: Any


def _view() -> Views:
    """Adds the views of the session; `_session_values` gives the values of the first five."""
    import gradio as gr

    colours = [(f"rgb({r}, {g}, {b})", sessions.OPACITY) for r, g, b in COLOURS]
    gallery = {"fit_columns": False, "object_fit": "contain", "format": "png", "buttons": [], "interactive": False}
    image = {"format": "png", "interactive": False, "buttons": ["fullscreen"], "height": 330}
    support = gr.Gallery(label="Examples", elem_id="support", columns=8, height=180, **gallery)
    status = gr.Markdown("No images yet.", elem_id="status")
    with gr.Row():
        with gr.Column(scale=2):
            result = gr.Image(label="Prediction", elem_id="result", **image)
            uncertainty = gr.Image(label="Uncertainty (bright: not sure)", elem_id="uncertainty", **image)
        with gr.Column(scale=3):
            editor = gr.ImageEditor(
                label="3. Draw or correct",
                elem_id="editor",
                format="png",
                height=675,
                canvas_size=(sessions.VIEW, sessions.VIEW),
                sources=(),
                transforms=(),
                layers=False,
                buttons=[],
                brush=gr.Brush(colors=colours, default_color=colours[0], color_mode="fixed", default_size=12),
                eraser=gr.Eraser(default_size=12),
            )
    accept = gr.Button("4. Accept into the examples, next image", variant="primary", elem_id="accept")
    effects = gr.Gallery(
        label="What each added example changes (Δ: in pixels)", elem_id="effects", columns=6, height=220, **gallery
    )
    return Views(support, status, result, uncertainty, editor, accept, effects)


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
    """Returns on(trigger, change, inputs, cleared), which connects an event to a change of the session.

    After the change it updates `outputs`, in the order of `_session_values`, and then the effects of the examples.
    """
    import gradio as gr

    values = _session_values(predictor)

    def on(
        trigger: Any, change: Callable[..., Session], inputs: Sequence[Any] = (), cleared: Sequence[Any] = ()
    ) -> None:
        def changed(state: Session, *arguments: Any) -> tuple[Any, ...]:
            try:
                state = change(state, *arguments)
            except UserError as error:
                gr.Warning(str(error))
                return tuple([gr.skip()] * len(outputs) + [None] * len(cleared))
            return (*values(state), *[None] * len(cleared))

        event = trigger(
            changed, [session, *inputs], [*outputs, *cleared], api_visibility="private", show_progress_on=outputs[4]
        )
        event.success(
            lambda state: sessions.example_effects(predictor, state),
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


def _session_values(predictor: Predictor) -> Callable[[Session], tuple[Any, ...]]:
    """Returns session → the values of the session state, the editor's mask and the first five views."""
    import gradio as gr

    def values(session: Session) -> tuple[Any, ...]:
        gallery = [(sessions.overlay(e.image, e.label), e.name) for e in session.examples]
        if session.query is None:
            return session, None, gallery, "No images yet.", None, None, None
        name, image = session.query
        try:
            prediction = sessions.predict(predictor, session)
        except UserError as error:  # unusable examples; the change of the session stays
            gr.Warning(str(error))
            prediction = None
        mask = session.masks.get(name, None if prediction is None else prediction.mask)
        result = None if prediction is None else sessions.overlay(image, prediction.mask)
        uncertainty = None if prediction is None else sessions.heat_map(prediction.uncertainty)
        return (
            session,
            mask,
            gallery,
            _status(session, prediction),
            result,
            uncertainty,
            sessions.editor_value(image, mask),
        )

    return values


def _status(session: Session, prediction: Prediction | None) -> str:
    assert session.query is not None
    name, image = session.query
    place = f"Image {session.current + 1} of {len(session.queries)}, `{name}`, {image.shape[1]}x{image.shape[0]}"
    if prediction is None:
        return f"{place}: no examples yet. Upload some, or draw the structure in the editor and accept it."
    count, area = len(sessions.support_for(session)), np.count_nonzero(prediction.mask)
    accepted = "; the editor shows the mask that you accepted" if name in session.masks else ""
    return f"{place}: {area} pixels marked by {count} example{'s' if count > 1 else ''}{accepted}."


def _accept(session: Session, value: dict[str, Any] | None, shown: np.ndarray | None) -> Session:
    if session.query is None or value is None:
        raise UserError("there is no image to accept: upload one")
    return sessions.accept(session, sessions.edited_mask(value, session.query[1], shown))


def _all_masks(predictor: Predictor, session: Session) -> dict[str, np.ndarray]:
    """Accepted masks, and predictions for the other queries."""
    masks = dict(session.masks)
    for i, (name, _) in enumerate(session.queries):
        if name not in masks and (prediction := sessions.predict(predictor, replace(session, current=i))):
            masks[name] = prediction.mask
    return masks


def _write(folder: Path, name: str, content: bytes) -> str:
    path = Path(tempfile.mkdtemp(dir=folder)) / name
    path.write_bytes(content)
    return str(path)
