"""The producer's answers: through the app and the adapter, without a socket and without Kafka."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import re
from typing import Any

import pytest
from kafka.errors import MessageSizeTooLargeError, NotEnoughReplicasError
from telemetry.health import Health
from telemetry.producer import asgi
from telemetry.producer.app import make_app
from telemetry.producer.asgi import Adapter
from telemetry.producer.publisher import FakePublisher
from telemetry.record import MAX_BODY, Record, Refused, Upload, decode

VIN = "1M8GDM9AXKP042788"
READING = {"seq": 1, "timestamp": 1.5, "position_x": 0, "position_y": 1, "position_z": -2.5, "speed": 3}
UPLOAD = {"vin": VIN, "epoch": 5, "make": "Ford", "model": "F-150", "records": [READING]}
FORM = "timestamp=1.5&vin=ABCDEFGHIJKLMNOPQ&make=Ford&model=F-150&position_x=1&position_y=2&position_z=3&speed=4.5"
JSON_TYPE, FORM_TYPE = "application/json", "application/x-www-form-urlencoded"


class Answer:
    """What the adapter sent."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        start, *rest = messages
        self.status: int = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.text = b"".join(message["body"] for message in rest).decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Service:
    """A producer without its server."""

    def __init__(self, **limits: Any) -> None:
        self.health = Health("producer", "node1", "1")
        self.publisher = FakePublisher(self.health)
        self.adapter = Adapter(make_app(self.publisher, self.health), self.publisher.note_refused, **limits)

    async def request(
        self, method: str, path: str, body: bytes | list[bytes] = b"", content_type: str | None = None, **more: str
    ) -> Answer:
        chunks = body if isinstance(body, list) else [body]
        incoming = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        incoming[-1]["more_body"] = False
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return incoming.pop(0)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"content-type", content_type.encode())] if content_type else []
        headers += [(name.replace("_", "-").encode(), value.encode()) for name, value in more.items()]
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
        await self.adapter(scope, receive, send)
        return Answer(sent)

    def ask(self, *arguments: Any, **more: Any) -> Answer:
        return asyncio.run(self.request(*arguments, **more))

    def post(self, document: Any, content_type: str = JSON_TYPE) -> Answer:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.ask("POST", "/events", body, content_type)


@pytest.fixture
def service() -> Service:
    return Service()


def test_an_upload_is_published_by_its_vin_and_acknowledged(service: Service) -> None:
    body = json.dumps(UPLOAD | {"gaps": [{"from_seq": 2, "to_seq": 4, "reason": "x"}]}).encode()
    answer = service.post(body)
    assert answer.status == 200
    assert answer.json == {"vin": VIN, "epoch": 5, "acked_through": 4, "records": 1}
    assert service.publisher.published == [(VIN.encode(), body)]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.text))


def test_a_form_becomes_an_upload_of_epoch_0(service: Service) -> None:
    answer = service.post(FORM.encode(), FORM_TYPE + "; charset=utf-8")
    assert answer.json == {"vin": "ABCDEFGHIJKLMNOPQ", "epoch": 0, "acked_through": 1_500_000, "records": 1}
    [(key, value)] = service.publisher.published
    assert key == b"ABCDEFGHIJKLMNOPQ"
    assert decode(value).epoch == 0


def test_a_body_may_come_in_pieces(service: Service) -> None:
    body = json.dumps(UPLOAD).encode()
    answer = service.ask("POST", "/events", [body[:10], body[10:]], JSON_TYPE)
    assert answer.status == 200


def test_nothing_is_acknowledged_before_the_promise_is_kept() -> None:
    async def scenario() -> None:
        service = Service()
        kept: asyncio.Future[Refused | None] = asyncio.get_running_loop().create_future()
        service.publisher.publish = lambda key, value: kept  # type: ignore[method-assign]  # stands in for the method
        task = asyncio.create_task(service.request("POST", "/events", json.dumps(UPLOAD).encode(), JSON_TYPE))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()
        kept.set_result(None)
        assert (await task).status == 200

    asyncio.run(scenario())


