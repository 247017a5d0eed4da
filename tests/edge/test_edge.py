"""What nginx answers by itself, and what it bears: every input a client may send, by raw sockets."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager, suppress
from typing import Any, NamedTuple

import pytest
import yaml
from edge.running import ADDRESSES, PRODUCER_PORT, ROOT, TMP, Nginx, Producers
from telemetry.record import MAX_BODY

NGINX, SMALL = ("127.0.31.11", 18080), ("127.0.31.12", 18080)
ANSWER_TIME = 30.0
"""Seconds within which each answer has to come; longer than two tries of nginx."""


class Answer(NamedTuple):
    """What came back; status 0 where nothing did."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The stable word of an error of ours."""
        return str(json.loads(self.body)["error"])


def parsed(raw: bytes) -> Answer:
    """One answer out of its bytes; what HTTP/0.9 brings has no head."""
    if not raw.startswith(b"HTTP/"):
        return Answer(0, {}, raw)
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
    return Answer(int(lines[0].split()[1]), headers, body)


def connect(server: tuple[str, int] = NGINX, client: str = "127.0.31.1") -> socket.socket:
    """A connection from a client's address."""
    return socket.create_connection(server, timeout=ANSWER_TIME, source_address=(client, 0))


def take(connection: socket.socket) -> Answer:
    """The answer, when it is whole or the connection closed."""
    raw, whole = bytearray(), None
    while whole is None or len(raw) < whole:
        try:
            chunk = connection.recv(65536)
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            break
        raw += chunk
        if whole is None and b"\r\n\r\n" in raw:
            size = parsed(bytes(raw)).headers.get("content-length")
            whole = raw.index(b"\r\n\r\n") + 4 + int(size) if size is not None else None
    return parsed(bytes(raw))


def ask(data: bytes, server: tuple[str, int] = NGINX, client: str = "127.0.31.1") -> Answer:
    """The answer to some bytes."""
    with closing(connect(server, client)) as connection:
        connection.sendall(data)
        return take(connection)


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    """A request of HTTP/1.1, or what begins like one."""
    return "\r\n".join([f"{line} HTTP/1.1", "Host: x", *headers, "", ""]).encode("latin-1") + body


def upload(size: int, *headers: str, sent: int | None = None) -> bytes:
    """An upload of a size, of which less may be sent."""
    return request("POST /events", f"Content-Length: {size}", *headers, body=b"x" * (size if sent is None else sent))


def chunked(*chunks: bytes) -> bytes:
    """An upload in chunks, as they are given."""
    return request("POST /events", "Transfer-Encoding: chunked", body=b"".join(chunks))


