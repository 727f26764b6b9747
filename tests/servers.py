"""A web server on this machine that behaves as badly as a test asks."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What the server answers for one path."""

    data: bytes = b""
    status: int = 200
    location: str = ""  # of a redirect
    announced: int | None = None  # Content-Length; None = the truth, -1 = none
    cuts: int = 0  # of the first so many requests only half of the bytes are sent
    pause: float = 0.0  # seconds after each quarter
    ranges: bool = True


@dataclass
class Server:
    url: str
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)  # (path, Range)


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Serves `pages` until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            server.asked.append((self.path, asked))
            page = server.pages.get(self.path, Page(status=404))
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and page.ranges else 0
            if page.location:
                self.send_response(page.status)
                self.send_header("Location", page.location)
                self.end_headers()
                return
            if start and start >= len(page.data):
                self.send_error(416)
                return
            data = page.data[start:]
            self.send_response(206 if start else page.status)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(page.data) - 1}/{len(page.data)}")
            if page.announced != -1:
                self.send_header("Content-Length", str(len(data) if page.announced is None else page.announced))
            self.end_headers()
            if page.cuts:
                page.cuts -= 1
                data = data[: len(data) // 2]
            quarter = max(len(data) // 4, 1)
            with contextlib.suppress(ConnectionError):
                for at in range(0, len(data), quarter):
                    self.wfile.write(data[at : at + quarter])
                    time.sleep(page.pause)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
