"""What a request must pass before anything reads it: host, origin, token and size."""

import contextlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN_PATHS = ("/auth/", "/auth", "/auth/token")  # how a client finds out that it needs a token, and gets one


class TooLarge(Exception):
    """A body without a declared size that exceeds the limit."""


class Guard:
    """ASGI middleware.

    Without a token only this machine is served: requests must name it as their host, so that no page of another site
    reaches it under a name of its own. Requests that a browser sends from pages of another origin are refused.
    """

    def __init__(self, app: App, token: str = "", max_bytes: int = 1 << 28):
        self.app, self.token, self.max_bytes = app, token, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        status, problem = self.refusal(scope["path"], headers)
        if status:
            await _answer(send, status, problem)
            return
        left = self.max_bytes

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise TooLarge
            return message

        async def unless_too_large(message: Message) -> None:
            if left >= 0:  # else it is what the application made of TooLarge
                await send(message)

        with contextlib.suppress(TooLarge):
            await self.app(scope, limited, unless_too_large)
        if left < 0:
            await _answer(send, 413, f"at most {self.max_bytes:,} bytes are read")

    def refusal(self, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """(status, reason), or (0, "") for a request that may pass."""
        host = _host(headers.get("host", ""))
        if not self.token and host not in LOOPBACK:
            return 403, "this server is for this machine: ask for 127.0.0.1"
        origin = headers.get("origin", "")
        if origin and _host(origin.partition("://")[2]) != host:
            return 403, "requests from pages of another origin are refused"
        if self.token and path not in OPEN_PATHS:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not same_text(given.strip(), self.token):
                return 401, "a token is needed: Authorization: Bearer TOKEN"
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return 400, "content-length is no number"
        if int(length) > self.max_bytes:
            return 413, f"at most {self.max_bytes:,} bytes are read"
        return 0, ""


def same_text(given: str, right: str) -> bool:
    """Compares in a time that does not tell how much agrees."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode())


def _host(value: str) -> str:
    """The host of "host:port" or "[::1]:port"."""
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0].lower()


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