BAD: dict[str, tuple[bytes, int, str]] = {
    # What is not HTTP at all
    "garbage": (b"garbage\r\n\r\n", 400, "bad_request"),
    "all bytes": (bytes(range(256)) + b"\r\n\r\n", 400, "bad_request"),
    "TLS": (bytes.fromhex("16030100c8010000c40303") + b"\0" * 200, 400, "bad_request"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 400, "bad_request"),
    "PROXY protocol 1": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + request("GET /"), 400, "bad_request"),
    "PROXY protocol 2": (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + b"\1" * 12 + request("GET /"), 400, "bad_request"),
    "other protocol": (b"GET / FTP/1.0\r\nHost: x\r\n\r\n", 400, "bad_request"),
    # Request lines
    "percent": (request("GET /%"), 400, "bad_request"),
    "bad percent": (request("GET /%zz"), 400, "bad_request"),
    "percent NUL": (request("GET /%00"), 400, "bad_request"),
    "percent in an absolute URI": (request("GET http://x/%"), 400, "bad_request"),
    "no path": (request("GET http://"), 400, "bad_request"),
    "space in a path": (request("GET /a b"), 400, "bad_request"),
    "above the root": (request("GET /../x"), 400, "bad_request"),
    "method in small letters": (request("get /"), 400, "bad_request"),
    "OPTIONS *": (request("OPTIONS *"), 400, "bad_request"),
    "CONNECT a host": (request("CONNECT x:1"), 400, "bad_request"),
    "long URI": (request(f"GET /events?{'q' * 9000}"), 414, "uri_too_long"),
    "long method": (request(f"{'A' * 9000} /"), 414, "uri_too_long"),
    "HTTP/0.8": (b"GET / HTTP/0.8\r\nHost: x\r\n\r\n", 400, "bad_request"),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505, "http_version"),
    "HTTP/11.1": (b"GET / HTTP/11.1\r\nHost: x\r\n\r\n", 505, "http_version"),
    # Methods and places
    "OPTIONS": (request("OPTIONS /"), 405, "method_not_allowed"),
    "POST to the page": (request("POST /", "Content-Length: 3", body=b"a=1"), 405, "method_not_allowed"),
    "PUT": (request("PUT /", "Content-Length: 3", body=b"a=1"), 405, "method_not_allowed"),
    "TRACE": (request("TRACE /events"), 405, "method_not_allowed"),
    "unknown method": (request("BREW /"), 405, "method_not_allowed"),
    "elsewhere": (request("GET /nothing"), 404, "not_found"),
    "a page of errors": (request("GET /answer/400"), 404, "not_found"),
    "range": (request("GET /", "Range: bytes=999999-"), 416, "range_not_satisfiable"),
    "condition": (request("GET /", 'If-Match: "x"'), 412, "precondition_failed"),
    # Headers
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
    "two Hosts": (request("GET /", "Host: y"), 400, "bad_request"),
    "Host with a space": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "bad_request"),
    "NUL": (request("GET /", "A: \0"), 400, "bad_request"),
    "name with a space": (request("GET /", "A b: c"), 400, "bad_request"),
    "folded": (request("GET /", "A: b", " c"), 400, "bad_request"),
    "cookie of 9,000 bytes": (request("POST /events", f"Cookie: {'a' * 9000}"), 431, "headers_too_large"),
    "40 headers of 1,000 bytes": (request("GET /", *(f"X-{n}: {'a' * 1000}" for n in range(40))), 431, "headers_too_large"),
    "5,000 headers": (request("GET /", *(f"X-{n}: a" for n in range(5000))), 431, "headers_too_large"),
    # Bodies
    "negative length": (request("POST /events", "Content-Length: -1"), 400, "bad_request"),
    "length of letters": (request("POST /events", "Content-Length: abc"), 400, "bad_request"),
    "endless length": (request("POST /events", f"Content-Length: {10**23}"), 400, "bad_request"),
    "two lengths": (request("POST /events", "Content-Length: 1", "Content-Length: 2", body=b"ab"), 400, "bad_request"),
    "length and chunks": (
        request("POST /events", "Content-Length: 1", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        400,
        "bad_request",
    ),
    "chunks twice": (
        request("POST /events", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        400,
        "bad_request",
    ),
    "chunks in HTTP/1.0": (b"POST /events HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "bad_request"),
    "broken chunk": (chunked(b"zz\r\n"), 400, "bad_request"),
    "endless chunk": (chunked(b"f" * 20, b"\r\n"), 400, "bad_request"),
    "unknown coding": (request("POST /events", "Transfer-Encoding: gzip"), 501, "not_implemented"),
    "a byte too many": (upload(MAX_BODY + 1, sent=0), 413, "too_large"),
    "too many chunks": (chunked(*[b"4000\r\n", b"x" * 0x4000, b"\r\n"] * 17, b"0\r\n\r\n"), 413, "too_large"),
    # Producers
    "closed": (upload(10, "X-Do: close"), 502, "no_producer"),
    "broken answer": (upload(10, "X-Do: garbage"), 502, "no_producer"),
}


@pytest.mark.parametrize("name", BAD)
def test_every_answer_of_nginx_is_json_with_the_right_status(nginx: Nginx, name: str) -> None:
    data, status, error = BAD[name]
    answer = ask(data)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    document = json.loads(answer.body)
    assert list(document) == ["error", "message"]
    assert document["error"] == error
    assert document["message"].endswith(".")


def test_what_is_right_is_taken(nginx: Nginx) -> None:
    """Beside what is refused: the largest body, chunks, the older versions of HTTP."""
    assert ask(upload(MAX_BODY)).status == 200
    assert ask(chunked(b"3\r\nabc\r\n", b"0\r\n\r\n")).status == 200
    assert ask(b"POST /events HTTP/1.0\r\nContent-Length: 1\r\n\r\nx").status == 200
    assert ask(b"POST http://x/events HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx").status == 200
    assert ask(request("GET /healthz")).body == b"ok\n"
    page = ask(request("GET /"))
    assert (page.status, page.headers["content-type"]) == (200, "text/html")
    # HTTP/0.9 has no status
    assert json.loads(ask(b"GET /%\r\n").body)["error"] == "bad_request"


def test_head_has_the_status_and_no_body(nginx: Nginx) -> None:
    with closing(connect()) as connection:
        connection.sendall(request("HEAD /nothing", "Connection: close"))
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
    assert parsed(raw).status == 404
    assert parsed(raw).body == b""


def test_a_client_that_closes_its_side_gets_its_answer(nginx: Nginx) -> None:
    """Also when the producer takes a while, and when the body came late."""
    with closing(connect()) as connection:
        connection.sendall(upload(10, "X-Do: wait 0.5"))
        connection.shutdown(socket.SHUT_WR)
        assert take(connection).status == 200
    with closing(connect()) as connection:
        connection.sendall(upload(20_000, "X-Do: wait 0.5", sent=10_000))
        assert select.select([connection], [], [], 0.2)[0] == []
        connection.sendall(b"x" * 10_000)
        connection.shutdown(socket.SHUT_WR)
        assert take(connection).status == 200


def test_an_answer_that_a_client_does_not_take_waits_in_the_producer(nginx: Nginx, producers: Producers) -> None:
    """nginx keeps no copy of it in /tmp, and hands on all of it as it is taken."""
    size = 32 << 20
    with closing(connect()) as connection:
        connection.sendall(upload(10, f"X-Do: answer {size}"))
        assert select.select([connection], [], [], ANSWER_TIME)[0]
        assert not producers.answered.wait(0.5)
        answer = take(connection)
    assert (answer.status, len(answer.body)) == (200, size)
    assert producers.answered.wait(ANSWER_TIME)


@contextmanager
def vanished(producers: Producers, address: str) -> Iterator[None]:
    """A producer's host that answers no packet: a queue of connections that is full does the same."""
    producers.end(address)
    with closing(socket.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, PRODUCER_PORT))
        listener.listen(0)
        queued = []
        while True:
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex((address, PRODUCER_PORT))
            queued.append(connection)
            if not select.select([], [connection], [], 0.2)[1]:
                break
        yield
        for connection in queued:
            connection.close()
    producers.begin(address)


def test_a_host_that_vanished_costs_a_third_of_a_second(nginx: Nginx, producers: Producers) -> None:
    """Every upload is answered 200 by another producer, none after a second or more."""
    took = []
    with vanished(producers, ADDRESSES[2]):
        for _ in range(9):
            begun = time.monotonic()
            assert ask(upload(10, "Connection: close")).status == 200
            took.append(time.monotonic() - begun)
    print(f"slowest of 9 with one of three producers' hosts gone: {max(took):.2f} s")
    assert 0.25 < max(took) < 1.0


class Client:
    """A client of many, in the event loop."""

    def __init__(self, address: str, server: tuple[str, int] = NGINX) -> None:
        self._address, self._server = address, server

    async def __aenter__(self) -> Client:
        self._reader, self.writer = await asyncio.open_connection(*self._server, local_addr=(self._address, 0))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def send(self, data: bytes) -> None:
        """Send as much as nginx takes; it may have closed the connection."""
        self.writer.write(data)
        with suppress(ConnectionError):
            await self.writer.drain()

    async def answer(self) -> Answer:
        """The next answer; status 0 when the connection was closed without one."""
        try:
            async with asyncio.timeout(ANSWER_TIME):
                head = await self._reader.readuntil(b"\r\n\r\n")
                return parsed(head + await self._reader.readexactly(int(parsed(head).headers["content-length"])))
        except (asyncio.IncompleteReadError, ConnectionError):
            return Answer(0, {}, b"")


def address_of(number: int) -> str:
    """An address that a hundred clients share: fewer than `nginx_address_requests` allows."""
    return f"127.0.31.{100 + number // 100}"


def test_a_thousand_bodies_leave_room_for_a_hundred_vehicles(nginx: Nginx) -> None:
    """500 uploads wait for producers that do not answer, 500 are half sent; whole ones of vehicles are taken all the same."""
    counted: Counter[str] = Counter()
    times: list[float] = []
    full = asyncio.Event()

    async def hold(number: int, data: bytes, kind: str) -> None:
        async with Client(address_of(number)) as client:
            await client.send(data)
            answer = await client.answer()
        counted[f"{kind}: {answer.status or 'closed'}"] += 1
        full.set()
        if answer.status:
            assert answer.headers["content-type"] == "application/json"
            assert (answer.status, answer.error) in ((503, "busy"), (504, "timeout"))
            assert answer.status == 504 or answer.headers["retry-after"] == "1"

    async def drive() -> None:
        async with Client("127.0.31.99") as client:
            for _ in range(10):
                begun = time.monotonic()
                # An upload of 50 records
                await client.send(upload(6400))
                assert (await client.answer()).status == 200
                times.append(time.monotonic() - begun)

    async def run() -> None:
        waiting = [hold(number, upload(65_536, "X-Do: wait 60"), "waiting") for number in range(500)]
        half = [hold(number, upload(MAX_BODY, sent=MAX_BODY // 2), "half sent") for number in range(500, 1000)]
        tasks = [asyncio.create_task(each) for each in waiting + half]
        await full.wait()
        await asyncio.gather(*(drive() for _ in range(100)))
        await asyncio.gather(*tasks)

    asyncio.run(run())
    peak = nginx.memory_peak()
    print(f"nginx held {peak >> 20} MiB at most, of {nginx.limit >> 20}; {dict(sorted(counted.items()))};")
    print(f"100 vehicles with 10 uploads each: p99 {sorted(times)[989] * 1000:.0f} ms")
    assert len(times) == 1000
    assert peak < 0.9 * nginx.limit
    assert nginx.memory_kills() == 0
    assert sum(counted.values()) == 1000
    # /tmp was full, and what it held went when it stalled or no producer answered
    assert {"waiting: 504", "half sent: 503", "half sent: closed"} <= set(counted)


def test_all_that_clients_can_take_of_its_memory_fits(nginx: Nginx) -> None:
    """/tmp is full, and nearly all connections have large headers and a full buffer; beyond, nginx closes those that are idle."""
    headers = [f"X-{n}: {'a' * 7500}" for n in range(2)]
    held = asyncio.Semaphore(0)

    async def hold(number: int) -> None:
        async with Client(address_of(number)) as client:
            sent = MAX_BODY - 1 if number < 300 else 8000
            await client.send(request("POST /events", f"Content-Length: {MAX_BODY}", *headers, body=b"x" * sent))
            held.release()
            await client.answer()

    async def run() -> None:
        tasks = [asyncio.create_task(hold(number)) for number in range(3700)]
        for _ in tasks:
            await held.acquire()
        async with Client("127.0.31.99") as client:
            for _ in range(20):
                await client.send(upload(6400))
                assert (await client.answer()).status == 200
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    peak = nginx.memory_peak()
    print(f"nginx held {peak >> 20} MiB at most, of {nginx.limit >> 20}")
    assert peak < 0.9 * nginx.limit
    assert nginx.memory_kills() == 0


def test_idle_connections_give_way(nginx: Nginx) -> None:
    """One address that asks for a page on each of more connections than there can be does not close the entrance."""

    async def run() -> None:
        async with AsyncExitStack() as stack:
            for _ in range(4200):
                client = await stack.enter_async_context(Client("127.0.31.98"))
                await client.send(request("GET /healthz"))
                assert (await client.answer()).status == 200
            async with Client("127.0.31.99") as vehicle:
                await vehicle.send(upload(6400))
                assert (await vehicle.answer()).status == 200

    asyncio.run(run())


@contextmanager
def clients(number: int, client: str) -> Iterator[list[socket.socket]]:
    """Connections to the nginx with small bounds."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(connect(SMALL, client))) for _ in range(number)]


def test_an_address_has_a_bound_of_requests_under_way(small: Nginx) -> None:
    """Beyond it the answer is 429; others, and networks that stand for many clients, have their own way."""
    with clients(4, "127.0.31.1") as held:
        for connection in held:
            connection.sendall(upload(10, "X-Do: wait 5"))
        deadline = time.monotonic() + ANSWER_TIME
        while (refused := ask(upload(10), SMALL)).status == 200:
            assert time.monotonic() < deadline
        assert (refused.status, refused.error) == (429, "too_many_requests")
        assert refused.headers["content-type"] == "application/json"
        assert refused.headers["retry-after"] == "1"
        assert ask(upload(10), SMALL, "127.0.31.2").status == 200
    for balancer in ("127.0.31.50", "127.0.31.100"):
        with clients(8, balancer) as many:
            for connection in many:
                connection.sendall(upload(10, "X-Do: wait 0.2"))
            assert [take(connection).status for connection in many] == [200] * 8


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_whole_body_has_a_bound_of_time(small: Nginx, size: int) -> None:
    """A byte now and then keeps a connection no longer than that; it is closed without an answer."""
    with closing(connect(SMALL, "127.0.31.3")) as connection:
        connection.sendall(upload(size, sent=1))
        begun = time.monotonic()
        while not select.select([connection], [], [], 0.1)[0]:
            connection.sendall(b"x")
            assert time.monotonic() - begun < ANSWER_TIME
        assert take(connection).body == b""
        assert time.monotonic() - begun > 0.9
    # One that comes in parts, but in time, is taken
    with closing(connect(SMALL, "127.0.31.3")) as connection:
        connection.sendall(upload(size, sent=1))
        assert select.select([connection], [], [], 0.1)[0] == []
        connection.sendall(b"x" * (size - 1))
        assert take(connection).status == 200


def test_the_log_tells_of_no_fault_of_ours(nginx: Nginx, small: Nginx) -> None:
    """After all of the above: no process ended, nothing of Lua failed, no limit of files is missed."""
    for each in (nginx, small):
        log = each.log()
        assert not [line for line in log.splitlines() if "[alert]" in line or "[emerg]" in line or "lua" in line]


def test_role_container_gives_the_folder_that_these_tests_give() -> None:
    tasks: list[dict[str, Any]] = yaml.safe_load((ROOT / "roles/container/tasks/container.yml").read_text())
    assert f"['{TMP}']" in tasks[0]["community.docker.docker_container"]["tmpfs"]
