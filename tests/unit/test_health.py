"""The health server of services that are no HTTP servers otherwise: what probes, scanners and floods get, and what the log says."""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from telemetry import health as healths
from telemetry.health import MAX_THREADS, Health, make_app, serve

GET = b"GET /healthz HTTP/1.0\r\n\r\n"


@pytest.fixture
def server() -> Iterator[Any]:
    app = make_app(Health("consumer", "node1", "1"))

    def fail() -> None:
        raise RuntimeError("secret detail")

    app.route("/fail", "GET", fail)
    found = serve(app, "127.0.0.1", 0)
    yield found
    found.shutdown()
    found.server_close()


def connect(server: Any) -> socket.socket:
    connection = socket.create_connection(server.server_address, timeout=10)
    # A close is then a reset
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return connection


def ask(server: Any, request: bytes) -> bytes:
    """The whole answer; empty if the connection was closed without one."""
    with connect(server) as connection:
        connection.sendall(request)
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionError:
            return b""
        return b"".join(parts)


def body(answer: bytes) -> Any:
    return json.loads(answer.rpartition(b"\r\n\r\n")[2])


def wait_until_idle(server: Any) -> None:
    """Until every connection's thread has ended, errors told included."""
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(10)


def test_resets_and_silent_probes_leave_nothing_in_the_log(
    server: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for sent in (b"", b"G", b"GET /healthz HT", GET):
        connection = connect(server)
        connection.sendall(sent)
        connection.close()
    assert ask(server, GET).endswith(b"ok\n")
    wait_until_idle(server)
    assert (capfd.readouterr().err, caplog.messages) == ("", [])


def test_whatever_is_sent_gets_json_and_no_stack_trace(
    server: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert body(ask(server, b"NONSENSE\r\n\r\n"))["error"] == "bad_request"
    assert body(ask(server, b"GET /nothing HTTP/1.0\r\n\r\n"))["error"] == "not_found"
    assert body(ask(server, b"POST /healthz HTTP/1.0\r\n\r\n"))["error"] == "method_not_allowed"
    caplog.set_level(logging.INFO)
    answer = ask(server, b"GET /fail HTTP/1.0\r\n\r\n")
    assert b" 500 " in answer.partition(b"\r\n")[0]
    assert set(body(answer)) == {"error", "message"}
    wait_until_idle(server)
    assert capfd.readouterr().err == ""
    [line] = caplog.messages
    assert line.startswith("GET '/fail': RuntimeError at ")
    assert "secret" not in line + answer.decode()


def test_a_question_that_never_ends_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, server: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(healths._Server, "request_timeout", 0.0)
    with connect(server) as connection:
        connection.sendall(b"GET /heal")
        # Not a byte is due before the end
        assert connection.recv(100) == b""
    wait_until_idle(server)
    assert capfd.readouterr().err == ""


def test_a_flood_of_connections_takes_no_more_threads_than_its_bound(server: Any) -> None:
    before = threading.active_count()
    held = [connect(server) for _ in range(MAX_THREADS)]
    for connection in held:
        connection.sendall(b"GET /heal")
    # Connections are taken in their order: one more is closed once all these are held
    assert ask(server, GET) == b""
    assert threading.active_count() - before <= MAX_THREADS
    for connection in held:
        connection.close()
    wait_until_idle(server)
    assert ask(server, GET).endswith(b"ok\n")
