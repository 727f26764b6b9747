"""Serve a project to 3D Slicer by MONAI Label's protocol.

Submitted labels are accepted into the project and help with the next prediction. Stop with Ctrl-C.
"""

import argparse
from pathlib import Path

from universeg_jax.errors import UserError

EXAMPLE = "universeg serve my_project --port 8000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("project", type=Path, metavar="PROJECT", help="folder of a project of `universeg annotate`")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; another than this machine needs a token"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--token", metavar="FILE", type=Path, help="file with the token that clients must send")
    parser.add_argument("--max_upload", type=int, default=256, metavar="MB", help="size of one request")


def run(args: argparse.Namespace) -> int:
    token = read_token(args.token, args.host)
    from tempfile import TemporaryDirectory

    from universeg_jax.annotation.assistant import Assistant
    from universeg_jax.annotation.session import Session
    from universeg_jax.prediction.predictor import Predictor

    try:
        import uvicorn

        from universeg_jax.serving.app import make_app
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install 'universeg_jax[serve]'") from error
    from universeg_jax.serving.desk import Desk

    with Session(args.project) as session, TemporaryDirectory(prefix="universeg_serve_") as folder:
        session.check_sound()
        desk = Desk(session, Assistant(session, Predictor.from_checkpoint(session.project.checkpoint)))
        try:
            app = make_app(desk, Path(folder), token, args.max_upload * 1_000_000)
            print(f"http://{args.host}:{args.port} serves {args.project}; Ctrl-C stops it", flush=True)
            uvicorn.run(app, host=args.host, port=args.port, log_level="warning", server_header=False)
        finally:
            desk.close()
    return 0


def read_token(file: Path | None, host: str) -> str:
    """The token of a file, "" for none. Raises UserError where one is needed or it is short."""
    from universeg_jax.serving.guard import LOOPBACK

    if file is None:
        if host not in LOOPBACK:
            raise UserError(
                f"--host {host} opens the project to other machines: give --token FILE, or tunnel through SSH"
            )
        return ""
    token = file.read_text(encoding="utf-8").strip()
    if len(token) < 16 or not token.isascii():
        raise UserError(f"{file}: a token has at least 16 ASCII characters; `openssl rand -hex 16` makes one")
    return token