def test_what_kafka_refuses_is_answered_so(service: Service) -> None:
    service.publisher.answer = lambda value: NotEnoughReplicasError()
    answer = service.post(UPLOAD)
    assert (answer.status, answer.json["error"], answer.headers["retry-after"]) == (503, "unavailable", "1")
    service.publisher.answer = lambda value: MessageSizeTooLargeError()
    answer = service.post(UPLOAD)
    assert (answer.status, answer.json["error"], answer.headers["retry-after"]) == (503, "unavailable", "1")
    assert "max.message.bytes" in answer.json["message"]
    assert 'telemetry_uploads_total{error="unavailable",status="503"} 2.0' in service.ask("GET", "/metrics").text


def test_a_full_queue_and_a_draining_producer_are_503(service: Service) -> None:
    service.publisher._queue_uploads = 0
    assert service.post(UPLOAD).status == 503
    service.publisher._queue_uploads = 1
    service.publisher.drain()
    answer = service.post(UPLOAD)
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    assert set(answer.json) == {"error", "message"}


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", JSON_TYPE, 400),
        (b"", FORM_TYPE, 400),
        (b"x", "text/plain", 415),
        (b"x", "", 415),
        (b"x" * (MAX_BODY + 1), JSON_TYPE, 413),
        (json.dumps(UPLOAD | {"records": [READING | {"speed": -1}]}).encode(), JSON_TYPE, 422),
        (json.dumps(UPLOAD | {"vin": "'; DROP TABLE diag"}).encode(), JSON_TYPE, 400),
    ],
)
def test_bad_input_gets_a_reason_and_is_not_published(service: Service, body: bytes, content_type: str, status: int) -> None:
    answer = service.post(body, content_type)
    assert answer.status == status
    assert answer.json["error"]
    assert answer.json["message"]
    assert service.publisher.published == []


def test_events_served_counts_acknowledged_records(service: Service) -> None:
    service.post(UPLOAD | {"records": [READING, READING | {"seq": 2}]})
    service.post(b"{}")
    answer = service.ask("GET", "/events")
    assert answer.status == 200
    assert "Welcome" in answer.text
    assert "Events served: 2" in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/events", 405), ("DELETE", "/healthz", 405)]
)
def test_other_requests_are_refused_in_json(service: Service, method: str, path: str, status: int) -> None:
    answer = service.ask(method, path)
    assert answer.status == status
    assert set(answer.json) == {"error", "message"}


