"""Runs a Bottle app inside granian's event loop.

A WSGI app answers when its function returns, and a server of threads blocks one for every answer that waits. Here the app is called
in the event loop, where it must not block; an answer that has to wait leaves a future in the environ (PROMISE), and is sent
when that future is done. One process so holds thousands of waiting answers without a thread for each.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from telemetry.record import MAX_BODY, Refused

log = logging.getLogger(__name__)

PROMISE = "telemetry.promise"
"""Key of the environ: an asyncio future that becomes None (send the answer) or a Refused (send that)."""
ANSWER_TIMEOUT = 9.0
"""Seconds that a promise may take; then the answer is 503, for the outcome is unknown."""

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

TIMEOUT = Refused(503, "timeout", "Kafka did not confirm the upload in time; it may or may not be stored. Send it again.")
TOO_LARGE = Refused(413, "too_large", f"An upload has at most {MAX_BODY} bytes. Send fewer records in one.")
INTERNAL = Refused(500, "internal", "An error that is ours; the log of this service names it.")


def _encoded(refused: Refused) -> tuple[int, Headers, bytes]:
    headers = [(b"content-type", b"application/json")]
    if refused.status == 503:
        headers.append((b"retry-after", b"1"))
    return refused.status, headers, json.dumps(refused.body()).encode() + b"\n"


class Adapter:
    """An ASGI application around a WSGI one that does not block."""

    def __init__(self, app: Callable[..., Iterable[bytes]], timeout: float = ANSWER_TIMEOUT) -> None:
        self._app, self._timeout = app, timeout

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        body = await self._read(receive)
        status, headers, payload = _encoded(TOO_LARGE) if body is None else await self._answer(scope, body)
        headers.append((b"content-length", str(len(payload)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else payload})

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None as soon as it is too large."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b""
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > MAX_BODY:
                return None
            if not message.get("more_body"):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _answer(self, scope: dict[str, Any], body: bytes) -> tuple[int, Headers, bytes]:
        environ = make_environ(scope, body)
        started: list[tuple[int, Headers]] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            named = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
            started[:] = [(int(status[:3]), [pair for pair in named if pair[0] != b"content-length"])]
            return lambda data: None

        payload = b"".join(self._app(environ, start_response))
        if not started:
            return _encoded(INTERNAL)
        promise = environ.get(PROMISE)
        if promise is not None:
            try:
                refused = await asyncio.wait_for(promise, self._timeout)
            except TimeoutError:
                refused = TIMEOUT
            if refused is not None:
                return _encoded(refused)
        return *started[0], payload


def make_environ(scope: dict[str, Any], body: bytes) -> dict[str, Any]:
    """The WSGI environ of an ASGI request whose body has been read."""
    server = scope.get("server") or ("", 0)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        # WSGI carries bytes as Latin-1 text
        "PATH_INFO": unquote_to_bytes(scope["path"]).decode("latin-1"),
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_NAME": str(server[0]),
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{scope.get('http_version', '1.1')}",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in scope["headers"]:
        key = name.decode("latin-1").upper().replace("-", "_")
        if key == "CONTENT_TYPE":
            environ[key] = value.decode("latin-1")
        elif key != "CONTENT_LENGTH":
            environ[f"HTTP_{key}"] = value.decode("latin-1")
    return environ


def make_server(application: Adapter, host: str, port: int) -> Server:
    """granian in this process and event loop; `await server.serve()`, and `server.stop()` ends it."""
    return Server(
        application,
        address=host,
        port=port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(keep_alive=True, max_buffer_size=512 * 1024),
        websockets=False,
        # Waiting answers cost nothing here; how many may wait is the publisher's bound.
        backpressure=20_000,
        backlog=1024,
        log_enabled=False,
    )
