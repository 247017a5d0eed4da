"""Alive, ready, version, metrics: the same four routes for every service.

Alive means that the process runs. Ready means that it can do its work now; while it cannot, reasons say why. What works in
part is `degraded`, and still ready.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from enum import StrEnum
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import bottle
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from telemetry.metrics import ServiceMetrics

log = logging.getLogger(__name__)


class Reason(StrEnum):
    """Why a service is not ready, or works in part only: the key under which the cause is told and cleared."""

    START = "start"
    """It is still starting."""
    END = "end"
    """It was asked to end."""
    KAFKA = "kafka"
    """No broker can be reached, or the topic is not there."""
    CLIENT = "client"
    """The Kafka client ended in an error, or is stuck."""
    TOPIC = "topic"
    """The live topic is weaker than the promise."""
    PARTITIONS = "partitions"
    """Partitions have too few replicas in sync."""
    PUBLISH = "publish"
    """Kafka does not confirm uploads."""
    QUEUE = "queue"
    """Uploads are refused, because too many wait for Kafka."""
    GROUP = "group"
    """The consumer group has not handed out partitions."""
    POSTGRES = "postgres"
    """Nothing can be written."""
    STOPPED = "stopped"
    """A partition must not be read on; one for each, see `of`."""
    LEADER = "leader"
    """The leader of a partition does not answer; one for each, see `of`."""
    CLOCK = "clock"
    """This host's clock is far from the database's, or shows a time that no record may have."""
    UNREAD = "unread"
    """What is unread is so old that Kafka may delete it; one for each partition, see `of`."""
    MEMBERS = "members"
    """Others than consumers are members of the consumer group."""
    RETENTION = "retention"
    """Old days are not dropped."""
    DELIVERY = "delivery"
    """Uploads are not acknowledged."""
    REFUSED = "refused"
    """Uploads of vehicles are refused, and will be if they are sent again."""
    HALVED = "halved"
    """Uploads of vehicles are refused as too large."""
    REJECTED = "rejected"
    """Records were rejected, and are set aside."""
    SPOOL = "spool"
    """The spool cannot be written."""
    DROPPED = "dropped"
    """The spool is at its bound."""
    FLEET = "fleet"
    """The fleet file cannot be used."""

    def of(self, what: object) -> str:
        """The key for one of several."""
        return f"{self} {what}"


class Health:
    """A service's state, told by any thread and read by the routes."""

    def __init__(self, service: str, name: str, version: str) -> None:
        self.service, self.name, self.version = service, name, version
        self.registry = CollectorRegistry()
        self.live: dict[str, str] = {}
        """SHA-256 of each live file in force, by name."""
        self._reasons: dict[str, str] = {Reason.START: "starting"}
        self._degraded: dict[str, str] = {}
        self._lock = threading.Lock()
        metrics = ServiceMetrics(self.registry)
        metrics.ready.set_function(lambda: not self._reasons)
        metrics.info.labels(service, name, version).set(1)

    def set_reason(self, key: str, text: str) -> None:
        """Not ready, because of text; key names the cause, so that it can be cleared."""
        with self._lock:
            known = self._reasons.get(key)
            self._reasons[key] = text
        if known != text:
            log.warning("not ready: %s", text)

    def clear(self, key: str) -> None:
        """The cause is gone."""
        with self._lock:
            known = self._reasons.pop(key, None)
            last = not self._reasons
        if known is not None:
            log.info("no longer: %s%s", known, "; ready" if last else "")

    def set_degraded(self, key: str, text: str | None) -> None:
        """Something works in part only; None when it is whole again."""
        with self._lock:
            if text is None:
                self._degraded.pop(key, None)
            else:
                self._degraded[key] = text

    def readiness(self) -> dict[str, Any]:
        """The body of /readyz."""
        with self._lock:
            return {
                "ready": not self._reasons,
                "reasons": sorted(self._reasons.values()),
                "degraded": sorted(self._degraded.values()),
            }


def as_json(status: int, body: Any) -> bottle.HTTPResponse:
    """An answer as JSON."""
    return bottle.HTTPResponse(json.dumps(body) + "\n", status, {"Content-Type": "application/json"})


def type_and_place(error: BaseException) -> str:
    """What may be told of an error of ours: neither its text, which may hold anything, nor a stack."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    return type(error).__name__ + "".join(f" at {frame.filename}:{frame.lineno}" for frame in place)


class App(bottle.Bottle):  # type: ignore[misc]  # Bottle has no types
    """A Bottle app that shows an error of ours to nobody: the log has a line, the answer is JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.config["catchall"] = False

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """See WSGI."""
        try:
            answer: Iterable[bytes] = self.wsgi(environ, start_response)
        except Exception as error:
            log.error("%s %.100r: %s", environ["REQUEST_METHOD"], environ["PATH_INFO"], type_and_place(error))
            start_response("500 Internal Server Error", [("Content-Type", "application/json")])
            return [json.dumps(INTERNAL).encode() + b"\n"]
        return answer


INTERNAL = {"error": "internal", "message": "An error that is ours; the log of this service names it."}


def make_app(health: Health) -> bottle.Bottle:
    """The four routes, and JSON in place of Bottle's pages for what goes wrong."""
    app = App()

    def healthz() -> bottle.HTTPResponse:
        return bottle.HTTPResponse("ok\n", 200, {"Content-Type": "text/plain"})

    def readyz() -> bottle.HTTPResponse:
        body = health.readiness()
        return as_json(200 if body["ready"] else 503, body)

    def version() -> bottle.HTTPResponse:
        body = {"service": health.service, "name": health.name, "version": health.version, "live": health.live}
        return as_json(200, body)

    def metrics() -> bottle.HTTPResponse:
        return bottle.HTTPResponse(generate_latest(health.registry), 200, {"Content-Type": CONTENT_TYPE_LATEST})

    def error(answer: bottle.HTTPError) -> str:
        bottle.response.content_type = "application/json"
        known = {
            404: ("not_found", "There is nothing here. Uploads go to POST /events."),
            405: ("method_not_allowed", "This path does not take this method."),
        }
        word, message = known.get(answer.status_code, ("bad_request", "This request cannot be read."))
        return json.dumps({"error": word, "message": message}) + "\n"

    for path, handler in (("/healthz", healthz), ("/readyz", readyz), ("/version", version), ("/metrics", metrics)):
        app.route(path, "GET", handler)
    app.default_error_handler = error
    return app


MAX_THREADS = 16
"""Questions that are answered at once. Further connections are closed, so that a flood does not use up the process's threads."""
REQUEST_TIMEOUT = 5.0
"""Seconds that a whole question and its answer may take."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64
    request_timeout = REQUEST_TIMEOUT

    def __init__(self, *arguments: Any) -> None:
        self._begun: dict[socket.socket, float] = {}
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._begun) >= MAX_THREADS:
            self.shutdown_request(request)
            return
        self._begun[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Called twice a second: end what takes too long, however it drips."""
        now = time.monotonic()
        for request, begun in list(self._begun.items()):
            if now - begun > self.request_timeout:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        self._begun.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Probes that reset a connection are nobody's error; of others the log has a line."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            log.error("the health server: %s", type_and_place(error))


class _Quiet(WSGIRequestHandler):
    error_content_type = "application/json"
    error_message_format = '{"error": "bad_request", "message": "This request cannot be read."}\n'

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a probe a second would fill the log."""


def serve(app: Callable[..., Any], host: str, port: int) -> WSGIServer:
    """Serve a health app in a thread of its own; for services that are not HTTP servers otherwise.

    Raises OSError when the address is taken.
    """
    server = make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
