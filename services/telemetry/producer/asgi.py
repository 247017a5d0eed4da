"""Runs a Bottle app inside granian's event loop.

A WSGI app answers when its function returns, and a server of threads blocks one for every answer that waits. Here the app is called
in the event loop, where it must not block; an answer that has to wait leaves a future in the environ (PROMISE), and is sent
when that future is done. One process so holds thousands of waiting answers without a thread for each.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from telemetry.record import MAX_BODY, TOO_LARGE, Refused

PROMISE = "telemetry.promise"
"""Key of the environ: an asyncio future that becomes, in bounded time, None (send the answer) or a Refused (send that)."""
BODY_TIMEOUT = 10.0
"""Seconds within which a whole body must have come; nginx sends it at once."""
MAX_READING = 8 * 2**20
"""Bytes of bodies that are on their way in. Beyond them the answer is 503: what is not read yet takes memory too."""
CONNECTION_BUFFER = 16 * 1024
"""Bytes that a connection's buffer may grow to; what is not read yet waits with its sender."""
BESIDE_UPLOADS = 256
"""Requests that are served beside uploads that wait for Kafka."""

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Answer = tuple[int, Headers, bytes]


def _encoded(refused: Refused) -> Answer:
    headers = [(name.lower().encode(), value.encode()) for name, value in refused.headers.items()]
    return refused.status, headers, refused.encoded()


class Adapter:
    """An ASGI application around a WSGI one that does not block."""

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        note_refused: Callable[[], object] = lambda: None,
        body_timeout: float = BODY_TIMEOUT,
        max_reading: int = MAX_READING,
    ) -> None:
        """`note_refused` is called for an upload that is refused unread; `body_timeout`: seconds for a whole body; `max_reading`:
        bytes of bodies that may be on their way in.
        """
        self._app, self._note_refused, self._body_timeout, self._max_reading = app, note_refused, body_timeout, max_reading
        self._reading = 0

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            body = await self._read(receive)
        except Refused as refused:
            answer, promise = _encoded(refused), None
        else:
            answer, promise = self._call(scope, body)
            # The publisher has what it needs of them; an answer may wait for seconds, and thousands do
            del body
        head = scope["method"] == "HEAD"
        scope = {}
        if promise is not None:
            refused_later = await promise
            if refused_later is not None:
                answer = _encoded(refused_later)
        status, headers, payload = answer
        headers.append((b"content-length", str(len(payload)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if head else payload})

    async def _read(self, receive: Receive) -> bytes:
        """The body. Raises Refused as soon as it is too large, too slow, or one of too many."""
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            try:
                async with asyncio.timeout(self._body_timeout):
                    body = await self._read_rest(body, receive)
            except TimeoutError:
                text = f"The body did not arrive within {self._body_timeout:g} s. Send it again."
                raise Refused(408, "too_slow", text) from None
        if len(body) > MAX_BODY:
            raise Refused(*TOO_LARGE)
        return body

    async def _read_rest(self, body: bytes, receive: Receive) -> bytes:
        chunks, size = [body], len(body)
        self._reading += size
        try:
            while size <= MAX_BODY:
                if self._reading > self._max_reading:
                    self._note_refused()
                    raise Refused(503, "unavailable", "Too many uploads are being received. Send it again.")
                message = await receive()
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                self._reading += len(chunks[-1])
                if not message.get("more_body"):
                    break
            return b"".join(chunks)
        finally:
            self._reading -= size

    def _call(self, scope: dict[str, Any], body: bytes) -> tuple[Answer, asyncio.Future[Refused | None] | None]:
        """The app's answer, and what it waits for."""
        environ = make_environ(scope, body)
        started: list[tuple[int, Headers]] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            named = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
            started[:] = [(int(status[:3]), [pair for pair in named if pair[0] != b"content-length"])]
            return lambda data: None

        payload = b"".join(self._app(environ, start_response))
        return (*started[0], payload), environ.get(PROMISE)


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


def make_server(application: Adapter, host: str, port: int, waiting: int) -> Server:
    """granian in this process and event loop; `await server.serve()`, and `server.stop()` ends it.

    `waiting`: answers that may wait for Kafka at once.
    """
    return Server(
        application,
        address=host,
        port=port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(keep_alive=True, max_buffer_size=CONNECTION_BUFFER),
        websockets=False,
        # Room for those that ask whether it is well, and are told that it is full
        backpressure=waiting + BESIDE_UPLOADS,
        backlog=1024,
        log_enabled=False,
    )
