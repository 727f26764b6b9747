"""`universeg serve`: the protocol of MONAI Label's clients, such as the one in 3D Slicer, over a project.

The routes and their fields are those that the client of MONAI Label 0.8 asks for. desk.py does the work, guard.py
lets requests in, uploads.py keeps what they bring.
"""

import asyncio
import json
import logging
import re
import secrets
from collections import deque
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.background import BackgroundTask

from universeg_jax import __version__
from universeg_jax.errors import UserError
from universeg_jax.readers.file_names import extension
from universeg_jax.serving.desk import FINAL, MODEL, NO_TRAINING, Busy, Desk, Found
from universeg_jax.serving.guard import Guard, same_text
from universeg_jax.serving.uploads import LABEL_EXTENSIONS, SINGLE, NotFound, Uploads, check_name, saved

LOG_LINES = 1000
TYPES = {".png": "image/png", ".nii.gz": "application/gzip"}
Params = Annotated[str, Form(max_length=1_000_000)]
Name = Annotated[str, Query(max_length=200)]
Nothing = Annotated[dict[str, Any] | None, Body()]


class Lines(logging.Handler):
    """The last lines of the log; /logs/ shows them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def make_app(desk: Desk, folder: Path, token: str = "", max_bytes: int = 1 << 28) -> FastAPI:
    """The application for a project; sessions are kept in `folder`."""
    app = FastAPI(title="universeg serve", version=__version__, docs_url=None, redoc_url=None)
    log = logging.Logger("universeg serve", logging.INFO)
    lines = Lines()
    log.addHandler(lines)
    uploads = Uploads(folder)
    root = str(desk.session.project.path)

    @app.exception_handler(UserError)
    async def wrong(request: Request, error: UserError) -> JSONResponse:
        status = 404 if isinstance(error, NotFound) else 429 if isinstance(error, Busy) else 422
        detail = re.sub(rf"(?:{re.escape(str(folder))}/[^/\s]+|\S*/universeg_upload_[^/\s]+)/", "", str(error))
        detail = detail.replace(f"{root}/", "").replace(root, "the project")
        log.info("%s %s: %s", request.method, request.scope["route"].path, status)  # every client reads the log
        return JSONResponse({"detail": detail}, status)

    _add_information(app, desk, lines, token)
    _add_datastore(app, desk, log)
    _add_sessions(app, uploads)
    _add_inference(app, desk, uploads, log)
    app.add_middleware(Guard, token=token, max_bytes=max_bytes)
    return app


def _add_information(app: FastAPI, desk: Desk, lines: Lines, token: str) -> None:
    @app.get("/info/")
    def info() -> dict[str, Any]:
        return desk.info()

    @app.get("/auth/")
    def auth() -> dict[str, Any]:
        return {"enabled": bool(token), "client_id": "", "realm": ""}

    @app.post("/auth/token")
    def auth_token(
        username: Annotated[str, Form(max_length=200)] = "", password: Annotated[str, Form(max_length=1000)] = ""
    ) -> dict[str, str]:
        if not token:
            return {"access_token": "", "token_type": "bearer"}
        if not same_text(password, token):
            raise HTTPException(401, "the password is not the server's token")
        return {"access_token": token, "token_type": "bearer"}

    @app.get("/auth/token/valid")
    def auth_valid() -> dict[str, bool]:
        return {"valid": True}  # the guard refuses the others

    @app.get("/logs/")
    def logs(count: Annotated[int, Query(alias="lines", ge=0, le=LOG_LINES)] = 300) -> Response:
        return Response("\n".join(list(lines.lines)[-count:] if count else []), media_type="text/plain")

    @app.get("/train/")
    def train_status(check_if_running: bool = False) -> dict[str, Any]:
        raise HTTPException(404, NO_TRAINING)

    @app.post("/train/")
    @app.post("/train/{model}")
    def train(model: str = MODEL, params: Nothing = None) -> dict[str, Any]:
        return {"model": model, "status": "DONE", "details": [NO_TRAINING], "result": {}}

    @app.delete("/train/")
    def train_stop() -> dict[str, Any]:
        return {"status": "DONE", "details": [NO_TRAINING], "result": {}}


def _add_datastore(app: FastAPI, desk: Desk, log: logging.Logger) -> None:
    @app.get("/datastore/")
    def datastore(output: Literal["all", "stats", "train"] = "stats") -> Any:
        if output == "all":
            objects = desk.objects()
            return {"name": desk.info()["name"], "description": "", "objects": objects}
        if output == "train":
            objects = desk.objects()
            return [{"image": name} for name, each in objects.items() if FINAL in each["labels"]]
        return desk.stats()

    @app.put("/datastore/")
    @app.put("/datastore/image")
    def add_image(file: Annotated[UploadFile, File()], image: Name = "", params: Params = "{}") -> dict[str, str]:
        name = check_name(image or (file.filename or "").removesuffix(extension(file.filename or "")))
        with saved(file.file, file.filename or "", SINGLE) as path:
            desk.session.add_image(name, path)
        log.info("image %s added", name)
        return {"image": name}

    @app.get("/datastore/image")
    def image(image: Name) -> FileResponse:
        folder = TemporaryDirectory(prefix="universeg_image_")
        try:
            file, name = desk.image(image, Path(folder.name))
        except BaseException:
            folder.cleanup()
            raise
        return FileResponse(file, media_type=_type(name), filename=name, background=BackgroundTask(folder.cleanup))

    @app.put("/datastore/label")
    def save_label(
        label: Annotated[UploadFile, File()],
        image: Name,
        tag: Annotated[str, Query(max_length=50)] = FINAL,
        params: Params = "{}",
    ) -> dict[str, Any]:
        if tag not in ("", FINAL):
            raise UserError(f"labels are accepted with the tag {FINAL!r}, not {tag!r}")
        desk.item(image)
        with saved(label.file, label.filename or "", LABEL_EXTENSIONS) as path:
            desk.accept(image, path, _parsed(params).get("label_info"))
        log.info("label of %s accepted", image)
        return {"image": image, "label": image}

    @app.get("/datastore/label")
    def label(label: Name, tag: Annotated[str, Query(max_length=50)] = FINAL) -> Response:
        file = desk.label(label, tag)
        headers = {"content-disposition": f'attachment; filename="{_ascii(label)}{extension(file)}"'}
        return Response(file.read_bytes(), media_type=_type(file.name), headers=headers)

    @app.post("/activelearning/{strategy}")
    async def next_sample(strategy: str, params: Nothing = None) -> dict[str, Any]:
        client = str((params or {}).get("client_id", ""))[:200]
        sample = await asyncio.wrap_future(desk.queue(desk.next, strategy, client))
        log.info("next by %s: %s", strategy, sample.get("id", "nothing is left"))
        return sample


def _add_sessions(app: FastAPI, uploads: Uploads) -> None:
    @app.put("/session/")
    def create_session(
        files: Annotated[list[UploadFile], File()],
        uncompress: bool = False,
        expiry: Annotated[int, Query(ge=0, le=1 << 31)] = 0,
    ) -> dict[str, Any]:
        if uncompress:
            raise UserError("archives are not unpacked: upload an image, a volume or the files of a DICOM series")
        identity, upload = uploads.add([(file.filename or "", file.file) for file in files], expiry)
        return {"session_id": identity, "session_info": upload.info()}

    @app.get("/session/{session_id}")
    def get_session(session_id: str, update_ts: bool = False) -> dict[str, Any]:
        return uploads.get(session_id, use=update_ts).info()

    @app.delete("/session/{session_id}")
    def remove_session(session_id: str) -> dict[str, Any]:
        return uploads.remove(session_id).info()


def _add_inference(app: FastAPI, desk: Desk, uploads: Uploads, log: logging.Logger) -> None:
    @app.post("/infer/{model}")
    async def infer(
        model: str,
        image: Name = "",
        session_id: Name = "",
        params: Params = "{}",
        file: Annotated[UploadFile | None, File()] = None,
        label: Annotated[UploadFile | None, File()] = None,
        output: Literal["all", "image", "json"] = "all",
    ) -> Response:
        if model != MODEL:
            raise NotFound(f"no model {model[:50]!r}; there is {MODEL!r}")
        _parsed(params)
        if session_id:
            found = await asyncio.wrap_future(desk.queue(desk.predict_file, uploads.get(session_id).path))
        elif file is not None:
            with saved(file.file, file.filename or "", SINGLE) as path:
                found = await asyncio.wrap_future(desk.queue(desk.predict_file, path))
        elif image:
            found = await asyncio.wrap_future(desk.queue(desk.predict, image))
        else:
            raise UserError("give an image, a file or a session_id")
        log.info("%s predicted", image or "an upload")
        return _reply(found, desk.result(found.ids), output)


def _reply(found: Found, result: dict[str, Any], output: str) -> Response:
    """Parameters, a mask, or both as two parts of a form, as clients read them."""
    if output == "json":
        return JSONResponse(result)
    name = _ascii(found.name)
    if output == "image":
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(found.content, media_type=_type(name), headers=headers)
    limit = secrets.token_hex(16)
    parts = (
        ('name="params"', "application/json", json.dumps(result).encode()),
        (f'name="image"; filename="{name}"', _type(name), found.content),
    )
    body = b"".join(
        f"--{limit}\r\nContent-Disposition: form-data; {head}\r\nContent-Type: {kind}\r\n\r\n".encode()
        + content
        + b"\r\n"
        for head, kind, content in parts
    )
    return Response(body + f"--{limit}--\r\n".encode(), media_type=f"multipart/form-data; boundary={limit}")


def _parsed(params: str) -> dict[str, Any]:
    try:
        values = json.loads(params or "{}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"params is not JSON: {error}") from error
    if not isinstance(values, dict | None):
        raise UserError("params must be an object")
    return values or {}


def _type(name: str) -> str:
    return TYPES.get(extension(name), "application/octet-stream")


def _ascii(name: str) -> str:
    """A name for a header: other characters than ASCII letters, digits, _ - and . become _."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-.") else "_" for c in name)