def test_an_error_of_ours_shows_no_stack_trace_to_anybody(
    service: Service, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(key: bytes, value: bytes) -> None:
        raise RuntimeError("secret detail")

    service.publisher.publish = fail  # type: ignore[method-assign, assignment]  # stands in for the method
    answer = service.post(UPLOAD)
    assert answer.status == 500
    assert set(answer.json) == {"error", "message"}
    assert "secret" not in answer.text + caplog.text
    assert capfd.readouterr().err == ""
    [line] = caplog.messages
    assert re.fullmatch(r"POST '/events': RuntimeError at .*test_producer\.py:\d+", line)


@pytest.mark.parametrize(("coding", "status"), [("gzip", 415), ("identity, br", 415), ("Identity", 200), ("", 200)])
def test_a_body_is_not_decoded(service: Service, coding: str, status: int) -> None:
    body = json.dumps(UPLOAD).encode()
    answer = service.ask("POST", "/events", body, JSON_TYPE, content_encoding=coding)
    assert answer.status == status
    assert (answer.json.get("error") == "unsupported_encoding") == (status == 415)
    assert len(service.publisher.published) == (status == 200)


def test_an_upload_that_waits_is_held_by_nobody_but_the_publisher() -> None:
    # What other tests left; held here, so that none of their ids is given to another object
    before = gc.get_objects()
    there = {id(each) for each in before}

    async def scenario() -> None:
        service = Service()
        kept: asyncio.Future[Refused | None] = asyncio.get_running_loop().create_future()
        service.publisher.publish = lambda key, value: kept  # type: ignore[method-assign]  # stands in for the method
        body = json.dumps(UPLOAD).encode()
        task = asyncio.create_task(service.request("POST", "/events", bytes(body), JSON_TYPE))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        # What the next request leaves in Bottle's thread-local request is its own
        await service.request("GET", "/healthz")
        gc.collect()
        made = [each for each in gc.get_objects() if id(each) not in there]
        held: list[object] = [each for each in made if isinstance(each, (Upload, Record))]
        held += [each for each in made if isinstance(each, io.BytesIO) and not each.closed and each.getvalue() == body]
        environs = [each for each in made if isinstance(each, dict) and each.get("PATH_INFO") == "/events"]
        assert (held, environs) == ([], [])
        kept.set_result(None)
        assert (await task).status == 200

    asyncio.run(scenario())


class Incoming:
    """Requests whose bodies come piece by piece, and perhaps never whole."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.rest = asyncio.Event()

    async def post(self, size: int) -> int:
        """Send so many bytes, and the end when `rest` is set; the answer's status."""
        pieces = [{"type": "http.request", "body": b"x" * size, "more_body": True}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if pieces:
                return pieces.pop()
            await self.rest.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"content-type", JSON_TYPE.encode())]
        scope = {"type": "http", "method": "POST", "path": "/events", "query_string": b"", "headers": headers}
        await self.adapter(scope, receive, send)
        return int(sent[0]["status"])


def test_bodies_on_their_way_in_are_bounded() -> None:
    async def scenario() -> None:
        service = Service(max_reading=100)
        incoming = Incoming(service.adapter)
        first = asyncio.create_task(incoming.post(60))
        await asyncio.sleep(0)
        assert service.health.readiness()["degraded"] == []
        assert await incoming.post(60) == 503
        assert "too many wait" in service.health.readiness()["degraded"][0]
        incoming.rest.set()
        assert await first == 400
        assert await incoming.post(60) == 400

    asyncio.run(scenario())


def test_a_body_that_never_ends_is_given_up() -> None:
    async def scenario() -> None:
        incoming = Incoming(Service(body_timeout=0.0).adapter)
        assert await incoming.post(60) == 408
        assert incoming.adapter._reading == 0

    asyncio.run(scenario())


def test_alive_ready_version_and_metrics(service: Service) -> None:
    assert service.ask("GET", "/healthz").status == 200
    assert service.ask("GET", "/readyz").json == {"ready": False, "reasons": ["starting"], "degraded": []}
    service.health.clear("start")
    service.health.set_degraded("p", "partition 1")
    answer = service.ask("GET", "/readyz")
    assert (answer.status, answer.json["degraded"]) == (200, ["partition 1"])
    service.health.set_reason("kafka", "gone")
    assert (service.ask("GET", "/readyz").status, service.ask("GET", "/readyz").json["reasons"]) == (503, ["gone"])
    assert service.ask("GET", "/version").json == {"service": "producer", "name": "node1", "version": "1", "live": {}}
    service.post(UPLOAD)
    assert "telemetry_records_total 1.0" in service.ask("GET", "/metrics").text


def test_the_environ_carries_what_a_wsgi_app_expects() -> None:
    scope = {
        "method": "GET",
        "path": "/ä b",
        "query_string": b"a=1",
        "headers": [(b"content-type", b"x/y"), (b"x-one", b"1")],
        "server": ("h", 1),
    }
    environ = asgi.make_environ(scope, b"body")
    assert environ["PATH_INFO"].encode("latin-1").decode() == "/ä b"
    assert (environ["QUERY_STRING"], environ["CONTENT_TYPE"], environ["HTTP_X_ONE"]) == ("a=1", "x/y", "1")
    assert (environ["CONTENT_LENGTH"], environ["wsgi.input"].read()) == ("4", b"body")
